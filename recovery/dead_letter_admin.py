"""Dead letters on the console: the entries one by one, and by what went wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.views.decorators.http import require_http_methods, require_POST

from k1node.lib import admin_display as display
from k1node.lib.admin_base import OPERATE, key_in
from k1node.lib.admin_paging import WINDOW, Keyset
from k1node.lib.clock_time import database_now
from k1node.lib.errors import InvalidRequest, K1NodeError
from recovery import admin_words as words
from recovery import dead_letters
from recovery.dead_letter_filters import (
    CHOICES,
    FingerprintFilter,
    HandlerFilter,
    LetterBreakerFilter,
    LetterStateFilter,
    LetterTaskFilter,
    chosen_in,
    state_in,
)
from recovery.dead_letter_forms import ChangesForm, ReasonForm, ResubmitForm, differences
from recovery.models import Breaker, DeadLetter, Intervention
from recovery.records import By
from recovery.redrive_admin import CHANGE, RedrivePages, plan_address
from scheduling import queries
from scheduling.admin import figures
from scheduling.admin.tasks import schedule_of, status_badge
from scheduling.models import Task

Status = DeadLetter.Status

MOST_ATTEMPTS = 20
MOST_INTERVENTIONS = 20
MOST_IN_CHAIN = 60
MOST_SELECTED = 200  # their keys are in an address
MOST_NAMED = 20
MOST_LINKED = 5
MOVES = {"archive": dead_letters.archive, "unarchive": dead_letters.unarchive}
MOVED = {"archive": "Archived {}: nothing is to be done.", "unarchive": "Unarchived {}: pending again."}


@admin.register(DeadLetter)
class DeadLetterAdmin(RedrivePages):
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
    actions = ("resubmit_selected", "archive_selected", "unarchive_selected")

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
        """Show the entries, and where all that match are resubmitted; a redrive takes pending ones alone."""
        chosen = chosen_in(request.GET)
        may_redrive = request.user.has_perm(CHANGE) and state_in(request.GET) == Status.PENDING
        ours = {
            "view": "entries",
            "redrive": plan_address(chosen) if may_redrive else "",
            "redrive_text": "Resubmit all that match…" if chosen else "Resubmit all…",
        }
        return super().changelist_view(request, {**(extra_context or {}), **ours})

    # --- by error -----------------------------------------------------------------------------------------------

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        asking = require_http_methods(["GET", "HEAD", "POST"])
        resubmit, several, move = asking(self.resubmit_view), asking(self.several_view), require_POST(self.move_view)
        return [
            path("by-error/", view(self.groups_view), name="recovery_deadletter_groups"),
            path("named/<str:dlq_id>/", view(self.named_view), name="recovery_deadletter_named"),
            path("several/<str:verb>/", view(several), name="recovery_deadletter_several"),
            path("<int:pk>/resubmit/", view(resubmit), name="recovery_deadletter_resubmit"),
            path("<int:pk>/archive/", view(move), {"verb": "archive"}, name="recovery_deadletter_archive"),
            path("<int:pk>/unarchive/", view(move), {"verb": "unarchive"}, name="recovery_deadletter_unarchive"),
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
                    "redrive": plan_address({"fingerprint": group["fingerprint"]}),
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

    # --- the page of one ----------------------------------------------------------------------------------------

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show an entry: what failed, what was tried, what was done about it, and the verbs."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        row = _letter(key_in(object_id))
        task = row.task
        interventions = Intervention.objects.filter(task=task).order_by("-pk")[:MOST_INTERVENTIONS]
        changed: dict[str, Any] = row.changes.get("parameters") or {}
        context = {
            **self.admin_site.each_context(request),
            "title": row.dlq_id,
            "opts": self.opts,
            "original": row,
            "letter": row,
            "task": task,
            "now": database_now(),
            "badge": words.letter_badge(row),
            "schedule": schedule_of(row.schedule_id, row.schedule.task_id if row.schedule else None),
            "same_error": display.list_of(DeadLetter, fingerprint=row.fingerprint),
            "breaker": _breaker_of(row),
            "attempts": queries.latest_attempts(task, MOST_ATTEMPTS),
            "parameters": display.as_json(task.parameters),
            "changed": differences(task.parameters, {**task.parameters, **changed}),
            "changed_policy": row.changes.get("retry_policy"),
            "chain": chain_around(row),
            "interventions": [(each, words.changes(each)) for each in interventions],
            "may_change": request.user.has_perm(CHANGE),
        }
        return TemplateResponse(request, "admin/recovery/deadletter/page.html", context)

    def resubmit_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Ask what is to be changed, and queue a new task for an entry."""
        row = self._to_change(request, pk)
        form = ResubmitForm(row, request.POST if request.method == "POST" else None)
        if form.is_bound and form.is_valid():
            by = By(request.user.get_username(), form.cleaned_data["reason"])
            try:
                made = dead_letters.resubmit(row, form.changes(), by, now=database_now())
            except InvalidRequest as error:
                form.refuse(error)
            except K1NodeError as error:
                self.message_user(request, words.refusal(row.dlq_id, error), messages.WARNING)
            else:
                self.message_user(request, format_html("Queued {}: it does {} again.", display.link(made), row.task))
                return HttpResponseRedirect(display.page_of(row))
        context = {
            **self.admin_site.each_context(request),
            "title": f"Resubmit {row.task.task_id}",
            "opts": self.opts,
            "original": row,
            "letter": row,
            "badge": words.letter_badge(row),
            "form": form,
            "button": "Resubmit",
            "tone": "k1-main",
            "back": display.page_of(row),
        }
        return TemplateResponse(request, "admin/recovery/deadletter/resubmit.html", context)

    def move_view(self, request: HttpRequest, pk: int, verb: str) -> HttpResponse:
        """Archive an entry, or put it back among the pending ones, at once."""
        row = self._to_change(request, pk)
        try:
            MOVES[verb]([row], words.by(request), now=database_now())
        except K1NodeError as error:
            self.message_user(request, words.refusal(row.dlq_id, error), messages.WARNING)
        else:
            self.message_user(request, MOVED[verb].format("it"))
        return HttpResponseRedirect(display.page_of(row))

    # --- several at once ----------------------------------------------------------------------------------------

    def has_resolve_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm(CHANGE)

    @admin.action(description="Resubmit selected…", permissions=["resolve"])
    def resubmit_selected(self, request: HttpRequest, queryset: QuerySet[DeadLetter]) -> HttpResponse | None:
        return self._ask_about(request, "resubmit", queryset)

    @admin.action(description="Archive selected…", permissions=["resolve"])
    def archive_selected(self, request: HttpRequest, queryset: QuerySet[DeadLetter]) -> HttpResponse | None:
        return self._ask_about(request, "archive", queryset)

    @admin.action(description="Unarchive selected…", permissions=["resolve"])
    def unarchive_selected(self, request: HttpRequest, queryset: QuerySet[DeadLetter]) -> HttpResponse | None:
        return self._ask_about(request, "unarchive", queryset)

    def _ask_about(self, request: HttpRequest, verb: str, chosen: QuerySet[DeadLetter]) -> HttpResponse | None:
        """Lead to the page that names the entries and asks; None where there are none or too many."""
        pks = list(chosen.order_by("pk").values_list("pk", flat=True)[: MOST_SELECTED + 1])
        if not 0 < len(pks) <= MOST_SELECTED:
            text = f"Choose 1 to {MOST_SELECTED} entries; for more resubmit all that match a filter."
            self.message_user(request, text, messages.WARNING)
            return None
        return HttpResponseRedirect(several_address(verb, pks))

    def several_view(self, request: HttpRequest, verb: str) -> HttpResponse:
        """Name the chosen entries, ask why, and do it to all of them or to none."""
        if not request.user.has_perm(CHANGE):
            raise PermissionDenied
        if verb not in (*MOVES, "resubmit"):
            raise Http404("There is no such button")
        rows = _letters(request.GET.get("ids", ""))
        data = request.POST if request.method == "POST" else None
        form = ChangesForm(data) if verb == "resubmit" else ReasonForm(data)
        if form.is_bound and form.is_valid():
            by = By(request.user.get_username(), form.cleaned_data["reason"])
            try:
                done = self._do_to_all(verb, rows, form, by)
            except InvalidRequest as error:
                form.refuse(error)
            except K1NodeError as error:
                self.message_user(request, words.refusal_of_all(error), messages.WARNING)
            else:
                self.message_user(request, done)
                return HttpResponseRedirect(display.list_of(DeadLetter))
        number = words.entries(len(rows))
        context = {
            **self.admin_site.each_context(request),
            "title": f"{verb.capitalize()} {number}",
            "opts": self.opts,
            "verb": verb,
            "rows": [(row, words.letter_badge(row)) for row in rows[:MOST_NAMED]],
            "more": len(rows) - MOST_NAMED,
            "form": form,
            "button": f"{verb.capitalize()} {number}",
            "tone": "k1-main",
            "back": display.list_of(DeadLetter),
        }
        return TemplateResponse(request, "admin/recovery/deadletter/several.html", context)

    def _do_to_all(self, verb: str, rows: list[DeadLetter], form: ReasonForm, by: By) -> SafeString:
        now, number = database_now(), words.entries(len(rows))
        if isinstance(form, ChangesForm):
            made = dead_letters.resubmit_all(rows, form.changes(), by, now=now)
            links = format_html_join(", ", "{}", ((display.link(task),) for task in made[:MOST_LINKED]))
            return format_html("Resubmitted {}: {}{}.", number, links, " and more" if len(made) > MOST_LINKED else "")
        MOVES[verb](rows, by, now=now)
        back = several_address("unarchive" if verb == "archive" else "archive", [row.pk for row in rows])
        return format_html('{} <a href="{}">Undo…</a>', MOVED[verb].format(number), back)

    def _to_change(self, request: HttpRequest, pk: int) -> DeadLetter:
        if not request.user.has_perm(CHANGE):
            raise PermissionDenied
        return _letter(pk)


