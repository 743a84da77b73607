"""JSON Web Tokens: signed for services that have shown a key, and accepted from issuers that the settings name.

Nothing in a token chooses how it is checked: the algorithm is pinned, and the key comes from this node's own ring or
its settings, never from the token. A token is worth what its key is worth at this moment: one statement asks for the
key, the family it was issued in, and whether it was revoked.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import jwt
from django.conf import settings
from django.db import connection
from django.utils import timezone

from k1node.access import keys, scopes
from k1node.access.issuers import AUDIENCE, OURS, Issuer
from k1node.access.models import DeniedToken
from k1node.lib import ids

ALGORITHM = "HS256"
TYPE = "at+jwt"
# Other issuers may call their tokens by the general name; RFC 9068 lets all leave out "application/".
TYPES_OF_OTHERS = (TYPE, "jwt")
LEEWAY = timedelta(seconds=30)
LONGEST = 8192  # characters
LONGEST_LIFE = timedelta(hours=24)  # of another issuer's token
REQUIRED = ("iss", "aud", "sub", "jti", "iat", "nbf", "exp")
REQUIRED_OF_OTHERS = ("iss", "aud", "sub", "iat", "exp")
OF_KEY = "key:"
SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")  # no padding: one token has one form
IDENTIFIER = re.compile(r"[\x21-\x7e]{1,200}")
SUBJECT = re.compile(r"[\x20-\x7e]{1,100}")

BY_CLAIMS = f"""
SELECT {keys.COLUMNS}, f.id, f.revoked_at,
  EXISTS (SELECT 1 FROM access_deniedtoken d WHERE d.issuer = %s AND d.jti = %s)
FROM access_apikey k LEFT JOIN access_tokenfamily f ON f.key_id = k.id AND f.family_id = %s
WHERE k.public_id = %s
"""


class TokenRefused(Exception):
    """The text is no token that this node accepts; the message says why, for the log."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token whose signature and claims are good. `issuer` is None for those made here."""

    issuer: Issuer | None
    claims: Mapping[str, Any]

    @property
    def identifier(self) -> tuple[str, str]:
        """Return what the token is known by when it is revoked."""
        return str(self.claims["iss"]), str(self.claims["jti"])

    @property
    def scopes(self) -> tuple[str, ...]:
        said = self.claims.get("scope", "")
        return tuple(said.split()) if isinstance(said, str) else ()

    @property
    def ends_at(self) -> datetime:
        """Return when it is over on every node."""
        return datetime.fromtimestamp(int(self.claims["exp"]), UTC) + LEEWAY


@dataclass(frozen=True, slots=True)
class Recognised:
    """Whom a token speaks for: a key (`key`), or a subject of another issuer."""

    name: str
    identity: str
    scopes: frozenset[str]
    key: keys.Known | None


def sign(key: keys.Known, *, scopes: tuple[str, ...], family_id: str, now: datetime, ends_at: datetime) -> str:
    """Return a token that does in the name of `key` what `scopes` allow, until `ends_at`."""
    kid, secret = next(iter(_ring().items()))
    claims = {
        "iss": OURS,
        "aud": AUDIENCE,
        "sub": OF_KEY + key.public_id,
        "jti": ids.prefixed("jti"),
        "sid": family_id,
        "iat": int(now.timestamp()),
        "nbf": int(now.timestamp()),
        "exp": int(ends_at.timestamp()),
        "scope": " ".join(scopes),
    }
    return jwt.encode(claims, secret, ALGORITHM, {"typ": TYPE, "kid": kid})


def examine(text: str, *, now: datetime | None = None) -> tuple[Recognised | None, str]:
    """Return whom the token speaks for, or None and the reason in words for the log; one query at the most."""
    try:
        token = read(text)
        return (_of_issuer(token, token.issuer) if token.issuer else _of_key(token, now or timezone.now())), ""
    except TokenRefused as error:
        return None, str(error)


def read(text: str) -> Token:
    """Return the token, its signature, claims and times checked. Raises TokenRefused; asks no database."""
    if len(text) > LONGEST or not SHAPE.fullmatch(text):
        raise TokenRefused("token too long or in another form")
    try:
        token = _read(text)
        _ = token.ends_at  # which must be a moment that there is
        return token
    # Beside its own errors the library lets those of Python pass where a token is odd enough.
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise TokenRefused(f"token not valid: {type(error).__name__}") from error


def deny(token: Token, *, now: datetime) -> bool:
    """Refuse the token from now on, as long as it would have been good; False if it is refused already."""
    issuer, jti = token.identifier
    values = {"denied_at": now, "expires_at": token.ends_at}
    return DeniedToken.objects.get_or_create(issuer=issuer, jti=jti, defaults=values)[1]


