"""Circuit breakers on the console: their list, and the filter of tasks by the one they wait behind."""

from collections.abc import Iterable, Mapping
from typing import Any

from django.contrib import admin
from django.db.models import Case, CharField, Count, F, Q, QuerySet, When
from django.http import HttpRequest

from k1node.lib import admin_display as display
from k1node.lib.admin_base import OPERATE
from k1node.lib.admin_paging import Keyset, KeysetAdmin
from k1node.lib.clock_time import database_now
from recovery import admin_words as words
from recovery import breakers
from recovery.breaker_rules import State
from recovery.models import Breaker
from scheduling import tasks
from scheduling.models import Schedule


def naming(names: Iterable[str]) -> QuerySet[Any]:
    """Return the schedules that name one of these breakers; `breaker` is its name on each."""
    wanted = list(names)
    own = When(circuit_breaker=tasks.OWN_BREAKER, then=F("task_id"))
    return Schedule.objects.filter(
        Q(circuit_breaker__in=wanted) | Q(circuit_breaker=tasks.OWN_BREAKER, task_id__in=wanted)
    ).annotate(breaker=Case(own, default=F("circuit_breaker"), output_field=CharField()))


def schedules_naming(rows: Iterable[Breaker]) -> dict[str, int]:
    """Return how many schedules name each of these breakers, by its name; one query."""
    named = naming(row.breaker_id for row in rows).order_by().values("breaker")
    return dict(named.annotate(count=Count("pk")).values_list("breaker", "count"))


class BreakerStateFilter(admin.SimpleListFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("open", "Open"), ("half-open", "Half-open"), ("closed", "Closed"), ("held", "Held by somebody")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Breaker]) -> QuerySet[Breaker]:
        value = self.value() or ""
        if value == "held":
            return queryset.exclude(pin="")
        return queryset.filter(state=value.upper()) if value.upper() in State.values else queryset


@admin.register(Breaker)
class BreakerAdmin(KeysetAdmin):
    section = OPERATE
    place = 25
    summary = "What keeps tasks from hammering something that is broken"
    nothing = "No breaker yet. One appears when a schedule or task names it."
    list_display = ("breaker", "state_now", "failed", "since", "next_probe", "waiting", "schedules", "held")
    list_display_links = ("breaker",)
    list_filter = (BreakerStateFilter,)
    list_per_page = 50
    search_fields = ("breaker_id",)
    search_help_text = "Part of a breaker's name"
    fields = ("breaker", "state_now", "failed", "since", "held")

    # --- the list -----------------------------------------------------------------------------------------------

    def keyset(self, params: Mapping[str, str], query: str) -> Keyset:
        return Keyset(("breaker_id",), "by name")

    def attach(self, rows: list[Breaker]) -> None:
        waiting, now = breakers.waiting(rows), database_now()
        using = schedules_naming(rows)
        for row in rows:
            row.seen_at = now  # type: ignore[attr-defined]
            row.waiting = waiting.get(row.pk, 0)  # type: ignore[attr-defined]
            row.using = using.get(row.breaker_id, 0)  # type: ignore[attr-defined]

    breaker = display.column("breaker", lambda row: row.breaker_id)
    state_now = display.column("state", words.state_badge)
    failed = display.column("failed calls", words.failures)
    since = display.moment_column("changed_at", "since")
    next_probe = display.column("next probe", lambda row: words.next_probe(row, row.seen_at))
    waiting = display.column("waiting", lambda row: words.count(row.waiting))
    schedules = display.column("schedules", lambda row: f"{row.using:,}")
    held = display.column("held by", words.held)
