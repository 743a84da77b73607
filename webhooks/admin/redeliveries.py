"""Redeliveries on the console: what is to come again is counted before it is begun, and followed to its end.

The pages stand under those of webhooks. A look never writes: the address says what time it is about, the page how many
fit, and the button does what the page says.
"""

from collections.abc import Mapping
from datetime import datetime

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
from k1node.operations.models import Operation
from webhooks import endpoints, redelivery
from webhooks.admin import words
from webhooks.admin.forms import AgainForm, SpanForm
from webhooks.models import Webhook
from webhooks.redelivery import Mode, Wanted

State = Operation.State

CHANGE = "webhooks.change_webhook"
TYPED_ABOVE = 1_000  # deliveries whose number is typed in before they come again
TITLES = {Mode.FAILED: "Redeliver what failed", Mode.PERIOD: "Send a period again"}


class RedeliveryPages(KeysetAdmin):
    """Adds the pages of redeliveries to those of webhooks."""

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        plan, verb = require_http_methods(["GET", "HEAD", "POST"])(self.plan_view), require_POST(self.verb_view)
        return [
            path("<int:pk>/redeliver/<str:mode>/", view(plan), name="webhooks_redelivery_plan"),
            path("redeliveries/<str:operation_id>/", view(self.redelivery_view), name="webhooks_redelivery"),
            path("redeliveries/<str:operation_id>/<str:verb>/", view(verb), name="webhooks_redelivery_do"),
            *super().get_urls(),
        ]

    # --- asking -------------------------------------------------------------------------------------------------

    def plan_view(self, request: HttpRequest, pk: int, mode: str) -> HttpResponse:
        """Ask since when, say how many that is, and begin."""
        if not request.user.has_perm(CHANGE):
            raise PermissionDenied
        if mode not in tuple(Mode):
            raise Http404("There is no such button")
        row = endpoints.present().filter(pk=pk).first()
        if row is None:
            raise Http404("No such webhook; it may have been deleted.")
        now = database_now()
        span = SpanForm(row, request.GET, now=now)
        form: AgainForm | None = None
        wanted: Wanted | None = None
        if request.method == "POST":
            form = AgainForm(request.POST)
            if form.is_valid() and (wanted := self._wanted(row, mode, form, now)):
                job = self._begin(request, row, wanted, form, now)
                if job is not None:
                    return HttpResponseRedirect(page_of_job(job))
        elif span.is_valid():
            wanted = self._wanted(row, mode, span, now)
        number = redelivery.count(row, wanted) if wanted is not None else 0
        if wanted is not None and form is None:
            form = AgainForm(initial={"since": wanted.since.isoformat(), "until": wanted.until.isoformat()})
        context = {
            **self.admin_site.each_context(request),
            "title": f"{TITLES[Mode(mode)]}: {row}",
            "opts": self.opts,
            "original": row,
            "webhook": row,
            "mode": mode,
            "span": span,
            "form": form,
            "wanted": wanted,
            "number": number,
            "number_text": words.count(number, redelivery.COUNT_MOST),
            "things": words.things(mode, number, redelivery.COUNT_MOST),
            "most": f"{jobs.MOST:,}",
            "is_typed": number > TYPED_ABOVE,
            "to_type": min(number, redelivery.COUNT_MOST),
            "is_capped": number > redelivery.COUNT_MOST,
            "is_active": row.active,
            "back": display.page_of(row),
        }
        return TemplateResponse(request, "admin/webhooks/redelivery/plan.html", context)

    @staticmethod
    def _wanted(row: Webhook, mode: str, form: SpanForm | AgainForm, now: datetime) -> Wanted | None:
        """Return what a form says; None if that cannot be, which it shows."""
        bounds = (
            form.bounds() if isinstance(form, SpanForm) else (form.cleaned_data["since"], form.cleaned_data["until"])
        )
        try:
            return redelivery.checked(row, Mode(mode), since=bounds[0], until=bounds[1], now=now)
        except InvalidRequest as error:
            form.refuse(error)
            return None

    def _begin(
        self, request: HttpRequest, row: Webhook, wanted: Wanted, form: AgainForm, now: datetime
    ) -> Operation | None:
        number = redelivery.count(row, wanted)
        typed = request.POST.get("number", "").strip().replace(",", "")
        if number > TYPED_ABOVE and typed != str(min(number, redelivery.COUNT_MOST)):
            text = "Not begun. Type the number that stands beside the button to show that you mean all of them."
            self.message_user(request, text, messages.WARNING)
            return None
        by, per_second = request.user.get_username(), form.cleaned_data["per_second"]
        try:
            job, is_capped = redelivery.begin(row, wanted, per_second=per_second, by=by, now=now)
        except K1NodeError as error:
            self.message_user(request, f"Not begun. {words.reasons(error)}.", messages.WARNING)
            return None
        self.message_user(request, "It begins within a second. This page follows it; it goes on without it.")
        if is_capped:
            text = f"More fit than the {jobs.MOST:,} that one redelivery may have: it has the oldest of them."
            self.message_user(request, text, messages.WARNING)
        return job

    # --- the page of one ----------------------------------------------------------------------------------------

    def redelivery_view(self, request: HttpRequest, operation_id: str) -> HttpResponse:
        """Show how far a redelivery has come, and what became of its deliveries."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        job = _job(operation_id)
        row = Webhook.objects.filter(pk=job.arguments["webhook"]).first()
        outcomes = redelivery.outcomes(job)
        going = sum(outcomes.get(state, 0) for state in ("pending", "sending"))
        remaining = job.total - job.position
        context = {
            **self.admin_site.each_context(request),
            "title": f"{TITLES[Mode(job.selection['mode'])]}: {row or job.selection['webhook_id']}",
            "opts": self.opts,
            "original": job,
            "job": job,
            "webhook": row,
            "is_there": row is not None and row.deleted_at is None,
            "now": database_now(),
            "badge": job_badge(job),
            "bar": progress_bar(job),
            "since": datetime.fromisoformat(job.selection["since"]),
            "until": datetime.fromisoformat(job.selection["until"]),
            "things": words.things(job.selection["mode"], job.total, jobs.MOST),
            "total_text": f"{job.total:,}",
            "done_text": f"{job.done:,}",
            "refused_text": f"{job.refused:,}",
            "remaining_text": f"{remaining:,}",
            "outcomes": [
                (display.badge(f"delivery {state}", state), f"{number:,}") for state, number in sorted(outcomes.items())
            ],
            "is_partial": job.done > redelivery.OUTCOMES_MOST,
            "outcomes_most": f"{redelivery.OUTCOMES_MOST:,}",
            "refusals": [(note, f"{number:,}") for note, number in redelivery.refusals(job).items()],
            "is_live": job.state == State.RUNNING or bool(going),
            "may_change": request.user.has_perm(CHANGE),
            "can_start": job.state == State.STOPPED,
            "can_stop": job.state == State.RUNNING,
            "can_cancel": job.state in (State.RUNNING, State.STOPPED),
        }
        return TemplateResponse(request, "admin/webhooks/redelivery/progress.html", context)

    def verb_view(self, request: HttpRequest, operation_id: str, verb: str) -> HttpResponse:
        """Let a redelivery go on or rest, or cancel it, and return to its page."""
        if not request.user.has_perm(CHANGE):
            raise PermissionDenied
        if verb not in VERBS:
            raise Http404("There is no such button")
        job, (work, said) = _job(operation_id), VERBS[verb]
        try:
            work(job.operation_id, by=request.user.get_username(), now=database_now())
            self.message_user(request, said)
        except K1NodeError as error:
            self.message_user(request, words.refusal(job.operation_id, error), messages.WARNING)
        return HttpResponseRedirect(page_of_job(job))


VERBS = {
    "start": (redelivery.start, "It goes on within a second."),
    "stop": (redelivery.stop, "It rests until somebody lets it go on."),
    "cancel": (redelivery.cancel, "Cancelled. What is in the webhook's queue by now is sent; the rest is as it was."),
}


def _job(operation_id: str) -> Operation:
    row = Operation.objects.filter(operation_id=operation_id, kind=redelivery.KIND).first()
    if row is None:
        raise Http404("No such redelivery; it may have been pruned.")
    return row


def page_of_job(job: Operation) -> str:
    return reverse("admin:webhooks_redelivery", args=(job.operation_id,))


def address_of_plan(row: Webhook, mode: Mode, query: Mapping[str, str] | None = None) -> str:
    """Return the address that asks since when a webhook is to get things again."""
    return reverse("admin:webhooks_redelivery_plan", args=(row.pk, mode.value), query=dict(query or {}) or None)


PAGES[redelivery.KIND] = page_of_job
