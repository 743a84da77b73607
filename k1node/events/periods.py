"""What the event log has of a period. It has no index on time: ids rise with it, nearly, which is enough to find it."""

from collections.abc import Collection
from datetime import datetime, timedelta

from django.db.models import QuerySet

from k1node.events.models import Event

# A row bears the moment its transaction began at and gets its id later: what is out of order is so by less than this.
SLACK = timedelta(minutes=15)


def between(since: datetime, until: datetime, names: Collection[str] | None) -> QuerySet[Event]:
    """Return the facts from `since` on and before `until` in the order of their ids; None is all names."""
    rows = Event.objects.filter(
        pk__gte=_first(_moved(since, -SLACK)),
        pk__lt=_first(_moved(until, SLACK)),
        occurred_at__gte=since,
        occurred_at__lt=until,
    )
    return rows.order_by("pk") if names is None else rows.filter(name__in=sorted(names)).order_by("pk")


def _moved(moment: datetime, by: timedelta) -> datetime:
    try:
        return moment + by
    except OverflowError:
        return moment  # as early or late as can be said


def _first(moment: datetime) -> int:
    """Return the least id from which on rows are of `moment` or younger, one behind the last if none is."""
    ids = Event.objects.order_by("pk").values_list("pk", flat=True)
    low, last = ids.first(), ids.last()
    if low is None or last is None:
        return 0
    high = last + 1
    while low < high:
        middle = (low + high) // 2
        at = Event.objects.filter(pk__gte=middle).order_by("pk").values_list("occurred_at", flat=True).first()
        if at is not None and at >= moment:
            high = middle
        else:
            low = middle + 1  # also for what was pruned just now
    return low
