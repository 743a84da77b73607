"""Secrets that must be read again, encrypted at rest: with the first key of K1NODE_KEYRING, readable with any of them.

Each text is bound to the place it belongs to ("webhook wh-… secret"): what is copied to another row does not open
there. Fernet has no data beside the text that it vouches for, so the place is part of the text.

A key is rotated by putting a new one in front, `manage.py rotate_secrets`, and taking the old one away after that.
"""

from collections.abc import Sequence
from functools import lru_cache

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from k1node.lib.errors import K1NodeError


class SecretUnreadable(K1NodeError):
    """A stored secret cannot be read with the keys of K1NODE_KEYRING"""


def new_key() -> str:
    return Fernet.generate_key().decode()


def check(keys: Sequence[str]) -> None:
    """Raise ImproperlyConfigured unless every one of `keys` can be used, and there is one."""
    if not keys:
        raise ImproperlyConfigured("K1NODE_KEYRING must name at least one key.")
    for number, key in enumerate(keys, 1):
        try:
            Fernet(key)
        except ValueError:
            raise ImproperlyConfigured(
                f"Key {number} of K1NODE_KEYRING is not a key: each is 32 random bytes in URL-safe base64, with a comma"
                " between two. Make one with `openssl rand -base64 32 | tr +/ -_`."
            ) from None
    if len(set(keys)) < len(keys):
        raise ImproperlyConfigured("K1NODE_KEYRING names a key twice.")


def seal(text: str, place: str) -> str:
    """Return `text` encrypted for `place`."""
    return _fernets(tuple(settings.K1NODE_KEYRING))[0].encrypt(f"{place}\n{text}".encode()).decode()


def unseal(sealed: str, place: str) -> str:
    """Return what seal() was given. Raises SecretUnreadable, also for what was sealed for another place."""
    fernets = _fernets(tuple(settings.K1NODE_KEYRING))
    try:
        found, _, text = MultiFernet(fernets).decrypt(sealed).decode().partition("\n")
    except (InvalidToken, ValueError):
        raise SecretUnreadable(f"{place} cannot be read with the keys of K1NODE_KEYRING") from None
    if found != place:
        raise SecretUnreadable(f"{place} holds what was encrypted for another place")
    return text


def is_under_first_key(sealed: str) -> bool:
    """Say whether the key it was sealed with is the first one."""
    try:
        _fernets(tuple(settings.K1NODE_KEYRING))[0].decrypt(sealed)
    except (InvalidToken, ValueError):
        return False
    return True


@lru_cache(maxsize=4)
def _fernets(keys: tuple[str, ...]) -> list[Fernet]:
    return [Fernet(key) for key in keys]
