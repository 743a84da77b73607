"""What the API says of itself: the OpenAPI document and its two readers in the browser, its versions and its errors.

Every script and style comes from this node.
"""

import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import orjson
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.utils.cache import get_conditional_response
from drf_spectacular.settings import spectacular_settings
from drf_spectacular.utils import extend_schema
from drf_spectacular.views import SpectacularRedocView, SpectacularSwaggerSplitView
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from k1node.api import versions
from k1node.api.document import build
from k1node.api.error_codes import TABLE
from k1node.api.negotiation import Negotiation
from k1node.api.renderers import JSON, JsonRenderer, dumps, timestamp


class PublicPage(APIView):
    """One document for all who ask, that is not sent again to who has it already."""

    authentication_classes = ()
    permission_classes = (AllowAny,)
    content_negotiation_class = Negotiation
    metadata_class = None
    http_method_names = ["get", "head"]
    media_type = JSON

    def perform_content_negotiation(self, request: Request, force: bool = False) -> Any:
        # Browsers and tools ask for it by many names; there is one form of it.
        return super().perform_content_negotiation(request, force=True)

    @extend_schema(exclude=True)
    def get(self, request: Request) -> HttpResponse:
        body = self.content()
        etag = _etag(body)
        response = HttpResponse(body, content_type=self.media_type, headers={"ETag": etag, "Cache-Control": "no-cache"})
        return get_conditional_response(_plain(request), etag=etag, response=response) or response

    def content(self) -> bytes:
        raise NotImplementedError


@functools.lru_cache(maxsize=8)
def _etag(body: bytes) -> str:
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


@functools.cache
def document() -> bytes:
    """Return the OpenAPI document; made once in a process, since nothing in it changes."""
    return orjson.dumps(build(), option=orjson.OPT_INDENT_2)


class OpenApiView(PublicPage):
    def content(self) -> bytes:
        return document()


class VersionsView(PublicPage):
    def content(self) -> bytes:
        old = versions.retirement()
        return dumps(
            {
                "versions": [
                    {
                        "version": versions.CURRENT,
                        "status": "current",
                        "media_type": versions.VENDOR_TYPES[versions.CURRENT],
                        "path": "/api/v2",
                        "documentation": "/api/v2/docs",
                    },
                    {
                        "version": versions.OLD,
                        "status": "retired" if old.is_over() else "deprecated",
                        "media_type": versions.VENDOR_TYPES[versions.OLD],
                        "path": "/api/v1",
                        "documentation": versions.MIGRATION,
                        "deprecated_at": timestamp(old.deprecated_at),
                        "sunset_at": timestamp(old.sunset_at),
                        "successor": versions.CURRENT,
                    },
                ],
                "default": versions.CURRENT,
            }
        )


class MigrationView(PublicPage):
    """The guide from version 1 to 2, as it is written."""

    media_type = "text/plain; charset=utf-8"

    def content(self) -> bytes:
        guide: bytes = (settings.BASE_DIR / "docs" / "migration-v1-to-v2.md").read_bytes()
        return guide


class ErrorsPage(PublicPage):
    """What each error code means, each under an anchor of its own."""

    media_type = "text/html; charset=utf-8"

    def content(self) -> bytes:
        return _errors_page()

    def finalize_response(self, *args: Any, **kwargs: Any) -> Any:
        response = super().finalize_response(*args, **kwargs)
        response["Content-Security-Policy"] = POLICY
        return response


@functools.cache
def _errors_page() -> bytes:
    rows = [(entry, list(_pieces(entry.when)), list(_pieces(entry.remedy))) for entry in TABLE]
    return render_to_string("api/errors.html", {"rows": rows}).encode()


def _pieces(text: str) -> Iterator[tuple[bool, str]]:
    """Give the pieces of a text in turn, each with whether it stands between backticks."""
    for index, piece in enumerate(text.split("`")):
        yield index % 2 == 1, piece


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


class ReaderPage(APIView):
    """A page that reads the document; whatever goes wrong is told as everywhere else."""

    authentication_classes = ()
    permission_classes = (AllowAny,)
    metadata_class = None
    http_method_names = ["get", "head"]
    url_name = "openapi"

    def perform_content_negotiation(self, request: Request, force: bool = False) -> Any:
        return super().perform_content_negotiation(request, force=True)

    def finalize_response(self, request: Request, response: Response, *args: Any, **kwargs: Any) -> Any:
        if response.exception:
            request.accepted_renderer = JsonRenderer()
        response = super().finalize_response(request, response, *args, **kwargs)
        response["Content-Security-Policy"] = POLICY
        return response


class SwaggerPage(ReaderPage, SpectacularSwaggerSplitView):
    """Swagger UI; its script is a request of its own, so that pages need no inline script."""

    def _dump(self, data: Any) -> Any:
        # Without this Swagger UI sends the document's address to a validator on the Internet.
        if isinstance(data, dict) and data == spectacular_settings.SWAGGER_UI_SETTINGS:
            data = {**data, "validatorUrl": None}
        return super()._dump(data)


class RedocPage(ReaderPage, SpectacularRedocView):
    template_name = "api/redoc.html"

    @extend_schema(exclude=True)
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        response: Response = super().get(request, *args, **kwargs)
        return response


def _plain(request: Request) -> HttpRequest:
    return request._request
