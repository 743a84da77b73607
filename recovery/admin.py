"""Interventions on the console: the buttons and the history on a task's page, and the record of all of them."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html

from k1node.lib import admin_display as display
from k1node.lib.admin_base import RECORDS
from k1node.lib.admin_paging import WINDOW, Keyset, KeysetAdmin, TextFilter
from k1node.lib.clock_time import database_now
from k1node.lib.errors import K1NodeError
from recovery import (  # noqa: F401  (some only register their pages)
    breaker_admin,
    dead_letter_admin,
    explain,
    hold_admin,
    interventions,
    notice_admin,
    policy_admin,
)
from recovery.admin_forms import LENGTHS
from recovery.admin_words import by, changes, letter_badge, refusal, state_badge
from recovery.models import Breaker, DeadLetter, Intervention
from recovery.records import By
from scheduling import steering, tasks
from scheduling.admin.records import TaskFilter
from scheduling.admin.tasks import CLAIM_ORDER, TaskAdmin
from scheduling.models import FINISHED, Task

MOST_SHOWN = 20  # interventions on a task's page, the newest
LABELS = {
    "pause": "Pause",
    "resume": "Resume",
    "skip": "Skip",
    "cancel": "Cancel task",
    "retry": "Retry",
    "priority": "Set priority",
}
DONE = {"resume": "Resumed", "skip": "Skipped", "cancel": "Cancelled"}

Verb = Callable[..., Intervention]
VERBS: dict[str, Verb] = {
    "resume": interventions.resume,
    "skip": interventions.skip,
    "cancel": interventions.cancel,
}


admin.site.unregister(Task)


@admin.register(Task)
class OperatedTaskAdmin(TaskAdmin):
    """The pages of tasks, with what an operator can do to one, and those that wait behind a breaker."""

    seen_with = (*TaskAdmin.seen_with, "dead_letter")

    def get_list_filter(self, request: HttpRequest) -> tuple[Any, ...]:
        return (*super().get_list_filter(request), breaker_admin.BehindFilter)

    def keyset(self, params: Mapping[str, str], query: str) -> Keyset:
        if not params.get("behind") or query:
            return super().keyset(params, query)
        if params.get("schedule"):
            return super().keyset({**params, "status": "blocked"}, query)
        return CLAIM_ORDER  # as the index of those that wait behind a door has them

    def get_urls(self) -> list[URLPattern]:
        intervene = path(
            "<int:pk>/do/<str:verb>/", self.admin_site.admin_view(self.intervene_view), name="scheduling_task_do"
        )
        return [intervene, *super().get_urls()]

    def beside(self, request: HttpRequest, task: Task) -> dict[str, Any]:
        """Return the verbs that the task's state allows, and what was done to it."""
        rows = Intervention.objects.filter(task=task).order_by("-pk")[:MOST_SHOWN]
        verbs = steering.possible(task) if request.user.has_perm("scheduling.change_task") else ()
        # Not there before the first result of a task that names it.
        breaker = Breaker.objects.filter(breaker_id=task.circuit_breaker).first() if task.circuit_breaker else None
        letter: DeadLetter | None = getattr(task, "dead_letter", None)
        return {
            "explanation": self._explanation(task),
            "letter": letter,
            "letter_badge": letter_badge(letter) if letter else "",
            "breaker": breaker,
            "breaker_badge": state_badge(breaker) if breaker else "",
            "verbs": [
                (LABELS[verb], reverse("admin:scheduling_task_do", args=(task.pk, verb)), verb) for verb in verbs
            ],
            "pauses": LENGTHS,
            "priorities": range(tasks.PRIORITIES[0], tasks.PRIORITIES[1] + 1),
            "interventions": [(row, changes(row)) for row in rows],
        }

    @staticmethod
    def _explanation(task: Task) -> str:
        if task.status in FINISHED:
            return ""
        found = explain.explain(task, now=database_now())
        return "" if found.reason == "running" else found.message

    def intervene_view(self, request: HttpRequest, pk: int, verb: str) -> HttpResponse:
        """Do what a button of the task's page says and return to that page, or to the new task's."""
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        if not request.user.has_perm("scheduling.change_task"):
            raise PermissionDenied
        if verb not in LABELS:
            raise Http404("There is no such button")
        task = self._task(request, str(pk))
        try:
            shown = self._do(request, task, verb, by(request))
        except K1NodeError as error:
            self.message_user(request, refusal(task.task_id, error), messages.WARNING)
            shown = task
        return HttpResponseRedirect(display.page_of(shown))

    def _do(self, request: HttpRequest, task: Task, verb: str, by: By) -> Task:
        now = database_now()
        if verb == "retry":
            made = interventions.retry(task, by, now=now)
            self.message_user(request, format_html("Queued {}, a retry of {}.", made.task_id, task.task_id))
            return made
        if verb == "priority":
            chosen = request.POST.get("priority", "")
            lowest, highest = tasks.PRIORITIES
            if not chosen.isdecimal() or len(chosen) > 2 or not lowest <= int(chosen) <= highest:
                raise steering.Impossible(f"Choose a priority from {lowest} to {highest}")
            interventions.reprioritise(task, int(chosen), by, now=now)
            self.message_user(request, format_html("Priority of {} is {} now.", task.task_id, chosen))
            return task
        if verb == "pause":
            until = self._end_of_pause(request, now)
            interventions.pause(task, by, until=until, now=now)
            end = f" until {display.exact(until)}" if until else ""
            self.message_user(request, format_html("Paused {}{}.", task.task_id, end))
            return task
        row = VERBS[verb](task, by, now=now)
        if row.after.get("asked") in ("skip", "cancel"):
            text = format_html("Ending {}: its worker sees to it within seconds.", task.task_id)
        else:
            text = format_html("{} {}.", DONE[verb], task.task_id)
        self.message_user(request, text)
        return task

    @staticmethod
    def _end_of_pause(request: HttpRequest, now: datetime) -> datetime | None:
        chosen = request.POST.get("length", "")
        if chosen and chosen not in LENGTHS:
            raise steering.Impossible("Choose how long it is paused")
        return now + LENGTHS[chosen] if chosen else None


