"""The hold on the console."""

from django.contrib import admin

from k1node.lib import admin_display as display
from k1node.lib.admin_base import RECORDS
from k1node.lib.admin_paging import KeysetAdmin
from recovery.models import Hold


@admin.register(Hold)
class HoldAdmin(KeysetAdmin):
    section = RECORDS
    place = 14
    summary = "When nothing was to start, and who wanted it"
    list_display = ("began", "created_by", "reason", "ended", "ended_by")
    began = display.moment_column("since", "since")
    ended = display.moment_column("ended_at", "ended")
