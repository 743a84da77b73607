"""Cron expressions: what is accepted, when it fires, how it reads. Pure: no database, no clock, no settings.

croniter expands the fields. Matching and daylight saving are done here, on naive wall-clock times that are mapped
to UTC by the rules of Debian's cron:

- A job with fixed times (neither minute nor hour begins with `*`) runs once for each time of the day: a time that
  a clock change skips runs at the first instant after the gap, a time that comes twice runs the first time only.
- A job with a wildcard keeps its beat in real time: it runs in both passes of a repeated hour and makes up nothing.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

from scheduling.cron import clock_changes, warnings, words
from scheduling.cron.calendar import TICK, CronExpression
from scheduling.cron.fields import ScheduleExpressionInvalid
from scheduling.cron.parser import parse
from scheduling.cron.zones import TimeZoneInvalid, zone

__all__ = [
    "CronExpression",
    "ScheduleExpressionInvalid",
    "TimeZoneInvalid",
    "describe",
    "dst_warnings",
    "fires_between",
    "next_fire",
    "parse",
    "preview",
    "zone",
]


def next_fire(expression: str, tz_name: str, after: datetime) -> datetime:
    """Return the first run after the aware time `after`, in UTC.

    Raises ScheduleExpressionInvalid, TimeZoneInvalid, and ValueError for a naive time.
    """
    return next(_fires(parse(expression), zone(tz_name), after))


def fires_between(
    expression: str, tz_name: str, start_exclusive: datetime, end_inclusive: datetime, limit: int
) -> list[datetime]:
    """Return the first `limit` runs after `start_exclusive` and not after `end_inclusive`, in UTC."""
    found: list[datetime] = []
    fires = _fires(parse(expression), zone(tz_name), start_exclusive)
    while len(found) < limit and (fire := next(fires)) <= end_inclusive:
        found.append(fire)
    return found


def preview(expression: str, tz_name: str, after: datetime, count: int) -> list[datetime]:
    """Return the `count` runs after `after`, in UTC."""
    return list(islice(_fires(parse(expression), zone(tz_name), after), count))


def describe(expression: str, tz_name: str) -> str:
    """Return `expression` in words, with the zone unless it is UTC: `At 02:30, only on Monday (Europe/Berlin)`."""
    parsed = parse(expression)
    zone(tz_name)
    text = words.words(parsed)
    return text if tz_name == "UTC" else f"{text} ({tz_name})"


def dst_warnings(expression: str, tz_name: str, after: datetime, horizon: timedelta) -> list[str]:
    """Return a sentence for each clock change within `horizon` of `after` that touches a run."""
    return warnings.warnings(parse(expression), zone(tz_name), after.astimezone(UTC), horizon)


def _fires(expression: CronExpression, tz: ZoneInfo, after: datetime) -> Iterator[datetime]:
    if after.tzinfo is None:
        raise ValueError("A run can only be found after an aware time")
    find = _next_fixed if expression.fixed else _next_wildcard
    while True:
        after = find(expression, tz, after.astimezone(UTC))
        yield after


def _next_fixed(expression: CronExpression, tz: ZoneInfo, after: datetime) -> datetime:
    wall = after.astimezone(tz).replace(tzinfo=None, fold=0)
    while True:
        wall = expression.first_wall_time(wall + TICK)
        instant = wall.replace(tzinfo=tz).astimezone(UTC)
        if instant.astimezone(tz).replace(tzinfo=None, fold=0) != wall:
            instant = clock_changes.end_of_gap(wall, tz)
        # Not so in the second pass of a repeated hour, whose times have all had their run.
        if instant > after:
            return instant


def _next_wildcard(expression: CronExpression, tz: ZoneInfo, after: datetime) -> datetime:
    local = after.astimezone(tz)
    wall = expression.first_wall_time(local.replace(tzinfo=None, fold=0) + TICK)
    earliest = after + TICK
    repeated = clock_changes.set_back_by(local)
    if repeated:  # the clock is going to be set back over times that have passed
        change = clock_changes.change_between(after, after + repeated, tz)
        instant = wall.replace(tzinfo=tz).astimezone(UTC)
        if instant < change:
            return instant
        earliest = change
        wall = expression.first_wall_time(change.astimezone(tz).replace(tzinfo=None, fold=0))
    while True:
        instant = wall.replace(tzinfo=tz).astimezone(UTC)
        if instant < earliest:
            return wall.replace(tzinfo=tz, fold=1).astimezone(UTC)
        if instant.astimezone(tz).replace(tzinfo=None, fold=0) == wall:
            return instant
        wall = expression.first_wall_time(clock_changes.end_of_gap(wall, tz).astimezone(tz).replace(tzinfo=None))
