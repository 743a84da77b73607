"""Small loud readers of the environment: nonsense stops the start, nothing is guessed."""

import os
import re
from datetime import date, timedelta
from ipaddress import IPv4Network, IPv6Network, ip_network

from django.core.exceptions import ImproperlyConfigured

TRUE = {"1", "true", "yes", "on"}
FALSE = {"0", "false", "no", "off"}
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
DURATION = re.compile(r"([0-9]{1,9})([smhd])")


def env_str(name: str, default: str = "") -> str:
    return os.environ.get(name, "").strip() or default


def env_int(name: str, default: int, *, low: int = 0, high: int | None = None) -> int:
    """Return the whole number in `name`; raise ImproperlyConfigured unless low <= it <= high."""
    text = env_str(name)
    if not text:
        return default
    try:
        value = int(text)
    except ValueError:
        raise ImproperlyConfigured(f"{name} must be a whole number, not {text!r}.") from None
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ImproperlyConfigured(f"{name} must be {bounds}, not {value}.")
    return value


def env_bool(name: str, default: bool) -> bool:
    text = env_str(name)
    if not text:
        return default
    if text.lower() in TRUE:
        return True
    if text.lower() in FALSE:
        return False
    raise ImproperlyConfigured(f"{name} must be one of {sorted(TRUE | FALSE)}, not {text!r}.")


def env_date(name: str) -> date | None:
    """Return the day in `name`, written 2027-05-31; None if it is not set."""
    text = env_str(name)
    if not text:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ImproperlyConfigured(f"{name} must be a date such as 2027-05-31, not {text!r}.") from None


def env_choice(name: str, default: str, choices: tuple[str, ...]) -> str:
    text = env_str(name, default)
    if text not in choices:
        raise ImproperlyConfigured(f"{name} must be one of {', '.join(choices)}, not {text!r}.")
    return text


def env_list(name: str, default: str = "") -> list[str]:
    """Return the comma-separated words in `name`, without blanks."""
    return [word.strip() for word in env_str(name, default).split(",") if word.strip()]


def env_networks(name: str) -> list[IPv4Network | IPv6Network]:
    """Return the comma-separated networks in `name`; raise ImproperlyConfigured for what is none."""
    networks = []
    for word in env_list(name):
        try:
            networks.append(ip_network(word))
        except ValueError as error:
            raise ImproperlyConfigured(f"{name} must name networks such as 10.0.0.0/8: {error}.") from None
    return networks


def env_duration(name: str, default: timedelta, *, low: timedelta, high: timedelta) -> timedelta:
    """Return the length of time in `name`: 90s, 30m, 24h or 7d; raise ImproperlyConfigured unless low <= it <= high."""
    text = env_str(name)
    if not text:
        return default
    value = read_duration(text)
    if value is None:
        raise ImproperlyConfigured(f"{name} must be a length of time such as 90s, 30m, 24h or 7d, not {text!r}.")
    if not low <= value <= high:
        raise ImproperlyConfigured(f"{name} must be from {_words(low)} to {_words(high)}, not {text}.")
    return value


def read_duration(text: str) -> timedelta | None:
    """Return the length of time that `text` writes as a number with its unit; None if it writes none."""
    parts = DURATION.fullmatch(text.strip())
    try:
        return timedelta(**{UNITS[parts[2]]: int(parts[1])}) if parts else None
    except OverflowError:
        return None


def _words(length: timedelta) -> str:
    seconds = int(length.total_seconds())
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size and not seconds % size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
