"""Secrets of the node: from the environment, or in development made once and kept in the data folder."""

import os
import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured

from k1node.lib.env import env_str

SHORTEST = 32
# What examples and templates have in place of a secret, without its punctuation.
PLACEHOLDERS = (
    "yoursecret",
    "yourjwtsecret",
    "changeme",
    "changethis",
    "replaceme",
    "placeholder",
    "secretkey",
    "stringsecret",
    "atleast256bit",
    "example",
)
FEWEST_CHARACTERS = 8  # different ones; 32 random hexadecimal digits have about 14


def required(
    name: str, folder: Path, *, production: bool, make: Callable[[], str] = lambda: secrets.token_urlsafe(48)
) -> str:
    """Return the secret `name`; in development `make` it into `folder`/<name>, readable by its owner only.

    Raises ImproperlyConfigured in production when the environment does not give it, or one that is short.
    """
    value = env_str(name)
    if production and 0 < len(value) < SHORTEST:
        raise ImproperlyConfigured(f"{name} must have at least {SHORTEST} characters: sessions and tokens rest on it.")
    if value:
        return value
    if production:
        raise ImproperlyConfigured(f"{name} must be set when NODE_ENV=production or DB_HOST names a PostgreSQL.")
    path = folder / f".{name.lower()}"
    if not path.exists():
        # Written elsewhere and linked into place: a process starting at the same moment never reads half a secret.
        draft = folder / f".{name.lower()}.{os.getpid()}"
        draft.touch(mode=0o600)
        draft.write_text(make())
        with suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
    return path.read_text().strip()


def weakness(value: str, *, others: Mapping[str, str]) -> str:
    """Return what is wrong with `value` as a key that tokens are signed with, as the end of a sentence; "" if nothing.

    `others` are secrets for other purposes by their names: one that leaks must not open what another one guards.
    """
    plain = re.sub(r"[^a-z0-9]", "", value.lower())
    if len(value.encode()) < SHORTEST:
        return f"must have at least {SHORTEST} characters"
    if any(word in plain for word in PLACEHOLDERS):
        return "must be a secret, not the placeholder of an example"
    # A text that is a shorter one again and again turns up in its own double before its end.
    if len(set(value)) < FEWEST_CHARACTERS or (value + value).find(value, 1) < len(value):
        return "must be random, not one text again and again"
    for name, other in others.items():
        if value == other:
            return f"must not be the same as {name}"
    return ""


def check_signing_key(name: str, value: str, *, others: Mapping[str, str]) -> None:
    """Raise ImproperlyConfigured if tokens should not be signed with `value`."""
    if wrong := weakness(value, others=others):
        raise ImproperlyConfigured(
            f"{name} {wrong}: whoever guesses it makes tokens of their own. Make one with `openssl rand -base64 48`."
        )
