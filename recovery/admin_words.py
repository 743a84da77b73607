"""How breakers, dead letters, redrives, interventions and refusals read on the console's pages."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from k1node.lib import admin_display as display
from k1node.lib.errors import K1NodeError
from recovery import breaker_rules as rules
from recovery.breaker_rules import Pin, State
from recovery.models import Breaker, DeadLetter, Intervention
from recovery.records import By

MAX_REASON = 500
MOST_BARS = 50


def changes(row: Intervention) -> str:
    """Return what an intervention has changed, in a few words."""
    if new := row.after.get("new_task_id"):
        return f"made {new}"
    names = [name for name in {**row.before, **row.after} if row.before.get(name) != row.after.get(name)]
    return ", ".join(f"{name}: {_value(row.before, name)} → {_value(row.after, name)}" for name in names)


def _value(facts: Mapping[str, Any], name: str) -> object:
    value = facts.get(name)
    if value is None:
        return display.NOTHING
    return display.exact(datetime.fromisoformat(value)) if name == "until" else value


def by(request: HttpRequest) -> By:
    """Return who presses a button, and why; the reason that stands beside it is cut, not refused."""
    return By(request.user.get_username(), request.POST.get("reason", "").replace("\0", "").strip()[:MAX_REASON])


def refusal(name: object, error: K1NodeError) -> SafeString:
    """Return what to say of something that a verb would not change."""
    return format_html("Left {} as it is. {}.", name, _reasons(error))


def refusal_of_all(error: K1NodeError) -> SafeString:
    """Return what to say of several things that a verb changes all or none of."""
    return format_html("Left all of them as they are. {}.", _reasons(error))


def _reasons(error: K1NodeError) -> str:
    return " ".join([detail.message for detail in error.details] or [error.message]).rstrip(".")


def state_badge(row: Breaker) -> SafeString:
    """Return the state of a breaker; looks of its own, for a gate's `closed` is the bad one."""
    word = State(row.state).value.lower()
    return display.badge(f"breaker {word}", word)


def letter_badge(row: DeadLetter) -> SafeString:
    """Return the state of a dead letter."""
    return display.badge(f"letter {row.status}", row.status)


def error_line(row: DeadLetter) -> SafeString:
    """Return the first line of what went wrong, and the exit code."""
    line = display.first_line(row.error_message) or "It said nothing"
    title = display.first_line(row.error_message, 500)
    shown = format_html('<span class="k1-error" title="{}">{}</span>', title, line)
    return display.two_lines(shown, f"exit code {row.error_code}")


def entries(number: int) -> str:
    """Return `1 entry`, `264 entries`."""
    return f"{number:,} {'entry' if number == 1 else 'entries'}"


def failures(row: Breaker) -> str:
    """Return how many calls of the window failed: `3/20`."""
    return f"{row.window.count(rules.FAILED)}/{len(row.window)}" if row.window else display.NOTHING


def strip(row: Breaker) -> SafeString:
    """Return the newest calls of the window as a picture: failed ones are tall bars, the others low."""
    calls = row.window[-MOST_BARS:]
    bars = format_html_join(
        "",
        '<rect x="{}" y="{}" width="4" height="{}" class="{}"></rect>',
        (
            (place * 6, 0, 16, "k1-call-failed") if call == rules.FAILED else (place * 6, 10, 6, "k1-call-ok")
            for place, call in enumerate(calls)
        ),
    )
    failed = calls.count(rules.FAILED)
    return format_html(
        '<svg class="k1-strip" width="{}" height="16" viewBox="0 0 {} 16" role="img"'
        ' aria-label="The last {}, newest at the right: {} failed">{}</svg>',
        len(calls) * 6,
        len(calls) * 6,
        f"{len(calls)} calls" if len(calls) > 1 else "call",
        failed,
        bars,
    )


def next_probe(row: Breaker, now: datetime) -> str:
    """Return when a breaker tries again, counted down."""
    if row.state == State.CLOSED:
        return display.NOTHING
    if row.state == State.HALF_OPEN:
        return display.two_lines("probing", f"{row.successes} of {row.probes} succeeded")
    at = row.pinned_until if row.pin else row.open_until
    if at is None:
        return "not before a reset" if row.pin else "due now"
    return display.both(at, now) if at > now else "due now"


def next_probe_in_line(row: Breaker, now: datetime) -> str:
    """Return when a breaker that is not closed tries again, as part of a sentence."""
    if row.state == State.HALF_OPEN:
        return f"probing, {row.successes} of {row.probes} succeeded"
    at = row.pinned_until if row.pin else row.open_until
    if at is None and row.pin:
        return "no probe before a reset"
    return f"probes {display.relative(at, now)}" if at is not None and at > now else "probes now"


def held(row: Breaker) -> str:
    """Return who holds a breaker, which way, until when and why."""
    if row.pin == Pin.NONE:
        return display.NOTHING
    until = f"until {display.exact(row.pinned_until)}" if row.pinned_until else "until it is reset"
    why = f": {row.pin_reason}" if row.pin_reason else ""
    return display.two_lines(f"{row.pinned_by}, {row.pin}", f"{until}{why}")


def count(number: int, most: int) -> str:
    """Return a number that was counted to one more than `most`: `41`, `10,000+`."""
    return f"{number:,}" if number <= most else f"{most:,}+"
