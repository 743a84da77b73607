"""Secrets of the node: from the environment, or in development made once and kept in the data folder."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured

from k1node.lib.env import env_str

SHORTEST = 32


def required(name: str, folder: Path, *, production: bool) -> str:
    """Return the secret `name`; in development generate it into `folder`/<name>, readable by its owner only.

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
        draft.write_text(secrets.token_urlsafe(48))
        with suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
    return path.read_text().strip()
