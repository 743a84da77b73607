"""Who acts on the console, for the audit log; the API says so itself, once it has recognised the caller."""

from collections.abc import Callable

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.urls import reverse

from k1node.api.errors import is_api
from k1node.audit import trail
from k1node.lib import origin

# Pages of Django's own whose success is an act to write down: where they are, and what they do.
ACTS = {"admin:logout": "signout.succeeded", "admin:password_change": "password.changed"}


class OperatorMiddleware:
    """Names the signed-in user as the actor of every page but the API's; must be inside Django's authentication."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        asked_from = origin.current()
        # Reading the user reads the session, so only a request that may act pays for it.
        if asked_from is None or request.method in ("GET", "HEAD") or is_api(request.path_info):
            return self.get_response(request)
        user = request.user
        if not user.is_authenticated:
            return self.get_response(request)
        name = user.get_username()
        origin.recognised(f"user:{user.pk}", name)
        response = self.get_response(request)
        for page, action in ACTS.items():
            if request.path_info == reverse(page) and response.status_code < 400 and self._is_done(page, response):
                trail.record(action, f"user:{name}")
        return response

    @staticmethod
    def _is_done(page: str, response: HttpResponseBase) -> bool:
        """Say whether the page did it: the form for a new password comes back when it did not."""
        return page == "admin:logout" or response.status_code == 302
