"""Every error body of the API is built here: `{"error": {code, message, status, timestamp, request_id, details}}`.

Errors raised on purpose (K1NodeError) carry their code and status; the rest are translated. k1node.api.error_codes
lists them. Who asked for another form gets it on the way out (k1node.api.versions), made from this one.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
from django.conf import settings
from django.core.exceptions import PermissionDenied, RequestDataTooBig, SuspiciousOperation
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse, UnreadablePostError
from django.views import defaults
from rest_framework import exceptions
from rest_framework.response import Response

from k1node.api.error_codes import CODES, PAGE, title_of
from k1node.api.renderers import JSON, JSON_V2, MEDIA_TYPES, dumps, timestamp
from k1node.lib.errors import Detail, K1NodeError, RateLimited
from k1node.lib.logs import request_id

logger = logging.getLogger(__name__)

FLAT_429 = "rate_limit_exceeded"  # the design's body of a 429 has this where the others have an object
INVALID = "Request validation failed"
UNSUPPORTED = f"The body must be {JSON} or {JSON_V2}"
TOO_LARGE = "The request body is larger than 1 MB"
UNAVAILABLE = "Service temporarily unavailable"
INTERNAL = "The server met an error; its log has the details under this request_id"
WHOLE_BODY = "body"  # the field named when a problem is not one field's


class Hint(str):
    """The code of a validation error, with what to write instead.

    Django REST framework rebuilds its ErrorDetail objects on their way out and keeps only text and code,
    so the suggestion rides on the code.
    """

    __slots__ = ("suggestion",)
    suggestion: str | None

    def __new__(cls, code: str, suggestion: str | None = None) -> "Hint":
        hint = super().__new__(cls, code)
        hint.suggestion = suggestion
        return hint


def invalid(message: str, suggestion: str | None = None, *, code: str = "invalid") -> exceptions.ValidationError:
    """Return the error for a serializer's validate() or validate_<field>() to raise."""
    return exceptions.ValidationError(message, code=Hint(code, suggestion))


def error_body(
    status: int, message: str, *, code: str | None = None, details: Iterable[Detail] = (), request: str | None = None
) -> dict[str, Any]:
    """Return the body of an error; `request` is its id (default: that of the request being answered)."""
    return {
        "error": {
            "code": code or _code_of(status),
            "message": message,
            "status": status,
            "timestamp": timestamp(datetime.now(UTC)),
            "request_id": request_id.get() if request is None else request,
            "details": [
                {"field": detail.field, "message": detail.message, "suggestion": detail.suggestion}
                for detail in details
            ],
        }
    }


def rate_limit_body(error: RateLimited) -> dict[str, Any]:
    """Return the design's body of a 429, the only one that is flat."""
    return {
        "error": FLAT_429,
        "message": error.message,
        "limit": error.limit,
        "remaining": error.remaining,
        "reset_at": timestamp(error.reset_at),
        "retry_after": error.retry_after,
    }


def exception_handler(error: Exception, context: Mapping[str, Any]) -> Response:
    """Return the answer for anything a view raised; nothing gets past it as a bare 500 page."""
    status, body, headers = _answer(error, context.get("request"))
    response = Response(body, status=status, headers=headers)
    if status >= 500 and not isinstance(error, K1NodeError):
        logger.error("Request failed", exc_info=error, extra={"view": type(context.get("view")).__name__})
        # Django would log the answer once more, knowing less.
        response._has_been_logged = True  # type: ignore[attr-defined]
    return response


def error_response(error: Exception, request: HttpRequest | None = None) -> HttpResponse:
    """Return the answer for an error met outside a view, by a middleware."""
    status, body, headers = _answer(error, request)
    return HttpResponse(dumps(body), status=status, content_type=JSON, headers=headers)