class PersonFilter(TextFilter):
    title = "who"
    parameter_name = "who"
    placeholder = "a user or a key"

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(performed_by=self.value) if self.value else queryset


@admin.register(Intervention)
class InterventionAdmin(KeysetAdmin):
    section = RECORDS
    place = 12
    summary = "What people did to tasks, breakers and retry policies, and why"
    list_display = ("what", "task_link", "who", "why", "changed", "at")
    list_display_links = ("what",)
    list_filter = (TaskFilter, PersonFilter)
    fields = ("what", "task_link", "who", "why", "was", "became", "at")
    what = display.column("what", lambda row: row.get_action_display())
    who = display.column("who", lambda row: row.performed_by)
    why = display.column("why", lambda row: row.reason or display.NOTHING)
    changed = display.column("changed", changes)
    was = display.json_column("before", "before")
    became = display.json_column("after", "after")
    at = display.moment_column("created_at", "when")

    def keyset(self, params: Mapping[str, str], query: str) -> Keyset:
        return Keyset(window=WINDOW if params.get("who") else 0)

    def attach(self, rows: list[Intervention]) -> None:
        pks = {row.task_id for row in rows if row.task_id is not None}
        names = dict(Task.objects.filter(pk__in=pks).values_list("pk", "task_id")) if pks else {}
        for row in rows:
            row.task_text = None if row.task_id is None else names.get(row.task_id)  # type: ignore[attr-defined]

    @admin.display(description="on")
    def task_link(self, row: Intervention) -> str:
        if row.task_id is None:
            return row.subject
        if not hasattr(row, "task_text"):
            self.attach([row])
        name = row.task_text  # type: ignore[attr-defined]
        return display.link(Task(pk=row.task_id), name) if name else f"#{row.task_id}, pruned"
