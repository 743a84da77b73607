"""Tasks: the list of what waits, runs and ended, and the page of one with its attempts and output."""

from collections.abc import Mapping
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.db.models import BooleanField, QuerySet
from django.db.models.expressions import RawSQL
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.html import format_html

from k1node.lib import admin_display as display
from k1node.lib.admin_base import OPERATE, key_in
from k1node.lib.admin_paging import WINDOW, Keyset, KeysetAdmin, TextFilter
from scheduling import queries
from scheduling.admin import figures, logs
from scheduling.models import Schedule, Task, TaskStatus

MOST_RETRIES = 20
MOST_RUNNING = 1_000
LAST_CHARACTER = "\U0010ffff"
NOT_LISTED = ("parameters", "control_reason")
RUNNING = ("executing", "paused")  # both are runs, or waits of an operator's making: few
RARE = ("failed", "skipped", "cancelled", "blocked")  # one index has them, each in the order of ids
CLAIM_ORDER = Keyset(("-priority", "due_at", "pk"), "in the order they will start")
DUE_ORDER = Keyset(("due_at", "pk"), "next due first")
SEARCH_ORDER = Keyset(("-task_id",), "by id, last first")


class StatusFilter(admin.SimpleListFilter):
    title = "status"
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(status, status) for status in queries.CONDITIONS]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Task]) -> QuerySet[Task]:
        status = self.value()
        if status not in queries.CONDITIONS:
            return queryset
        if status in RUNNING:
            # Few, and found by indexes of their own; in the order of ids one would walk the table to find them.
            found = [pk for condition in queries.CONDITIONS[status] for pk in _matching(condition)]
            return queryset.filter(pk__in=found)
        # Claimed tasks that have not started show as queued too, but they have left the order of the queue.
        return queryset.filter(_literally(queries.CONDITIONS[status][0]))


def _matching(condition: str) -> list[int]:
    return list(Task.objects.filter(_literally(condition)).order_by().values_list("pk", flat=True)[:MOST_RUNNING])


def _literally(condition: str) -> RawSQL:
    """Return a condition of queries.CONDITIONS: SQLite uses a partial index for literals, not for parameters."""
    return RawSQL(condition, [], output_field=BooleanField())


class ScheduleFilter(TextFilter):
    title = "schedule"
    parameter_name = "schedule"
    placeholder = "a schedule's id"

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(schedule_id=schedule_number(self.value)) if self.value else queryset


def schedule_number(text: str) -> int:
    """Return the primary key of the schedule of that id; runs of a deleted one are still found by its number."""
    found = Schedule.objects.filter(task_id=text).values_list("pk", flat=True).first()
    if found is not None:
        return found
    return key_in(text)


