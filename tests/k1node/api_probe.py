"""Endpoints that do nothing but show the base of the API, and the URL configuration that has them."""

from collections.abc import Callable
from datetime import UTC, datetime
from secrets import token_hex
from typing import Any

from django.core.exceptions import PermissionDenied, RequestDataTooBig, SuspiciousOperation
from django.db import OperationalError, connection
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import include, path
from drf_spectacular.utils import extend_schema
from rest_framework import exceptions
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response

from k1node import urls
from k1node.access.models import ApiKey
from k1node.api import serializers as strict
from k1node.api.errors import invalid
from k1node.api.pagination import CursorPagination
from k1node.api.views import ApiViewSet, accepted, created, gone
from k1node.lib.errors import Conflict, FieldInvalid, PreconditionFailed, RateLimited

ERRORS: dict[str, Exception] = {
    "conflict": Conflict("Already there"),
    "field": FieldInvalid("handler", "is not allowed", "Use bash"),
    "not-found": exceptions.NotFound(),
    "http404": Http404(),
    "denied": PermissionDenied(),
    "parse": exceptions.ParseError("Broken"),
    "unavailable": OperationalError("database is locked"),
    "too-big": RequestDataTooBig(),
    "suspicious": SuspiciousOperation("secret detail"),
    "bug": ZeroDivisionError("secret detail"),
    "changed": PreconditionFailed(),
    "limited": RateLimited(limit=1000, remaining=0, reset_at=datetime(2026, 3, 4, 6, tzinfo=UTC), retry_after=3),
}


class ItemInput(strict.StrictSerializer):
    handler = strict.StrictString(max_length=20)
    priority = strict.StrictInteger(min_value=1, max_value=10, default=5)
    urgent = strict.StrictBoolean(required=False)

    def validate_handler(self, value: str) -> str:
        if value == "refused":
            raise FieldInvalid("handler", "is not allowed", "Use bash")
        return value


class EchoInput(strict.StrictSerializer):
    title = strict.StrictString(required=False, multiline=True)
    kind = strict.StrictChoice(choices=["cron", "event"], required=False)
    parameters = strict.StrictObject(required=False)
    at = strict.Timestamp(required=False)
    ratio = strict.StrictNumber(required=False, min_value=0, max_value=10)
    names = strict.StrictList(child=strict.StrictString(), required=False, max_length=3)
    tasks = ItemInput(many=True, required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if attrs.get("title") == "whole":
            raise invalid("Does not fit together", "Change it")
        return attrs


class EchoFilter(strict.QuerySerializer):
    enabled = strict.StrictBoolean(required=False)
    since = strict.Timestamp(required=False)
    number = strict.StrictInteger(required=False, max_value=10)


class EchoOutput(strict.StrictSerializer):
    title = strict.StrictString()
    at = strict.Timestamp()


class KeyOutput(strict.StrictSerializer):
    name = strict.StrictString()
    created_at = strict.Timestamp()


class EchoViewSet(ApiViewSet):
    required_scopes = {
        "list": ["scheduler:read"],
        "create": ["scheduler:write", "error-recovery:write"],
        "retrieve": ["scheduler:read"],
        "partial_update": ["scheduler:write"],
        "destroy": ["scheduler:write"],
    }
    operation_ids = {"list": "listEchoes", "create": "createEcho", "retrieve": "getEcho", "destroy": "deleteEcho"}
    tags = ["Scheduling"]
    list_key = "echoes"
    list_name = "EchoList"

    @extend_schema(parameters=[EchoFilter], responses=KeyOutput(many=True))
    def list(self, request: Request) -> Response:
        """List the echoes.

        At length.
        """
        self.query(EchoFilter)
        return self.listed(ApiKey.objects.order_by("-id"), KeyOutput)

    @extend_schema(request=EchoInput, responses={201: EchoOutput})
    def create(self, request: Request) -> Response:
        """Echo the body."""
        return created(self.validated(EchoInput), location="/api/v2/echoes/1")

    @extend_schema(responses=EchoOutput)
    def retrieve(self, request: Request, echo_id: str) -> Response:
        """Raise an error by name."""
        if echo_id in ERRORS:
            raise ERRORS[echo_id]
        return Response({"echo_id": echo_id, "by": self.principal.name})

    @extend_schema(request=EchoInput, responses=EchoOutput)
    def partial_update(self, request: Request, echo_id: str) -> Response:
        """Change an echo; 202 to a new address if it is given a title."""
        said = self.validated(EchoInput, partial=True)
        return accepted(said, location="/api/v2/echoes/2") if said else Response(said)

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, echo_id: str) -> Response:
        """Delete an echo."""
        return gone()

    def forgotten(self, request: Request) -> Response:
        """Has no entry in required_scopes."""
        return accepted({})


