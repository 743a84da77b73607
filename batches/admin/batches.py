"""Batches on the console: how far each has come, what has failed in it, and the verbs.

A look is a bounded number of queries, however many tasks a batch has: its counts are the gate's, and of its tasks one
page is read, and the newest of those that have failed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.html import format_html
from django.views.decorators.http import require_http_methods, require_POST

from batches import failures, progress, steering, submission
from batches.admin import members, words
from batches.admin.forms import AskForm
from batches.models import Batch
from batches.progress import Progress
from k1node.audit.models import AuditRecord
from k1node.lib import admin_display as display
from k1node.lib.admin_base import OPERATE, key_in
from k1node.lib.admin_paging import WINDOW, Keyset, KeysetAdmin, TextFilter
from k1node.lib.clock_time import database_now
from k1node.lib.errors import K1NodeError
from k1node.operations.admin import page_of as page_of_job
from k1node.operations.admin import progress_bar
from k1node.operations.models import Item, Operation
from recovery import admin_words, explain
from recovery.models import DeadLetter
from recovery.records import By
from scheduling import gates, nodes
from scheduling.admin.tasks import status_badge, took

CHANGE = "batches.change_batch"
ACTS_SHOWN = 20
REFUSED_SHOWN = 5
# Of what has been queued: a moment later it is something else.
PASSING = ("running", "claimed", "starting", "ended")
# What does not end by itself.
STUCK = ("held", "paused", "no_node", "no_workers", "breaker_open", "resource_limit")


class StatusFilter(admin.SimpleListFilter):
    title = "status"
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return list(words.STATUSES.items())

    def queryset(self, request: HttpRequest, queryset: QuerySet[Batch]) -> QuerySet[Batch]:
        value = self.value()
        return progress.of_status(queryset, value) if value in words.STATUSES else queryset


class MakerFilter(TextFilter):
    title = "by"
    parameter_name = "by"
    placeholder = "a user or a key"

    def queryset(self, request: HttpRequest, queryset: QuerySet[Batch]) -> QuerySet[Batch]:
        return queryset.filter(created_by=self.value) if self.value else queryset


@dataclass(frozen=True, slots=True)
class Possible:
    """What can be done to a batch as it is."""

    pause: bool
    resume: bool
    cancel: bool
    close: bool
    retry: int  # of so many tasks

    @property
    def any(self) -> bool:
        return self.pause or self.resume or self.cancel or self.close or bool(self.retry)


@admin.register(Batch)
class BatchAdmin(KeysetAdmin):
    section = OPERATE
    place = 22
    summary = "Tasks that were asked for together: how far they are, and what has failed"
    nothing = "No batch yet. One is made by POST /tasks/batch."
    list_display = ("batch", "state_now", "done", "by", "since", "ends")
    list_display_links = ("batch",)
    list_filter = (StatusFilter, MakerFilter)
    list_per_page = 50
    search_fields = ("batch_id",)
    search_help_text = "Part of a batch's id"

    # --- the list -----------------------------------------------------------------------------------------------

    def get_queryset(self, request: HttpRequest) -> QuerySet[Batch]:
        return progress.with_progress(super().get_queryset(request)).defer("defaults")

    def keyset(self, params: Mapping[str, str], query: str) -> Keyset:
        return Keyset(window=WINDOW if query or params.get("status") or params.get("by") else 0)

    def attach(self, rows: list[Batch]) -> None:
        now = database_now()
        slots = sum(node.max_concurrent for node in nodes.live(now=now))
        for row in rows:
            found = progress.progress_of(row)
            row.seen = found  # type: ignore[attr-defined]
            row.seen_at = now  # type: ignore[attr-defined]
            row.ends_at = words.paced_end(row, found, slots, now)  # type: ignore[attr-defined]

    since = display.moment_column("created_at", "since")

    @admin.display(description="batch")
    def batch(self, row: Batch) -> str:
        return display.two_lines(row.batch_id, words.in_short(row))

    @admin.display(description="state")
    def state_now(self, row: Batch) -> str:
        return words.standing(row, row.seen, row.seen_at)  # type: ignore[attr-defined]

    @admin.display(description="progress")
    def done(self, row: Batch) -> str:
        found: Progress = row.seen  # type: ignore[attr-defined]
        return display.two_lines(words.bar(found, f"b{row.pk}"), words.in_figures(found))

    @admin.display(description="by")
    def by(self, row: Batch) -> str:
        return row.created_by or display.NOTHING

    @admin.display(description="ends about")
    def ends(self, row: Batch) -> str:
        now: datetime = row.seen_at  # type: ignore[attr-defined]
        if row.ended_at is not None:
            return display.two_lines("ended", display.ago(row.ended_at, now))
        return display.both(row.ends_at, now)  # type: ignore[attr-defined]

    # --- the page of one ----------------------------------------------------------------------------------------

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        now, ask = require_POST(self.now_view), require_http_methods(["GET", "HEAD", "POST"])(self.ask_view)
        verbs = {"pause": now, "resume": now, "cancel": ask, "retry": ask, "close": ask}
        ours = [
            path(f"<int:pk>/{verb}/", view(made), {"verb": verb}, name=f"batches_batch_{verb}")
            for verb, made in verbs.items()
        ]
        return [*ours, *super().get_urls()]

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show what is going on in a batch, what has failed, its tasks, and the verbs."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        batch, found = _read(key_in(object_id))
        now = database_now()
        job, acts = _retry_of(batch), _acts(batch)
        idle, is_stuck = _idle(batch, found, now)
        known = words.Known(
            now,
            ends_at=progress.estimate(batch, found, now=now),
            retrying=words.retrying(job),
            idle=idle,
            is_stuck=is_stuck,
            why_paused=next((act.record.reason for act in acts if act.record.action == "batch.paused"), ""),
        )
        tone, said = words.going_on(batch, found, known)
        failed = failures.grouped(batch, found)
        may_see = {
            "tasks": _may_see(request, "scheduling", "task"),
            "dead_letters": _may_see(request, "recovery", "deadletter"),
            "jobs": _may_see(request, "operations", "operation"),
        }
        context = {
            **self.admin_site.each_context(request),
            "title": batch.batch_id,
            "opts": self.opts,
            "original": batch,
            "batch": batch,
            "progress": found,
            "now": now,
            "badge": words.badge_of(found),
            "tone": tone,
            "said": said,
            "is_live": batch.ended_at is None or batch.gate.reopened,
            "bar": words.bar(found, "bar"),
            "parts": [(words.swatch(word, "bar"), word, f"{count:,}") for word, count in words.numbers(found)],
            "total_text": f"{found.total:,}",
            "percent": words.percent(found),
            "ends_at": known.ends_at,
            "no_end": words.no_end(batch, found),
            "how": words.how(batch),
            "on_failure": words.on_failure(batch),
            "defaults": display.as_json(batch.defaults) if batch.defaults else "",
            "job": job,
            "job_bar": progress_bar(job) if job else "",
            "refusals": _refusals(job),
            "failures": failed,
            "failed": [
                (group, f"{group.count:,}", display.list_of(DeadLetter, fingerprint=group.fingerprint))
                for group in failed.groups
            ],
            "is_partial": failed.looked_at < found.failed,
            "looked_at_text": f"{failed.looked_at:,}",
            "possible": (can := _possible(batch, found, job)),
            "verbs_key": f"{can.pause} {can.resume}",
            "retry_text": f"{can.retry:,}",
            "may_change": request.user.has_perm(CHANGE),
            "may_see": may_see,
            "acts": acts,
            **(_tasks(request, batch, found) if may_see["tasks"] else {}),
        }
        return TemplateResponse(request, "admin/batches/batch/page.html", context)

    # --- verbs --------------------------------------------------------------------------------------------------

    def now_view(self, request: HttpRequest, pk: int, verb: str) -> HttpResponse:
        """Do what a button of the page says, at once."""
        batch, _ = self._to_change(request, pk)
        return self._do(request, batch, verb, admin_words.by(request))

    def ask_view(self, request: HttpRequest, pk: int, verb: str) -> HttpResponse:
        """Say what a verb would do that cannot be taken back, or is about many tasks; ask why, and do it."""
        batch, found = self._to_change(request, pk)
        number = {"cancel": found.waiting + found.in_progress, "close": 0}.get(verb)
        if number is None:
            number = failures.retryable(batch, found)
        form = AskForm(number, request.POST if request.method == "POST" else None)
        if form.is_bound and form.is_valid():
            return self._do(request, batch, verb, By(request.user.get_username(), form.cleaned_data["reason"]))
        shown = form.asked if form.is_bound else number
        text, button = ASKED[verb]
        context = {
            **self.admin_site.each_context(request),
            "title": f"{text} {batch.batch_id}",
            "opts": self.opts,
            "original": batch,
            "batch": batch,
            "progress": found,
            "form": form,
            "verb": verb,
            "tone": "k1-danger" if verb == "cancel" else "k1-main",
            "button": button.format(tasks=words.tasks(shown)),
            "badge": words.badge_of(found),
            "waiting": words.tasks(found.waiting),
            "running": words.tasks(found.in_progress),
            "failed": words.tasks(found.failed),
            "by_rule": number - found.failed if verb == "retry" else 0,
            "ended": words.tasks(found.ended),
            "back": display.page_of(batch),
        }
        return TemplateResponse(request, "admin/batches/batch/ask.html", context)

    def _to_change(self, request: HttpRequest, pk: int) -> tuple[Batch, Progress]:
        if not request.user.has_perm(CHANGE):
            raise PermissionDenied
        return _read(pk)

    def _do(self, request: HttpRequest, batch: Batch, verb: str, by: By) -> HttpResponse:
        now = database_now()
        try:
            if verb == "retry":
                job = steering.retry_failed(batch, by, now=now)
                text = f"Retries {words.tasks(job.total)} of {{}}. It begins within a second; this page follows it."
            elif verb == "close":
                submission.close(batch, by=by.name, now=now)
                text = "Closed {}. It ends once the tasks that it has have ended."
            else:
                VERBS[verb](batch, by, now=now)
                text = SAID[verb]
            self.message_user(request, format_html(text, batch.batch_id))
        except K1NodeError as error:
            self.message_user(request, admin_words.refusal(batch.batch_id, error), messages.WARNING)
        return HttpResponseRedirect(display.page_of(batch))


VERBS = {"pause": steering.pause, "resume": steering.resume, "cancel": steering.cancel}
SAID = {
    "pause": "Paused {}. What runs may finish; nothing further starts until somebody resumes it.",
    "resume": "Resumed {}. It goes on.",
    "cancel": "Cancelled {}. What waited is cancelled; what runs is ended within seconds.",
}
# Verb -> what its page is called, and what its button says.
ASKED = {
    "cancel": ("Cancel", "Cancel {tasks}"),
    "retry": ("Retry what failed in", "Retry {tasks}"),
    "close": ("Close", "Close it"),
}


def _read(pk: int) -> tuple[Batch, Progress]:
    row = progress.with_progress(Batch.objects.filter(pk=pk)).first()
    if row is None:
        raise Http404("No such batch; it may have been pruned.")
    return row, progress.progress_of(row)


def _possible(batch: Batch, found: Progress, job: Operation | None) -> Possible:
    """Return the verbs that would be carried out; the verbs themselves look again."""
    goes_on = (batch.ended_at is None or batch.gate.reopened) and batch.cancelled_at is None
    is_retried = job is not None and job.state == Operation.State.RUNNING
    is_being_cancelled = batch.cancelled_at is not None and found.ended < found.total
    return Possible(
        pause=goes_on and batch.paused_at is None,
        resume=batch.paused_at is not None,
        cancel=goes_on,
        close=batch.open,
        retry=0 if is_retried or is_being_cancelled else failures.retryable(batch, found),
    )


def _idle(batch: Batch, found: Progress, now: datetime) -> tuple[str, bool]:
    """Return why nothing of a batch runs that could, and whether it stays so; nothing if something does or is about to.

    The reason of the first of its tasks stands for all of them.
    """
    if found.in_progress or not found.waiting or batch.paused_at is not None or batch.cancelled_at is not None:
        return "", False
    first = gates.in_flight(batch.gate).select_related("blocked_on").defer(*members.NOT_LISTED).order_by("pk").first()
    if first is None:
        return "", False
    why = explain.explain(first, now=now)
    return "" if why.reason in PASSING else f"The first of them, {first.task_id}: {why.message}", why.reason in STUCK


def _retry_of(batch: Batch) -> Operation | None:
    if not batch.retry_job:
        return None
    return Operation.objects.filter(operation_id=batch.retry_job, kind=steering.KIND).first()


def _refusals(job: Operation | None) -> list[str]:
    if job is None or not job.refused:
        return []
    rows = job.items.filter(position__lte=job.position, state=Item.State.REFUSED).order_by("position")
    return list(rows.values_list("note", flat=True)[:REFUSED_SHOWN])


def _tasks(request: HttpRequest, batch: Batch, found: Progress) -> dict[str, Any]:
    """Return the page of its tasks that the address asks for, and the addresses of the others."""
    asked = request.GET
    page = members.page(
        batch, state=asked.get("tasks", ""), after=asked.get("after", ""), before=asked.get("before", "")
    )
    counts = {members.ALL: found.total, **dict(words.numbers(found))}
    here = display.page_of(batch)

    def address(state: str, **key: int) -> str:
        return f"{here}?{urlencode({'tasks': state, **key})}#tasks"

    return {
        "page": page,
        "rows": [(task, status_badge(task), took(task), display.first_line(task.last_error)) for task in page.rows],
        "states": [(state, f"{counts[state]:,}", address(state), state == page.state) for state in members.STATES],
        "newer": None if page.before is None else address(page.state, before=page.before),
        "older": None if page.after is None else address(page.state, after=page.after),
        "searched_text": f"{page.searched:,}",
    }


@dataclass(frozen=True, slots=True)
class Act:
    """Something that a person did to a batch."""

    record: AuditRecord
    done: str
    changed: str
    job: str = ""  # the address of the bulk job that came of it


def _acts(batch: Batch) -> list[Act]:
    """Return what people did to a batch, the newest first."""
    rows = list(AuditRecord.objects.filter(target=f"batch:{batch.batch_id}").order_by("-pk")[:ACTS_SHOWN])
    named = [str(row.after["job"]) for row in rows if row.after and row.after.get("job")]
    jobs = Operation.objects.filter(operation_id__in=named) if named else []
    pages = {job.operation_id: page_of_job(job) for job in jobs}
    return [
        Act(
            row,
            words.DONE.get(row.action, row.action),
            words.changed(row),
            pages.get((row.after or {}).get("job", ""), ""),
        )
        for row in rows
    ]


def _may_see(request: HttpRequest, app: str, model: str) -> bool:
    return any(request.user.has_perm(f"{app}.{verb}_{model}") for verb in ("view", "change"))
