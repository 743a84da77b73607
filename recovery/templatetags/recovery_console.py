"""What the console's frame and its overview tell of the hold and of breakers."""

from dataclasses import dataclass, field

from django import template
from django.db.models import BooleanField
from django.db.models.expressions import RawSQL
from django.http import HttpRequest
from django.utils.safestring import SafeString

from k1node.lib.clock_time import database_now
from recovery import admin_words as words
from recovery import breakers, holds
from recovery.models import Breaker, Hold

MOST_TROUBLE = 20
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
class Trouble:
    """What needs a person; `more` says that there is more of it than `tripped` has."""

    may_see: bool
    tripped: list[Tripped] = field(default_factory=list)
    more: bool = False


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
    """Return the breakers that are not closed, the open ones first; two queries."""
    request: HttpRequest = context["request"]
    if not any(request.user.has_perm(f"recovery.{verb}_breaker") for verb in ("view", "change")):
        return Trouble(may_see=False)
    rows = list(Breaker.objects.filter(NOT_CLOSED).order_by("-state", "-changed_at")[: MOST_TROUBLE + 1])
    shown, now = rows[:MOST_TROUBLE], database_now()
    counts = breakers.waiting(shown)
    tripped = [
        Tripped(
            row,
            words.state_badge(row),
            counts.get(row.pk, 0),
            words.count(counts.get(row.pk, 0)),
            words.next_probe_in_line(row, now),
        )
        for row in shown
    ]
    return Trouble(True, tripped, len(rows) > MOST_TROUBLE)
