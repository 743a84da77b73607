"""Signing in with a key: an access token for some of its scopes, and a refresh token that is good for one more.

All that comes of one sign-in is a family. A refresh token that comes a second time was copied, and nobody can tell
which of the two is the thief: the family ends, the access tokens made in it with it.
"""

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson
from django.conf import settings
from django.db import connection, transaction
from django.utils import timezone

from k1node.access import jwt_tokens, keys, scopes
from k1node.access.jwt_tokens import LEEWAY, TokenRefused
from k1node.access.models import DeniedToken, RefreshToken, TokenFamily
from k1node.audit import trail
from k1node.lib import origin, sql
from k1node.lib.errors import FieldInvalid

logger = logging.getLogger(__name__)

PREFIX = "rt-k1n_"
RANDOM_LENGTH = 43  # 256 bits
PRUNE_AT_ONCE = 1000

BY_DIGEST = f"""
SELECT {keys.COLUMNS}, t.id, t.scopes, t.expires_at, t.used_at, f.id, f.family_id, f.revoked_at
FROM access_refreshtoken t
JOIN access_tokenfamily f ON f.id = t.family_id
JOIN access_apikey k ON k.id = f.key_id
WHERE t.digest = %s
"""


@dataclass(frozen=True, slots=True)
class Grant:
    access_token: str
    refresh_token: str
    scopes: tuple[str, ...]
    expires_in: int  # seconds that the access token is good for


class _Rival(Exception):
    """Somebody else has just used the same refresh token."""


def issue(key: keys.Known, wanted: str | None = None, *, now: datetime | None = None) -> Grant:
    """Return tokens for the scopes `wanted`, with spaces between them; None: for all of the key's.

    Raises FieldInvalid for a scope that the key has not got.
    """
    now = now or timezone.now()
    granted = key.scopes if wanted is None else tuple(sorted(set(wanted.split())))
    if not granted:
        raise FieldInvalid("scope", "At least one scope is needed", f"The key has: {' '.join(key.scopes)}")
    if missing := [scope for scope in granted if not scopes.allows(key.scopes, [scope])]:
        raise FieldInvalid(
            "scope", f"The key has not got {', '.join(missing)[:200]}", f"The key has: {' '.join(key.scopes)}"
        )
    with transaction.atomic():
        family = TokenFamily.objects.create(key_id=key.pk, created_at=now, expires_at=now)
        grant = _granted(key, family.pk, family.family_id, granted, now)
        # By what it is, not by "token": that name hides what it stands for.
        after = {"scopes": list(granted), "family": family.family_id}
        trail.record("grant.issued", f"key:{key.public_id}", after=after)
    logger.info("Tokens issued", extra={"key": key.name, "family_id": family.family_id, "scopes": list(granted)})
    return grant


def exchange(text: str, *, now: datetime | None = None) -> tuple[Grant | None, str]:
    """Return new tokens for a refresh token, or None and the reason in words for the log.

    Of several that bring the same one at the same moment exactly one gets tokens; the family ends.
    """
    now = now or timezone.now()
    row = _row(text)
    if row is None:
        return None, "unknown refresh token"
    *facts, pk, stored_scopes, expires_at, used_at, family_pk, family_id, family_ended_at = row
    key = keys.known(facts)
    origin.recognised(f"key:{key.pk}", key.name)  # by what was made with it
    if family_ended_at is not None:
        return None, f"refresh token of key {key} from a family that was revoked"
    if used_at is not None:
        return None, _reused(family_pk, family_id, key, now)
    if (sql.moment(expires_at) or now) <= now:
        return None, f"expired refresh token of key {key}"
    if reason := keys.why_not(key, now):
        return None, f"refresh token of a {reason}"
    granted = scopes.common(tuple(orjson.loads(stored_scopes)), key.scopes)
    if not granted:
        return None, f"refresh token for scopes that key {key} has lost"
    try:
        with transaction.atomic():
            if not RefreshToken.objects.filter(pk=pk, used_at__isnull=True).update(used_at=now):
                raise _Rival
            grant = _granted(key, family_pk, family_id, granted, now)
            after = {"scopes": list(granted), "family": family_id}
            trail.record("grant.refreshed", f"key:{key.public_id}", after=after, by=key.name)
            return grant, ""
    except _Rival:
        return None, _reused(family_pk, family_id, key, now)


