"""Pages of tables that grow without end: seeks along an index, never a COUNT and never an OFFSET.

A page is asked for by the key of the row it goes on from (`?after=…`, `?before=…`). A filter that no index serves
looks at a window of rows at a time; the page says so and offers the next window.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.contrib.admin import ListFilter
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import ValidationError
from django.core.paginator import Paginator
from django.db import models
from django.http import HttpRequest

from k1node.lib.admin_base import ReadOnlyAdmin

AFTER = "after"
BEFORE = "before"
WINDOW = 10_000


@dataclass(frozen=True, slots=True)
class Keyset:
    """The order of a list: fields that an index holds in this order, the last one unique.

    `window` bounds how many rows one page looks at; only for an order by primary key alone. They are the rows that
    fit `within`, a filter that an index serves together with the order.
    """

    fields: tuple[str, ...] = ("-pk",)
    note: str = "newest first"
    window: int = 0
    within: Mapping[str, Any] = field(default_factory=dict)


class KeysetChangeList(ChangeList):
    """A ChangeList of one page; `newer` and `older` are the addresses of its neighbours, None at an end."""

    model_admin: "KeysetAdmin"
    newer: str | None = None
    older: str | None = None
    older_label = "Older"
    is_keyset = True

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> models.QuerySet[Any]:
        # A place in the list is no filter: it must not stick to searches and other filters.
        for name in (AFTER, BEFORE):
            self.params.pop(name, None)
            self.filter_params.pop(name, None)
        return super().get_queryset(request, exclude_parameters)

    def get_results(self, request: HttpRequest) -> None:
        self.keyset = self.model_admin.keyset(self.params, self.query)
        before, after = request.GET.get(BEFORE), request.GET.get(AFTER)
        next_key: str | None
        if before:
            rows, has_newer = self._page_before(self._key(before))
            has_older = True
            next_key = self._key_of(rows[-1]) if rows else before
        else:
            rows, next_key = self._page_after(self._key(after) if after else None)
            has_newer, has_older = bool(after), next_key is not None
        if has_older and next_key is not None:
            self.older = self.get_query_string({AFTER: next_key})
        if has_newer:
            self.newer = self.get_query_string({BEFORE: self._key_of(rows[0]) if rows else after or before})
        self.has_more = has_older
        self._present(rows)

    def _present(self, rows: list[Any]) -> None:
        self.model_admin.attach(rows)
        self.result_list = rows
        self.result_count = len(rows)
        self.full_result_count = None
        self.show_full_result_count = False
        self.show_admin_actions = bool(rows)
        self.can_show_all = False
        self.multi_page = False
        self.page_num = 1
        self.paginator = Paginator(rows, max(1, self.list_per_page))

    def _page_after(self, start: list[Any] | None) -> tuple[list[Any], str | None]:
        """Return the rows beyond `start`, and the key that the next page goes on from (None: there is none)."""
        size, rows_of = self.list_per_page, self.queryset
        end = self._end_of_window("-pk", start)
        if end is not None:
            rows_of = rows_of.filter(pk__gte=end)
        rows = walk(rows_of, self.keyset.fields, start, size + 1)
        if len(rows) > size:
            return rows[:size], self._key_of(rows[size - 1])
        if end is not None:
            self.older_label = f"Look further back than the {self.keyset.window:,} rows searched"
        return rows, None if end is None else str(end)

    def _page_before(self, start: list[Any]) -> tuple[list[Any], bool]:
        """Return the rows in front of `start`, and whether there may be more of them."""
        size, rows_of = self.list_per_page, self.queryset
        end = self._end_of_window("pk", start)
        if end is not None:
            rows_of = rows_of.filter(pk__lte=end)
        rows = walk(rows_of, tuple(turned(field) for field in self.keyset.fields), start, size + 1)
        return rows[:size][::-1], len(rows) > size or end is not None

    def _end_of_window(self, order: str, start: list[Any] | None) -> int | None:
        """Return the primary key at which the window beyond `start` ends; None where it has no end to speak of."""
        window, within = self.keyset.window, self.keyset.within
        if not window:
            return None
        rows = self.model._default_manager.filter(**within).order_by(order).values_list("pk", flat=True)
        if within:
            beyond = rows if start is None else rows.filter(**{f"pk__{'lt' if order == '-pk' else 'gt'}": start[0]})
            return next(iter(beyond[window - 1 : window + 1][1:]), None)
        last = rows.reverse().first()
        first = start[0] if start is not None else rows.first()
        if first is None or last is None:
            return None
        end: int = first - window if order == "-pk" else first + window
        return end if (end > last if order == "-pk" else end < last) else None

    def _key_of(self, row: models.Model) -> str:
        values = [getattr(row, field.lstrip("-")) for field in self.keyset.fields]
        return ",".join(value.isoformat() if hasattr(value, "isoformat") else str(value) for value in values)

    def _key(self, text: str) -> list[Any]:
        names = [field.lstrip("-") for field in self.keyset.fields]
        texts = text.split(",")
        if len(texts) != len(names):
            raise IncorrectLookupParameters("A key of another order")
        fields = [self.opts.pk if name == "pk" else self.opts.get_field(name) for name in names]
        try:
            return [field.to_python(part) for field, part in zip(fields, texts, strict=True)]  # type: ignore[union-attr]
        except (ValidationError, ValueError) as error:
            raise IncorrectLookupParameters(error) from error


def turned(field: str) -> str:
    """Return the same field in the opposite order."""
    return field[1:] if field.startswith("-") else f"-{field}"


def walk(
    rows: models.QuerySet[Any], fields: Sequence[str], start: Sequence[Any] | None, count: int
) -> list[models.Model]:
    """Return up to `count` rows beyond the key `start`, in the order of `fields`.

    One seek for each number of leading fields that may be equal: an OR of them all would not use the index.
    """
    ordered = rows.order_by(*fields)
    if start is None:
        return list(ordered[:count])
    found: list[models.Model] = []
    for depth in reversed(range(len(fields))):
        same = {field.lstrip("-"): value for field, value in zip(fields[:depth], start, strict=False)}
        beyond = f"{fields[depth].lstrip('-')}__{'lt' if fields[depth].startswith('-') else 'gt'}"
        found += ordered.filter(**same, **{beyond: start[depth]})[: count - len(found)]
        if len(found) == count:
            break
    return found


class KeysetAdmin(ReadOnlyAdmin):
    """A growing table. Give keyset() for filters and searches that want another order, attach() for what rows show."""

    list_per_page = 100
    show_full_result_count = False
    sortable_by = ()

    def keyset(self, params: Mapping[str, str], query: str) -> Keyset:
        """Return the order that suits the filters in `params` and the search."""
        return Keyset()

    def attach(self, rows: list[Any]) -> None:
        """Load what the rows of one page show from other tables, for all of them at once."""

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return KeysetChangeList


class TextFilter(ListFilter):
    """A filter that is typed in: a schedule's id, an event's name. Choices would be a list without end."""

    template = "admin/text_filter.html"
    parameter_name = ""
    placeholder = ""

    def __init__(
        self, request: HttpRequest, params: dict[str, list[str]], model: type[models.Model], model_admin: Any
    ) -> None:
        super().__init__(request, params, model, model_admin)
        given = params.pop(self.parameter_name, [""])
        self.value = given[-1].strip()
        if self.value:
            self.used_parameters[self.parameter_name] = self.value

    def has_output(self) -> bool:
        return True

    def expected_parameters(self) -> list[str | None]:
        return [self.parameter_name]

    def choices(self, changelist: Any) -> Any:
        """Give one item: the form's value and what else the address has."""
        kept = [
            (name, value)
            for name, values in changelist.filter_params.items()
            if name != self.parameter_name
            for value in values
        ]
        yield {"value": self.value, "kept": kept, "clear": changelist.get_query_string(remove=[self.parameter_name])}
