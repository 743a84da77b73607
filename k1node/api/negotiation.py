"""Which media types the API reads and writes: JSON, under its plain name or the product's own."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

from k1node.api.renderers import JSON, JSON_V2


class Negotiation(DefaultContentNegotiation):
    def select_parser(self, request: Request, parsers: Sequence[BaseParser]) -> BaseParser | None:  # type: ignore[override]
        """Return the parser for the request's media type; a body that names none is taken for JSON."""
        named = (request.content_type or "").partition(";")[0].strip().lower()
        wanted = JSON if named in ("", JSON_V2) else named
        return next((parser for parser in parsers if parser.media_type == wanted), None)

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        """Return the renderer, which answers under the name the caller asked for.

        A query parameter `format` chooses nothing here: it may be an endpoint's own.
        """
        plain = next(iter(renderers))
        own = type(plain)()
        own.media_type = JSON_V2
        # With no preference between the two (*/*), the first listed wins.
        chosen, _ = super().select_renderer(cast(Request, _HeadersOnly(request)), [plain, own], format_suffix)
        return chosen, chosen.media_type or JSON


class _HeadersOnly:
    """The part of a request that the parent's selection reads, without query parameters."""

    query_params: dict[str, Any] = {}

    def __init__(self, request: Request) -> None:
        self.headers = request.headers
