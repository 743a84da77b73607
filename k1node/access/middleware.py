"""Credentials where they do not belong: addresses end up in logs, histories and proxies."""

import logging
from collections.abc import Callable

from django.http import HttpRequest
from django.http.response import HttpResponseBase

from k1node.access.keys import PREFIX
from k1node.api.errors import INVALID, is_api, json_error
from k1node.lib.errors import Detail

logger = logging.getLogger(__name__)

NAMES = {"api_key", "apikey", "access_token", "key"}


class QueryCredentialMiddleware:
    """Refuses a request of the API that carries a credential in its address."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if request.META.get("QUERY_STRING") and is_api(request.path_info) and (name := _credential(request)):
            # Never the value: it may be good, and this line is read by many.
            logger.warning("Credential in an address refused", extra={"parameter": name, "path": request.path})
            detail = Detail(
                name,
                "A credential does not belong into an address, where logs keep it",
                "Send it as Authorization: Bearer …, and replace it: it may have been seen",
            )
            return json_error(400, INVALID, details=[detail])
        return self.get_response(request)


def _credential(request: HttpRequest) -> str:
    """Return the name of a parameter that carries a credential; "" if none does."""
    for name, values in request.GET.lists():
        if name.lower() in NAMES:
            return name
        if any(PREFIX in value for value in values):
            return name if PREFIX not in name and len(name) <= 100 else "query"
        if PREFIX in name:
            return "query"
    return ""
