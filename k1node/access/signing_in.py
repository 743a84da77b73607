"""The sign-in page of the console, which the consent page of user apps leads to as well."""

import logging
from datetime import timedelta
from typing import Any
from unicodedata import normalize
from urllib.parse import urlsplit

from django.contrib import admin
from django.contrib.auth.views import LoginView
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone

from k1node.access import slowing
from k1node.audit.sign_in import SignInForm
from k1node.lib.admin_display import duration

logger = logging.getLogger(__name__)

# No script, style or picture from elsewhere, in nobody's frame. Without form-action: a browser holds it against every
# redirect that follows a form, and consent ends with one to the app, which may lead on to anywhere.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; base-uri 'none'; frame-ancestors 'none'"
)
LONGEST_NAME = 254  # that the form takes
BY_ADDRESS = "20/5m"
# From wherever: also a guesser with many addresses gets no further. More, or one address could lock a person out.
BY_NAME = "100/5m"


class SignIn(LoginView):
    """The admin's own page and form, with a limit on tries."""

    template_name = "admin/login.html"
    authentication_form = SignInForm  # which writes each try into the audit log

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if admin.site.has_permission(request):
            return HttpResponseRedirect(self.get_success_url())
        return super().get(request, *args, **kwargs)

    def post(self, request: HttpRequest, *args: str, **kwargs: Any) -> HttpResponse:
        wait = slowing.seconds_to_wait(request, "sign-in", BY_ADDRESS)
        # A name is not counted for addresses that are over their limit: they could make up names without end.
        wait = wait or slowing.seconds_to_wait(request, "sign-in by name", BY_NAME, key=_name)
        if wait:
            logger.warning("Sign-in slowed down", extra={"remote": slowing.address_of(request), "seconds": wait})
            return slow_down(request, wait, "There have been many attempts to sign in, and now there must be a pause.")
        return super().post(request, *args, **kwargs)

    def get_redirect_url(self, request: HttpRequest | None = None) -> str:
        """Return where to go on to, "" for nowhere in particular: not here, where whoever is in would go in circles."""
        wanted: str = super().get_redirect_url()
        return "" if urlsplit(wanted).path == self.request.path else wanted

    def get_default_redirect_url(self) -> str:
        return reverse("admin:index")

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return super().get_context_data(
            **admin.site.each_context(self.request),
            title="Log in",
            subtitle=None,
            app_path=self.request.get_full_path(),
            username=self.request.user.get_username(),
            **kwargs,
        )

    def render_to_response(self, context: dict[str, Any], **kwargs: Any) -> Any:
        response = super().render_to_response(context, **kwargs)
        response["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
        return response


def slow_down(request: HttpRequest, seconds: int, why: str) -> HttpResponse:
    """Return the page for people who have to wait."""
    context = {
        **admin.site.each_context(request),
        "has_permission": False,  # no menu: nothing but the message
        "title": "Please wait",
        "why": why,
        "wait": duration(seconds * 1000),
        "at": timezone.now() + timedelta(seconds=seconds),
    }
    response = TemplateResponse(request, "admin/slow_down.html", context, status=429)
    response["Retry-After"] = str(seconds)
    response["Cache-Control"] = "no-store"
    response["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    return response


def _name(_door: str, request: HttpRequest) -> str:
    """Return the name as the form will read it, of which there are many ways to write one, and without its case."""
    return normalize("NFKC", request.POST.get("username", "").strip()[:LONGEST_NAME]).casefold()
