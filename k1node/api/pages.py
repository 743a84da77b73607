"""The OpenAPI document and its two readers in the browser, with every script and style from this node."""

import functools
import hashlib
from typing import Any

import orjson
from django.http import HttpRequest, HttpResponse
from django.utils.cache import get_conditional_response
from drf_spectacular.settings import spectacular_settings
from drf_spectacular.utils import extend_schema
from drf_spectacular.views import SpectacularRedocView, SpectacularSwaggerSplitView
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from k1node.api.document import build
from k1node.api.negotiation import Negotiation
from k1node.api.renderers import JSON


@functools.cache
def document() -> tuple[bytes, str]:
    """Return the OpenAPI document and its ETag; made once in a process, since nothing in it changes."""
    body = orjson.dumps(build(), option=orjson.OPT_INDENT_2)
    return body, f'"{hashlib.sha256(body).hexdigest()[:32]}"'


class OpenApiView(APIView):
    authentication_classes = ()
    permission_classes = (AllowAny,)
    content_negotiation_class = Negotiation
    metadata_class = None
    http_method_names = ["get", "head"]

    def perform_content_negotiation(self, request: Request, force: bool = False) -> Any:
        # Browsers and tools ask for it by many names; there is one form of it.
        return super().perform_content_negotiation(request, force=True)

    @extend_schema(exclude=True)
    def get(self, request: Request) -> HttpResponse:
        body, etag = document()
        response = HttpResponse(body, content_type=JSON, headers={"ETag": etag, "Cache-Control": "no-cache"})
        return get_conditional_response(_plain(request), etag=etag, response=response) or response


# Redoc's bundle would fetch a logo from its maker's servers.
POLICY = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' data:",
        "style-src 'self' 'unsafe-inline'",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)


class SwaggerPage(SpectacularSwaggerSplitView):
    """Swagger UI; its script is a request of its own, so that pages need no inline script."""

    authentication_classes = ()
    permission_classes = (AllowAny,)
    url_name = "openapi"

    def finalize_response(self, *args: Any, **kwargs: Any) -> Any:
        response = super().finalize_response(*args, **kwargs)
        response["Content-Security-Policy"] = POLICY
        return response

    def _dump(self, data: Any) -> Any:
        # Without this Swagger UI sends the document's address to a validator on the Internet.
        if isinstance(data, dict) and data == spectacular_settings.SWAGGER_UI_SETTINGS:
            data = {**data, "validatorUrl": None}
        return super()._dump(data)


class RedocPage(SpectacularRedocView):
    authentication_classes = ()
    permission_classes = (AllowAny,)
    url_name = "openapi"
    template_name = "api/redoc.html"

    def finalize_response(self, *args: Any, **kwargs: Any) -> Any:
        response = super().finalize_response(*args, **kwargs)
        response["Content-Security-Policy"] = POLICY
        return response

    @extend_schema(exclude=True)
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        response: Response = super().get(request, *args, **kwargs)
        return response


def _plain(request: Request) -> HttpRequest:
    return request._request