def _letter(pk: int) -> DeadLetter:
    row = DeadLetter.objects.select_related("task", "schedule").filter(pk=pk).first()
    if row is None:
        raise Http404("No such dead letter; it may have been pruned.")
    return row


def _letters(ids: str) -> list[DeadLetter]:
    """Return the entries whose keys an address names, with their tasks; Http404 unless it names some that are there."""
    pks = {pk for text in ids.split(",") if (pk := key_in(text))}
    rows = list(DeadLetter.objects.select_related("task").filter(pk__in=pks).order_by("pk")[: MOST_SELECTED + 1])
    if not 0 < len(rows) <= MOST_SELECTED:
        raise Http404("These dead letters are not there; they may have been pruned.")
    return rows


def several_address(verb: str, pks: Sequence[int]) -> str:
    return reverse("admin:recovery_deadletter_several", args=(verb,), query={"ids": ",".join(map(str, pks))})


def _breaker_of(row: DeadLetter) -> Breaker | None:
    """Return the breaker that an entry's task names; not there before its first result."""
    return Breaker.objects.filter(breaker_id=row.circuit_breaker).first() if row.circuit_breaker else None


@dataclass(frozen=True, slots=True)
class Link:
    """One failure of a chain: its entry, and the task that did it again. The last of a chain may have no entry."""

    letter: DeadLetter
    badge: SafeString
    is_this: bool
    new_task: Task | None


def chain_around(row: DeadLetter) -> list[Link]:
    """Return the failures before and after an entry, each resubmitted as the task of the next; empty if it is alone."""
    letters = [*dead_letters.chain_of(row), row]
    while letters[-1].new_task_id is not None and len(letters) < MOST_IN_CHAIN:
        after = DeadLetter.objects.select_related("task").filter(task=letters[-1].new_task_id).first()
        if after is None:
            break
        letters.append(after)
    tasks = Task.objects.in_bulk([letter.new_task_id for letter in letters if letter.new_task_id is not None])
    if len(letters) == 1 and not row.new_task_name:
        return []
    return [
        Link(letter, words.letter_badge(letter), letter.pk == row.pk, tasks.get(letter.new_task_id or 0))
        for letter in letters
    ]


def new_task_of(row: DeadLetter, task: Task | None) -> str:
    """Return the task that does an entry again, and how it stands."""
    if not row.new_task_name:
        return display.NOTHING
    if task is None:
        return display.two_lines(row.new_task_name, "pruned")
    return format_html("{} {}", display.link(task, row.new_task_name), status_badge(task))
