"""Circuit breakers on the console: their list, the page of one with its verbs, and the tasks that wait behind one."""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import BooleanField, Case, CharField, Count, F, Q, QuerySet, When
from django.db.models.expressions import RawSQL
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.views.decorators.http import require_http_methods, require_POST

from k1node.lib import admin_display as display
from k1node.lib.admin_base import OPERATE, key_in
from k1node.lib.admin_paging import Keyset, KeysetAdmin, TextFilter
from k1node.lib.clock_time import database_now
from k1node.lib.errors import K1NodeError
from recovery import admin_words as words
from recovery import breakers, dead_letters
from recovery.admin_forms import SettingsForm, UntilForm
from recovery.breaker_rules import State
from recovery.dead_letters import Wanted
from recovery.models import Breaker, DeadLetter, Intervention
from recovery.records import By
from recovery.redrive_admin import CHANGE, plan_address
from scheduling import tasks
from scheduling.models import Schedule, Task

MOST_SCHEDULES = 20
MOST_TASKS = 10
MOST_INTERVENTIONS = 20
# A literal, as its index has it: SQLite uses a partial index for no other.
IS_BLOCKED = RawSQL("scheduling_task.status = 'blocked'", [], output_field=BooleanField())
PINNED = {"open": (breakers.open_, "open"), "close": (breakers.close, "closed")}


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