class GrowingViewSet(ApiViewSet):
    required_scopes = {"list": ["scheduler:read"]}
    pagination_class = CursorPagination
    list_key = "keys"

    @extend_schema(responses=KeyOutput(many=True))
    def list(self, request: Request) -> Response:
        """List the keys."""
        self.query()
        return self.listed(ApiKey.objects.all(), KeyOutput)


class KeyInput(strict.StrictSerializer):
    name = strict.StrictString(default="made")


class MadeOutput(strict.StrictSerializer):
    name = strict.StrictString()
    secret = strict.StrictString()


class MakingViewSet(ApiViewSet):
    """Makes a row at each call; `meanwhile` is called between that and the answer."""

    required_scopes = {"make": ["scheduler:write"], "make_bare": ["scheduler:write"]}
    secret_fields = ("secret",)
    meanwhile: Callable[[], None] = staticmethod(lambda: None)

    @extend_schema(request=KeyInput, responses={201: MadeOutput})
    def make(self, request: Request) -> Response:
        """Make one."""
        name = self.validated(KeyInput)["name"]
        number = ApiKey.objects.create(name=name, digest=token_hex()).pk
        self.meanwhile()
        secret = f"whsec_{'0123456789' * 3}{number}"
        body = {"name": name, "secret": secret, "inner": [{"secret": secret, "hint": "short"}, {"secret": "tiny"}]}
        return created(body, location=f"/api/v2/made/{number}")

    @extend_schema(request=KeyInput, responses={204: None})
    def make_bare(self, request: Request) -> Response:
        """Make one and say nothing."""
        ApiKey.objects.create(name="bare", digest=token_hex())
        return gone()


class HeedlessViewSet(MakingViewSet):
    idempotent = False


class OpenViewSet(MakingViewSet):
    permission_classes = (AllowAny,)


class ReluctantViewSet(MakingViewSet):
    def make(self, request: Request) -> Response:
        """Make one and return, not raise, that it did not go well."""
        super().make(request)
        return Response({"done": False}, status=409)


def broken(request: HttpRequest) -> HttpResponse:
    raise ZeroDivisionError("secret detail")


def database(request: HttpRequest) -> HttpResponse:
    """Return which connection this thread uses; with ?close, end it."""
    connection.ensure_connection()
    used = id(connection.connection)
    if "close" in request.GET:
        connection.close()
    return HttpResponse(str(used))


ONE: Any = {"get": "retrieve", "patch": "partial_update", "delete": "destroy"}
urlpatterns = [
    path("database", database),
    path("api/v2/echoes", EchoViewSet.as_view({"get": "list", "post": "create"})),
    path("api/v2/forgotten", EchoViewSet.as_view({"get": "forgotten"})),
    path("api/v2/echoes/<str:echo_id>", EchoViewSet.as_view(ONE)),
    path("api/v2/keys", GrowingViewSet.as_view({"get": "list"})),
    path("api/v2/made", MakingViewSet.as_view(dict.fromkeys(("post", "put", "patch", "delete", "get"), "make"))),
    path("api/v2/made/elsewhere", MakingViewSet.as_view({"post": "make"})),
    path("api/v2/made/bare", MakingViewSet.as_view({"post": "make_bare"})),
    path("api/v2/made/heedless", HeedlessViewSet.as_view({"post": "make"})),
    path("api/v2/made/open", OpenViewSet.as_view({"post": "make"})),
    path("api/v2/made/reluctant", ReluctantViewSet.as_view({"post": "make"})),
    path("api/v2/broken", broken),
    path("", include(urls)),
]
handler400 = urls.handler400
handler403 = urls.handler403
handler404 = urls.handler404
handler500 = urls.handler500