@admin.register(Task)
class TaskAdmin(KeysetAdmin):
    section = OPERATE
    place = 20
    summary = "What waits, what runs, what ended and how"
    list_display = (
        "task",
        "state",
        "schedule_link",
        "priority",
        "spent",
        "due",
        "started",
        "took",
        "exit_code",
        "error",
    )
    list_display_links = ("task",)
    list_filter = (StatusFilter, ScheduleFilter)
    search_fields = ("task_id",)
    search_help_text = "A task's id, or how ids begin: backup-daily-202603"
    seen_with: tuple[str, ...] = ("schedule", "gate", "blocked_on", "origin")  # on the page of one

    # --- the list -----------------------------------------------------------------------------------------------

    def get_queryset(self, request: HttpRequest) -> QuerySet[Task]:
        return super().get_queryset(request).defer(*NOT_LISTED)

    def attach(self, rows: list[Task]) -> None:
        # No join: with a filter by schedule it would become an inner one, and lose the runs of deleted schedules.
        names = figures.names_of(row.schedule_id for row in rows if row.schedule_id)
        for row in rows:
            row.schedule_text = names.get(row.schedule_id or 0)  # type: ignore[attr-defined]

    def keyset(self, params: Mapping[str, str], query: str) -> Keyset:
        status, schedule = params.get("status"), params.get("schedule")
        if query:
            return SEARCH_ORDER
        if not status or status in RUNNING or (status in RARE and not schedule):
            return Keyset()
        if schedule:
            return Keyset(window=WINDOW // 2, within={"schedule_id": schedule_number(schedule)})
        if status not in ("queued", "scheduled"):
            return Keyset(window=WINDOW)
        return CLAIM_ORDER if status == "queued" else DUE_ORDER

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Task], search_term: str
    ) -> tuple[QuerySet[Task], bool]:
        """Find the task of this id, else those whose ids begin so: both are seeks in the index of the id."""
        term = search_term.strip()
        if not term:
            return queryset, False
        wanted = term.rstrip("*")
        if wanted == term and Task.objects.filter(task_id=term).exists():
            return queryset.filter(task_id=term), False
        if connection.vendor == "postgresql":
            return queryset.filter(task_id__startswith=wanted), False
        # SQLite's LIKE does not know case, so it cannot use the index.
        return queryset.filter(task_id__gte=wanted, task_id__lt=wanted + LAST_CHARACTER), False

    @admin.display(description="task")
    def task(self, row: Task) -> str:
        return display.two_lines(row.task_id, display.first_line(row.handler, 60))

    @admin.display(description="status")
    def state(self, row: Task) -> str:
        return status_badge(row)

    @admin.display(description="schedule")
    def schedule_link(self, row: Task) -> str:
        return schedule_of(row.schedule_id, row.schedule_text)  # type: ignore[attr-defined]

    @admin.display(description="attempts")
    def spent(self, row: Task) -> str:
        return str(row.attempt) if row.attempt else display.NOTHING

    due = display.moment_column("due_at", "due")
    started = display.moment_column("started_at", "started")

    @admin.display(description="took")
    def took(self, row: Task) -> str:
        return took(row)

    @admin.display(description="error")
    def error(self, row: Task) -> str:
        if not row.last_error:
            return ""
        line = display.first_line(row.last_error)
        return format_html('<span class="k1-error" title="{}">{}</span>', display.first_line(row.last_error, 500), line)

    # --- the page of one ----------------------------------------------------------------------------------------

    def get_urls(self) -> list[URLPattern]:
        output = path(
            "<int:pk>/output/<int:fence>/", self.admin_site.admin_view(self.output_view), name="scheduling_task_output"
        )
        return [output, *super().get_urls()]

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show a task, its attempts, and the output of the latest one or of the one that ?run= names."""
        task = self._task(request, object_id)
        attempts = queries.latest_attempts(task)
        runs = {attempt.fence: queries.Run(attempt.number, attempt.fence, attempt.output_bytes) for attempt in attempts}
        is_running = task.status == TaskStatus.EXECUTING and task.started_at is not None
        if is_running:
            runs = {task.fence: queries.Run(task.attempt + 1, task.fence, None), **runs}
        latest = next(iter(runs), 0)
        chosen = request.GET.get("run", "")
        fence = int(chosen) if chosen.isdecimal() and int(chosen) in runs else latest
        value = next((attempt.value for attempt in attempts if attempt.fence == fence), None)
        context = {
            **self.admin_site.each_context(request),
            **(extra_context or {}),
            "title": task.task_id,
            "opts": self.opts,
            "task": task,
            "schedule": schedule_of(task.schedule_id, task.schedule.task_id if task.schedule else None),
            "original": task,
            "now": timezone.now(),
            "attempts": attempts,
            "is_running": is_running,
            "log": logs.read(task, runs[fence]) if fence in runs else None,
            "latest_fence": latest,
            "parameters": display.as_json(task.parameters),
            "value": "" if value is None else display.as_json(value),
            "retries": list(Task.objects.filter(origin=task).only("task_id", "status").order_by("pk")[:MOST_RETRIES]),
            "has_view_permission": True,
            **self.beside(request, task),
        }
        return TemplateResponse(request, "admin/scheduling/task/page.html", context)

    def beside(self, request: HttpRequest, task: Task) -> dict[str, Any]:
        """Return what apps above this one show on a task's page, for its template."""
        return {}

    def output_view(self, request: HttpRequest, pk: int, fence: int) -> HttpResponse:
        """Give the stored bytes of one run as a file."""
        task = self._task(request, str(pk))
        response = HttpResponse(logs.raw(task, fence), content_type="text/plain; charset=utf-8")
        name = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in task.task_id)
        response["Content-Disposition"] = f'attachment; filename="{name}-{fence}.log"'
        return response

    def _task(self, request: HttpRequest, object_id: str) -> Task:
        if not self.has_view_permission(request):
            raise PermissionDenied
        task = Task.objects.select_related(*self.seen_with).filter(pk=key_in(object_id)).first()
        if task is None:
            raise Http404("No such task; it may have been pruned.")
        return task


def status_badge(task: Task) -> str:
    """Return the state of a task as people see it."""
    return display.badge(queries.shown_status(task))


def schedule_of(pk: int | None, name: str | None) -> str:
    """Return the link to a schedule, or what is left to say of a deleted one."""
    if pk is None:
        return display.NOTHING
    return display.link(Schedule(pk=pk), name) if name else f"#{pk}, deleted"


def took(task: Task) -> str:
    """Return how long the latest attempt took, or has been running."""
    if task.status == TaskStatus.EXECUTING and task.started_at:
        running = (timezone.now() - task.started_at).total_seconds() * 1000
        return f"{display.duration(max(0, running))} so far"
    return display.duration(task.duration_ms)