def revoke(text: str, *, now: datetime | None = None) -> None:
    """End what the token stands for: itself if it is an access token, its family if it is for refreshing.

    Whoever has it may do that. A text that is no valid token leads to nothing.
    """
    now = now or timezone.now()
    if text.startswith(PREFIX):
        row = _row(text)
        if row is not None:
            *facts, _, _, _, _, family_pk, family_id, _ended_at = row
            key = keys.known(facts)
            origin.recognised(f"key:{key.pk}", key.name)
            _end(family_pk, family_id, "revoked by its holder", logging.INFO, now)
        return
    try:
        token = jwt_tokens.read(text)
    except TokenRefused:
        return
    subject, jti = str(token.claims["sub"]), token.claims.get("jti")
    with transaction.atomic():
        if not jwt_tokens.deny(token, now=now):
            return
        trail.record("grant.revoked", subject, after={"jti": jti}, by=subject)
    logger.info("Access token revoked", extra={"sub": subject, "jti": jti})


def prune(*, now: datetime) -> int:
    """Delete a bounded number of tokens that are over, and return how many rows there were."""
    gone = 0
    for rows in (
        RefreshToken.objects.filter(expires_at__lt=now),
        TokenFamily.objects.filter(expires_at__lt=now, tokens__isnull=True),
        DeniedToken.objects.filter(expires_at__lt=now),
    ):
        pks = list(rows.order_by("expires_at").values_list("pk", flat=True)[:PRUNE_AT_ONCE])
        if pks:
            gone += rows.model._default_manager.filter(pk__in=pks).delete()[0]
    return gone


def _granted(key: keys.Known, family_pk: int, family_id: str, granted: tuple[str, ...], now: datetime) -> Grant:
    """Return new tokens and keep the one for refreshing; in the transaction of the caller."""
    text = keys.new_text(PREFIX, RANDOM_LENGTH)
    ends_at = now + settings.JWT_EXPIRY
    if key.expires_at is not None:
        ends_at = min(ends_at, key.expires_at)
    refresh_ends_at = now + settings.JWT_REFRESH_EXPIRY
    RefreshToken.objects.create(
        family_id=family_pk,
        digest=keys.digest(text),
        scopes=list(granted),
        created_at=now,
        expires_at=refresh_ends_at,
    )
    last = max(ends_at + LEEWAY, refresh_ends_at)
    TokenFamily.objects.filter(pk=family_pk, expires_at__lt=last).update(expires_at=last)
    access = jwt_tokens.sign(key, scopes=granted, family_id=family_id, now=now, ends_at=ends_at)
    return Grant(access, text, granted, int((ends_at - now) / timedelta(seconds=1)))


def _row(text: str) -> tuple[Any, ...] | None:
    if not text.startswith(PREFIX) or len(text) > len(PREFIX) + RANDOM_LENGTH + keys.CHECKSUM_LENGTH:
        return None
    body, said = text[len(PREFIX) : -keys.CHECKSUM_LENGTH], text[-keys.CHECKSUM_LENGTH :]
    if said != keys.checksum(body):
        return None
    with connection.cursor() as cursor:
        cursor.execute(BY_DIGEST, (keys.digest(text),))
        row: tuple[Any, ...] | None = cursor.fetchone()
    return row


def _reused(family_pk: int, family_id: str, key: keys.Known, now: datetime) -> str:
    _end(family_pk, family_id, "a refresh token came a second time", logging.WARNING, now)
    return f"refresh token of key {key} came a second time, its family has ended"


def _end(family_pk: int, family_id: str, reason: str, level: int, now: datetime) -> None:
    with transaction.atomic():
        ended = TokenFamily.objects.filter(pk=family_pk, revoked_at__isnull=True).update(
            revoked_at=now, revoked_reason=reason
        )
        if ended:
            trail.record("grant.revoked", f"family:{family_id}", reason=reason)
    if ended:
        logger.log(level, "Token family revoked", extra={"family_id": family_id, "reason": reason})
