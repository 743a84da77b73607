"""The log of deliveries on the console, the page of one with its attempts, and the rows behind them."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.views.decorators.http import require_http_methods, require_POST

from k1node.access import operators
from k1node.access.scopes import ADMIN
from k1node.lib import admin_display as display
from k1node.lib.admin_base import RECORDS, ReadOnlyAdmin, key_in
from k1node.lib.admin_paging import WINDOW, Keyset, KeysetAdmin, TextFilter
from k1node.lib.clock_time import database_now
from k1node.lib.errors import K1NodeError
from webhooks import redelivery
from webhooks.admin import words
from webhooks.admin.forms import PlainForm
from webhooks.models import Attempt, Delivery, FanoutCursor, Message, Webhook

State = Delivery.State

CHANGE = "webhooks.change_webhook"
MOST_ATTEMPTS = 50
MOST_SELECTED = 200  # their keys are in an address
MOST_NAMED = 20


class WebhookFilter(TextFilter):
    title = "webhook"
    parameter_name = "webhook"
    placeholder = "a webhook's id or name"

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(webhook=webhook_named(self.value)) if self.value else queryset


def webhook_named(text: str) -> int:
    """Return the key of the webhook with this id, or of the newest with this name; 0, which none has, for no such."""
    rows = Webhook.objects.values_list("pk", flat=True)
    return rows.filter(webhook_id=text).first() or rows.filter(name=text).order_by("-pk").first() or 0


class StateFilter(admin.SimpleListFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(str(state), state.label) for state in State]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> QuerySet[Delivery]:
        return queryset.filter(state=self.value()) if self.value() in State.values else queryset


class EventFilter(TextFilter):
    title = "event"
    parameter_name = "event"
    placeholder = "task.failed"

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(event=self.value) if self.value else queryset


@admin.register(Delivery)
class DeliveryAdmin(KeysetAdmin):
    section = RECORDS
    place = 11
    summary = "Every event that was sent to a webhook, and what came of it"
    nothing = "Nothing has been sent to a webhook yet."
    list_display = ("what", "to", "stands", "came", "tries", "next_try", "made")
    list_display_links = ("what",)
    list_filter = (WebhookFilter, StateFilter, EventFilter)
    list_per_page = 50
    list_select_related = ("webhook",)
    actions = ("redeliver_selected",)

    # --- the log ------------------------------------------------------------------------------------------------

    def keyset(self, params: Mapping[str, str], query: str) -> Keyset:
        webhook, state, event = (params.get(name, "").strip() for name in ("webhook", "state", "event"))
        if not webhook:
            return Keyset(window=WINDOW if state or event else 0)
        if not event:
            return Keyset()  # an index has those of one webhook, and of one webhook in one state
        within: dict[str, Any] = {"webhook": webhook_named(webhook)}
        return Keyset(window=WINDOW, within={**within, "state": state} if state in State.values else within)

    def attach(self, rows: list[Delivery]) -> None:
        now = database_now()
        for row in rows:
            row.seen_at = now  # type: ignore[attr-defined]

    what = display.column("event", lambda row: row.event)
    to = display.column("webhook", lambda row: to_webhook(row.webhook))
    stands = display.column("state", words.delivery_badge)
    next_try = display.column("next try", lambda row: words.next_attempt(row, row.seen_at))
    made = display.moment_column("created_at", "made")

    @admin.display(description="attempts")
    def tries(self, row: Delivery) -> str:
        return f"{row.attempts}"

    @admin.display(description="last answer")
    def came(self, row: Delivery) -> str:
        return last_answer(row)

    # --- the page of one ----------------------------------------------------------------------------------------

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        again = require_POST(self.again_view)
        several = require_http_methods(["GET", "HEAD", "POST"])(self.several_view)
        return [
            path("<int:pk>/redeliver/", view(again), name="webhooks_delivery_redeliver"),
            path("several/", view(several), name="webhooks_delivery_several"),
            path("named/<str:delivery_id>/", view(self.named_view), name="webhooks_delivery_named"),
            *super().get_urls(),
        ]

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show what was sent, every attempt and, to administrators, what was answered.

        As over the API: else whoever may change webhooks could read what answers inside the node's network.
        """
        if not self.has_view_permission(request):
            raise PermissionDenied
        row = _delivery(key_in(object_id))
        may_change = request.user.has_perm(CHANGE)
        rows = Attempt.objects.filter(delivery=row).order_by("-number")
        shows_answers = ADMIN in operators.scopes_of(request.user)
        if not shows_answers:
            rows = rows.defer("response_headers", "response_body")
        attempts = list(rows[: MOST_ATTEMPTS + 1])
        shown = attempts[:MOST_ATTEMPTS]
        longest, now = words.longest(shown), database_now()
        context = {
            **self.admin_site.each_context(request),
            "title": f"{row.event} to {row.webhook}",
            "opts": self.opts,
            "original": row,
            "delivery": row,
            "message": row.message,
            "webhook": to_webhook(row.webhook),
            "now": now,
            "badge": words.delivery_badge(row),
            "next_try": words.next_attempt(row, now),
            "attempts": [(each, words.outcome_badge(each), words.phases(each, longest)) for each in shown],
            "more": len(attempts) > MOST_ATTEMPTS,
            "most": MOST_ATTEMPTS,
            "payload": display.as_json(_read(row.message.data)),
            "retries_left": max(0, row.webhook.max_retries + 1 - row.spent),
            "may_change": may_change,
            "shows_answers": shows_answers,
            "can_redeliver": may_change
            and row.state in redelivery.FINAL
            and row.webhook.deleted_at is None
            and (row.webhook.active or row.is_test),
            "is_over": row.state in redelivery.FINAL,
        }
        return TemplateResponse(request, "admin/webhooks/delivery/page.html", context)

    def named_view(self, request: HttpRequest, delivery_id: str) -> HttpResponse:
        """Lead to the page of the delivery with this id, as the API names it."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        pk = Delivery.objects.filter(delivery_id=delivery_id).values_list("pk", flat=True).first()
        if pk is None:
            raise Http404("No such delivery; it may have been pruned.")
        return HttpResponseRedirect(display.page_of(Delivery(pk=pk)))

    def again_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Let a delivery be sent again, and return to its page."""
        if not request.user.has_perm(CHANGE):
            raise PermissionDenied
        row = _delivery(pk)
        try:
            redelivery.redeliver(row, by=request.user.get_username(), now=database_now())
        except K1NodeError as error:
            self.message_user(request, words.refusal("it", error), messages.WARNING)
        else:
            self.message_user(request, "It is sent again, with the same id and all its tries.")
        return HttpResponseRedirect(display.page_of(row))

    # --- several at once ----------------------------------------------------------------------------------------

    def has_redeliver_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm(CHANGE)

    @admin.action(description="Redeliver selected…", permissions=["redeliver"])
    def redeliver_selected(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> HttpResponse | None:
        """Lead to the page that names them and asks; none where there are none or too many."""
        pks = list(queryset.order_by("pk").values_list("pk", flat=True)[: MOST_SELECTED + 1])
        if not 0 < len(pks) <= MOST_SELECTED:
            text = f"Choose 1 to {MOST_SELECTED}; for more, the page of a webhook has Redeliver what failed."
            self.message_user(request, text, messages.WARNING)
            return None
        return HttpResponseRedirect(several_address(pks))

    def several_view(self, request: HttpRequest) -> HttpResponse:
        """Name the chosen deliveries, and let each that can be sent again be sent again."""
        if not request.user.has_perm(CHANGE):
            raise PermissionDenied
        rows = _deliveries(request.GET.get("ids", ""))
        form = PlainForm(request.POST if request.method == "POST" else None)
        if form.is_bound:
            self._redeliver(request, rows)
            return HttpResponseRedirect(display.list_of(Delivery))
        number = words.deliveries(len(rows))
        context = {
            **self.admin_site.each_context(request),
            "title": f"Redeliver {number}",
            "opts": self.opts,
            "rows": [(row, words.delivery_badge(row)) for row in rows[:MOST_NAMED]],
            "more": len(rows) - MOST_NAMED,
            "form": form,
            "button": f"Redeliver {number}",
            "tone": "k1-main",
            "back": display.list_of(Delivery),
        }
        return TemplateResponse(request, "admin/webhooks/delivery/several.html", context)

    def _redeliver(self, request: HttpRequest, rows: Sequence[Delivery]) -> None:
        by, now, done = request.user.get_username(), database_now(), 0
        reasons: dict[str, int] = {}
        for row in rows:
            try:
                redelivery.redeliver(row, by=by, now=now)
            except K1NodeError as error:
                reason = words.reasons(error)
                reasons[reason] = reasons.get(reason, 0) + 1
            else:
                done += 1
        if done:
            self.message_user(request, f"{words.deliveries(done)} sent again, with the same ids and all tries.")
        for reason, number in reasons.items():
            text = f"Left {words.deliveries(number)} alone. {reason}."
            self.message_user(request, text, messages.WARNING)


def to_webhook(row: Webhook) -> str:
    """Return a webhook as a link; one that was deleted has no page any more."""
    return row.name if row.deleted_at is not None else display.link(row, row.name)


def last_answer(row: Delivery) -> str:
    """Return what came of the last attempt of a delivery."""
    if row.last_error:
        error = format_html('<span class="k1-error">{}</span>', display.first_line(row.last_error, 120))
        return format_html("{}{}", row.last_status or "", error)
    return f"{row.last_status}" if row.last_status is not None else display.NOTHING


def several_address(pks: Sequence[int]) -> str:
    return reverse("admin:webhooks_delivery_several", query={"ids": ",".join(map(str, pks))})


def _delivery(pk: int) -> Delivery:
    row = Delivery.objects.select_related("webhook", "message").filter(pk=pk).first()
    if row is None:
        raise Http404("No such delivery; it may have been pruned.")
    return row


def _deliveries(ids: str) -> list[Delivery]:
    """Return the deliveries whose keys an address names; Http404 unless it names some that are there."""
    pks = {pk for text in ids.split(",") if (pk := key_in(text))}
    rows = list(Delivery.objects.select_related("webhook").filter(pk__in=pks).order_by("pk")[: MOST_SELECTED + 1])
    if not 0 < len(rows) <= MOST_SELECTED:
        raise Http404("These deliveries are not there; they may have been pruned.")
    return rows


def _read(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


# --- what stands behind it --------------------------------------------------------------------------------------


@admin.register(Message)
class MessageAdmin(KeysetAdmin):
    list_display = ("message_id", "event", "happened")
    list_display_links = ("message_id",)
    fields = ("message_id", "event", "event_pk", "happened", "data")
    happened = display.moment_column("occurred_at", "happened")


@admin.register(Attempt)
class AttemptAdmin(KeysetAdmin):
    """What was answered is on the page of the delivery, for administrators."""

    list_display = ("attempt", "came", "status", "began", "took")
    list_display_links = ("attempt",)
    fields = ("delivery", "number", "came", "status", "error", "url", "address", "allowed_by", "began", "took")
    attempt = display.column("attempt", str)
    came = display.column("outcome", words.outcome_badge)
    began = display.moment_column("started_at", "started")
    took = display.duration_column("total_ms", "took")


@admin.register(FanoutCursor)
class FanoutCursorAdmin(ReadOnlyAdmin):
    list_display = ("reached",)
    fields = ("cursor_xid", "cursor_id")
    reached = display.column("cursor", str)
