"""What the console's frame and its overview tell of the hold, of breakers, of dead letters and of redrives."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from django import template
from django.db.models import BooleanField
from django.db.models.expressions import RawSQL
from django.http import HttpRequest
from django.urls import reverse
from django.utils.safestring import SafeString

from k1node.lib import admin_display as display
from k1node.lib.clock_time import database_now
from k1node.operations.admin import job_badge
from k1node.operations.models import Operation
from recovery import admin_words as words
from recovery import breakers, holds, redrive_admin, redrives
from recovery.models import Breaker, DeadLetter, Hold

MOST_TROUBLE = 20
RECENT = timedelta(minutes=15)
COUNT_MOST = 1_000  # of the entries that failed lately
WATCHED = (("breaker", "no breaker is open"), ("deadletter", "no task has died in the last 15 minutes"))
REDRIVES_SEEN = 100  # the newest; stopped ones among them are told
# A literal: SQLite uses a partial index for no other.
NOT_CLOSED = RawSQL("recovery_breaker.state <> 'CLOSED'", [], output_field=BooleanField())

register = template.Library()


@dataclass(frozen=True, slots=True)
class Tripped:
    """A breaker that is not closed, as the overview tells of it."""

    row: Breaker
    badge: SafeString
    waiting: int
    waiting_text: str
    next_probe: str


@dataclass(frozen=True, slots=True)
class Dead:
    """The pending dead letters of the last minutes."""

    badge: SafeString
    count_text: str
    count: int
    errors: int
    address: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """A redrive that has stopped by itself."""

    job: Operation
    badge: SafeString
    address: str


@dataclass(frozen=True, slots=True)
class Trouble:
    """What needs a person. `more`: there are more breakers than `tripped` has. `watched`: what is said if none does."""

    tripped: list[Tripped] = field(default_factory=list)
    more: bool = False
    dead: Dead | None = None
    stopped: list[Stopped] = field(default_factory=list)
    watched: str = ""


@register.simple_tag(takes_context=True)
def current_hold(context: template.Context) -> Hold | None:
    """Return the hold that goes on; asked for once, however many parts of a page show it."""
    request: HttpRequest = context["request"]
    if not hasattr(request, "k1_hold"):
        request.k1_hold = holds.current()  # type: ignore[attr-defined]
    found: Hold | None = request.k1_hold  # type: ignore[attr-defined]
    return found


@register.simple_tag(takes_context=True)
def trouble(context: template.Context) -> Trouble:
    """Return what this person may see of what needs one; two queries for breakers, two for dead letters."""
    request: HttpRequest = context["request"]
    now = database_now()
    found = Trouble(watched=", ".join(text for model, text in WATCHED if _may_see(request, model)))
    if _may_see(request, "breaker"):
        found = replace(found, **_breakers(now))
    if _may_see(request, "deadletter"):
        found = replace(found, dead=_dead(now), stopped=_stopped())
    return found


def _may_see(request: HttpRequest, model: str) -> bool:
    return any(request.user.has_perm(f"recovery.{verb}_{model}") for verb in ("view", "change"))


def _breakers(now: datetime) -> dict[str, Any]:
    """Return those that are not closed, the open ones first."""
    rows = list(Breaker.objects.filter(NOT_CLOSED).order_by("-state", "-changed_at")[: MOST_TROUBLE + 1])
    shown = rows[:MOST_TROUBLE]
    counts = breakers.waiting(shown)
    tripped = [
        Tripped(
            row,
            words.state_badge(row),
            counts.get(row.pk, 0),
            words.count(counts.get(row.pk, 0), breakers.COUNT_MOST),
            words.next_probe_in_line(row, now),
        )
        for row in shown
    ]
    return {"tripped": tripped, "more": len(rows) > MOST_TROUBLE}


def _dead(now: datetime) -> Dead | None:
    """Return what has failed for good lately and is pending, of the newest entries; None is nothing."""
    # What is pending is told apart here: the index has them by time alone, and a look at it has an end.
    recent = DeadLetter.objects.filter(failed_at__gte=now - RECENT).order_by("-failed_at")
    seen = list(recent.values_list("status", "fingerprint")[: COUNT_MOST + 1])
    pending = [mark for status, mark in seen[:COUNT_MOST] if status == DeadLetter.Status.PENDING]
    if not pending:
        return None
    marks = set(pending)
    return Dead(
        badge=display.badge("letter pending", "dead"),
        count_text=f"{len(pending):,}{'+' if len(seen) > COUNT_MOST else ''}",
        count=len(pending),
        errors=len(marks),
        address=(
            display.list_of(DeadLetter, fingerprint=marks.pop())
            if len(marks) == 1
            else reverse("admin:recovery_deadletter_groups")
        ),
    )


def _stopped() -> list[Stopped]:
    """Return the redrives that have stopped, of the newest."""
    newest = Operation.objects.filter(kind=redrives.KIND).order_by("-pk").only("operation_id", "state", "said")
    return [
        Stopped(job, job_badge(job), redrive_admin.page_of(job))
        for job in newest[:REDRIVES_SEEN]
        if job.state == Operation.State.STOPPED
    ][:MOST_TROUBLE]
