"""Every error body of the API is built here: `{"error": {code, message, status, timestamp, request_id, details}}`.

Errors raised on purpose (K1NodeError) carry their code and status; the rest are translated. docs/errors.md lists them.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from django.core.exceptions import PermissionDenied, RequestDataTooBig, SuspiciousOperation
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse, UnreadablePostError
from django.views import defaults
from rest_framework import exceptions
from rest_framework.response import Response

from k1node.api.renderers import JSON, dumps, timestamp
from k1node.lib.errors import Detail, K1NodeError, RateLimited
from k1node.lib.logs import request_id

logger = logging.getLogger(__name__)

CODES = {
    400: "INVALID_REQUEST",
    401: "UNAUTHORIZED",
    403: "FORBIDDEN",
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    406: "NOT_ACCEPTABLE",
    408: "REQUEST_TIMEOUT",
    409: "CONFLICT",
    410: "GONE",
    412: "PRECONDITION_FAILED",
    413: "PAYLOAD_TOO_LARGE",
    414: "URI_TOO_LONG",
    415: "UNSUPPORTED_MEDIA_TYPE",
    428: "PRECONDITION_REQUIRED",
    429: "RATE_LIMIT_EXCEEDED",
    431: "HEADERS_TOO_LARGE",
    500: "INTERNAL_ERROR",
    503: "SERVICE_UNAVAILABLE",
}
INVALID = "Request validation failed"
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
            "code": code or CODES.get(status, "INVALID_REQUEST" if status < 500 else "INTERNAL_ERROR"),
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


def exception_handler(error: Exception, context: Mapping[str, Any]) -> Response:
    """Return the answer for anything a view raised; nothing gets past it as a bare 500 page."""
    if isinstance(error, RateLimited):
        return Response(rate_limit_body(error), status=error.status)
    status, code, message, details = _described(error)
    response = Response(
        error_body(status, message, code=code, details=details), status=status, headers=_headers(error, status)
    )
    if status >= 500 and not isinstance(error, K1NodeError):
        logger.error("Request failed", exc_info=error, extra={"view": type(context.get("view")).__name__})
        # Django would log the answer once more, knowing less.
        response._has_been_logged = True  # type: ignore[attr-defined]
    return response


def rate_limit_body(error: RateLimited) -> dict[str, Any]:
    """Return the body of a 429, flat as the API has it."""
    return {
        "error": "rate_limit_exceeded",
        "message": error.message,
        "limit": error.limit,
        "remaining": error.remaining,
        "reset_at": error.reset_at,
        "retry_after": error.retry_after,
    }


def _described(error: Exception) -> tuple[int, str | None, str, Sequence[Detail]]:
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


def _headers(error: Exception, status: int) -> dict[str, str]:
    headers = {}
    if auth := getattr(error, "auth_header", None):
        broken = isinstance(error, exceptions.AuthenticationFailed)
        headers["WWW-Authenticate"] = f'{auth}, error="invalid_token"' if broken else auth
    wait = getattr(error, "wait", None)
    if wait is not None:
        headers["Retry-After"] = str(int(wait) + 1)
    elif status == 503:
        headers["Retry-After"] = "5"
    return headers


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


# --- errors outside a view: unknown routes, bad hosts, failing middleware -----------------------------------------
def is_api(path: str) -> bool:
    return path == "/api" or path.startswith("/api/")


def answer_to(error: RateLimited) -> HttpResponse:
    """Return the answer to `error` where no view can raise it."""
    return HttpResponse(dumps(rate_limit_body(error)), status=error.status, content_type=JSON)


def json_error(status: int, message: str, **facts: Any) -> HttpResponse:
    return HttpResponse(dumps(error_body(status, message, **facts)), status=status, content_type=JSON)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    if not is_api(request.path_info):
        return defaults.bad_request(request, exception)
    status, code, message, details = _described(exception)
    return json_error(status, message, code=code, details=details)


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    if not is_api(request.path_info):
        return defaults.permission_denied(request, exception)
    return json_error(403, "Insufficient permissions")


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    if not is_api(request.path_info):
        return defaults.page_not_found(request, exception)
    # Say what is wrong with the commonest slip instead of leaving the caller to look for it.
    if request.path_info.endswith("/") and request.path_info != "/api/":
        return json_error(404, "Resource not found; paths of this API have no trailing slash")
    return json_error(404, "Resource not found")


def server_error(request: HttpRequest) -> HttpResponse:
    if not is_api(request.path_info):
        return defaults.server_error(request)
    return json_error(500, INTERNAL)
