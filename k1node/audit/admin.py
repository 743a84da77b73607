"""The audit log on the console: newest first, by action, actor and target; and the blocks that seal it."""

from collections.abc import Mapping
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html

from k1node.audit.models import AuditBlock, AuditPruning, AuditRecord, AuditRefusal
from k1node.lib import admin_display as display
from k1node.lib.admin_base import RECORDS, ReadOnlyAdmin
from k1node.lib.admin_paging import WINDOW, Keyset, KeysetAdmin, TextFilter

FIELDS = ("action", "actor", "target", "address")


class _Filter(TextFilter):
    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if not self.value:
            return queryset
        if self.value.endswith("*"):
            return queryset.filter(**{f"{self.parameter_name}__startswith": self.value.rstrip("*")})
        return queryset.filter(**{self.parameter_name: self.value})


class ActionFilter(_Filter):
    title = parameter_name = "action"
    placeholder = "schedule.updated or key.*"


class ActorFilter(_Filter):
    title = parameter_name = "actor"
    placeholder = "user:3 or key:*"


class TargetFilter(_Filter):
    title = parameter_name = "target"
    placeholder = "schedule:backup-daily"


class AddressFilter(_Filter):
    title = parameter_name = "address"
    placeholder = "192.0.2.7"


def times(row: AuditRecord) -> str:
    return f"{row.count:,}×"


@admin.register(AuditRecord)
class AuditRecordAdmin(KeysetAdmin):
    section = RECORDS
    place = 20
    summary = "Who did what of consequence, from where, and what it was before"
    list_display = ("act", "at_", "who", "address", "on", "times")
    list_display_links = ("act",)
    list_filter = (ActionFilter, ActorFilter, TargetFilter, AddressFilter)
    fields = ("act", "at_", "who", "address", "on", "reason_", "times", "last", "before_", "after_", "request_id")
    act = display.column("action", lambda row: row.action)
    at_ = display.moment_column("at", "when")
    on = display.column("target", lambda row: row.target)
    times = display.column("times", times)
    last = display.moment_column("last_at", "last of them")
    reason_ = display.text_column("reason", "reason")
    before_ = display.json_column("before", "before")
    after_ = display.json_column("after", "after")

    def keyset(self, params: Mapping[str, str], query: str) -> Keyset:
        return Keyset(window=WINDOW if any(params.get(name) for name in FIELDS) else 0)

    @admin.display(description="who")
    def who(self, row: AuditRecord) -> str:
        if not row.actor_name or row.actor_name == row.actor:
            return row.actor
        return format_html("{} <small>{}</small>", row.actor_name, row.actor)


@admin.register(AuditBlock)
class AuditBlockAdmin(KeysetAdmin):
    section = RECORDS
    place = 21
    summary = "The seals of the audit log; `manage.py audit_verify` checks them"
    list_display = ("number", "count", "sealed", "seal")
    list_display_links = ("number",)
    fields = ("number", "count", "sealed", "last_id", "seal")
    sealed = display.moment_column("sealed_at", "sealed")
    seal = display.column("hash", lambda row: display.code(row.hash))


@admin.register(AuditRefusal)
class AuditRefusalAdmin(KeysetAdmin):
    list_display = ("action", "address", "count")
    fields = ("minute", "action", "address", "actor", "actor_name", "reason", "target", "count", "first_at", "last_at")


@admin.register(AuditPruning)
class AuditPruningAdmin(ReadOnlyAdmin):
    list_display = fields = ("through",)
