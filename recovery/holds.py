"""The hold: nothing starts, on any node, until its time is over or somebody releases it. What runs, runs on.

State: the row of `Hold` that has not ended, and the door before all tasks (scheduling.parking), which claims look at.
Both change in one transaction; the door's row is locked first, so there is one hold at a time. Operators hold and
release, the clock ends a hold whose time is over.
"""

from datetime import datetime

from k1node.events import log
from k1node.lib import sql
from k1node.lib.errors import Conflict
from recovery.models import Hold, Intervention
from recovery.records import CLOCK, By, record
from scheduling import parking


class HoldRefuses(Conflict):
    """The present state of the hold does not allow this"""


def current() -> Hold | None:
    """Return the hold that goes on, None when there is none; one look into an index."""
    # Not first(): its order by key would walk the rows and leave the index aside.
    return next(iter(Hold.objects.filter(ended_at__isnull=True)[:1]), None)


def hold(by: By, *, until: datetime | None = None, now: datetime) -> Hold:
    """Let nothing start from now on, until a moment or until somebody releases it. Raises HoldRefuses."""

    def work() -> Hold:
        parking.set_hold(closed=True)
        if found := current():
            raise HoldRefuses(f"Everything is held already, by {found.created_by}")
        row = Hold.objects.create(reason=by.reason, created_by=by.name[:150], since=now, until=until)
        log.publish("hold.started", {"by": by.name, "reason": by.reason, "until": until}, now=now)
        record(Intervention.Action.HOLD, by, {"held": False}, _facts(row), now=now)
        return row

    return sql.in_transaction(work)


def release(by: By, *, now: datetime) -> Hold:
    """Let tasks start again. Raises HoldRefuses."""

    def work() -> Hold:
        parking.set_hold(closed=False)
        row = current()
        if row is None:
            raise HoldRefuses("Nothing is held")
        return _end(row, by, now=now)

    return sql.in_transaction(work)


def end_overdue(*, now: datetime) -> bool:
    """End the hold whose time is over; say whether there was one."""
    if not Hold.objects.filter(ended_at__isnull=True, until__lte=now).exists():
        return False

    def work() -> bool:
        parking.set_hold(closed=False)
        row = current()
        if row is None or row.until is None or row.until > now:
            parking.set_hold(closed=row is not None)  # a rival was faster, and somebody may hold anew
            return False
        _end(row, CLOCK, now=now)
        return True

    return sql.in_transaction(work)


def _end(row: Hold, by: By, *, now: datetime) -> Hold:
    before = _facts(row)
    row.ended_at, row.ended_by = now, by.name[:150]
    row.save(update_fields=("ended_at", "ended_by"))
    log.publish("hold.ended", {"by": by.name, "reason": by.reason}, now=now)
    record(Intervention.Action.RELEASE, by, before, {"held": False}, now=now)
    return row


def _facts(row: Hold) -> dict[str, object]:
    return {"held": True, "until": row.until and row.until.isoformat()}
