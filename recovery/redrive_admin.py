"""Redrives on the console: many dead letters resubmitted as one job. Ask, show the plan, follow its progress.

The pages stand under those of dead letters (recovery.dead_letter_admin). A look never writes: what a redrive is about
is frozen by the first press, shown with what would become of some of it, and begun by the second.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.views.decorators.http import require_http_methods, require_POST

from k1node.lib import admin_display as display
from k1node.lib.admin_paging import KeysetAdmin
from k1node.lib.clock_time import database_now
from k1node.lib.errors import InvalidRequest, K1NodeError
from k1node.operations import jobs
from k1node.operations.admin import PAGES, job_badge, progress_bar
from k1node.operations.jobs import Pace
from k1node.operations.models import Item, Operation
from recovery import admin_words as words
from recovery import dead_letters, redrives
from recovery.dead_letter_filters import CHOICES, chosen_in, wanted_in
from recovery.dead_letter_forms import RedriveForm, differences, initial_of, timeout_difference
from recovery.models import DeadLetter
from recovery.records import By
from recovery.retries import TIMEOUT
from scheduling.admin.tasks import status_badge
from scheduling.models import ACTIVE

State = Operation.State

CHANGE = "recovery.change_deadletter"
TYPED_ABOVE = 1_000  # entries whose number is typed in before they are resubmitted
EXAMPLES = 3  # entries shown beside the form
SHOWN = 5  # results
REFUSED_AT_ONCE = 20
NAMES = {"task_id": "task", "circuit_breaker": "breaker", "fingerprint": "error"}


class RedrivePages(KeysetAdmin):
    """Adds the pages of redrives to those of dead letters."""

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        plan, verb = require_http_methods(["GET", "HEAD", "POST"])(self.plan_view), require_POST(self.verb_view)
        return [
            path("redrives/plan/", view(plan), name="recovery_redrive_plan"),
            path("redrives/<str:operation_id>/", view(self.redrive_view), name="recovery_redrive"),
            path("redrives/<str:operation_id>/<str:verb>/", view(verb), name="recovery_redrive_do"),
            *super().get_urls(),
        ]

    # --- asking -------------------------------------------------------------------------------------------------

    def plan_view(self, request: HttpRequest) -> HttpResponse:
        """Ask what is to be changed in the tasks of the entries that the address chooses, and freeze which they are."""
        if not request.user.has_perm(CHANGE):
            raise PermissionDenied
        chosen = chosen_in(request.GET)
        earlier = _planned(request.GET.get("again", ""))
        form = RedriveForm(
            request.POST if request.method == "POST" else None, initial=_initial_of(earlier) if earlier else None
        )
        if form.is_bound and form.is_valid() and (job := self._plan(request, chosen, form)):
            if earlier:
                self._forget(earlier, request)
            return HttpResponseRedirect(page_of(job))
        wanted = wanted_in(chosen)
        count = dead_letters.pending(wanted)
        rows = dead_letters.listed(wanted).filter(status=DeadLetter.Status.PENDING)
        sample = rows.select_related("task").order_by("pk")[:EXAMPLES]
        context = {
            **self.admin_site.each_context(request),
            "title": "Resubmit dead letters",
            "opts": self.opts,
            "form": form,
            "chosen": [(NAMES.get(CHOICES[name], name), value) for name, value in chosen.items()],
            "count": count,
            "count_text": words.count(count, dead_letters.COUNT_MOST),
            "sample": [(row, display.as_json(row.task.parameters)) for row in sample],
            "back": display.list_of(DeadLetter, **chosen),
        }
        return TemplateResponse(request, "admin/recovery/redrive/ask.html", context)

    def _plan(self, request: HttpRequest, chosen: Mapping[str, str], form: RedriveForm) -> Operation | None:
        by = By(request.user.get_username(), form.cleaned_data["reason"])
        try:
            job, is_capped = redrives.plan(
                wanted_in(chosen),
                form.changes(),
                by,
                pace=form.pace(),
                stop_when_open=form.cleaned_data["stop_when_open"],
                now=database_now(),
            )
        except InvalidRequest as error:
            form.refuse(error)
            return None
        except K1NodeError as error:
            self.message_user(request, f"{error.message}.", messages.WARNING)
            return None
        if is_capped:
            text = f"More entries match than the {jobs.MOST:,} that one redrive may have: it has the oldest of them."
            self.message_user(request, text, messages.WARNING)
        return job

    @staticmethod
    def _forget(job: Operation, request: HttpRequest) -> None:
        """Cancel the plan that a new one stands in for; one that somebody has begun meanwhile goes on."""
        if Operation.objects.filter(pk=job.pk, state=State.PLANNED).exists():
            with suppress(K1NodeError):  # somebody else has cancelled it
                redrives.cancel(job.operation_id, By(request.user.get_username()), now=database_now())

    # --- the page of one ----------------------------------------------------------------------------------------

    def redrive_view(self, request: HttpRequest, operation_id: str) -> HttpResponse:
        """Show the plan of a redrive, or how far it has come."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        job = _redrive(operation_id)
        context = {
            **self.admin_site.each_context(request),
            "title": f"Resubmit {words.entries(job.total)}",
            "opts": self.opts,
            "original": job,
            "job": job,
            "now": database_now(),
            "badge": job_badge(job),
            "entries": words.entries(job.total),
            "total_text": f"{job.total:,}",
            "chosen": _chosen_by(job),
            "parameters": display.as_json(job.arguments["parameters"]) if job.arguments.get("parameters") else "",
            "may_change": request.user.has_perm(CHANGE),
            **(self._of_plan(job) if job.state == State.PLANNED else self._of_progress(request, job)),
        }
        name = "plan" if job.state == State.PLANNED else "progress"
        return TemplateResponse(request, f"admin/recovery/redrive/{name}.html", context)

    def _of_plan(self, job: Operation) -> dict[str, Any]:
        chosen = {name: job.selection[field] for name, field in CHOICES.items() if field in job.selection}
        policy = job.arguments.get("retry_policy")
        sample = []
        for each in redrives.sample(job):
            task = each.letter.task
            rows = timeout_difference(task.timeout_ms, each.timeout_ms)
            # The parameter that is the timeout, too, is told once, and readably.
            rows += [row for row in differences(task.parameters, each.parameters) if not rows or row[0] != TIMEOUT]
            if policy and policy != task.retry_policy_id:
                rows.append(("retry policy", str(task.retry_policy_id), policy))
            sample.append((each, rows))
        return {
            "sample": sample,
            "is_typed": job.total > TYPED_ABOVE,
            # What it was chosen by over the API may be more than this page can say.
            "again": plan_address(chosen, again=job.operation_id) if len(chosen) == len(job.selection) else "",
            "keep_plans": display.duration(jobs.KEEP_PLANS.total_seconds() * 1000),
        }

    def _of_progress(self, request: HttpRequest, job: Operation) -> dict[str, Any]:
        outcomes = redrives.outcomes(job)
        first = redrives.results(list(job.items.filter(position__lte=job.position).order_by("position")[:SHOWN]))
        refused, older = _refused(job, request.GET.get("after", ""))
        remaining = job.total - job.position
        return {
            "is_live": job.state == State.RUNNING or any(status in ACTIVE for status in outcomes),
            "bar": progress_bar(job),
            "done_text": f"{job.done:,}",
            "refused_text": f"{job.refused:,}",
            "remaining": remaining,
            "remaining_text": f"{remaining:,}",
            "outcomes": [(status, f"{count:,}") for status, count in sorted(outcomes.items())],
            "is_partial": job.done > redrives.OUTCOMES_MOST,
            "outcomes_most": f"{redrives.OUTCOMES_MOST:,}",
            "first": [(each, status_badge(each.task) if each.task else "") for each in first],
            "refused": refused,
            "more_refused": older,
            "can_start": job.state == State.STOPPED,
            "can_stop": job.state == State.RUNNING,
            "can_cancel": job.state in (State.RUNNING, State.STOPPED),
        }

    def verb_view(self, request: HttpRequest, operation_id: str, verb: str) -> HttpResponse:
        """Start a redrive, let it rest or cancel it, and return to its page."""
        if not request.user.has_perm(CHANGE):
            raise PermissionDenied
        if verb not in ("start", "stop", "cancel"):
            raise Http404("There is no such button")
        job = _redrive(operation_id)
        by, now = words.by(request), database_now()
        typed = request.POST.get("number", "").strip().replace(",", "")
        if verb == "start" and job.state == State.PLANNED and job.total > TYPED_ABOVE and typed != str(job.total):
            text = f"Not started. Type the number of entries, {job.total}, to show that you mean all of them."
            self.message_user(request, text, messages.WARNING)
            return HttpResponseRedirect(page_of(job))
        try:
            if verb == "start":
                redrives.start(job.operation_id, by, now=now)
                self.message_user(request, "It begins within a second. This page follows it; it goes on without it.")
            elif verb == "stop":
                redrives.stop(job.operation_id, by, now=now)
                self.message_user(request, "It rests until somebody lets it go on.")
            else:
                redrives.cancel(job.operation_id, by, now=now)
                self.message_user(
                    request, "Cancelled. What is done stays done; the other entries are pending as before."
                )
        except K1NodeError as error:
            self.message_user(request, words.refusal(job.operation_id, error), messages.WARNING)
        return HttpResponseRedirect(page_of(job))


