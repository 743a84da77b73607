"""When version 1 of the API ends: never sooner than its clients were promised."""

import calendar
from datetime import date

from django.core.exceptions import ImproperlyConfigured

# The day version 2 came out, with which version 1 was deprecated.
DEPRECATED_ON = date(2026, 11, 26)
NOTICE_MONTHS = 6


def sunset_on(deprecated_on: date, configured: date | None, today: date) -> date:
    """Return the last day of version 1; raise ImproperlyConfigured if `configured` breaks the promise of six months.

    Without a configured one it is the end of a month at least six months after the deprecation and after `today`: a
    node whose operator has said nothing keeps version 1. A configured day that has passed is no reason not to start,
    or a node could not be restarted after the end that was planned: it then answers 410.
    """
    earliest = months_after(deprecated_on, NOTICE_MONTHS)
    if configured is None:
        # The end of the month, so that nodes and restarts within one month announce the same day.
        return _end_of_month(max(earliest, months_after(today, NOTICE_MONTHS)))
    if configured < earliest:
        raise ImproperlyConfigured(
            f"K1NODE_V1_SUNSET_ON must not be before {earliest}, {NOTICE_MONTHS} months after version 1 was deprecated "
            f"({deprecated_on}), not {configured}."
        )
    return configured


def months_after(day: date, months: int) -> date:
    """Return the same day of a later month, or that month's last."""
    year, month = divmod(day.year * 12 + day.month - 1 + months, 12)
    last = calendar.monthrange(year, month + 1)[1]
    return date(year, month + 1, min(day.day, last))


def _end_of_month(day: date) -> date:
    return day.replace(day=calendar.monthrange(day.year, day.month)[1])
