"""What the API remembers, on the console: that a request was carried out, never what it was answered."""

from django.contrib import admin

from k1node.api.models import IdempotentAnswer
from k1node.lib import admin_display as display
from k1node.lib.admin_base import RECORDS
from k1node.lib.admin_paging import KeysetAdmin


@admin.register(IdempotentAnswer)
class IdempotentAnswerAdmin(KeysetAdmin):
    section = RECORDS
    place = 60
    summary = "Requests of the last 24 hours that have no second effect when they are sent again"
    list_display = ("what", "asked_by", "status", "created")
    list_display_links = ("what",)
    # The body is data of the services, and the headers may lead to it.
    fields = ("what", "asked_by", "status", "size", "created")
    what = display.column("request", str)
    size = display.column("answer", lambda row: "not kept" if row.body is None else display.size(len(row.body)))
    created = display.moment_column("created_at", "created")
