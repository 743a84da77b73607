"""Where the clocks of a zone change: gaps that wall-clock times fall into, and times that come twice."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from math import ceil
from zoneinfo import ZoneInfo


def set_back_by(local: datetime) -> timedelta:
    """Return by how much the clock will be set back if `local` is the first of two equal times, else zero."""
    if local.fold:
        return timedelta(0)
    first, second = local.utcoffset(), local.replace(fold=1).utcoffset()
    assert first is not None and second is not None
    return first - second


def end_of_gap(wall: datetime, tz: ZoneInfo) -> datetime:
    """Return the instant at which the clock jumps over `wall`."""
    # fold=1 reads a skipped time by the offset after the change, which gives an instant before it.
    before = wall.replace(tzinfo=tz, fold=1).astimezone(UTC)
    return change_between(before, wall.replace(tzinfo=tz).astimezone(UTC), tz)


def change_between(before: datetime, after: datetime, tz: ZoneInfo) -> datetime:
    """Return the first whole second whose offset is that of `after`; there must be one change between the two."""
    before = before.replace(microsecond=0)
    offset = after.astimezone(tz).utcoffset()
    low, high = 0, ceil((after - before).total_seconds())
    while high - low > 1:
        middle = (low + high) // 2
        if (before + timedelta(seconds=middle)).astimezone(tz).utcoffset() == offset:
            high = middle
        else:
            low = middle
    return before + timedelta(seconds=high)


def changes(tz: ZoneInfo, after: datetime, horizon: timedelta) -> Iterator[datetime]:
    """Yield each change of the offset within `horizon` of the UTC time `after`; offsets are compared a day apart."""
    day = timedelta(days=1)
    end = after + horizon
    while after < end:
        before, after = after, min(after + day, end)
        if before.astimezone(tz).utcoffset() != after.astimezone(tz).utcoffset():
            yield change_between(before, after, tz)
