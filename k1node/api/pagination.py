"""Lists in pages: by number with a total, or on growing lists also by a cursor that no new row can shift."""

import base64
import binascii
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.db.models import QuerySet
from rest_framework.pagination import BasePagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils.urls import remove_query_param, replace_query_param

from k1node.lib.errors import FieldInvalid

if TYPE_CHECKING:  # rest_framework.views imports this module, by way of the schema class
    from rest_framework.views import APIView

DEFAULT_LIMIT = 20
MAX_LIMIT = 100
# Counting and skipping stop here: neither may cost more on a longer list.
TOTAL_CAP = 10_000
CURSOR_MARK = "k1:"

LIMIT_PARAMETER: dict[str, Any] = {
    "name": "limit",
    "in": "query",
    "description": "Entries on a page",
    "schema": {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
}
PAGE_PARAMETER: dict[str, Any] = {
    "name": "page",
    "in": "query",
    "description": "Number of the page, from 1",
    "schema": {"type": "integer", "minimum": 1, "maximum": TOTAL_CAP, "default": 1},
}
CURSOR_PARAMETER: dict[str, Any] = {
    "name": "cursor",
    "in": "query",
    "description": "`pagination.next_cursor` of the page before; instead of `page`",
    "schema": {"type": "string", "maxLength": 64},
}
LINK_HEADER: dict[str, Any] = {
    "description": (
        f"Addresses of other pages (RFC 8288): first, prev, next and last, the last within {TOTAL_CAP:,} entries. With "
        "a cursor only next; on the last page of one, none"
    ),
    "schema": {"type": "string", "examples": ['<http://localhost:3000/api/v2/tasks?page=1>; rel="first"']},
}


class PagePagination(BasePagination):
    """`page` and `limit`; answers `{"<view.list_key>": […], "pagination": {page, limit, total}}`, and Link."""

    parameters: Sequence[dict[str, Any]] = (PAGE_PARAMETER, LIMIT_PARAMETER)
    has_cursor = False
    view: "APIView | None" = None

    def paginate_queryset(
        self, queryset: QuerySet[Any] | Sequence[Any], request: Request, view: "APIView | None" = None
    ) -> list[Any]:
        """Return the rows of the page asked for. Raises FieldInvalid."""
        self.view = view
        self.address = request.build_absolute_uri()
        self.limit = _whole(request, "limit", DEFAULT_LIMIT, MAX_LIMIT)
        self.page = _whole(request, "page", 1, TOTAL_CAP)
        start = (self.page - 1) * self.limit
        if start >= TOTAL_CAP:
            raise FieldInvalid(
                "page",
                f"Must lie within the first {TOTAL_CAP:,} entries",
                "Use cursor=<pagination.next_cursor>" if self.has_cursor else "Narrow the list with its filters",
            )
        counted = _count(queryset)
        self.capped = counted > TOTAL_CAP
        self.total = min(counted, TOTAL_CAP)
        return list(queryset[start : start + self.limit]) if start < counted else []

    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"page": self.page, "limit": self.limit, "total": self.total}
        if self.capped:
            facts["capped"] = True
        return facts

    def get_paginated_response(self, data: Any) -> Response:
        response = Response({getattr(self.view, "list_key", "entries"): data, "pagination": self.facts()})
        links = [f'<{address}>; rel="{name}"' for name, address in self.links().items() if address]
        if links:
            response["Link"] = ", ".join(links)
        return response

    def links(self) -> dict[str, str | None]:
        """Return the addresses of the pages around this one, as the caller wrote it; None where there is none."""
        return {
            "first": self._page_address(1),
            "prev": self._page_address(min(self.page - 1, self._last_page())) if self.page > 1 else None,
            "next": self._page_address(self.page + 1) if self.page < self._last_page() else None,
            "last": self._page_address(self._last_page()),
        }

    def _last_page(self) -> int:
        return max(1, -(-self.total // self.limit))

    def _page_address(self, page: int) -> str:
        return str(replace_query_param(self.address, "page", page))

    # --- for the OpenAPI document -------------------------------------------------------------------------------
    def get_schema_operation_parameters(self, view: "APIView") -> list[dict[str, Any]]:
        return [{"required": False, **parameter} for parameter in self.parameters]

    def facts_schema(self) -> dict[str, Any]:
        return {
            "type": "object",
            "required": ["page", "limit", "total"],
            "properties": {
                "page": {"type": "integer", "examples": [1]},
                "limit": {"type": "integer", "examples": [DEFAULT_LIMIT]},
                "total": {"type": "integer", "maximum": TOTAL_CAP, "examples": [150]},
                "capped": {"type": "boolean", "description": "True when there are more than `total`"},
            },
        }

    def get_paginated_response_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        key = getattr(self.view, "list_key", "entries")
        return {
            "type": "object",
            "required": [key, "pagination"],
            "properties": {key: schema, "pagination": self.facts_schema()},
        }


class CursorPagination(PagePagination):
    """Also `cursor`: the entries after the one it names, newest first by id. For lists that grow while they are read.

    The first page, asked for without either, has a next_cursor too. A page by cursor has no number and no total.
    A list in another order overrides `ordered`, `position` and `after`; positions must be unique and never negative.
    """

    parameters = (PAGE_PARAMETER, CURSOR_PARAMETER, LIMIT_PARAMETER)
    has_cursor = True

    def paginate_queryset(
        self, queryset: QuerySet[Any] | Sequence[Any], request: Request, view: "APIView | None" = None
    ) -> list[Any]:
        """Return the rows of the page asked for, out of `queryset` ordered by -id. Raises FieldInvalid."""
        if not isinstance(queryset, QuerySet):
            raise TypeError("Only a queryset has ids to continue from.")
        self.address = request.build_absolute_uri()
        self.by_cursor = "cursor" in request.query_params
        queryset = self.ordered(queryset)
        if not self.by_cursor:
            rows = super().paginate_queryset(queryset, request, view)
            reached = (self.page - 1) * self.limit + len(rows)
            self.next_cursor = self._cursor(rows[-1]) if rows and (self.capped or reached < self.total) else None
            return rows
        if "page" in request.query_params:
            raise FieldInvalid("cursor", "Must not come together with page", "Leave page out")
        self.view = view
        self.limit = _whole(request, "limit", DEFAULT_LIMIT, MAX_LIMIT)
        last = decode_cursor(request.query_params["cursor"])
        rows = list(self.after(queryset, last)[: self.limit + 1])
        self.next_cursor = self._cursor(rows[self.limit - 1]) if len(rows) > self.limit else None
        return rows[: self.limit]

    def ordered(self, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.order_by("-pk")

    def position(self, row: Any) -> int:
        return int(row.pk)

    def after(self, queryset: QuerySet[Any], position: int) -> QuerySet[Any]:
        return queryset.filter(pk__lt=position)

    def _cursor(self, row: Any) -> str:
        return encode_cursor(self.position(row))

    def facts(self) -> dict[str, Any]:
        facts = {"limit": self.limit} if self.by_cursor else super().facts()
        return {**facts, "next_cursor": self.next_cursor}

    def links(self) -> dict[str, str | None]:
        # The next page by the cursor also after a numbered one: no new row can shift what follows.
        following = {"next": self._cursor_address(self.next_cursor) if self.next_cursor else None}
        return following if self.by_cursor else {**super().links(), **following}

    def _cursor_address(self, cursor: str) -> str:
        return str(replace_query_param(remove_query_param(self.address, "page"), "cursor", cursor))

    def facts_schema(self) -> dict[str, Any]:
        schema = super().facts_schema()
        schema["required"] = ["limit", "next_cursor"]
        schema["properties"]["next_cursor"] = {
            "type": ["string", "null"],
            "description": "Give it as `cursor` for the next page; null on the last",
        }
        return schema


def encode_cursor(position: int) -> str:
    return base64.urlsafe_b64encode(f"{CURSOR_MARK}{position}".encode()).decode().rstrip("=")


def decode_cursor(text: str) -> int:
    """Return the position a cursor names. Raises FieldInvalid."""
    try:
        said = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, UnicodeError, ValueError):
        said = ""
    digits = said.removeprefix(CURSOR_MARK)
    if said == digits or not digits.isascii() or not digits.isdigit() or len(digits) > 18:
        raise FieldInvalid("cursor", "Is not a cursor of this list", "Use pagination.next_cursor of an earlier page")
    return int(digits)


def _count(rows: QuerySet[Any] | Sequence[Any]) -> int:
    """Return how many there are, at most one more than the cap."""
    if isinstance(rows, QuerySet):
        return rows.order_by()[: TOTAL_CAP + 1].count()
    return min(len(rows), TOTAL_CAP + 1)


def _whole(request: Request, name: str, default: int, high: int) -> int:
    values = request.query_params.getlist(name)
    if not values:
        return default
    text = values[0]
    if len(values) > 1:
        raise FieldInvalid(name, "Must be given once", f"Leave out all but one {name}")
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= high):
        raise FieldInvalid(name, f"Must be a whole number from 1 to {high}", f"Use {name}={default}")
    return int(text)
