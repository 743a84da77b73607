"""The four endpoints of OAuth 2.0 and their metadata.

What programs get from them, errors too, is in the format of RFC 6749 and not in that of the API.
"""

import json
import logging
import re
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.core.exceptions import ObjectDoesNotExist, SuspiciousOperation
from django.db import DataError, InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse, JsonResponse, UnreadablePostError
from django.http.multipartparser import MultiPartParserError
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.utils.decorators import method_decorator
from django.views.decorators.csrf import csrf_exempt
from oauth2_provider import views
from oauth2_provider.exceptions import OAuthToolkitError
from oauth2_provider.http import OAuth2ResponseRedirect
from oauth2_provider.models import Application
from oauth2_provider.settings import oauth2_settings
from oauthlib.oauth2.rfc6749 import errors

from k1node.access import operators, signing_in, slowing
from k1node.access.oauth import redirects, tokens
from k1node.access.oauth.validator import grantable
from k1node.access.scopes import ADMIN, DESCRIPTIONS
from k1node.audit import trail

logger = logging.getLogger(__name__)

CHALLENGE_SHAPE = re.compile(r"[A-Za-z0-9_-]{43}")  # base64url of a SHA-256
# What the toolkit and the database say of text that is none of what they expect: bad escapes, bad ports, NULs.
MALFORMED = (ValueError, SuspiciousOperation, MultiPartParserError, UnreadablePostError, DataError)
# A request that lost a race for its code or token to another with the same one.
GONE = ObjectDoesNotExist