def _redrive(operation_id: str) -> Operation:
    row = Operation.objects.filter(operation_id=operation_id, kind=redrives.KIND).first()
    if row is None:
        raise Http404("No such redrive; it may have been pruned.")
    return row


def _planned(operation_id: str) -> Operation | None:
    """Return the plan that is to be made anew; None if there is none, or none any more."""
    return Operation.objects.filter(operation_id=operation_id, kind=redrives.KIND, state=State.PLANNED).first()


def _initial_of(job: Operation) -> dict[str, Any]:
    return initial_of(job.arguments, Pace(job.per_second, job.first), job.reason)


def _chosen_by(job: Operation) -> list[tuple[str, str]]:
    return [(NAMES.get(name, name), str(value)) for name, value in job.selection.items()]


def _refused(job: Operation, after: str) -> tuple[list[redrives.Result], int | None]:
    """Return a page of the entries that were refused, and the place that the next page goes on from."""
    if not job.refused:
        return [], None
    start = int(after) if after.isdecimal() and len(after) < 10 else 0
    rows = job.items.filter(position__gt=start, position__lte=job.position, state=Item.State.REFUSED)
    items = list(rows.order_by("position")[: REFUSED_AT_ONCE + 1])
    shown = items[:REFUSED_AT_ONCE]
    return redrives.results(shown), shown[-1].position if len(items) > REFUSED_AT_ONCE else None


def plan_address(chosen: Mapping[str, str], *, again: str = "") -> str:
    """Return the address that asks how these entries are to be resubmitted; `again` is the plan to begin with."""
    query = {**chosen, **({"again": again} if again else {})}
    return reverse("admin:recovery_redrive_plan", query=query or None)


def page_of(job: Operation) -> str:
    return reverse("admin:recovery_redrive", args=(job.operation_id,))


PAGES[redrives.KIND] = page_of
