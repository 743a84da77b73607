"""What the event log has of a period."""

from collections.abc import Collection
from datetime import datetime

from django.db.models import QuerySet

from k1node.events.models import Event
from k1node.lib import keys_in_time


def between(since: datetime, until: datetime, names: Collection[str] | None) -> QuerySet[Event]:
    """Return the facts from `since` on and before `until` in the order of their ids; None is all names."""
    rows = keys_in_time.between(Event.objects.all(), "occurred_at", since=since, until=until).order_by("pk")
    return rows if names is None else rows.filter(name__in=sorted(names))
