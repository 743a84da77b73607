"""A parsed cron expression and the minutes it names on a calendar where no clock ever changes."""

import calendar
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

TICK = timedelta(microseconds=1)
LAST = -1  # in DayRule.nth


@dataclass(frozen=True)
class DayRule:
    """The days a cron expression names: numbers, the last one, the weekday nearest to one, weekdays, nth weekdays.

    Weekdays count from Sunday, 0. `nth` holds (weekday, n), with n = -1 for the month's last. As in cron, a day
    must satisfy both fields if one of them begins with `*` (`both`), otherwise either.
    """

    days: frozenset[int]
    last_day: bool
    nearest: int | None
    weekdays: frozenset[int]
    nth: frozenset[tuple[int, int]]
    both: bool


@dataclass(frozen=True)
class CronExpression:
    """A valid expression. `fixed`: neither minute nor hour begins with `*`, which decides about clock changes.

    `text` is for reading: five fields, aliases spelled out, names as numbers. It is not to be parsed in place of
    the expression, for a `*` that means one value only (`*/60`) is written as that value there.
    """

    text: str
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    months: frozenset[int]
    day_rule: DayRule
    fixed: bool

    def first_wall_time(self, at: datetime) -> datetime:
        """Return the first matching minute at or after the naive time `at`, as if no clock ever changed."""
        if at.second or at.microsecond:
            at = at.replace(second=0, microsecond=0) + timedelta(minutes=1)
        year, month, day = at.year, at.month, at.day
        if month in self.months and day in _days_of(self.day_rule, year, month):
            later = bisect_right(self.hours, at.hour)
            if later and self.hours[later - 1] == at.hour and at.minute <= self.minutes[-1]:
                return at.replace(minute=self.minutes[bisect_left(self.minutes, at.minute)])
            if later < len(self.hours):
                return at.replace(hour=self.hours[later], minute=self.minutes[0])
        while True:
            if month in self.months:
                for candidate in _days_of(self.day_rule, year, month):
                    if candidate > day:
                        return datetime(year, month, candidate, self.hours[0], self.minutes[0])
            year, month, day = (year + 1, 1, 0) if month == 12 else (year, month + 1, 0)

    def ever_fires(self) -> bool:
        # 28 years without a skipped leap year hold each of the 14 possible calendars.
        return any(_days_of(self.day_rule, year, month) for year in range(2000, 2028) for month in self.months)


@lru_cache(maxsize=8192)
def _days_of(rule: DayRule, year: int, month: int) -> tuple[int, ...]:
    """Return the days of one month that `rule` names, in order."""
    first_weekday, last = calendar.monthrange(year, month)
    nearest = _nearest_weekday(first_weekday, last, rule.nearest) if rule.nearest else None

    def matches(day: int) -> bool:
        by_day = day in rule.days or day == nearest or (rule.last_day and day == last)
        weekday = (first_weekday + day) % 7
        by_weekday = weekday in rule.weekdays or (weekday, (day + 6) // 7) in rule.nth
        by_weekday = by_weekday or (day + 7 > last and (weekday, LAST) in rule.nth)
        return by_day and by_weekday if rule.both else by_day or by_weekday

    return tuple(day for day in range(1, last + 1) if matches(day))


def _nearest_weekday(first_weekday: int, last: int, day: int) -> int:
    """Return the Monday to Friday closest to `day` in the same month; a day beyond its end means its last."""
    day = min(day, last)
    weekday = (first_weekday + day - 1) % 7
    if weekday == 5:
        return day - 1 if day > 1 else day + 2
    if weekday == 6:
        return day + 1 if day < last else day - 2
    return day
