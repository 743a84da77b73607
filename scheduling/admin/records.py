"""What the machine writes down: attempts, output, slots, gates, nodes, counters. For reading only."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html

from k1node.lib import admin_display as display
from k1node.lib.admin_base import OPERATE, RECORDS, ReadOnlyAdmin
from k1node.lib.admin_paging import WINDOW, Keyset, KeysetAdmin, TextFilter
from scheduling import gates, nodes
from scheduling.admin import figures, logs
from scheduling.admin.tasks import ScheduleFilter, schedule_of
from scheduling.models import (
    Attempt,
    Gate,
    GateKind,
    GateTally,
    MinuteCounter,
    Node,
    OutputChunk,
    ScheduleTally,
    Slot,
    Task,
)
from scheduling.outcomes import OutcomeKind
from scheduling.retention import EPOCH

DECISIONS: dict[str, str] = {
    "complete": "completed",
    "retry": "tries again",
    "fail": "gave up",
    "again": "back to the queue, nothing spent",
    "cancel": "cancelled",
    "skip": "skipped",
}


class TaskFilter(TextFilter):
    title = "task"
    parameter_name = "task"
    placeholder = "a task's id"

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if not self.value:
            return queryset
        task = Task.objects.filter(task_id=self.value).values_list("pk", flat=True).first()
        return queryset.filter(task_id=task or 0)


class OutcomeFilter(admin.SimpleListFilter):
    title = "outcome"
    parameter_name = "outcome"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        kinds = Slot.Outcome.values if model_admin.model is Slot else [kind.value for kind in OutcomeKind]
        return [(kind, kind) for kind in kinds]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(outcome=self.value()) if self.value() else queryset


class WindowedAdmin(KeysetAdmin):
    """Its filters have no index of their own, but for those in `indexed`."""

    indexed: tuple[str, ...] = ()

    def keyset(self, params: Mapping[str, str], query: str) -> Keyset:
        filtered = {name for name, value in params.items() if value}
        return Keyset(window=WINDOW) if filtered and not filtered & set(self.indexed) else Keyset()


@admin.register(Attempt)
class AttemptAdmin(WindowedAdmin):
    section = RECORDS
    place = 20
    summary = "Each run of a task: outcome, error, what was decided"
    indexed = ("task",)
    list_display = ("attempt", "result", "decided", "started", "took", "exit_code", "error_line", "worker")
    list_select_related = ("task",)
    list_filter = (OutcomeFilter, TaskFilter)
    fields = (
        "of_task",
        "number",
        "fence",
        "result",
        "decided",
        "retry",
        "started",
        "finished",
        "took",
        "exit_code",
        "full_error",
        "returned",
        "output",
        "worker",
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Attempt]:
        return super().get_queryset(request).defer("task__parameters", "task__last_error")

    @admin.display(description="attempt")
    def attempt(self, row: Attempt) -> str:
        return display.two_lines(row.task.task_id, f"attempt {row.number}")

    @admin.display(description="task")
    def of_task(self, row: Attempt) -> str:
        return display.link(row.task)

    @admin.display(description="output")
    def output(self, row: Attempt) -> str:
        address = f"{display.page_of(row.task)}?run={row.fence}#output"
        return format_html('<a href="{}">{} written</a>', address, display.size(row.output_bytes))

    @admin.display(description="error")
    def error_line(self, row: Attempt) -> str:
        return display.first_line(row.error)

    result = display.badge_column("outcome", "outcome")
    decided = display.column("then", lambda row: DECISIONS.get(row.decision, row.decision))
    retry = display.moment_column("retry_at", "retry at")
    started = display.moment_column("started_at", "started")
    finished = display.moment_column("finished_at", "finished")
    took = display.duration_column("duration_ms", "took")
    full_error = display.text_column("error", "error")
    returned = display.json_column("value", "returned value")


@admin.register(OutputChunk)
class OutputChunkAdmin(WindowedAdmin):
    summary = "Pieces of output; read them on their task's page"
    indexed = ("task",)
    list_display = ("piece", "of_task", "fence", "stream")
    list_select_related = ("task",)
    list_filter = (TaskFilter,)
    fields = ("of_task", "fence", "position", "stream", "length", "text")
    piece = display.column("piece", lambda row: f"at byte {row.position:,}")
    length = display.column("length", lambda row: display.size(len(row.data)))

    def get_queryset(self, request: HttpRequest) -> QuerySet[OutputChunk]:
        return super().get_queryset(request).defer("data", "task__parameters", "task__last_error")

    @admin.display(description="task")
    def of_task(self, row: OutputChunk) -> str:
        return display.link(row.task)

    @admin.display(description="text")
    def text(self, row: OutputChunk) -> str:
        text = logs.readable(bytes(row.data).decode("utf-8", "replace"))
        return format_html('<pre class="k1-log">{}</pre>', text)


@admin.register(Slot)
class SlotAdmin(WindowedAdmin):
    section = RECORDS
    place = 10
    summary = "The ledger: every due time of every schedule, and what became of it"
    indexed = ("schedule",)
    list_display = ("slot", "schedule_name", "result", "count", "why", "run", "recorded")
    list_filter = (OutcomeFilter, ScheduleFilter)
    fields = ("slot", "last", "count", "schedule_name", "result", "why", "run", "recorded")
    list_select_related = ("task",)
    result = display.badge_column("outcome", "outcome")
    recorded = display.moment_column("recorded_at", "recorded")
    last = display.column("last slot of the row", lambda row: display.exact(row.last_due_at))
    why = display.column("why", lambda row: row.reason or display.NOTHING)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Slot]:
        return super().get_queryset(request).defer("task__parameters", "task__last_error")

    def attach(self, rows: list[Slot]) -> None:
        # No join: the slots of a deleted schedule would drop out of it.
        names = figures.names_of(row.schedule_id for row in rows)
        for row in rows:
            row.schedule_text = names.get(row.schedule_id)  # type: ignore[attr-defined]

    @admin.display(description="slot")
    def slot(self, row: Slot) -> str:
        if row.count > 1:
            return display.two_lines(display.exact(row.due_at), f"to {display.exact(row.last_due_at)}")
        return display.moment(row.due_at)

    @admin.display(description="schedule")
    def schedule_name(self, row: Slot) -> str:
        name = getattr(row, "schedule_text", None) or figures.names_of([row.schedule_id]).get(row.schedule_id)
        return schedule_of(row.schedule_id, name)

    @admin.display(description="task")
    def run(self, row: Slot) -> str:
        if row.task_id is None:
            return display.NOTHING
        task = row.task if "task" in row._state.fields_cache else Task.objects.filter(pk=row.task_id).first()
        return display.link(task) if task else "pruned"


class BusyFilter(admin.SimpleListFilter):
    title = "waiting"
    parameter_name = "busy"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("waiting", "Tasks wait behind it"), ("closed", "Closed")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Gate]) -> QuerySet[Gate]:
        match self.value():
            case "waiting":
                return queryset.filter(waiting__gt=0)
            case "closed":
                return queryset.filter(closed=True)
        return queryset


class KindFilter(admin.SimpleListFilter):
    title = "kind"
    parameter_name = "kind"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(str(kind), str(kind)) for kind in GateKind]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Gate]) -> QuerySet[Gate]:
        return queryset.filter(kind=self.value()) if self.value() else queryset


@admin.register(Gate)
class GateAdmin(WindowedAdmin):
    section = RECORDS
    place = 30
    summary = "Doors that tasks wait behind: batches, overlapping runs, breakers, holds"
    list_display = (
        "gate",
        "stands",
        "most",
        "waiting",
        "in_flight",
        "completed",
        "failed",
        "skipped",
        "cancelled",
    )
    list_filter = (BusyFilter, KindFilter)
    fields = (
        "gate",
        "key",
        "stands",
        "most",
        "ordered",
        "on_failure",
        "waiting",
        "in_flight",
        "completed",
        "failed",
        "skipped",
        "cancelled",
    )
    stands = display.column("stands", lambda row: display.badge("closed") if row.closed else display.badge("open"))
    most = display.column("limit in flight", lambda row: "none" if row.limit is None else str(row.limit))

    def attach(self, rows: list[Gate]) -> None:
        gates.with_tallies(rows)
        names = figures.names_of(_schedule_of(row) for row in rows)
        for row in rows:
            row.schedule_text = names.get(_schedule_of(row))  # type: ignore[attr-defined]

    @admin.display(description="gate")
    def gate(self, row: Gate) -> str:
        schedule = _schedule_of(row)
        if not schedule:
            return str(row)
        name = getattr(row, "schedule_text", None) or figures.names_of([schedule]).get(schedule)
        return f"{row.kind} of {name}" if name else f"{row.kind} of schedule #{schedule}, deleted"


def _schedule_of(gate: Gate) -> int:
    """Return the schedule an overlap gate belongs to, 0 for other gates."""
    return int(gate.key) if gate.kind == GateKind.OVERLAP and gate.key.isdecimal() else 0


@admin.register(Node)
class NodeAdmin(ReadOnlyAdmin):
    section = OPERATE
    place = 30
    summary = "Machines that run tasks: are they alive, how busy are they"
    list_display = ("hostname", "stands", "clock_beat", "workers_beat", "busy", "cpu", "memory", "up_since")
    fields = (*list_display, "node_id", "workers")
    show_full_result_count = False
    sortable_by = ()
    clock_beat = display.moment_column("beat_at", "clock last seen")
    workers_beat = display.moment_column("workers_beat_at", "workers last seen")
    up_since = display.moment_column("started_at", "up since")
    busy = display.column("running", lambda row: f"{row.running} of {row.max_concurrent}")
    cpu = display.column("CPU", lambda row: f"{row.cpu_percent:.0f} % (limit {row.max_cpu_percent})")
    memory = display.column("memory", lambda row: f"{row.memory_percent:.0f} % (limit {row.max_memory_percent})")

    @admin.display(description="state")
    def stands(self, row: Node) -> str:
        now = timezone.now()
        if row.stopped_at is not None:
            return display.badge("stopped")
        if row.lost_at is not None:
            return display.badge("lost")
        if not _is_fresh(row.beat_at, now):
            return display.badge("silent")
        if not _is_fresh(row.workers_beat_at, now):
            return display.badge("silent", "workers silent")
        return display.badge("live")


def _is_fresh(at: datetime | None, now: datetime) -> bool:
    return at is not None and at > now - nodes.LIVE_FOR


@admin.register(MinuteCounter)
class MinuteCounterAdmin(ReadOnlyAdmin):
    section = RECORDS
    place = 40
    summary = "What was settled in each minute, by retry policy"
    list_display = (
        "at",
        "policy",
        "worker",
        "attempts",
        "successes",
        "completed",
        "completed_after_retry",
        "failed",
        "failed_after_retry",
        "retries",
    )
    ordering = ("-minute", "policy", "worker")
    list_filter = ()
    show_full_result_count = False
    sortable_by = ()
    fields = (
        "at",
        "policy",
        "worker",
        "attempts",
        "successes",
        "completed",
        "completed_after_retry",
        "finished_attempts",
        "failed",
        "failed_after_retry",
        "retries",
    )
    at = display.column("minute", lambda row: display.moment(row.minute) if row.minute > EPOCH else "older, together")


@admin.register(GateTally)
class GateTallyAdmin(ReadOnlyAdmin):
    summary = "What single workers have counted on a batch's gate; the list of gates adds it up"
    list_display = ("gate", "worker", "completed", "failed", "skipped", "cancelled", "returned")
    list_select_related = ("gate",)
    ordering = ("gate_id", "worker")
    show_full_result_count = False
    sortable_by = ()
    fields = list_display


@admin.register(ScheduleTally)
class ScheduleTallyAdmin(ReadOnlyAdmin):
    summary = "Totals of a schedule, in shards; the list of schedules adds them up"
    list_display = ("of_schedule", "shard", "completed", "failed", "time_in_completed", "last_started")
    list_select_related = ("schedule",)
    ordering = ("schedule_id", "shard")
    show_full_result_count = False
    sortable_by = ()
    fields = list_display
    time_in_completed = display.duration_column("completed_ms", "time in completed runs")
    last_started = display.moment_column("last_started_at", "last started")

    @admin.display(description="schedule")
    def of_schedule(self, row: ScheduleTally) -> str:
        return row.schedule.task_id