class BehindFilter(TextFilter):
    """Of tasks: by the breaker that they wait behind."""

    title = "behind breaker"
    parameter_name = "behind"
    placeholder = "a breaker's name"

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if not self.value:
            return queryset
        if request.GET.get("status", "blocked") not in ("", "blocked"):
            return queryset.none()  # else one would walk all that wait to find that out
        gate = Breaker.objects.filter(breaker_id=self.value).values_list("gate_id", flat=True).first()
        return queryset.filter(IS_BLOCKED, blocked_on=gate or 0)


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
    waiting = display.column("waiting", lambda row: words.count(row.waiting, breakers.COUNT_MOST))
    schedules = display.column("schedules", lambda row: f"{row.using:,}")
    held = display.column("held by", words.held)

    # --- the page of one ----------------------------------------------------------------------------------------

    def get_urls(self) -> list[URLPattern]:
        now, pin = require_POST(self.now_view), require_http_methods(["GET", "HEAD", "POST"])(self.pin_view)
        verbs = {"probe": now, "reset": now, "open": pin, "close": pin}
        ours = [
            path(f"<int:pk>/{verb}/", self.admin_site.admin_view(view), {"verb": verb}, name=f"recovery_breaker_{verb}")
            for verb, view in verbs.items()
        ]
        settings = self.admin_site.admin_view(require_POST(self.settings_view))
        return [*ours, path("<int:pk>/settings/", settings, name="recovery_breaker_settings"), *super().get_urls()]

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show a breaker, what it affects, what was done to it, and the verbs."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        row = _row(key_in(object_id))
        if row is None:
            raise Http404("No such breaker; it may have been deleted.")
        return self._page(request, row, SettingsForm(row))

    def _page(self, request: HttpRequest, row: Breaker, form: SettingsForm) -> HttpResponse:
        now = database_now()
        schedules = list(naming([row.breaker_id]).order_by("task_id")[: MOST_SCHEDULES + 1])
        tasks_behind = list(_behind(row.gate_id).only("task_id", "priority", "due_at")[:MOST_TASKS])
        waiting = breakers.waiting([row]).get(row.pk, 0)
        may_change = request.user.has_perm("recovery.change_breaker")
        dead = dead_letters.pending(Wanted(circuit_breaker=row.breaker_id))
        context = {
            **self.admin_site.each_context(request),
            "title": row.breaker_id,
            "opts": self.opts,
            "original": row,
            "breaker": row,
            "now": now,
            "badge": words.state_badge(row),
            "failures": words.failures(row),
            "strip": words.strip(row) if row.window else "",
            "next_probe": words.next_probe(row, now),
            "held": words.held(row) if row.pin else "",
            "waiting": waiting,
            "waiting_text": words.count(waiting, breakers.COUNT_MOST),
            "tasks": tasks_behind,
            "dead": dead,
            "dead_text": words.count(dead, dead_letters.COUNT_MOST),
            "dead_letters": display.list_of(DeadLetter, breaker=row.breaker_id),
            "redrive": plan_address({"breaker": row.breaker_id}) if dead and request.user.has_perm(CHANGE) else "",
            "all_waiting": display.list_of(Task, behind=row.breaker_id),
            "schedules": schedules[:MOST_SCHEDULES],
            "more_schedules": len(schedules) > MOST_SCHEDULES,
            "interventions": [(each, words.changes(each)) for each in _interventions(row.breaker_id)],
            "form": form,
            "reason": request.POST.get("reason", ""),
            "may_change": may_change,
            "can_probe": row.state == State.OPEN and not row.pin,
            "can_reset": bool(row.state != State.CLOSED or row.pin or row.window),
        }
        return TemplateResponse(request, "admin/recovery/breaker/page.html", context)

    # --- verbs --------------------------------------------------------------------------------------------------

    def now_view(self, request: HttpRequest, pk: int, verb: str) -> HttpResponse:
        """Do what a button of the page says, at once."""
        row = self._to_change(request, pk)
        by = words.by(request)

        def work(now: datetime) -> SafeString:
            if verb == "reset":
                breakers.reset(row.breaker_id, by, now=now)
                return format_html("Reset {}: it is closed, and its window is empty.", row.breaker_id)
            _, task_id = breakers.probe(row.breaker_id, by, now=now)
            task = Task.objects.filter(task_id=task_id).only("task_id").first()
            return format_html("{} tries now.", display.link(task) if task else task_id)

        return self._done(request, row, work)

    def pin_view(self, request: HttpRequest, pk: int, verb: str) -> HttpResponse:
        """Ask why and for how long a breaker is to be held open or closed, and do it."""
        row = self._to_change(request, pk)
        form = UntilForm(request.POST if request.method == "POST" else None, without_end="until somebody resets it")
        if form.is_bound and form.is_valid():
            pin, shown = PINNED[verb]

            def work(now: datetime) -> SafeString:
                until = form.end(now)
                pin(row.breaker_id, By(request.user.get_username(), form.cleaned_data["reason"]), until=until, now=now)
                end = f"until {display.exact(until)}" if until else "until somebody resets it"
                return format_html("Held {} {} {}.", row.breaker_id, shown, end)

            return self._done(request, row, work)
        waiting = breakers.waiting([row]).get(row.pk, 0)
        context = {
            **self.admin_site.each_context(request),
            "title": f"Force {row.breaker_id} {PINNED[verb][1]}",
            "opts": self.opts,
            "original": row,
            "form": form,
            "verb": verb,
            "button": f"Force {PINNED[verb][1]}",
            "badge": words.state_badge(row),
            "waiting": waiting,
            "waiting_text": words.count(waiting, breakers.COUNT_MOST),
            "back": display.page_of(row),
        }
        return TemplateResponse(request, "admin/recovery/breaker/pin.html", context)

    def settings_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Change settings, or show the page again with what is wrong at each field."""
        row = self._to_change(request, pk)
        form = SettingsForm(row, request.POST)
        if not form.is_valid():
            return self._page(request, row, form)

        def work(now: datetime) -> SafeString:
            if not (values := form.values()):
                return format_html("The settings of {} are as they were.", row.breaker_id)
            breakers.configure(row.breaker_id, values, words.by(request), now=now)
            return format_html("Changed the settings of {}; they hold from the next result on.", row.breaker_id)

        return self._done(request, row, work)

    def _to_change(self, request: HttpRequest, pk: int) -> Breaker:
        if not request.user.has_perm("recovery.change_breaker"):
            raise PermissionDenied
        row = _row(pk)
        if row is None:
            raise Http404("No such breaker; it may have been deleted.")
        return row

    def _done(self, request: HttpRequest, row: Breaker, work: Callable[[datetime], SafeString]) -> HttpResponse:
        try:
            self.message_user(request, work(database_now()))
        except K1NodeError as error:
            self.message_user(request, words.refusal(row.breaker_id, error), messages.WARNING)
        return HttpResponseRedirect(display.page_of(row))


def _row(pk: int) -> Breaker | None:
    return Breaker.objects.filter(pk=pk).first()


def _behind(gate_id: int) -> QuerySet[Task]:
    """Return the tasks that wait behind a door, in the order they will try."""
    return Task.objects.filter(IS_BLOCKED, blocked_on=gate_id).order_by("-priority", "due_at", "pk")


def _interventions(breaker_id: str) -> list[Intervention]:
    # The second condition is its index's.
    rows = Intervention.objects.filter(breaker_id=breaker_id, breaker_id__gt="")
    return list(rows.order_by("-pk")[:MOST_INTERVENTIONS])
