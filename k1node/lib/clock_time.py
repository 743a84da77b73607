"""The time every node agrees on: the database's on PostgreSQL, this machine's where the database is a local file."""

import time
from datetime import UTC, datetime, timedelta

from django.db import connection

RESYNC_SECONDS = 60.0

_offset: float | None = None  # database time minus steady time, seconds
_synced_at = 0.0


def database_now() -> datetime:
    """Return the present time by the database's clock, aware UTC.

    On PostgreSQL it is asked once a minute and carried on by a clock that nobody sets, so a wrong or jumping wall
    clock on one node cannot give it leases that others think dead.
    """
    global _offset, _synced_at
    if connection.vendor != "postgresql":
        return datetime.now(UTC)
    before = _steady()
    if _offset is None or before - _synced_at > RESYNC_SECONDS:
        with connection.cursor() as cursor:
            cursor.execute("SELECT extract(epoch FROM clock_timestamp())")
            seconds = float(cursor.fetchone()[0])
        after = _steady()
        _offset, _synced_at = seconds - (before + after) / 2, after
    return datetime.fromtimestamp(_offset + _steady(), UTC)


def carried_now() -> datetime:
    """Return what database_now() last learnt, carried on; never asks, for a run must not fail because it cannot."""
    if _offset is None or connection.vendor != "postgresql":
        return datetime.now(UTC)
    return datetime.fromtimestamp(_offset + _steady(), UTC)


def _steady() -> float:
    """Return monotonic seconds that go on while the machine is suspended, as the database's time does."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def since(moment: datetime, now: datetime) -> int:
    """Return the whole milliseconds from `moment` to `now`, never negative."""
    return max(0, int((now - moment) / timedelta(milliseconds=1)))