def _answer(error: Exception, request: Any) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Return status, body and headers."""
    status, code, message, details = _described(error, request)
    code = code or _code_of(status)
    if isinstance(error, RateLimited):
        body = rate_limit_body(error)
    else:
        body = error_body(status, message, code=code, details=details)
    return status, body, {"Link": help_link(code), **_headers(error, status, request)}


def _described(error: Exception, request: Any = None) -> tuple[int, str | None, str, Sequence[Detail]]:
    """Return status, code (None: the status's own), message and details."""
    match error:
        case K1NodeError():
            return error.status, error.code, error.message, error.details
        case exceptions.ValidationError():
            return 400, None, INVALID, flatten(error.detail)
        case exceptions.NotAuthenticated():
            return error.status_code, None, "Authentication required", ()
        case exceptions.NotFound():
            return 404, None, "Resource not found", ()
        case exceptions.UnsupportedMediaType():
            return 415, None, UNSUPPORTED, (unsupported(getattr(request, "content_type", None)),)
        case exceptions.APIException():
            return error.status_code, CODES.get(error.status_code), _text(error.detail), ()
        case Http404():
            return 404, None, "Resource not found", ()
        case PermissionDenied():
            return 403, None, "Insufficient permissions", ()
        case RequestDataTooBig():
            return 413, None, TOO_LARGE, ()
        case UnreadablePostError():
            return 400, None, "The request body could not be read to its end", ()
        case SuspiciousOperation():
            return 400, None, "The request is malformed", ()
        case OperationalError() | InterfaceError():
            return 503, None, UNAVAILABLE, ()
    return 500, None, INTERNAL, ()


def _headers(error: Exception, status: int, request: Any) -> dict[str, str]:
    headers = {}
    if auth := getattr(error, "auth_header", None):
        broken = isinstance(error, exceptions.AuthenticationFailed)
        headers["WWW-Authenticate"] = f'{auth}, error="invalid_token"' if broken else auth
    if isinstance(error, RateLimited):
        headers["Retry-After"] = headers["X-RateLimit-RetryAfter"] = str(error.retry_after)
    elif (wait := getattr(error, "wait", None)) is not None:
        headers["Retry-After"] = str(int(wait) + 1)
    elif status == 503:
        headers["Retry-After"] = "5"
    elif status == 415:
        headers |= accept_headers(getattr(request, "method", None) or "")
    return headers


def unsupported(content_type: str | None) -> Detail:
    """Return what a 415 says about a body of `content_type`."""
    return Detail(
        "Content-Type", f"Must be one of {', '.join(MEDIA_TYPES)}, not {(content_type or '')[:100]!r}", f"Send {JSON}"
    )


def accept_headers(method: str) -> dict[str, str]:
    """Return the headers by which a 415 tells programs what bodies are taken."""
    taken = ", ".join(MEDIA_TYPES)
    headers = {"Accept": taken}
    if method in ("POST", "PATCH"):
        headers[f"Accept-{method.capitalize()}"] = taken
    return headers


def help_address(code: str) -> str:
    """Return the address of what the documentation says of `code`."""
    return f"{settings.K1NODE_URL}{PAGE}#{code}"


def help_link(code: str) -> str:
    return f'<{help_address(code)}>; rel="help"'


def _code_of(status: int) -> str:
    return CODES.get(status, "INVALID_REQUEST" if status < 500 else "INTERNAL_ERROR")


def _text(detail: Any) -> str:
    if isinstance(detail, list):
        return _text(detail[0]) if detail else INVALID
    return str(detail)


def flatten(problems: Any, path: str = "") -> list[Detail]:
    """Return the leaves of DRF's nested errors with their field paths: tasks[17].handler."""
    if isinstance(problems, Mapping):
        found = []
        for key, inner in problems.items():
            found += flatten(inner, _below(path, key))
        return found
    if isinstance(problems, list | tuple):
        if any(isinstance(item, Mapping | list | tuple) for item in problems):
            found = []
            for index, inner in enumerate(problems):
                if inner:
                    found += flatten(inner, _below(path, index) if not isinstance(inner, str) else path)
            return found
        return [leaf for item in problems for leaf in flatten(item, path)]
    suggestion = getattr(getattr(problems, "code", None), "suggestion", None)
    return [Detail(path or WHOLE_BODY, str(problems), suggestion)]


def _below(path: str, key: object) -> str:
    if isinstance(key, int):
        return f"{path}[{key}]"
    if key == "non_field_errors":
        return path
    return f"{path}.{key}" if path else str(key)


# --- the same error in other forms ---------------------------------------------------------------------------------
def as_nested(content: bytes, status: int) -> bytes:
    """Return the flat body of a 429 in the shape of all others; any other body as it is."""
    said = _read(content)
    if said is None or said["error"] != FLAT_429:
        return content
    return dumps(error_body(status, said["message"]))


def as_problem(content: bytes, status: int) -> bytes:
    """Return an error's body as RFC 9457 has it; one that is none of ours as it is.

    https://www.rfc-editor.org/rfc/rfc9457
    """
    said = _read(content)
    if said is None:
        return content
    error, more = said.pop("error"), {}
    if error == FLAT_429:
        more, error = said, error_body(status, said.pop("message"))["error"]
    return dumps(
        {
            "type": help_address(error["code"]),
            "title": title_of(error["code"]),
            "status": status,
            "detail": error["message"],
            "instance": f"urn:k1node:request:{error['request_id']}",
            "code": error["code"],
            "request_id": error["request_id"],
            "timestamp": error["timestamp"],
            "errors": error["details"],
            **more,
        }
    )


def _read(content: bytes) -> dict[str, Any] | None:
    """Return the body of an error that was built above; None if it was not."""
    try:
        said = orjson.loads(content)
    except orjson.JSONDecodeError:
        return None
    error = said.get("error") if isinstance(said, dict) else None
    return said if error == FLAT_429 or (isinstance(error, dict) and "request_id" in error) else None


# --- errors outside a view: unknown routes, bad hosts, failing middleware -----------------------------------------
def is_api(path: str) -> bool:
    return path == "/api" or path.startswith("/api/")


def json_error(status: int, message: str, **facts: Any) -> HttpResponse:
    body = error_body(status, message, **facts)
    link = help_link(body["error"]["code"])
    return HttpResponse(dumps(body), status=status, content_type=JSON, headers={"Link": link})


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    if not is_api(request.path_info):
        return defaults.bad_request(request, exception)
    return error_response(exception, request)


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    if not is_api(request.path_info):
        return defaults.permission_denied(request, exception)
    return json_error(403, "Insufficient permissions")


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    if not is_api(request.path_info):
        return defaults.page_not_found(request, exception)
    # Say what is wrong with the commonest slip instead of leaving the caller to look for it.
    if request.path.endswith("/") and request.path != "/api/":
        return json_error(404, "Resource not found; paths of this API have no trailing slash")
    return json_error(404, "Resource not found")


def server_error(request: HttpRequest) -> HttpResponse:
    if not is_api(request.path_info):
        return defaults.server_error(request)
    return json_error(500, INTERNAL)
