"""Which media types the API reads and writes: JSON, under its plain name or one of the product's own.

Views write it under its plain name; k1node.api.versions decides what the client sees.
"""

from collections.abc import Iterable, Sequence

from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

from k1node.api import versions
from k1node.api.renderers import JSON, MEDIA_TYPES


class Negotiation(BaseContentNegotiation):
    def select_parser(self, request: Request, parsers: Sequence[BaseParser]) -> BaseParser | None:  # type: ignore[override]
        """Return the parser for the request's media type; a body that names none is taken for JSON."""
        named = (request.content_type or "").partition(";")[0].strip().lower()
        wanted = JSON if named in ("", *MEDIA_TYPES) else named
        return next((parser for parser in parsers if parser.media_type == wanted), None)

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        """Return the renderer of JSON. Raises NotAcceptable.

        A query parameter `format` chooses nothing here: it may be an endpoint's own.
        """
        if versions.accepted(request.META.get("HTTP_ACCEPT", "")).media_type is None:
            raise versions.not_acceptable()
        return next(iter(renderers)), JSON
