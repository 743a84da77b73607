"""The event log on the console: newest first, by name."""

from collections.abc import Mapping
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html

from k1node.events.models import Event
from k1node.lib import admin_display as display
from k1node.lib.admin_base import RECORDS
from k1node.lib.admin_paging import WINDOW, Keyset, KeysetAdmin, TextFilter

EXCERPT = 160


class NameFilter(TextFilter):
    title = "name"
    parameter_name = "name"
    placeholder = "task.failed or task.*"

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if not self.value:
            return queryset
        if self.value.endswith("*"):
            return queryset.filter(name__startswith=self.value.rstrip("*"))
        return queryset.filter(name=self.value)


@admin.register(Event)
class EventAdmin(KeysetAdmin):
    section = RECORDS
    place = 15
    summary = "Every fact, in the order they became facts"
    list_display = ("event", "at", "facts")
    list_display_links = ("event",)
    list_filter = (NameFilter,)
    fields = ("name", "at", "payload")
    event = display.column("event", lambda row: row.name)
    at = display.moment_column("occurred_at", "happened")
    payload = display.json_column("data", "data")

    def keyset(self, params: Mapping[str, str], query: str) -> Keyset:
        return Keyset(window=WINDOW if params.get("name") else 0)

    @admin.display(description="data")
    def facts(self, row: Event) -> str:
        data = row.data if isinstance(row.data, dict) else {"": row.data}
        text = ", ".join(f"{name}: {value}" for name, value in data.items())
        return format_html('<span class="k1-facts">{}</span>', display.first_line(text, EXCERPT))
