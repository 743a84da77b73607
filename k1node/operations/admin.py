"""Bulk jobs on the console."""

from collections.abc import Callable

from django.contrib import admin
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from k1node.lib import admin_display as display
from k1node.lib.admin_base import RECORDS
from k1node.lib.admin_paging import KeysetAdmin
from k1node.operations.models import Item, Operation

WIDTH = 1_000  # of the bar, in its own units
# Kind -> the address of a job's own page: filled by the apps that have one.
PAGES: dict[str, Callable[[Operation], str]] = {}


def page_of(job: Operation) -> str:
    """Return the address of a job's page."""
    page = PAGES.get(job.kind, display.page_of)
    return page(job)


def job_badge(job: Operation) -> SafeString:
    """Return the state of a job."""
    return display.badge(f"job {job.state}", job.state)


def progress_bar(job: Operation) -> SafeString:
    """Return how far a job has come as a picture; the numbers stand beside it, too."""
    done = WIDTH * job.done // max(1, job.total)
    refused = WIDTH * (job.done + job.refused) // max(1, job.total) - done
    parts = (("k1-progress-done", 0, done), ("k1-progress-refused", done, refused))
    return format_html(
        '<svg class="k1-progress" viewBox="0 0 {} 12" preserveAspectRatio="none" role="img"'
        ' aria-label="{} done and {} refused of {}">{}</svg>',
        WIDTH,
        job.done,
        job.refused,
        job.total,
        format_html_join("", '<rect class="{}" x="{}" y="0" width="{}" height="12"></rect>', parts),
    )


@admin.register(Operation)
class OperationAdmin(KeysetAdmin):
    section = RECORDS
    place = 16
    summary = "Bulk jobs: what was done to many rows at once, and how far it has come"
    list_display = ("job", "stands", "progress", "created_by", "created", "said")
    list_display_links = None
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
    stands = display.column("state", job_badge)
    progress = display.column("progress", lambda row: f"{row.done:,} done, {row.refused:,} refused of {row.total:,}")
    chosen = display.json_column("selection", "chosen by")
    does = display.json_column("arguments", "does")
    created = display.moment_column("created_at", "created")
    started = display.moment_column("started_at", "started")
    finished = display.moment_column("finished_at", "finished")

    @admin.display(description="job")
    def job(self, row: Operation) -> str:
        return format_html('<a href="{}">{}</a>', page_of(row), row.operation_id)


@admin.register(Item)
class ItemAdmin(KeysetAdmin):
    list_display = ("item", "state", "note")
    list_display_links = ("item",)
    fields = ("item", "subject", "state", "note", "made")
    item = display.column("item", str)
