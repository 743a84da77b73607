"""Tokens of user apps: who one is for, what is told about one, and when old ones go.

Kept as SHA-256 only. A token does what was consented to, and of that no more than its user may do at the moment.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Model, Q, QuerySet
from django.utils import timezone
from oauth2_provider.models import (
    AccessToken,
    Grant,
    RefreshToken,
    refresh_token_expire_timedelta,
    revoke_access_token,
)

from k1node.access import operators
from k1node.access.principal import Principal
from k1node.access.scopes import covered
from k1node.audit import trail

SHAPE = re.compile(r"[A-Za-z0-9]{30}")  # as oauthlib makes them, access and refresh tokens and codes alike
PRUNED_AT_ONCE = 500
# What is over stays this long, so that one can still see what it was. Revoked refresh tokens stay as long as they
# would have been good: one that comes back tells of a theft.
KEEP_EXPIRED = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Access:
    """A usable access token."""

    token: Any
    principal: Principal


def checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def examine(text: str, *, address: str, now: datetime | None = None) -> tuple[Access | None, str]:
    """Return the usable token for a request to `address`, or None and the reason in words for the log. One query."""
    token = _found(AccessToken, text)
    if token is None:
        return None, "unknown OAuth token"
    if token.expires <= (now or timezone.now()):
        return None, f"expired OAuth token {token.pk}"
    if token.application is None or not operators.may_sign_in(token.user):
        return None, f"OAuth token {token.pk} of a user who may not sign in"
    if not token.allows_audience(address):
        return None, f"OAuth token {token.pk} is for another service"
    identity = f"oauth:{token.application_id}:{token.user_id}"
    return Access(token, Principal(token.user.get_username(), "oauth", _scopes(token, token.scope), identity)), ""


def describe(text: str, *, now: datetime | None = None) -> dict[str, Any]:
    """Return what introspection tells about a token (RFC 7662): that it is not active, or for what and how long."""
    now = now or timezone.now()
    token = _found(AccessToken, text)
    if token is not None:
        return _told(token, token.scope, token.expires, now)
    refresh = _found(RefreshToken, text, "access_token", revoked__isnull=True)
    if refresh is None or refresh.access_token is None:
        return {"active": False}
    until = refresh.access_token.expires + refresh_token_expire_timedelta()
    return _told(refresh, refresh.access_token.scope, until, now)


def target_of(application: Any) -> str:
    """Return what the audit log calls an app."""
    return f"application:{application.client_id}" if application else "application:none"


def revoke(token: Any) -> None:
    """End an access token with its refresh token, a refresh token with its access token, or a code."""
    with transaction.atomic():
        if isinstance(token, AccessToken):
            revoke_access_token(token)
        elif isinstance(token, RefreshToken):
            token.revoke()
        else:
            token.delete()
        whose = token.user.get_username() if token.user else ""
        trail.record("grant.revoked", target_of(token.application), after={"user": whose})


def prune(*, now: datetime) -> int:
    """Delete a bounded number of codes and tokens whose time is over; return how many."""
    unusable = now - refresh_token_expire_timedelta()
    return (
        _delete(Grant, Q(expires__lte=now - KEEP_EXPIRED))
        + _delete(RefreshToken, Q(revoked__lte=unusable))
        # Its time is counted from the end of the access token beside it; without one it is good for nothing.
        + _delete(RefreshToken, Q(revoked__isnull=True, access_token__expires__lte=unusable))
        + _delete(RefreshToken, Q(revoked__isnull=True, access_token__isnull=True))
        + _delete(AccessToken, Q(refresh_token__isnull=True, expires__lte=now - KEEP_EXPIRED))
    )


def _delete(model: type[Model], which: Q) -> int:
    rows: QuerySet[Any] = model._default_manager.filter(which)
    ids = list(rows.values_list("pk", flat=True)[:PRUNED_AT_ONCE])
    if ids:
        model._default_manager.filter(pk__in=ids).delete()
    return len(ids)


def _found(model: Any, text: str, *also: str, **which: Any) -> Any:
    rows = model.objects.filter(token_checksum=checksum(text), **which).select_related("user", "application", *also)
    return rows.annotate(**operators.held("user_id")).first()


def _scopes(token: Any, consented: str) -> frozenset[str]:
    may = operators.scopes_of(token.user, lambda permission: getattr(token, operators.flag(permission)))
    return covered(consented.split()) & covered(may)


def _told(token: Any, consented: str, until: datetime, now: datetime) -> dict[str, Any]:
    if until <= now or token.application is None or not operators.may_sign_in(token.user):
        return {"active": False}
    told = {
        "active": True,
        "scope": " ".join(worded(_scopes(token, consented), consented)),
        "client_id": token.application.client_id,
        "username": token.user.get_username(),
        "exp": int(until.timestamp()),
        "iat": int(token.created.timestamp()),
    }
    return told | ({"aud": token.resource} if token.resource else {})


def worded(effective: Iterable[str], consented: str) -> list[str]:
    """Return `effective` as few words as possible: the scopes consented to if they all stand, else all that is left."""
    asked = consented.split()
    return asked if set(asked) <= set(effective) else sorted(effective)
