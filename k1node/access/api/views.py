"""The endpoints of signing in and of keys: validate, one call into the app, respond."""

from datetime import timedelta
from typing import Any, ClassVar

from django.urls import reverse
from django.utils import timezone
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response

from k1node.access import authentication, grants, keys
from k1node.access.api.serializers import (
    ApiKeyInput,
    ApiKeyOutput,
    ApiKeyUpdate,
    KeyFilters,
    NewApiKeyOutput,
    RefreshInput,
    RevokeInput,
    RevokeKeyInput,
    RevokeOutput,
    RotateInput,
    TokenInput,
    TokenOutput,
)
from k1node.access.authentication import BearerAuthentication
from k1node.access.models import ApiKey
from k1node.access.permissions import ANY_KEY
from k1node.access.scopes import ADMIN
from k1node.api.views import ApiViewSet, created, gone
from k1node.audit import trail

LOCATION = OpenApiParameter("Location", str, OpenApiParameter.HEADER, description="URL of the key", response=[201])
TAGS = ("Access",)


class _SignInViewSet(ApiViewSet):
    """No cache may keep an answer that has a token in it."""

    tags = TAGS
    # A token is not kept to be given out again.
    idempotent = False

    def finalize_response(self, request: Any, response: Any, *args: Any, **kwargs: Any) -> Any:
        response = super().finalize_response(request, response, *args, **kwargs)
        response.headers["Cache-Control"] = "no-store"
        response.headers["Pragma"] = "no-cache"
        return response


class TokenViewSet(_SignInViewSet):
    authentication_classes = (BearerAuthentication,)
    required_scopes = {"issue": ANY_KEY}
    operation_ids = {"issue": "issueToken"}
    secret_fields = ("access_token", "refresh_token")

    @extend_schema(request=TokenInput, responses={200: OpenApiResponse(TokenOutput, "The tokens")})
    def issue(self, request: Request) -> Response:
        """Sign in with an API key

        Gives a JWT for some or all of the key's scopes, and a refresh token for the next one. Open to every key and to
        no other credential. The JWT ends with its key: revoking that ends it at once.
        """
        assert isinstance(request.auth, keys.Known)
        return Response(_shown(grants.issue(request.auth, self.validated(TokenInput).get("scope"))))


class PossessionViewSet(_SignInViewSet):
    """Whoever has a token may refresh with it and may end it: the token in the body is the credential."""

    authentication_classes = ()
    permission_classes = (AllowAny,)
    operation_ids = {"refresh": "refreshToken", "revoke": "revokeToken"}
    secret_fields = ("access_token", "refresh_token")
    more_errors: ClassVar[dict[str, tuple[int, ...]]] = {"refresh": (401,)}

    def get_authenticate_header(self, request: Request) -> str:
        return authentication.CHALLENGE

    @extend_schema(request=RefreshInput, responses={200: OpenApiResponse(TokenOutput, "The next tokens")})
    def refresh(self, request: Request) -> Response:
        """Exchange a refresh token for the next tokens

        Each refresh token is good for one use. One that comes a second time ends all that came of its sign-in, for it
        was copied. The scopes are those of before, without what the key has lost since.
        """
        text = self.validated(RefreshInput)["refresh_token"]
        try:
            return Response(_shown(authentication.by_refresh_token(request, text)))
        except AuthenticationFailed as error:
            trail.refused("refresh.refused", getattr(error, "reason", ""))
            raise

    @extend_schema(request=RevokeInput, responses={200: OpenApiResponse(RevokeOutput, "The token is not valid")})
    def revoke(self, request: Request) -> Response:
        """Revoke a token

        An access token is refused from now on; a refresh token takes all that came of its sign-in with it. The answer
        is the same for a text that was no valid token.
        """
        grants.revoke(self.validated(RevokeInput)["token"])
        return Response({"revoked": True})


def _shown(grant: grants.Grant) -> dict[str, Any]:
    return {
        "access_token": grant.access_token,
        "token_type": "Bearer",
        "expires_in": grant.expires_in,
        "refresh_token": grant.refresh_token,
        "scope": " ".join(grant.scopes),
    }


