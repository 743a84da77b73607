"""Schedules: the list operators watch, the form they edit, the verbs they need at night."""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils import timezone
from django.utils.html import format_html, format_html_join

from k1node.lib import admin_display as display
from k1node.lib.admin_base import OPERATE, ConsoleAdmin
from k1node.lib.clock_time import database_now
from k1node.lib.errors import Detail, K1NodeError
from scheduling import queries, schedules
from scheduling.admin import figures
from scheduling.admin.schedule_form import ScheduleForm
from scheduling.models import Schedule, ScheduleType, Task

PAUSE = timedelta(hours=1)
MOST_NAMED = 5  # rows named in a message


class StateFilter(admin.SimpleListFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("paused", "Paused now"), ("broken", "Cannot fire"), ("skipping", "Will skip the next run")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Schedule]) -> QuerySet[Schedule]:
        match self.value():
            case "paused":
                return queryset.filter(paused_until__gt=timezone.now())
            case "broken":
                return queryset.exclude(last_error="")
            case "skipping":
                return queryset.filter(skip_next=True)
        return queryset


class ScheduleChangeList(ChangeList):
    """The list with what each row shows of other tables, loaded for the page at once."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        rows = list(self.result_list)
        last_runs, statistics, now = figures.last_runs(rows), queries.statistics(rows), timezone.now()
        for row in rows:
            row.last_run = last_runs.get(row.pk)
            row.statistics = statistics.get(row.pk, queries.NO_RUNS)
            row.seen_at = now
        self.result_list = rows


def state(schedule: Schedule, now: datetime) -> str:
    """Return the one word for how a schedule stands."""
    if schedule.last_error:
        return "cannot fire"
    if not schedule.enabled:
        return "disabled"
    if schedule.paused_until and schedule.paused_until > now:
        return "paused"
    if schedule.ends_at and schedule.ends_at <= now:
        return "ended"
    return "enabled"


@admin.register(Schedule)
class ScheduleAdmin(ConsoleAdmin):
    section = OPERATE
    place = 10
    summary = "What runs, and when"
    form = ScheduleForm
    change_form_template = "admin/scheduling/schedule/change_form.html"
    list_display = ("schedule", "when", "state", "next_run", "last_run", "runs", "priority")
    list_display_links = ("schedule",)
    list_filter = ("schedule_type", "enabled", StateFilter)
    list_select_related = ()
    list_per_page = 50
    show_full_result_count = False
    search_fields = ("task_id", "handler")
    search_help_text = "Part of a schedule's id or handler"
    actions = ("run_now", "enable", "disable", "pause", "resume", "skip_next")
    fieldsets = (
        ("What runs", {"fields": ("task_id", "task_name", "handler", "parameters", "priority")}),
        ("When", {"fields": ("schedule_type", "schedule_expr", "timezone", "event_filter")}),
        ("State", {"fields": ("enabled", "skip_next", "paused_until", "pause_reason")}),
        (
            "Runs that meet, and slots that were missed",
            {"fields": ("overlap_policy", "catch_up", "catch_up_window_ms", "catch_up_cap"), "classes": ("collapse",)},
        ),
        ("Failure", {"fields": ("timeout_ms", "retry_policy", "circuit_breaker")}),
        ("Period and jitter", {"fields": ("starts_at", "ends_at", "jitter_ms"), "classes": ("collapse",)}),
    )

    # --- the list -----------------------------------------------------------------------------------------------

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return ScheduleChangeList

    @admin.display(description="schedule", ordering="task_id")
    def schedule(self, row: Schedule) -> str:
        return display.two_lines(row.task_id, row.task_name or row.handler)

    @admin.display(description="when")
    def when(self, row: Schedule) -> str:
        words = schedules.in_words(row) or "Cannot be read"
        zone = f" · {row.timezone}" if row.schedule_type == ScheduleType.CRON else ""
        return display.two_lines(words, f"{row.schedule_expr}{zone}")

    @admin.display(description="state", ordering="enabled")
    def state(self, row: Schedule) -> str:
        word = state(row, row.seen_at)  # type: ignore[attr-defined]
        note: object = ""
        if word == "paused":
            note = f"until {display.exact(row.paused_until)}{': ' if row.pause_reason else ''}{row.pause_reason}"
        elif word == "cannot fire":
            note = display.first_line(row.last_error)
        elif row.skip_next:
            note = "skips the next run"
        return display.two_lines(display.badge(word), note) if note else display.badge(word)

    @admin.display(description="next run", ordering="next_fire_at")
    def next_run(self, row: Schedule) -> str:
        now: datetime = row.seen_at  # type: ignore[attr-defined]
        at = schedules.next_execution(row)
        if at is None:
            return "on its event" if row.schedule_type == ScheduleType.EVENT and row.enabled else display.NOTHING
        if at < now:
            late = display.duration((now - at).total_seconds() * 1000)
            return display.two_lines(f"due since {late}", display.exact(at))
        return display.both(at, now)

    @admin.display(description="last run")
    def last_run(self, row: Schedule) -> str:
        run: Task | None = row.last_run  # type: ignore[attr-defined]
        if run is None:
            return "never"
        now: datetime = row.seen_at  # type: ignore[attr-defined]
        at = run.started_at or run.due_at
        return format_html(
            '<a href="{}" title="{}">{}</a><span class="k1-second">{}</span>',
            display.page_of(run),
            run.task_id,
            display.badge(queries.shown_status(run)),
            display.ago(at, now),
        )

    @admin.display(description="runs / failed")
    def runs(self, row: Schedule) -> str:
        figure: queries.Statistics = row.statistics  # type: ignore[attr-defined]
        return format_html(
            '<a href="{}">{}</a> / {}',
            display.list_of(Task, schedule=row.task_id),
            f"{figure.execution_count:,}",
            format_html('<b class="k1-bad-text">{}</b>', f"{figure.failure_count:,}") if figure.failure_count else 0,
        )

    # --- the page of one ----------------------------------------------------------------------------------------

    def get_readonly_fields(self, request: HttpRequest, obj: Schedule | None = None) -> tuple[str, ...]:
        return ("task_id",) if obj else ()

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        form: Any = super().get_form(request, obj, change=change, **kwargs)
        form.refusals = getattr(request, "k1_refusals", ())
        return form

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        try:
            return super().changeform_view(request, object_id, form_url, extra_context)
        except K1NodeError as error:
            # The verb said no, and nothing was written: show the form again with its reasons at the fields.
            request.k1_refusals = error.details or (Detail("", error.message),)  # type: ignore[attr-defined]
            return super().changeform_view(request, object_id, form_url, extra_context)

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        schedule = kwargs.get("obj")
        if schedule is not None:
            # What is stored, not what was typed into a form that was refused.
            schedule = Schedule.objects.get(pk=schedule.pk)
            now = timezone.now()
            context |= {
                "now": now,
                "schedule": schedule,
                "state": state(schedule, now),
                "words": schedules.in_words(schedule),
                "coming": figures.coming(schedule, now),
                "ledger": figures.ledger_of(schedule),
                "runs": figures.runs_of(schedule),
                "statistics": queries.statistics([schedule]).get(schedule.pk, queries.NO_RUNS),
            }
        return super().render_change_form(request, context, *args, **kwargs)

    def save_model(self, request: HttpRequest, obj: Schedule, form: Any, change: bool) -> None:
        by, now = request.user.get_username(), database_now()
        values = form.values()
        row = schedules.update(obj, values, by, now=now) if change else schedules.create(values, by, now=now)
        obj.pk, obj.next_fire_at = row.pk, row.next_fire_at
        obj._state.adding = False
        if row.next_fire_at:
            self.message_user(request, f"The next slot is {display.exact(row.next_fire_at)}.", messages.INFO)

    def delete_model(self, request: HttpRequest, obj: Schedule) -> None:
        schedules.delete(obj, request.user.get_username(), now=database_now())

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Schedule]) -> None:
        for schedule in queryset:
            self.delete_model(request, schedule)

    def get_deleted_objects(
        self, objs: Any, request: HttpRequest
    ) -> tuple[list[Any], dict[Any, int], set[Any], list[Any]]:
        """Return the schedules alone: their totals go with them, their tasks and slots stay."""
        rows = list(objs)
        names: list[Any] = [format_html("Schedule: {}", display.link(row)) for row in rows]
        names.append("Not their tasks and slots: what is queued or runs goes on, and all of it stays readable.")
        return names, {Schedule._meta.verbose_name_plural: len(rows)}, set(), []

    # --- verbs --------------------------------------------------------------------------------------------------

    @admin.action(description="Run now", permissions=["change"])
    def run_now(self, request: HttpRequest, queryset: QuerySet[Schedule]) -> HttpResponse | None:
        now = database_now()

        def run(row: Schedule) -> object:
            return display.link(schedules.run_now(row, request.user.get_username(), now=now))

        return self._each(request, queryset, "Queued", run)

    @admin.action(description="Enable", permissions=["change"])
    def enable(self, request: HttpRequest, queryset: QuerySet[Schedule]) -> HttpResponse | None:
        return self._change(
            request, queryset.filter(enabled=False), queryset, "Enabled", "already enabled", enabled=True
        )

    @admin.action(description="Disable", permissions=["change"])
    def disable(self, request: HttpRequest, queryset: QuerySet[Schedule]) -> HttpResponse | None:
        return self._change(
            request, queryset.filter(enabled=True), queryset, "Disabled", "already disabled", enabled=False
        )

    @admin.action(description="Pause for 1 hour", permissions=["change"])
    def pause(self, request: HttpRequest, queryset: QuerySet[Schedule]) -> HttpResponse | None:
        until = database_now() + PAUSE
        shorter = queryset.filter(Q(paused_until__isnull=True) | Q(paused_until__lt=until))
        reason = f"Paused for an hour by {request.user.get_username()}"
        values = {"paused_until": until, "pause_reason": reason}
        return self._change(request, shorter, queryset, "Paused", "paused for longer already", **values)

    @admin.action(description="Resume (end the pause)", permissions=["change"])
    def resume(self, request: HttpRequest, queryset: QuerySet[Schedule]) -> HttpResponse | None:
        paused = queryset.filter(paused_until__isnull=False)
        return self._change(request, paused, queryset, "Resumed", "not paused", paused_until=None, pause_reason="")

    @admin.action(description="Skip the next run", permissions=["change"])
    def skip_next(self, request: HttpRequest, queryset: QuerySet[Schedule]) -> HttpResponse | None:
        runs = queryset.filter(skip_next=False)
        done = "Will leave out the next run of"
        return self._change(request, runs, queryset, done, "to be left out already", skip_next=True)

    def _change(
        self,
        request: HttpRequest,
        rows: QuerySet[Schedule],
        selected: QuerySet[Schedule],
        done: str,
        why_not: str,
        **values: object,
    ) -> HttpResponse | None:
        """Change `rows`; the others of `selected` are reported as skipped."""
        by, now = request.user.get_username(), database_now()
        chosen = list(rows)
        others = selected.exclude(pk__in=[row.pk for row in chosen])
        skipped = [(row.task_id, why_not) for row in others]

        def change(row: Schedule) -> object:
            return schedules.update(row, values, by, now=now).task_id

        return self._each(request, chosen, done, change, skipped)

    def _each(
        self,
        request: HttpRequest,
        rows: Iterable[Schedule],
        done: str,
        work: Callable[[Schedule], object],
        skipped: Iterable[tuple[str, str]] = (),
    ) -> HttpResponse | None:
        """Do `work` for each row and say what was done, what was skipped and why."""
        names: list[object] = []
        left_out = list(skipped)
        for row in rows:
            try:
                names.append(work(row))
            except K1NodeError as error:
                reasons = [detail.message for detail in error.details] or [error.message]
                left_out.append((row.task_id, " ".join(reasons)))
        if names:
            self.message_user(request, format_html("{} {}: {}", done, len(names), _some(names)), messages.SUCCESS)
        if left_out:
            reasons_given = [format_html("{} ({})", name, why) for name, why in left_out]
            text = format_html("Skipped {}: {}", len(left_out), _some(reasons_given))
            self.message_user(request, text, messages.WARNING)
        page = request.POST.get("from_page")
        return HttpResponseRedirect(self._own_page(page)) if page else None

    @staticmethod
    def _own_page(pk: str) -> str:
        return display.page_of(Schedule(pk=pk))


def _some(items: list[Any]) -> str:
    """Return the first few, and how many more there are."""
    shown = format_html_join(", ", "{}", ((item,) for item in items[:MOST_NAMED]))
    more = len(items) - MOST_NAMED
    return format_html("{} and {} more", shown, more) if more > 0 else shown
