"""Finding what is of a time in tables without an index on time: their ids rise with it, nearly, which is enough."""

from datetime import datetime, timedelta
from typing import Any

from django.db.models import QuerySet

# A row bears the moment its transaction began at and gets its id later: what is out of order is so by less than this.
SLACK = timedelta(minutes=15)


def between(rows: QuerySet[Any], at: str, *, since: datetime | None, until: datetime | None) -> QuerySet[Any]:
    """Return those of all `rows` of a table that are of `since` or later and before `until`, by their column `at`."""
    found = rows
    if since is not None:
        found = found.filter(**{"pk__gte": _first(rows, at, _moved(since, -SLACK)), f"{at}__gte": since})
    if until is not None:
        found = found.filter(**{"pk__lt": _first(rows, at, _moved(until, SLACK)), f"{at}__lt": until})
    return found


def _moved(moment: datetime, by: timedelta) -> datetime:
    try:
        return moment + by
    except OverflowError:
        return moment  # as early or late as can be said


def _first(rows: QuerySet[Any], at: str, moment: datetime) -> int:
    """Return the least id from which on rows are of `moment` or younger, one behind the last if none is."""
    ids = rows.order_by("pk").values_list("pk", flat=True)
    low, last = ids.first(), ids.last()
    if low is None or last is None:
        return 0
    high: int = last + 1
    while low < high:
        middle = (low + high) // 2
        found = rows.filter(pk__gte=middle).order_by("pk").values_list(at, flat=True).first()
        if found is not None and found >= moment:
            high = middle
        else:
            low = middle + 1  # also for what was pruned just now
    return int(low)
