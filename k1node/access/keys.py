"""API keys: made once, shown once, kept as a digest.

A key is `sk-k1n_`, 40 random characters and a checksum of them, so that a mistyped or invented key costs no query and
a scanner can recognise a leaked one. A fast hash is enough for the digest: 238 random bits cannot be guessed.
"""

import hashlib
import logging
import re
import secrets
import string
import zlib
from collections.abc import Iterable
from datetime import datetime, timedelta

from django.db import OperationalError
from django.db.models import Q
from django.utils import timezone

from k1node.access.models import ApiKey
from k1node.access.scopes import ALL_SCOPES
from k1node.lib.errors import Detail, InvalidRequest

logger = logging.getLogger(__name__)

PREFIX = "sk-k1n_"
BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
RANDOM_LENGTH = 40
CHECKSUM_LENGTH = 6
SHAPE = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{RANDOM_LENGTH + CHECKSUM_LENGTH}}}")
LAST_USED_EVERY = timedelta(minutes=1)


class KeyInvalid(InvalidRequest):
    """An API key cannot be made from this"""


def issue(
    name: str,
    scopes: Iterable[str],
    *,
    requests_per_hour: int | None = None,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """Return a new key's row and its text, which is not kept anywhere. Raises KeyInvalid."""
    wanted = sorted(set(scopes))
    _check(name, wanted, requests_per_hour)
    body = "".join(secrets.choice(BASE62) for _ in range(RANDOM_LENGTH))
    text = f"{PREFIX}{body}{checksum(body)}"
    key = ApiKey.objects.create(
        name=name.strip(),
        digest=digest(text),
        hint=text[-4:],
        scopes=wanted,
        requests_per_hour=requests_per_hour,
        expires_at=expires_at,
    )
    logger.info("API key issued", extra={"key": key.name, "key_id": key.pk, "scopes": wanted})
    return key, text


def verify(text: str, *, now: datetime | None = None) -> ApiKey | None:
    """Return the key `text` is, if it may be used now; one query, and once a minute a note that it was used."""
    return examine(text, now=now)[0]


def examine(text: str, *, now: datetime | None = None) -> tuple[ApiKey | None, str]:
    """Return the usable key, or None and the reason in words for the log."""
    if not is_wellformed(text):
        return None, "malformed key"
    now = now or timezone.now()
    key = ApiKey.objects.filter(digest=digest(text)).first()
    if key is None:
        return None, "unknown key"
    if key.revoked_at is not None:
        return None, f"revoked key {key}"
    if key.expires_at is not None and key.expires_at <= now:
        return None, f"expired key {key}"
    _note_use(key, now)
    return key, ""


def revoke(key: ApiKey, *, now: datetime | None = None) -> bool:
    """End the key at once and for good; False if that was done before."""
    now = now or timezone.now()
    changed = ApiKey.objects.filter(pk=key.pk, revoked_at__isnull=True).update(revoked_at=now)
    if changed:
        key.revoked_at = now
        logger.info("API key revoked", extra={"key": key.name, "key_id": key.pk})
    return bool(changed)


def is_wellformed(text: str) -> bool:
    """Say whether `text` has a key's shape and its checksum fits."""
    if not SHAPE.fullmatch(text):
        return False
    body = text[len(PREFIX) : -CHECKSUM_LENGTH]
    return text[-CHECKSUM_LENGTH:] == checksum(body)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def checksum(body: str) -> str:
    """Return the CRC-32 of `body` as six characters of base 62."""
    number = zlib.crc32(body.encode())
    characters = ""
    for _ in range(CHECKSUM_LENGTH):
        number, rest = divmod(number, 62)
        characters = BASE62[rest] + characters
    return characters


def _check(name: str, scopes: list[str], requests_per_hour: int | None) -> None:
    problems = []
    if not name.strip() or len(name) > 100 or not name.isprintable():
        problems.append(Detail("name", "Must be 1 to 100 printable characters"))
    if not scopes:
        problems.append(Detail("scopes", "At least one scope is needed", f"Known scopes: {_known()}"))
    for scope in scopes:
        if scope not in ALL_SCOPES:
            problems.append(Detail("scopes", f"Unknown scope {scope!r}", f"Known scopes: {_known()}"))
    if requests_per_hour is not None and not 1 <= requests_per_hour <= 10_000_000:
        problems.append(Detail("requests_per_hour", "Must be from 1 to 10,000,000"))
    if problems:
        raise KeyInvalid(details=tuple(problems))


def _known() -> str:
    return ", ".join(sorted(ALL_SCOPES))


def _note_use(key: ApiKey, now: datetime) -> None:
    before = now - LAST_USED_EVERY
    if key.last_used_at is not None and key.last_used_at > before:
        return
    try:
        # Conditional: of many requests at one moment only one writes.
        ApiKey.objects.filter(Q(last_used_at__isnull=True) | Q(last_used_at__lte=before), pk=key.pk).update(
            last_used_at=now
        )
    except OperationalError:
        # A note is not worth failing a request that would only have read.
        logger.warning("Last use of an API key not noted", extra={"key_id": key.pk}, exc_info=True)
