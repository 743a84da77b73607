"""What the console's overview tells of batches."""

from dataclasses import dataclass, field
from datetime import timedelta

from django import template
from django.db.models import BooleanField
from django.db.models.expressions import RawSQL
from django.http import HttpRequest
from django.utils.safestring import SafeString

from batches.models import Batch
from k1node.lib import admin_display as display
from k1node.lib.clock_time import database_now

MOST = 5  # of each kind
PAUSED_FOR = timedelta(hours=1)  # whoever has paused it may have forgotten it
FAILED_FOR = timedelta(hours=12)  # a night
# A literal, as its index has it: SQLite uses a partial index for no other.
HAS_ENDED = RawSQL("batches_batch.ended_at IS NOT NULL", [], output_field=BooleanField())

register = template.Library()


@dataclass(frozen=True, slots=True)
class Ailing:
    """A batch that has failed lately, or that was paused long ago."""

    row: Batch
    badge: SafeString
    said: str


@dataclass(frozen=True, slots=True)
class Trouble:
    """`is_watched`: this person may see batches at all; `more`: the words to list more of, by the status they have."""

    is_watched: bool = False
    ailing: list[Ailing] = field(default_factory=list)
    more: list[str] = field(default_factory=list)


@register.simple_tag(takes_context=True)
def batch_trouble(context: template.Context) -> Trouble:
    """Return the batches that need a person, if this one may see them; two queries."""
    request: HttpRequest = context["request"]
    if not any(request.user.has_perm(f"batches.{verb}_batch") for verb in ("view", "change")):
        return Trouble()
    now = database_now()
    found = Trouble(True)
    ended = Batch.objects.filter(HAS_ENDED, ended_at__gte=now - FAILED_FOR, ended_as=Batch.Ended.FAILED)
    failed = list(ended.select_related("gate").order_by("-ended_at")[: MOST + 1])
    going = Batch.objects.filter(ended_at__isnull=True, paused_at__lt=now - PAUSED_FOR)
    paused = list(going.order_by("-pk")[: MOST + 1])
    for row in failed[:MOST]:
        since = display.relative(row.ended_at, now) if row.ended_at else ""
        said = f"batch · {since} · {row.gate.failed:,} of {row.total:,} tasks failed"
        found.ailing.append(Ailing(row, display.badge("batch failed", "failed"), said))
    for row in paused[:MOST]:
        since = display.relative(row.paused_at, now) if row.paused_at else ""
        said = f"batch · {since} by {row.paused_by or 'somebody'}"
        found.ailing.append(Ailing(row, display.badge("batch paused", "paused"), said))
    found.more.extend(word for word, rows in (("failed", failed), ("paused", paused)) if len(rows) > MOST)
    return found
