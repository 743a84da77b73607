"""Circuit breakers and holds on the console."""

from django.contrib import admin

from k1node.lib import admin_display as display
from k1node.lib.admin_base import OPERATE, RECORDS, ReadOnlyAdmin
from k1node.lib.admin_paging import KeysetAdmin
from recovery.models import Breaker, Hold


@admin.register(Breaker)
class BreakerAdmin(ReadOnlyAdmin):
    section = OPERATE
    place = 25
    summary = "What keeps tasks from hammering something that is broken"
    list_display = ("breaker_id", "state", "changed", "pin")
    search_fields = ("breaker_id",)
    show_full_result_count = False
    changed = display.moment_column("changed_at", "since")


@admin.register(Hold)
class HoldAdmin(KeysetAdmin):
    section = RECORDS
    place = 14
    summary = "When nothing was to start, and who wanted it"
    list_display = ("began", "created_by", "reason", "ended", "ended_by")
    began = display.moment_column("since", "since")
    ended = display.moment_column("ended_at", "ended")