def _read(text: str) -> Token:
    header = jwt.get_unverified_header(text)
    if header.get("alg") != ALGORITHM:
        raise TokenRefused("token with another algorithm")
    if "crit" in header or "b64" in header:
        raise TokenRefused("token with an extension")
    secret = _ring().get(header.get("kid", ""))
    if secret is None:
        return _read_of_others(text, header)
    _check_type(header, (TYPE,))
    claims = _decode(text, secret, OURS, AUDIENCE, REQUIRED, strict=True)
    # Whoever shares the secret may write what this node would not.
    if not all(IDENTIFIER.fullmatch(str(claims.get(name, "none"))) for name in ("sub", "jti", "sid")):
        raise TokenRefused("token with an odd sub, jti or sid")
    return Token(None, claims)


def _read_of_others(text: str, header: Mapping[str, Any]) -> Token:
    named = jwt.decode(text, options={"verify_signature": False}).get("iss")
    issuer = settings.K1NODE_JWT_ISSUERS.get(named) if isinstance(named, str) else None
    if issuer is None:
        raise TokenRefused("token of an unknown issuer or key")
    _check_type(header, TYPES_OF_OTHERS)
    claims = _decode(text, issuer.key, issuer.name, issuer.audience, REQUIRED_OF_OTHERS, strict=False)
    times = (claims["iat"], claims["exp"])
    if any(isinstance(at, bool) or not isinstance(at, int | float) for at in times):
        raise TokenRefused("token whose times are no numbers")
    if times[1] - times[0] > LONGEST_LIFE.total_seconds():
        raise TokenRefused(f"token of {issuer.name} that lives longer than 24 hours")
    if not SUBJECT.fullmatch(claims["sub"]) or not IDENTIFIER.fullmatch(claims.get("jti", "none")):
        raise TokenRefused(f"token of {issuer.name} with an odd sub or jti")
    # One without a name is called by what was signed: the signature itself can be written in more ways than one.
    signed = text.rpartition(".")[0]
    return Token(issuer, {"jti": f"sha256:{hashlib.sha256(signed.encode()).hexdigest()}"} | claims)


def _check_type(header: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    said = header.get("typ")
    if not isinstance(said, str) or said.lower().removeprefix("application/") not in allowed:
        raise TokenRefused("token of another type")


def _decode(
    text: str, secret: str, issuer: str, audience: str, required: tuple[str, ...], *, strict: bool
) -> dict[str, Any]:
    return jwt.decode(
        text,
        secret,
        algorithms=[ALGORITHM],
        issuer=issuer,
        audience=audience,
        leeway=LEEWAY,
        options={"require": list(required), "strict_aud": strict, "enforce_minimum_key_length": True},
    )


def _of_key(token: Token, now: datetime) -> Recognised:
    claims = token.claims
    with connection.cursor() as cursor:
        cursor.execute(BY_CLAIMS, (OURS, claims["jti"], str(claims.get("sid", "")), claims["sub"].removeprefix(OF_KEY)))
        row = cursor.fetchone()
    if row is None:
        raise TokenRefused("token of an unknown key")
    *facts, family, family_ended_at, is_denied = row
    key = keys.known(facts)
    if reason := keys.why_not(key, now):
        raise TokenRefused(f"token of a {reason}")
    if is_denied:
        raise TokenRefused(f"revoked token of key {key}")
    if family is None or family_ended_at is not None:
        raise TokenRefused(f"token of key {key} from a family that was revoked")
    keys.note_use(key, now)
    granted = scopes.common(token.scopes, key.scopes)
    return Recognised(key.name, f"key:{key.pk}", frozenset(granted), key)


def _of_issuer(token: Token, issuer: Issuer) -> Recognised:
    named_by, jti = token.identifier
    if DeniedToken.objects.filter(issuer=named_by, jti=jti).exists():
        raise TokenRefused(f"revoked token of {issuer.name}")
    subject = token.claims["sub"]
    host = issuer.name.split("://")[-1]
    granted = scopes.common(token.scopes, issuer.scopes)
    return Recognised(f"{subject} ({host})"[:100], f"issuer:{issuer.name}:{subject}", frozenset(granted), None)


def _ring() -> dict[str, str]:
    """Return the secrets that a token may be signed with by the ids they have in its header, the present one first."""
    return _named((settings.JWT_SECRET, *settings.JWT_SECRET_PREVIOUS))


@lru_cache(maxsize=4)
def _named(secrets: tuple[str, ...]) -> dict[str, str]:
    return {hashlib.sha256(f"k1node kid {secret}".encode()).hexdigest()[:16]: secret for secret in secrets}
