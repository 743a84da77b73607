"""From a credential to its Principal. The kind of a bearer token is told by its beginning, never by trying."""

import logging
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import CsrfViewMiddleware
from django.utils.module_loading import import_string
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed, PermissionDenied
from rest_framework.request import Request

from k1node.access import grants, jwt_tokens, keys, operators, task_tokens
from k1node.access.oauth import tokens as oauth_tokens
from k1node.access.principal import Principal
from k1node.lib import origin

logger = logging.getLogger(__name__)

CHALLENGE = 'Bearer realm="k1node"'
REFUSED = "The credential is not valid (any more)"
Recognised = tuple[Principal, object]


class BearerAuthentication(BaseAuthentication):
    """`Authorization: Bearer …` with an API key (`sk-…`), a JWT (`eyJ…`), a running task's or a user app's token."""

    def authenticate(self, request: Request) -> Recognised | None:
        scheme, _, token = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        token = token.strip()
        if token.startswith("sk-"):
            return self._by_key(request, token)
        if token.startswith(task_tokens.PREFIX):
            return self._by_task(request, token)
        if token.startswith("eyJ") and token.count(".") == 2:
            return self._by_jwt(request, token)
        if oauth_tokens.SHAPE.fullmatch(token):
            return self._by_oauth(request, token)
        raise _refusal(request, "unknown kind of token")

    def authenticate_header(self, request: Request) -> str:
        return CHALLENGE

    @staticmethod
    def _by_key(request: Request, token: str) -> Recognised:
        key, reason = keys.examine(token)
        if key is None:
            raise _refusal(request, reason)
        return Principal(key.name, "key", frozenset(key.scopes), f"key:{key.pk}", key.requests_per_hour), key

    @staticmethod
    def _by_jwt(request: Request, token: str) -> Recognised:
        found, reason = jwt_tokens.examine(token)
        if found is None:
            raise _refusal(request, reason)
        # The key's own bucket, so the key's own limit.
        rate = found.key.requests_per_hour if found.key else None
        return Principal(found.name, "jwt", found.scopes, found.identity, rate), found.key or found

    @staticmethod
    def _by_task(request: Request, token: str) -> Recognised:
        run = task_tokens.read(token)
        if run is None:
            raise _refusal(request, "task token not valid")
        task_pk, fence = run
        if not _task_check()(task_pk, fence):
            raise _refusal(request, f"task {task_pk} is not running under fence {fence}")
        return Principal(f"task:{task_pk}", "task", frozenset({"scheduler:read"}), f"task:{task_pk}"), run

    @staticmethod
    def _by_oauth(request: Request, token: str) -> Recognised:
        access, reason = oauth_tokens.examine(token, address=request.build_absolute_uri(request.path))
        if access is None:
            raise _refusal(request, reason)
        return access.principal, access


def by_refresh_token(request: Request, text: str) -> grants.Grant:
    """Return what a refresh token is exchanged for. Raises AuthenticationFailed."""
    grant, reason = grants.exchange(text)
    if grant is None:
        raise _refusal(request, reason)
    return grant


class OperatorSessionAuthentication(BaseAuthentication):
    """Staff signed in at the console, in the browser; writes need the CSRF token like any form there."""

    def authenticate(self, request: Request) -> Recognised | None:
        user = getattr(request._request, "user", None)
        if user is None or not operators.may_sign_in(user):
            return None
        self._enforce_csrf(request)
        return Principal(user.get_username(), "operator", operators.scopes_of(user), f"user:{user.pk}"), user

    def authenticate_header(self, request: Request) -> str:
        return CHALLENGE

    @staticmethod
    def _enforce_csrf(request: Request) -> None:
        check = _CsrfCheck(_unused)
        check.process_request(request._request)
        reason = check.process_view(request._request, _unused, (), {})
        if reason:
            logger.warning("CSRF check failed", extra={"reason": str(reason), "remote": _remote()})
            raise PermissionDenied("The CSRF token is missing or wrong")


class _CsrfCheck(CsrfViewMiddleware):
    def _reject(self, request: HttpRequest, reason: str) -> Any:
        return reason


def _unused(request: HttpRequest) -> HttpResponse:
    raise AssertionError("The CSRF check calls no view.")


def _task_check() -> Callable[[int, int], bool]:
    # Named, not imported: this layer lies below the one that knows tasks.
    path = getattr(settings, "K1NODE_TASK_TOKEN_CHECK", "scheduling.queries.is_running")
    return import_string(path)  # type: ignore[no-any-return]


def _refusal(request: Request, reason: str) -> AuthenticationFailed:
    """Return the error to raise; the log learns why, the caller does not."""
    logger.warning(
        "Authentication failed",
        extra={"reason": reason, "method": request.method, "path": request.path, "remote": _remote()},
    )
    error = AuthenticationFailed(REFUSED)
    error.reason = reason  # type: ignore[attr-defined]  # for the audit log
    return error


def kind_of(request: Request) -> str:
    """Return what the request tries to sign in with, told by its shape: key, task, jwt, token or session."""
    header = request.META.get("HTTP_AUTHORIZATION", "")
    if not header:
        return "session"
    token = header.partition(" ")[2].strip()
    if token.startswith("sk-"):
        return "key"
    if token.startswith(task_tokens.PREFIX):
        return "task"
    return "jwt" if token.startswith("eyJ") and token.count(".") == 2 else "token"


def _remote() -> str:
    asked_from = origin.current()
    return asked_from.address if asked_from else origin.UNKNOWN
