"""Webhooks on the console: their list, the page of one with its verbs, the forms that make and change one."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.db.models import F, Model, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.views.decorators.http import require_http_methods, require_POST

from k1node.events.catalogue import EVENTS, TEST
from k1node.lib import admin_display as display
from k1node.lib.admin_base import OPERATE, key_in
from k1node.lib.admin_paging import Keyset
from k1node.lib.clock_time import database_now
from k1node.lib.errors import InvalidRequest, K1NodeError
from k1node.operations.admin import job_badge
from webhooks import counts, endpoints, redelivery
from webhooks.admin import words
from webhooks.admin.forms import FROM, EditWebhookForm, NewWebhookForm, PlainForm, RotateForm
from webhooks.admin.redeliveries import RedeliveryPages, address_of_plan, page_of_job
from webhooks.counts import Waiting
from webhooks.endpoints import State
from webhooks.models import Attempt, Delivery, Webhook
from webhooks.redelivery import Mode

CHANGE = "webhooks.change_webhook"
MOST_OF_A_STATE = 6  # deliveries shown
MOST_JOBS = 5


class StateFilter(admin.SimpleListFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [
            (State.ACTIVE, "Active"),
            (State.FAILING, "Failing"),
            (State.DISABLED, "Disabled by the node"),
            (State.PAUSED, "Paused"),
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Webhook]) -> QuerySet[Webhook]:
        value = self.value()
        return endpoints.in_state(queryset, State(value)) if value in tuple(State) else queryset


@admin.register(Webhook)
class WebhookAdmin(RedeliveryPages):
    section = OPERATE
    place = 40
    summary = "Where events are sent, and whether they arrive"
    nothing = "No webhook yet. Add one, and events are posted to its address from then on."
    list_display = ("webhook", "address", "stands", "succeeded", "failed", "waits", "wants")
    list_display_links = ("webhook",)
    list_filter = (StateFilter,)
    list_per_page = 50
    search_fields = ("name", "url", "webhook_id")
    search_help_text = "Part of a name, an address or an id"

    # --- the list -----------------------------------------------------------------------------------------------

    def keyset(self, params: Mapping[str, str], query: str) -> Keyset:
        return Keyset()

    def get_queryset(self, request: HttpRequest) -> QuerySet[Webhook]:
        return endpoints.present()

    def attach(self, rows: list[Webhook]) -> None:
        found, now = counts.waiting([row.pk for row in rows]), database_now()
        for row in rows:
            row.seen_at = now  # type: ignore[attr-defined]
            row.waiting = found.get(row.pk, Waiting())  # type: ignore[attr-defined]

    stands = display.column("state", lambda row: words.standing(row, row.seen_at))
    succeeded = display.column("last success", lambda row: display.both(row.last_success_at, row.seen_at))
    waits = display.column("waiting", lambda row: words.count(row.waiting.pending))
    wants = display.column("wants", words.wanted)

    address = display.column("address", words.host)
    webhook = display.column("webhook", lambda row: row.name)

    @admin.display(description="last failure")
    def failed(self, row: Webhook) -> str:
        if row.last_failure_at is None:
            return display.NOTHING
        error = format_html('<span class="k1-error">{}</span>', display.first_line(row.last_error, 120))
        return format_html("{}{}", display.ago(row.last_failure_at, row.seen_at), error)  # type: ignore[attr-defined]

    # --- who may do what ----------------------------------------------------------------------------------------

    def has_add_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("webhooks.add_webhook")

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        asking = require_http_methods(["GET", "HEAD", "POST"])
        now = require_POST(self.now_view)
        ours = [
            path(f"<int:pk>/{verb}/", view(now), {"verb": verb}, name=f"webhooks_webhook_{verb}")
            for verb in ("test", "enable", "pause", "finish")
        ]
        return [
            *ours,
            path("<int:pk>/edit/", view(asking(self.edit_view)), name="webhooks_webhook_edit"),
            path("<int:pk>/rotate/", view(asking(self.rotate_view)), name="webhooks_webhook_rotate"),
            path("<int:pk>/end/", view(asking(self.end_view)), name="webhooks_webhook_end"),
            path("named/<str:webhook_id>/", view(self.named_view), name="webhooks_webhook_named"),
            *super().get_urls(),
        ]

    # --- the page of one ----------------------------------------------------------------------------------------

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show how a webhook is doing, what can be done about it, and what was sent to it lately."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        row = self.webhook_of(key_in(object_id))
        now = database_now()
        waiting = counts.waiting([row.pk]).get(row.pk, Waiting())
        tone, trouble = words.trouble(row, waiting, now)
        state = endpoints.state(row)
        context = {
            **self.admin_site.each_context(request),
            "title": row.name,
            "opts": self.opts,
            "original": row,
            "webhook": row,
            "now": now,
            "badge": words.badge_of(row),
            "tone": tone,
            "trouble": trouble,
            "waiting": waiting,
            "waiting_text": words.count(waiting.pending),
            "pending": display.list_of(Delivery, webhook=row.webhook_id, state="pending"),
            "log": display.list_of(Delivery, webhook=row.webhook_id),
            "failed": display.list_of(Delivery, webhook=row.webhook_id, state="failed"),
            "deliveries": latest(row, now) if may_see_deliveries(request) else None,
            "jobs": [(job, page_of_job(job), job_badge(job)) for job in redelivery.of(row).order_by("-pk")[:MOST_JOBS]],
            "secret": words.rotation(row, now),
            "is_rotating": bool(row.next_secret) and row.rotates_at is not None and row.rotates_at > now,
            "events": [(name, EVENTS[name].summary if name in EVENTS else "") for name in row.events if name != "*"],
            "recover": address_of_plan(row, Mode.FAILED),
            "resend": address_of_plan(row, Mode.PERIOD),
            "tests": [TEST, *endpoints.event_names()],
            "may_change": request.user.has_perm(CHANGE),
            "may_delete": request.user.has_perm("webhooks.delete_webhook"),
            "can_enable": state != State.ACTIVE or row.failures > 0,
            "enable_text": "Try now" if row.active else "Enable again",
            "can_pause": row.active,
            "can_redeliver": row.active,
        }
        return TemplateResponse(request, "admin/webhooks/webhook/page.html", context)

    def named_view(self, request: HttpRequest, webhook_id: str) -> HttpResponse:
        """Lead to the page of the webhook with this id, as the API and events name it."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        pk = endpoints.present().filter(webhook_id=webhook_id).values_list("pk", flat=True).first()
        if pk is None:
            raise Http404("No such webhook; it may have been deleted.")
        return HttpResponseRedirect(display.page_of(Webhook(pk=pk)))

    # --- making and changing ------------------------------------------------------------------------------------

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Ask what a new webhook is to be, and show its secret this once."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        form = NewWebhookForm(request.POST if request.method == "POST" else None)
        if form.is_bound and form.is_valid():
            by, now = request.user.get_username(), database_now()
            try:
                row, secret = endpoints.create(form.values(), by=by, now=now)
            except InvalidRequest as error:
                form.refuse(error)
            except K1NodeError as error:
                self.message_user(request, f"{words.reasons(error)}.", messages.WARNING)
            else:
                self._show_once(request, row, secret)
                return HttpResponseRedirect(self._after_adding(request, row))
        return self._form(request, form, None, "Add a webhook", "Add it", display.list_of(Webhook))

    def _after_adding(self, request: HttpRequest, row: Webhook) -> str:
        return display.page_of(row) if self.has_view_permission(request) else reverse("admin:index")

    def edit_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Change a webhook, or show the form again with what is wrong at each field."""
        row = self.to_change(request, pk)
        form = EditWebhookForm(row, request.POST if request.method == "POST" else None)
        if form.is_bound and form.is_valid():
            try:
                endpoints.change(row, form.values(), by=request.user.get_username(), now=database_now())
            except InvalidRequest as error:
                form.refuse(error)
            except K1NodeError as error:
                self.message_user(request, words.refusal(row, error), messages.WARNING)
                return HttpResponseRedirect(display.list_of(Webhook))
            else:
                self.message_user(request, format_html("Changed {}; it counts for the next request.", row))
                return HttpResponseRedirect(display.page_of(row))
        return self._form(request, form, row, f"Change {row}", "Save", display.page_of(row))

    def _form(
        self, request: HttpRequest, form: PlainForm, row: Webhook | None, title: str, button: str, back: str
    ) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "title": title,
            "opts": self.opts,
            "original": row,
            "form": form,
            "button": button,
            "back": back,
        }
        return TemplateResponse(request, "admin/webhooks/webhook/form.html", context)

    # --- verbs --------------------------------------------------------------------------------------------------

    def now_view(self, request: HttpRequest, pk: int, verb: str) -> HttpResponse:
        """Do what a button of the page says, at once."""
        row = self.to_change(request, pk)
        by = request.user.get_username()

        def work(now: datetime) -> SafeString:
            match verb:
                case "test":
                    sent = endpoints.send_test(row, request.POST.get("event") or None, by=by, now=now)
                    return format_html("Sent {}: {}.", sent.event, display.link(sent, "see what comes of it"))
                case "enable":
                    endpoints.enable(row, by=by, now=now)
                    return _enabled(row)
                case "pause":
                    endpoints.change(row, {"active": False}, by=by, now=now)
                    return format_html("Paused {}: what waits goes on waiting.", row)
            endpoints.finish_rotation(row, by=by, now=now)
            return format_html("The new secret of {} alone signs from now on.", row)

        try:
            self.message_user(request, work(database_now()))
        except K1NodeError as error:
            self.message_user(request, words.refusal(row, error), messages.WARNING)
        return HttpResponseRedirect(display.page_of(row))

    def rotate_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Ask how long the old secret is to sign too, and show the new one this once."""
        row = self.to_change(request, pk)
        form = RotateForm(request.POST if request.method == "POST" else None)
        if form.is_bound and form.is_valid():
            overlap = timedelta(seconds=int(form.cleaned_data["overlap"]))
            given, by = form.cleaned_data["secret"] or None, request.user.get_username()
            try:
                row, secret = endpoints.rotate_secret(row, secret=given, overlap=overlap, by=by, now=database_now())
            except InvalidRequest as error:
                form.refuse(error)
            except K1NodeError as error:
                self.message_user(request, words.refusal(row, error), messages.WARNING)
                return HttpResponseRedirect(display.list_of(Webhook))
            else:
                self._show_once(request, row, secret)
                return HttpResponseRedirect(display.page_of(row))
        is_rotating = bool(row.next_secret) and row.rotates_at is not None and row.rotates_at > database_now()
        return self._ask(request, row, form, "rotate", "Rotate the secret", is_rotating=is_rotating)

    def end_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Say what becomes of a webhook that is deleted, and delete it."""
        row = self.webhook_of(pk)
        if not request.user.has_perm("webhooks.delete_webhook"):
            raise PermissionDenied
        form = PlainForm(request.POST if request.method == "POST" else None)
        if form.is_bound:
            try:
                endpoints.delete(row, by=request.user.get_username(), now=database_now())
            except K1NodeError as error:
                self.message_user(request, words.refusal(row, error), messages.WARNING)
            else:
                self.message_user(request, format_html("Deleted {}: no request to it begins any more.", row))
            return HttpResponseRedirect(display.list_of(Webhook))
        waiting = words.deliveries(counts.waiting([row.pk]).get(row.pk, Waiting()).pending)
        return self._ask(request, row, form, "delete", "Delete it", waiting=waiting)

    def _ask(
        self, request: HttpRequest, row: Webhook, form: PlainForm, verb: str, button: str, **facts: Any
    ) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "title": f"{'Delete' if verb == 'delete' else 'Rotate the secret of'} {row}",
            "opts": self.opts,
            "original": row,
            "badge": words.badge_of(row),
            "form": form,
            "verb": verb,
            "button": button,
            "tone": "k1-danger" if verb == "delete" else "k1-main",
            "back": display.page_of(row),
            "url": row.url,
            **facts,
        }
        return TemplateResponse(request, "admin/webhooks/webhook/ask.html", context)

    def _show_once(self, request: HttpRequest, row: Webhook, secret: str) -> None:
        if row.next_secret and row.rotates_at is not None:
            signs = (
                f"Until {display.exact(row.rotates_at)} the old secret signs X-K1Node-Signature and the new one"
                " X-K1Node-Signature-Next; webhook-signature has both. From then on the new one signs alone."
            )
        else:
            signs = "It alone signs from now on."
        text = 'The secret of {}, shown this once: <code class="k1-secret">{}</code> Give it to the receiver now. {}'
        self.message_user(request, format_html(text, row, secret, signs), messages.WARNING)

    def to_change(self, request: HttpRequest, pk: int) -> Webhook:
        """Return the webhook if this person may change it. Raises PermissionDenied and Http404."""
        if not request.user.has_perm(CHANGE):
            raise PermissionDenied
        return self.webhook_of(pk)

    def webhook_of(self, pk: int) -> Webhook:
        row = endpoints.present().filter(pk=pk).first()
        if row is None:
            raise Http404("No such webhook; it may have been deleted.")
        return row

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False  # never by the admin's own form


def _enabled(before: Webhook) -> SafeString:
    """Return what to say of a webhook that was enabled, and what may be done about the time in which it failed."""
    said = format_html("Enabled {}, as if it had never failed: what waits is sent now.", before)
    # By now the row does not say any more since when.
    steps = (
        (before.failing_since, Mode.FAILED, "Redeliver what failed since {}…"),
        (before.disabled_at, Mode.PERIOD, "Send what has happened since {}…"),
    )
    for moment, mode, text in steps:
        if moment is not None:
            moment = moment.astimezone(UTC).replace(microsecond=0)
            query = {"span": FROM, "since": f"{moment:%Y-%m-%dT%H:%M:%S}"}
            address = address_of_plan(before, mode, query)
            said = format_html('{} <a href="{}">{}</a>', said, address, text.format(display.exact(moment)))
    return said


def may_see_deliveries(request: HttpRequest) -> bool:
    return any(request.user.has_perm(f"webhooks.{verb}_delivery") for verb in ("view", "change"))


Line = tuple[Delivery, SafeString, str, Attempt | None, str]


def latest(row: Webhook, now: datetime) -> list[Line]:
    """Return deliveries to a webhook: what is tried next, what is being sent and the newest that ended, by state.

    Each with its state, its next try and its last attempt. The newest alone would say nothing of what goes wrong while
    thousands wait.
    """
    looks = (("pending", "due_at, id"), ("sending", "id"), ("failed", "id DESC"), ("delivered", "id DESC"))
    # The states are literals, as the indexes have them: SQLite uses a partial index for no other.
    each_state = " UNION ALL ".join(
        f"SELECT id FROM (SELECT id FROM webhooks_delivery WHERE webhook_id = %s AND state = '{state}'"
        f" ORDER BY {order} LIMIT {MOST_OF_A_STATE}) AS {state}_ones"
        for state, order in looks
    )
    with connection.cursor() as cursor:
        cursor.execute(each_state, [row.pk] * len(looks))
        pks = [pk for (pk,) in cursor.fetchall()]
    found = Delivery.objects.in_bulk(pks)
    last = Attempt.objects.filter(delivery__in=pks, number=F("delivery__attempts"))
    by_delivery = {each.delivery_id: each for each in last.defer("response_body", "response_headers")}
    return [
        (
            found[pk],
            words.delivery_badge(found[pk]),
            words.next_attempt(found[pk], now),
            attempt := by_delivery.get(pk),
            words.OUTCOMES.get(attempt.outcome, attempt.outcome) if attempt else "",
        )
        for pk in pks
        if pk in found  # else it was pruned just now
    ]