class ApiKeyViewSet(ApiViewSet):
    required_scopes = dict.fromkeys(
        ("list_keys", "get", "create", "update", "rotate", "revoke", "delete_key"), (ADMIN,)
    )
    operation_ids = {
        "list_keys": "listApiKeys",
        "create": "createApiKey",
        "get": "getApiKey",
        "update": "updateApiKey",
        "rotate": "rotateApiKey",
        "revoke": "revokeApiKey",
        "delete_key": "deleteApiKey",
    }
    tags = TAGS
    list_key = "api_keys"
    list_name = "ApiKeyList"
    conditional_actions = {"get", "create", "update", "rotate", "delete_key"}
    settings_fields = keys.CHANGEABLE
    # Of the answers: shown once, and not again when an answer is repeated.
    secret_fields = ("key",)

    @extend_schema(parameters=[KeyFilters], responses={200: OpenApiResponse(ApiKeyOutput(many=True), "The keys")})
    def list_keys(self, request: Request) -> Response:
        """List the API keys

        The newest first, revoked ones too.
        """
        wanted = self.query(KeyFilters)
        rows = ApiKey.objects.select_related("replaced_by").order_by("-pk")
        if "state" in wanted:
            rows = rows.in_state(wanted["state"], timezone.now())
        if "name" in wanted:
            rows = rows.filter(name=wanted["name"])
        return self.listed(rows, ApiKeyOutput)

    @extend_schema(responses={200: OpenApiResponse(ApiKeyOutput, "The key")})
    def get(self, request: Request, key_id: str) -> Response:
        """Get an API key"""
        self.query()
        key = self._key(key_id)
        return self.tagged(key, Response(ApiKeyOutput(key).data))

    @extend_schema(
        parameters=[LOCATION], request=ApiKeyInput, responses={201: OpenApiResponse(NewApiKeyOutput, "Key made")}
    )
    def create(self, request: Request) -> Response:
        """Make an API key

        The answer has the key itself, in `key`, this once.
        """
        body = self.validated(ApiKeyInput)
        body["allowed_cidrs"] = body.get("allowed_cidrs") or ()
        row, text = keys.issue(**body, by=self.principal.name, now=timezone.now())
        return self.tagged(row, _new(row, text))

    @extend_schema(request=ApiKeyUpdate, responses={200: OpenApiResponse(ApiKeyOutput, "Key changed")})
    def update(self, request: Request, key_id: str) -> Response:
        """Change an API key

        It counts from the key's next request on, for its tokens too. Scopes can only become fewer: for more, make
        another key. `expires_at` may move either way, but must lie ahead; that of a rotated key can only come sooner.
        409 for a key that is revoked or expired.
        """
        key, body = self._key(key_id), self.validated(ApiKeyUpdate)
        changed = self.guarded(ApiKey.objects.filter(pk=key.pk), lambda: keys.change(key, body))
        return self.tagged(changed, Response(ApiKeyOutput(changed).data))

    @extend_schema(
        parameters=[LOCATION], request=RotateInput, responses={201: OpenApiResponse(NewApiKeyOutput, "The new key")}
    )
    def rotate(self, request: Request, key_id: str) -> Response:
        """Replace an API key by a new one

        The new key has the name, scopes and limits of the old one and, if that was made for a time, as long a life. The
        old one stays valid for the overlap. 409 for a key that is revoked, expired or rotated already.
        """
        overlap = timedelta(seconds=self.validated(RotateInput)["overlap_seconds"])
        row, text = keys.rotate(self._key(key_id), overlap=overlap, by=self.principal.name)
        return self.tagged(row, _new(row, text))

    @extend_schema(request=RevokeKeyInput, responses={200: OpenApiResponse(ApiKeyOutput, "The key has ended")})
    def revoke(self, request: Request, key_id: str) -> Response:
        """Revoke an API key

        It ends at once and for good, and every token made with it. A key that was revoked before stays as it is.
        """
        row = self._key(key_id)
        keys.revoke(row, reason=self.validated(RevokeKeyInput).get("reason", ""))
        return Response(ApiKeyOutput(self._key(key_id)).data)

    @extend_schema(responses={204: OpenApiResponse(description="The key has ended")})
    def delete_key(self, request: Request, key_id: str) -> Response:
        """Revoke an API key, without a reason

        Its row stays, so that what it did can be told from what others did.
        """
        self.query()
        key = self._key(key_id)
        self.guarded(ApiKey.objects.filter(pk=key.pk), lambda: keys.revoke(key))
        return gone()

    def _key(self, key_id: str) -> ApiKey:
        return self.found(ApiKey.objects.select_related("replaced_by"), public_id=key_id)


def _new(row: ApiKey, text: str) -> Response:
    body = NewApiKeyOutput(row, context={"text": text}).data
    return created(body, location=reverse("api-key", kwargs={"key_id": row.public_id}))