class Door:
    """What all endpoints have in common: a limit by address, and an answer to whatever arrives."""

    door = ""
    rate = "60/m"
    request: HttpRequest

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        response = self._answer(request, *args, **kwargs)
        response["Cache-Control"] = "no-store"
        response["Pragma"] = "no-cache"
        return response

    def _answer(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        wait = slowing.seconds_to_wait(request, f"oauth {self.door}", self.rate)
        if wait:
            logger.warning("OAuth slowed down", extra={"door": self.door, "remote": slowing.address_of(request)})
            return self.slow_down(wait)
        try:
            if any("\0" in text for name, values in request.POST.lists() for text in (name, *values)):
                raise SuspiciousOperation("NUL in a parameter")
            response: HttpResponseBase = super().dispatch(request, *args, **kwargs)  # type: ignore[misc]
            return response
        except GONE:
            return self.refuse(400, "invalid_grant", "The code or token is not valid (any more)")
        except MALFORMED:
            return self.refuse(400, "invalid_request", "The request is malformed")
        except (OperationalError, InterfaceError):
            logger.exception("OAuth request failed in the database")
            response = self.refuse(503, "temporarily_unavailable", "Service temporarily unavailable")
            response["Retry-After"] = "5"
            return response

    def slow_down(self, seconds: int) -> HttpResponse:
        raise NotImplementedError

    def refuse(self, status: int, error: str, description: str) -> HttpResponse:
        raise NotImplementedError


class ForPrograms(Door):
    """Answers JSON, takes POST alone: a token in an address would end up in logs."""

    def slow_down(self, seconds: int) -> HttpResponse:
        response = self.refuse(429, "slow_down", f"Too many requests; wait {seconds} s")
        response["Retry-After"] = str(seconds)
        return response

    def refuse(self, status: int, error: str, description: str) -> HttpResponse:
        return JsonResponse({"error": error, "error_description": description}, status=status)

    def _answer(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if request.method != "POST":
            response = self.refuse(405, "invalid_request", "Use POST")
            response["Allow"] = "POST"
            return response
        answer = super()._answer(request, *args, **kwargs)
        if isinstance(answer, HttpResponse) and answer.content:
            answer["Content-Type"] = "application/json"  # which the toolkit does not say of all its errors
            if answer.status_code in (400, 401):
                self._note_refusal(request, json.loads(answer.content).get("error"))
        return answer

    def _note_refusal(self, request: HttpRequest, error: str) -> None:
        if error in ("invalid_client", "invalid_grant"):
            trail.refused("oauth.refused", f"{self.door}: {error}", name=request.POST.get("client_id", ""))


@method_decorator(csrf_exempt, name="dispatch")
class TokenView(ForPrograms, views.TokenView):
    door = "token"

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        # Past the toolkit's own post(), which is about devices.
        response: HttpResponse = self.authorization_flow_token_response(request)
        return response


@method_decorator(csrf_exempt, name="dispatch")
class RevokeView(ForPrograms, views.RevokeTokenView):
    door = "revoke"


@method_decorator(csrf_exempt, name="dispatch")
class IntrospectView(ForPrograms, views.IntrospectTokenView):
    """For applications that keep a secret; the scopes told are those that the API would grant at this moment."""

    door = "introspect"
    rate = "600/m"  # services ask at each request that they get

    @staticmethod
    def get_token_response(token_value: str | None = None) -> HttpResponse:
        if not token_value:
            return JsonResponse(
                {"error": "invalid_request", "error_description": "Token parameter is missing."}, status=400
            )
        return JsonResponse(tokens.describe(token_value))

    def unauthenticated_response(self, request: HttpRequest, oauthlib_request: Any = None) -> HttpResponse:
        response = self.refuse(401, "invalid_client", "Sign in with the application's client id and secret")
        response["WWW-Authenticate"] = 'Basic realm="k1node"'
        return response


class AuthorizeView(Door, views.AuthorizationView):
    """The consent page. Whatever could skip it (prompt, approval_prompt) is not heard."""

    door = "authorize"

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        heard = request.GET.copy()
        for name in ("prompt", "approval_prompt"):
            heard.pop(name, None)
        request.GET = heard  # type: ignore[assignment]
        response = super().dispatch(request, *args, **kwargs)
        response["Content-Security-Policy"] = signing_in.CONTENT_SECURITY_POLICY
        return response

    def _answer(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if request.user.is_authenticated and not operators.may_sign_in(request.user):
            return self.refuse(
                403, "access_denied", "This account may not sign in to the console, so not to apps either"
            )
        return super()._answer(request, *args, **kwargs)

    def validate_authorization_request(self, request: HttpRequest) -> Any:
        scopes, credentials = super().validate_authorization_request(request)
        if credentials.get("code_challenge_method") != "S256":
            raise _redirected(credentials, 'Only the code challenge method "S256" is supported.')
        if not CHALLENGE_SHAPE.fullmatch(credentials["code_challenge"]):
            raise _redirected(credentials, "The code challenge is not the base64url of a SHA-256.")
        return scopes, credentials

    def get_initial(self) -> dict[str, Any]:
        asked = self.oauth2_data.get("scopes", [])
        granted = grantable(self.request.user, asked)
        initial: dict[str, Any] = super().get_initial()
        return initial | {"scope": " ".join(granted or asked)}

    def form_valid(self, form: Any) -> HttpResponseBase:
        """Somebody has pressed Allow or Deny."""
        application = Application.objects.filter(client_id=form.cleaned_data["client_id"]).first()
        # Checked before anything is sent there, denials too: what the form hides can be changed.
        if application is None or not application.redirect_uri_allowed(form.cleaned_data["redirect_uri"]):
            return self.refuse(400, "invalid_request", "The form does not fit the application")
        logger.info(
            "App allowed" if form.cleaned_data["allow"] else "App denied",
            extra={"application": str(application), "by": self.request.user.get_username()},
        )
        response: HttpResponseBase = super().form_valid(form)
        return response

    def form_invalid(self, form: Any) -> HttpResponse:
        return self.refuse(400, "invalid_request", "The form is incomplete")

    def redirect(self, redirect_to: str, application: Any) -> HttpResponse:
        response: HttpResponse = OAuth2ResponseRedirect(redirect_to, redirects.schemes_for(redirect_to))
        return response

    def error_response(self, error: OAuthToolkitError, application: Any = None, **kwargs: Any) -> HttpResponse:
        found = error.oauthlib_error
        # The toolkit's own class of this name is the one for errors that must not be sent to the app's address.
        if isinstance(found, errors.FatalClientError):
            return self.refuse(400, found.error, found.description or "")
        issuer = urlencode({"iss": oauth2_settings.oauth2_authorization_server_issuer(self.request)})
        separator = "&" if "?" in found.redirect_uri else "?"
        return self.redirect(f"{found.redirect_uri}{separator}{found.urlencoded}&{issuer}", application)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        asked = kwargs.get("scopes", [])
        granted = grantable(self.request.user, asked)
        return super().get_context_data(  # type: ignore[no-any-return]
            **_frame(self.request),
            **kwargs,
            title=f"{kwargs['application']} asks for access",
            may=[{"scope": scope, "words": DESCRIPTIONS[scope], "is_all": scope == ADMIN} for scope in granted],
            withheld=[{"scope": scope, "words": DESCRIPTIONS[scope]} for scope in asked if scope not in granted],
            destination=redirects.destination(kwargs["redirect_uri"]),
            address=self.request.get_full_path(),
        )

    def slow_down(self, seconds: int) -> HttpResponse:
        return signing_in.slow_down(self.request, seconds, "There have been many requests from apps from your address.")

    def refuse(self, status: int, error: str, description: str) -> HttpResponse:
        """Return a page that says what is wrong; it leads nowhere."""
        context = {
            **_frame(self.request),
            "title": "This cannot go on",
            "words": WORDS.get(error, ""),
            "error": error,
            "description": description,
        }
        return TemplateResponse(self.request, "oauth2_provider/refused.html", context, status=status)


WORDS = {
    "access_denied": "You are signed in, but not as somebody who may use this console.",
    "temporarily_unavailable": "The node cannot answer at the moment. Try again shortly.",
}


class MetadataView(views.OAuthServerMetadataView):
    """RFC 8414. An app without a secret may ask for tokens, and not look into them."""

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        response: HttpResponse = super().get(request, *args, **kwargs)
        told = json.loads(response.content)
        told["introspection_endpoint_auth_methods_supported"] = [
            method for method in told["introspection_endpoint_auth_methods_supported"] if method != "none"
        ]
        response.content = json.dumps(told)
        return response


def _redirected(credentials: dict[str, Any], description: str) -> OAuthToolkitError:
    error = errors.InvalidRequestError(description=description, state=credentials.get("state"))
    return OAuthToolkitError(error=error, redirect_uri=credentials["redirect_uri"])


def _frame(request: HttpRequest) -> dict[str, Any]:
    """Return what the admin's frame needs, without its menu: these pages have one question."""
    return {**admin.site.each_context(request), "has_permission": False}
