"""What happens to every request before and after the views: its id, its log line, its version of the API, and what no
page may ever see.
"""

import logging
import re
import time
from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest
from django.http.response import HttpResponseBase
from django.utils.cache import patch_vary_headers
from django.utils.encoding import escape_uri_path

from k1node.access import limits
from k1node.access.principal import Principal
from k1node.api import versions
from k1node.api.errors import error_response, is_api, json_error
from k1node.api.renderers import JSON
from k1node.lib import logs, origin
from k1node.lib.errors import K1NodeError, RateLimited
from k1node.lib.ids import prefixed

logger = logging.getLogger(__name__)

HEADER = "X-Request-Id"
SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def request_id_from(value: str | None) -> str:
    """Return the caller's id if it is safe to repeat in headers and logs, else a new one."""
    return value if value and SANE_ID.fullmatch(value) else prefixed("req")


class RequestIdMiddleware:
    """Gives a request its id and, if it is one of the API's, its line in the log. Must be the outermost."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        started = time.monotonic()
        identity = request_id_from(request.headers.get(HEADER))
        request.request_id = identity  # type: ignore[attr-defined]
        token = logs.request_id.set(identity)
        address = origin.client_address(request, settings.K1NODE_TRUSTED_PROXIES)
        try:
            with origin.of(origin.Origin(address, identity)):
                return self._answered(request, identity, started)
        finally:
            logs.request_id.reset(token)

    def _answered(self, request: HttpRequest, identity: str, started: float) -> HttpResponseBase:
        response = self.get_response(request)
        response[HEADER] = identity
        if response.status_code in (204, 304):
            # Django counts the empty body. At a 304 that would be about the full answer's, at a 204 it must not be.
            del response["Content-Length"]
        if is_api(request.path_info):
            # Answers depend on who asks: no cache on the way may keep one.
            response.headers.setdefault("Cache-Control", "no-store")
            logger.info(
                "Request",
                extra={
                    "method": request.method,
                    "path": escape_uri_path(request.path),
                    "status": response.status_code,
                    "duration_ms": round((time.monotonic() - started) * 1000, 1),
                    "by": _caller(request),
                    "version": getattr(request, "api_version", None),
                },
            )
        return response


class VersionMiddleware:
    """Brings a request of the API to version 2, which is all that views know, and its answer to what was asked for.

    Must be outside everything that answers for the API. `request.path` stays as it was sent, for logs and links.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if not is_api(request.path_info):
            return self.get_response(request)
        accept = versions.accepted(request.META.get("HTTP_ACCEPT", ""))
        try:
            asked = versions.asked(request.path_info, accept, request.META.get("HTTP_X_API_VERSION", ""))
        except K1NodeError as error:
            response = _counted(request, error_response(error))
            return _dressed(response, versions.Asked("", versions.CURRENT, problem=accept.problem))
        request.api_version = asked.version  # type: ignore[attr-defined]
        request.path_info = asked.path
        if asked.version != versions.OLD:
            return _dressed(self.get_response(request), asked)
        old = versions.retirement()
        if old.is_over():
            current = versions.Asked(asked.path, versions.CURRENT, problem=asked.problem)
            response = _dressed(_counted(request, error_response(versions.gone(asked))), current)
        else:
            response = _dressed(self.get_response(request), asked)
        _say_goodbye(response, old, asked)
        return response


def _dressed(response: HttpResponseBase, asked: versions.Asked) -> HttpResponseBase:
    """Return `response` with its body in the form that was asked for."""
    headers = response.headers
    if "Vary" in headers:
        patch_vary_headers(response, versions.VARY.split(", "))
    else:
        headers["Vary"] = versions.VARY
    if asked.version is not None:
        headers[versions.HEADER] = asked.version
    if isinstance(response, HttpResponse) and headers.get("Content-Type") == JSON and response.content:
        content, headers["Content-Type"] = versions.formed(response.content, response.status_code, asked)
        if content is not response.content:
            response.content = content
        headers["Content-Length"] = str(len(content))
    return response


def _say_goodbye(response: HttpResponseBase, old: versions.Retirement, asked: versions.Asked) -> None:
    """Put on an answer of version 1 what it says about its end, and keep its Location within that version."""
    headers = response.headers
    headers["Deprecation"], headers["Sunset"] = old.deprecation, old.sunset
    links = versions.retirement_links(escape_uri_path(asked.path))
    headers["Link"] = f"{headers['Link']}, {links}" if "Link" in headers else links
    location = headers.get("Location", "")
    # Who asks by a header goes on doing so; who asks by the path finds the answer under the same one.
    if asked.path_version == versions.OLD and location.startswith("/api/v2/"):
        headers["Location"] = f"/api/v1/{location.removeprefix('/api/v2/')}"


class NulMiddleware:
    """Refuses a NUL in an address or a cookie, which PostgreSQL can neither store nor compare."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if "\0" in request.path_info or "%00" in request.META.get("QUERY_STRING", ""):
            where = "address"
        # Between quotation marks a cookie may write any byte in octal.
        elif "\\" in request.META.get("HTTP_COOKIE", "") and any("\0" in each for each in request.COOKIES.values()):
            where = "Cookie header"
        else:
            return self.get_response(request)
        if is_api(request.path_info):
            return json_error(400, f"The {where} contains a NUL character")
        return HttpResponseBadRequest(f"The {where} contains a NUL character.", content_type="text/plain")


class RateLimitMiddleware:
    """Lets addresses pay for API requests that nobody is recognised by, and puts the limits on every API answer."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if not is_api(request.path_info):
            return self.get_response(request)
        refusal = _charged_to_address(request) if self._is_anonymous(request) else None
        return _counted(request, refusal or self.get_response(request))

    @staticmethod
    def _is_anonymous(request: HttpRequest) -> bool:
        return "HTTP_AUTHORIZATION" not in request.META and settings.SESSION_COOKIE_NAME not in request.COOKIES


def _counted(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    """Return `response` with the limits on it; or the refusal, if nobody has paid and the address cannot.

    Nobody has paid where no view has asked who this is: at an unknown path, for a page for everybody.
    """
    if limits.verdict_on(request) is None:
        refusal = _charged_to_address(request)
        # What was done stays done, and is told; reading does nothing.
        if refusal and (response.status_code >= 400 or request.method in ("GET", "HEAD")):
            response = refusal
    verdict = limits.verdict_on(request)
    for name, value in verdict.headers().items() if verdict else ():
        response[name] = value
    return response


def _charged_to_address(request: HttpRequest) -> HttpResponse | None:
    """Let the address pay; return the refusal if it cannot."""
    try:
        limits.charge(request, None)
    except RateLimited as error:
        return error_response(error, request)
    return None


def _caller(request: HttpRequest) -> str:
    """Return the name a view recognised the caller by; "" if none did."""
    user = getattr(request, "user", None)
    # Not isinstance: it would make Django's lazy user query the session.
    return user.name if type(user) is Principal else ""
