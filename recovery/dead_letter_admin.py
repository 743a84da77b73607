"""Dead letters on the console."""

from django.contrib import admin

from k1node.lib import admin_display as display
from k1node.lib.admin_base import OPERATE
from k1node.lib.admin_paging import KeysetAdmin
from recovery.models import DeadLetter


@admin.register(DeadLetter)
class DeadLetterAdmin(KeysetAdmin):
    section = OPERATE
    place = 27
    summary = "What failed for good and waits for somebody to look"
    list_display = ("dlq_id", "status", "handler", "failed", "error")
    list_display_links = ("dlq_id",)
    fields = ("dlq_id", "status", "handler", "failed", "error_code", "error_message")
    failed = display.moment_column("failed_at", "failed")
    error = display.column("error", lambda row: display.first_line(row.error_message))
