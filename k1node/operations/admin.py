"""Bulk jobs on the console."""

from django.contrib import admin

from k1node.lib import admin_display as display
from k1node.lib.admin_base import RECORDS
from k1node.lib.admin_paging import KeysetAdmin
from k1node.operations.models import Item, Operation


@admin.register(Operation)
class OperationAdmin(KeysetAdmin):
    section = RECORDS
    place = 16
    summary = "Bulk jobs: what was done to many rows at once, and how far it has come"
    list_display = ("operation_id", "state", "progress", "created_by", "created", "said")
    list_display_links = ("operation_id",)
    fields = (
        "operation_id",
        "kind",
        "state",
        "progress",
        "said",
        "chosen",
        "does",
        "per_second",
        "first",
        "created_by",
        "reason",
        "created",
        "started",
        "finished",
    )
    progress = display.column("progress", lambda row: f"{row.done:,} done, {row.refused:,} refused of {row.total:,}")
    chosen = display.json_column("selection", "chosen by")
    does = display.json_column("arguments", "does")
    created = display.moment_column("created_at", "created")
    started = display.moment_column("started_at", "started")
    finished = display.moment_column("finished_at", "finished")


@admin.register(Item)
class ItemAdmin(KeysetAdmin):
    list_display = ("item", "state", "note")
    list_display_links = ("item",)
    fields = ("item", "subject", "state", "note", "made")
    item = display.column("item", str)
