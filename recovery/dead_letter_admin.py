"""Dead letters on the console: the entries one by one, and by what went wrong."""

from collections.abc import Mapping
from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html

from k1node.lib import admin_display as display
from k1node.lib.admin_base import OPERATE
from k1node.lib.admin_paging import WINDOW, Keyset, KeysetAdmin, TextFilter
from k1node.lib.clock_time import database_now
from recovery import admin_words as words
from recovery import dead_letters
from recovery.dead_letters import Wanted
from recovery.models import DeadLetter
from scheduling.admin import figures
from scheduling.admin.tasks import schedule_of, status_badge
from scheduling.models import Task

Status = DeadLetter.Status

CHANGE = "recovery.change_deadletter"
ANY_STATE = "all"
# In the address -> of dead_letters.Wanted: what chooses entries on the list chooses the set of a redrive too.
CHOICES = {"task": "task_id", "handler": "handler", "breaker": "circuit_breaker", "fingerprint": "fingerprint"}


class LetterStateFilter(admin.SimpleListFilter):
    """Pending ones, unless others are asked for."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [*((str(status), status.label) for status in Status), (ANY_STATE, "All")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[DeadLetter]) -> QuerySet[DeadLetter]:
        chosen = state_in(request.GET)
        return queryset if chosen is None else queryset.filter(status=chosen)

    def choices(self, changelist: ChangeList) -> Any:
        chosen = self.value() if self.value() in (*Status.values, ANY_STATE) else str(Status.PENDING)
        for value, label in self.lookup_choices:
            query = (
                changelist.get_query_string(remove=[self.parameter_name])
                if value == Status.PENDING
                else changelist.get_query_string({self.parameter_name: value})
            )
            yield {"selected": value == chosen, "query_string": query, "display": label}


def state_in(params: Mapping[str, Any]) -> Status | None:
    """Return the state that an address asks for; None is any."""
    asked = params.get("state")
    if asked == ANY_STATE:
        return None
    return Status(asked) if asked in Status.values else Status.PENDING


def wanted_in(params: Mapping[str, Any]) -> Wanted:
    """Return what an address chooses entries by; their state aside."""
    chosen: dict[str, Any] = {CHOICES[name]: params[name] for name in CHOICES if params.get(name)}
    return Wanted(**chosen)


class LetterFilter(TextFilter):
    """By something that dead_letters.Wanted knows."""

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if not self.value:
            return queryset
        return queryset & dead_letters.listed(wanted_in({self.parameter_name: self.value}))


class LetterTaskFilter(LetterFilter):
    title = "task"
    parameter_name = "task"
    placeholder = "a task's or a schedule's id"


class HandlerFilter(LetterFilter):
    title = "handler"
    parameter_name = "handler"
    placeholder = "the whole handler"


class LetterBreakerFilter(LetterFilter):
    title = "breaker"
    parameter_name = "breaker"
    placeholder = "a breaker's name"


class FingerprintFilter(LetterFilter):
    title = "error"
    parameter_name = "fingerprint"
    placeholder = "a fingerprint, from By error"


@admin.register(DeadLetter)
class DeadLetterAdmin(KeysetAdmin):
    section = OPERATE
    place = 27
    summary = "What failed for good and waits for somebody to look"
    nothing = (
        "No dead letter is pending. A task that has failed and is not tried again leaves one here; it stays until"
        " somebody resubmits or archives it."
    )
    change_list_template = "admin/recovery/deadletter/list.html"
    list_display = ("what", "error", "runs", "failed", "state", "done_again")
    list_display_links = ("what",)
    list_filter = (LetterStateFilter, LetterTaskFilter, HandlerFilter, LetterBreakerFilter, FingerprintFilter)
    list_per_page = 50
    fields = ("dlq_id", "status", "handler", "failed", "error_code", "error_message")

    # --- entries ------------------------------------------------------------------------------------------------

    def keyset(self, params: Mapping[str, str], query: str) -> Keyset:
        chosen = [name for name in CHOICES if params.get(name)]
        if not chosen:
            return Keyset()
        if state_in(params) is None:
            return Keyset(("status", "-pk"), "by state, newest first")  # the order of the indexes
        # One of several filters has an index; how many of its rows fit the others, nobody knows.
        return Keyset(window=WINDOW if len(chosen) > 1 else 0)

    def attach(self, rows: list[DeadLetter]) -> None:
        pks = {pk for row in rows for pk in (row.task_id, row.new_task_id) if pk is not None}
        seen = Task.objects.filter(pk__in=pks).only("task_id", "status", "started_at", "paused_at")
        tasks = {task.pk: task for task in seen} if pks else {}
        names = figures.names_of(row.schedule_id for row in rows if row.schedule_id)
        for row in rows:
            row.task_seen = tasks.get(row.task_id)  # type: ignore[attr-defined]
            row.new_task_seen = tasks.get(row.new_task_id or 0)  # type: ignore[attr-defined]
            row.schedule_text = names.get(row.schedule_id or 0)  # type: ignore[attr-defined]

    error = display.column("error", words.error_line)
    failed = display.moment_column("failed_at", "failed")
    state = display.column("state", words.letter_badge)

    @admin.display(description="task")
    def what(self, row: DeadLetter) -> str:
        seen: Task | None = row.task_seen  # type: ignore[attr-defined]
        return seen.task_id if seen else row.dlq_id

    @admin.display(description="handler and schedule")
    def runs(self, row: DeadLetter) -> str:
        handler = display.code(display.first_line(row.handler, 60))
        if row.schedule_id is None:
            return handler
        return display.two_lines(handler, schedule_of(row.schedule_id, row.schedule_text))  # type: ignore[attr-defined]

    @admin.display(description="done again by")
    def done_again(self, row: DeadLetter) -> str:
        return new_task_of(row, row.new_task_seen)  # type: ignore[attr-defined]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        return super().changelist_view(request, {**(extra_context or {}), "view": "entries"})

    # --- by error -----------------------------------------------------------------------------------------------

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [
            path("by-error/", view(self.groups_view), name="recovery_deadletter_groups"),
            path("named/<str:dlq_id>/", view(self.named_view), name="recovery_deadletter_named"),
            *super().get_urls(),
        ]

    def groups_view(self, request: HttpRequest) -> HttpResponse:
        """Show the pending entries by what went wrong, the largest group first."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        now = database_now()
        found, is_capped = dead_letters.groups(now=now)
        context = {
            **self.admin_site.each_context(request),
            "title": "Dead letters by error",
            "opts": self.opts,
            "view": "groups",
            "now": now,
            "nothing": self.nothing,
            "groups": [
                {
                    **group,
                    "count_text": f"{group['count']:,}",
                    "last_hour_text": f"{group['last_hour']:,}",
                    "entries": display.list_of(DeadLetter, fingerprint=group["fingerprint"]),
                    "example_page": reverse("admin:recovery_deadletter_named", args=(group["example"],)),
                }
                for group in found
            ],
            "most": dead_letters.GROUPS_MOST,
            "capped": is_capped,
            "grouped_most_text": f"{dead_letters.GROUPED_MOST:,}",
            "may_change": request.user.has_perm(CHANGE),
        }
        return TemplateResponse(request, "admin/recovery/deadletter/groups.html", context)

    def named_view(self, request: HttpRequest, dlq_id: str) -> HttpResponse:
        """Lead to the page of the entry with this id, as the API and events name it."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        pk = DeadLetter.objects.filter(dlq_id=dlq_id).values_list("pk", flat=True).first()
        if pk is None:
            raise Http404("No such dead letter; it may have been pruned.")
        return HttpResponseRedirect(display.page_of(DeadLetter(pk=pk)))


def new_task_of(row: DeadLetter, task: Task | None) -> str:
    """Return the task that does an entry again, and how it stands."""
    if not row.new_task_name:
        return display.NOTHING
    if task is None:
        return display.two_lines(row.new_task_name, "pruned")
    return format_html("{} {}", display.link(task, row.new_task_name), status_badge(task))
