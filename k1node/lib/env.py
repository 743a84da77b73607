"""Small loud readers of the environment: nonsense stops the start, nothing is guessed."""

import os
from datetime import date

from django.core.exceptions import ImproperlyConfigured

TRUE = {"1", "true", "yes", "on"}
FALSE = {"0", "false", "no", "off"}


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
