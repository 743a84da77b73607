"""How webhooks, deliveries, attempts and redeliveries read on the console's pages."""

from collections.abc import Collection
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from k1node.lib import admin_display as display
from k1node.lib.errors import K1NodeError
from webhooks import counts, endpoints
from webhooks.counts import Waiting
from webhooks.endpoints import State
from webhooks.models import Attempt, Delivery, Webhook
from webhooks.redelivery import Mode
from webhooks.rules import Code

OUTCOMES: dict[str, str] = {
    Attempt.SENDING: "being sent",
    Attempt.UNKNOWN: "unknown: its sender ended, it may have arrived",
    Code.DELIVERED: "delivered",
    Code.GONE: "gone: it wants no more",
    Code.REDIRECT: "redirected: never followed",
    Code.REFUSED: "refused",
    Code.THROTTLED: "throttled: too many for it",
    Code.UNAVAILABLE: "unavailable",
    Code.TIMEOUT: "took too long",
    Code.DNS: "name not found",
    Code.BLOCKED: "address not allowed",
    Code.CONNECT: "no connection",
    Code.TLS: "TLS failed",
    Code.PROTOCOL: "no answer in HTTP",
    Code.SECRET: "secret cannot be read",
}
GROUPS = {
    "task": "Tasks",
    "schedule": "Schedules",
    "breaker": "Breakers",
    "dlq": "Dead letters",
    "redrive": "Redrives",
    "batch": "Batches",
    "hold": "Hold",
    "webhook": "Webhooks",
    "redelivery": "Redeliveries",
    "node": "Nodes",
    "alert": "Alerts",
}
PHASES = (("dns_ms", "name", "k1-phase-name"), ("connect_ms", "connect", "k1-phase-connect"))
SCALE = 1_000  # of the bars, in their own units


def badge_of(row: Webhook) -> SafeString:
    """Return the state of a webhook."""
    if row.deleted_at is not None:
        return display.badge("webhook deleted", "deleted")
    word = endpoints.state(row).value
    return display.badge(f"webhook {word}", word)


def delivery_badge(row: Delivery) -> SafeString:
    """Return the state of a delivery; one that waits after a failure says so."""
    if row.state == Delivery.State.PENDING and row.spent:
        return display.badge("delivery retrying", "retrying")
    return display.badge(f"delivery {row.state}", row.state)


def outcome_badge(row: Attempt) -> SafeString:
    """Return what came of an attempt."""
    word = row.outcome if row.outcome in (Attempt.SENDING, Attempt.UNKNOWN, Code.DELIVERED) else "failed"
    return display.badge(f"attempt {word}", OUTCOMES.get(row.outcome, row.outcome))


def host(row: Webhook) -> str:
    """Return where a webhook is, without the path, which may say too much for a list."""
    try:
        return urlsplit(row.url).netloc or row.url
    except ValueError:
        return row.url


def count(number: int, most: int = counts.MOST) -> str:
    """Return a number that was counted to one more than `most`: `41`, `10,000+`."""
    return f"{number:,}" if number <= most else f"{most:,}+"


def deliveries(number: int, most: int = counts.MOST) -> str:
    """Return `1 delivery`, `87 deliveries`, `10,000+ deliveries`."""
    return f"{count(number, most)} {'delivery' if number == 1 else 'deliveries'}"


def things(mode: str, number: int, most: int = counts.MOST) -> str:
    """Return how many of what a redelivery is about."""
    if mode == Mode.FAILED:
        return deliveries(number, most)
    return f"{count(number, most)} event{'' if number == 1 else 's'}"


def standing(row: Webhook, now: datetime) -> str:
    """Return the state of a webhook and, below it, what explains it."""
    badge = badge_of(row)
    match endpoints.state(row):
        case State.DISABLED:
            return display.two_lines(badge, f"by the node: {_lower(row.disabled_reason)}")
        case State.FAILING:
            return display.two_lines(badge, format_html("next try {}", next_try(row, now)))
        case State.ACTIVE if row.failures:
            return display.two_lines(badge, f"the last {_attempts(row.failures)} failed")
    return badge


def next_try(row: Webhook, now: datetime) -> str:
    """Return when the breaker of a webhook lets one delivery try."""
    return display.ago(row.open_until, now) if row.open_until and row.open_until > now else "now"


def trouble(row: Webhook, waiting: Waiting, now: datetime) -> tuple[str, SafeString]:
    """Return how a webhook is doing, in a sentence or two for somebody who has just been woken, and its tone."""
    waits = f" {deliveries(waiting.pending)} wait{'s' if waiting.pending == 1 else ''}." if waiting.pending else ""
    match endpoints.state(row):
        case State.DISABLED:
            return "bad", format_html(
                "The node disabled it {}: {}. Nothing is sent until somebody enables it.{}{}",
                display.ago(row.disabled_at, now),
                _lower(row.disabled_reason) or "it failed",
                _said(row),
                waits,
            )
        case State.PAUSED:
            text = "Paused: nothing is sent, and events that happen meanwhile are not kept for it.{}"
            return "pause", format_html(text, waits)
        case State.FAILING:
            return "bad", format_html(
                "Nothing has arrived for {}.{} One delivery tries {}; when it arrives the others follow.{}",
                display.duration((now - (row.failing_since or row.created_at)).total_seconds() * 1000),
                _said(row),
                next_try(row, now),
                waits,
            )
    if row.failures:
        text = "The last {} failed.{} They are tried again.{}"
        return "warn", format_html(text, _attempts(row.failures), _said(row), waits)
    if row.last_failure_at is not None and (row.last_success_at is None or row.last_success_at < row.last_failure_at):
        # It was enabled after that or has another address, or nothing could be signed for it.
        text = "Nothing has arrived since it failed {}.{}{}"
        rest = waits or " The next event tries it, or a test."
        return "warn", format_html(text, display.ago(row.last_failure_at, now), _said(row), rest)
    if row.paced_until is not None and row.paced_until > now + timedelta(seconds=2):
        text = "It has asked for a pause, or has had all that its rate allows: the next is sent {}.{}"
        return "warn", format_html(text, display.ago(row.paced_until, now), waits)
    if row.last_success_at is None:
        return "off", format_html("No event has been sent to it yet: send a test.{}", waits)
    return "ok", format_html(
        "All is well: the last delivery arrived {}.{}", display.ago(row.last_success_at, now), waits
    )


def _said(row: Webhook) -> str:
    """Return the last error as a sentence."""
    return f" The last error: {row.last_error.rstrip('.')}." if row.last_error else ""


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")


def _attempts(number: int) -> str:
    return f"{number:,} attempt{'' if number == 1 else 's'}" if number > 1 else "attempt"


def wanted(row: Webhook) -> str:
    """Return which events a webhook wants, shortly."""
    if "*" in row.events:
        return "every event"
    return row.events[0] if len(row.events) == 1 else f"{len(row.events)} events"


def rotation(row: Webhook, now: datetime) -> SafeString:
    """Return which secret signs what, and until when."""
    if not row.next_secret:
        return format_html("…{}", row.secret_hint)
    if row.rotates_at is None or row.rotates_at <= now:
        return format_html("…{}", row.next_secret_hint)
    return display.two_lines(
        format_html("…{} and …{}", row.secret_hint, row.next_secret_hint),
        format_html("both sign until {}; then …{} alone", display.exact(row.rotates_at), row.next_secret_hint),
    )


def refusal(name: object, error: K1NodeError) -> SafeString:
    """Return what to say of something that a verb would not change."""
    return format_html("Left {} as it is. {}.", name, reasons(error))


def reasons(error: K1NodeError) -> str:
    return " ".join([detail.message for detail in error.details] or [error.message]).rstrip(".")


def next_attempt(row: Delivery, now: datetime) -> str:
    """Return when a delivery is sent next."""
    if row.state == Delivery.State.SENDING:
        return "now"
    if row.state != Delivery.State.PENDING:
        return display.NOTHING
    return display.ago(row.due_at, now) if row.due_at > now else "due now"


# --- the phases of an attempt -----------------------------------------------------------------------------------


def parts(row: Attempt) -> list[tuple[str, str, float]]:
    """Return the phases that an attempt has reached: word, class and milliseconds; what is left is the rest."""
    found = [(word, css, ms) for name, word, css in PHASES if (ms := getattr(row, name)) is not None]
    if row.answer_ms is not None:
        found.append(("answer", "k1-phase-answer", row.answer_ms))
    if row.total_ms is not None and (rest := row.total_ms - sum(ms for _, _, ms in found)) > 0:
        found.append(("rest", "k1-phase-rest", rest))
    return found


def phases(row: Attempt, longest: float) -> SafeString | str:
    """Return where the time of an attempt went, as a bar on the scale of the longest one and in words."""
    reached = parts(row)
    total = row.total_ms if row.total_ms is not None else sum(ms for _, _, ms in reached)
    if not reached or longest <= 0:
        return display.NOTHING
    bars, start = [], 0.0
    for _, css, ms in reached:
        width = SCALE * ms / longest
        bars.append((css, f"{start:.1f}", f"{max(width, 1):.1f}"))
        start += width
    text = " · ".join(f"{word} {display.duration(ms)}" for word, _, ms in reached if word != "rest")
    return format_html(
        '<span class="k1-total">{}</span><svg class="k1-phases" viewBox="0 0 {} 8" preserveAspectRatio="none"'
        ' aria-hidden="true">{}</svg><span class="k1-second">{}</span>',
        display.duration(total),
        SCALE,
        format_html_join("", '<rect class="{}" x="{}" y="0" width="{}" height="8"></rect>', bars),
        text,
    )


def longest(rows: Collection[Attempt]) -> float:
    return max((max(row.total_ms or 0, sum(ms for _, _, ms in parts(row))) for row in rows), default=0)
