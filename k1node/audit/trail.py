"""Writing the audit log.

`record` is called in the transaction of the act, so that either both are there or neither. `refused` is called when
nothing was done: it commits by itself, and folds the refusals of one kind, source and minute into one row, so that
whoever knocks a thousand times neither fills the disk nor goes unnoticed. Once its minute is over, the clock makes a
record of such a row (`fold`).

Who acts and from where comes from the request being answered; outside of one (the clock, a command) the actor is
"system", and "unknown" for a request that nobody was recognised by.
"""

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import orjson
from django.db import DatabaseError, connection, transaction

from k1node.audit.models import AuditRefusal
from k1node.audit.redaction import redacted
from k1node.lib import origin, sql
from k1node.lib.clock_time import database_now

logger = logging.getLogger(__name__)

SYSTEM = "system"
MINUTE = timedelta(minutes=1)
FOLD_MOST = 500
COLUMNS = {
    "at": "timestamptz",
    "action": "text",
    "actor": "text",
    "actor_name": "text",
    "address": "text",
    "request_id": "text",
    "target": "text",
    "before": "jsonb",
    "after": "jsonb",
    "reason": "text",
    "count": "integer",
    "last_at": "timestamptz",
}
_UPSERT = """
    INSERT INTO audit_auditrefusal AS row
        (minute, action, address, actor, actor_name, reason, target, request_id, count, first_at, last_at)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, 1, %s, %s)
    ON CONFLICT (minute, action, address, actor) DO UPDATE
    SET count = row.count + 1, last_at = excluded.last_at, reason = excluded.reason, target = excluded.target
"""


def record(
    action: str,
    target: str = "",
    *,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    reason: str = "",
    by: str = "",
    count: int = 1,
    now: datetime | None = None,
) -> None:
    """Add one act, in the caller's transaction.

    `action` is "<what>.<done>", `target` "<what>:<id>"; secrets in `before` and `after` are hidden. `by` is the name
    of who acts where no request says it.
    """
    asked_from = origin.current() or origin.Origin("", "", SYSTEM)
    at = sql.stored(now or database_now())
    row = (
        at,
        action,
        (asked_from.actor or origin.UNKNOWN)[:150],
        (asked_from.actor_name or by)[:150],
        asked_from.address,
        asked_from.request_id,
        target[:250],
        _json(before),
        _json(after),
        reason[:500],
        count,
        None,
    )
    sql.insert_many("audit_auditrecord", COLUMNS, [row])


def refused(action: str, reason: str, *, target: str = "", name: str = "") -> None:
    """Count one refusal, in a transaction of its own. Never raises: the refusal itself must be answered.

    `name` is what the caller claims to be, where nobody was recognised. One IPv6 subscriber has 2^64 addresses, so
    there the source is their /64.
    """
    asked_from = origin.current() or origin.Origin(origin.UNKNOWN, "")
    try:
        _count(action, reason, target, name, asked_from, database_now())
    except DatabaseError:
        logger.exception("Refusal not written to the audit log", extra={"action": action})


def _count(action: str, reason: str, target: str, name: str, asked_from: origin.Origin, now: datetime) -> None:
    minute, at = sql.stored(now.replace(second=0, microsecond=0)), sql.stored(now)
    values = [
        minute,
        action,
        origin.network_of(asked_from.address),
        asked_from.actor[:150],
        (asked_from.actor_name or name)[:150],
        reason[:500],
        target[:250],
        asked_from.request_id,
        at,
        at,
    ]
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_UPSERT, values)


def fold(*, now: datetime) -> int:
    """Make records of the refusals whose minute is over; return of how many rows."""
    over = now.replace(second=0, microsecond=0)
    if not AuditRefusal.objects.filter(minute__lt=over).exists():
        return 0

    def work() -> int:
        waiting = AuditRefusal.objects.filter(minute__lt=over).order_by("minute", "id")
        rows = list((waiting.select_for_update(skip_locked=True) if sql.is_postgresql() else waiting)[:FOLD_MOST])
        AuditRefusal.objects.filter(pk__in=[row.pk for row in rows]).delete()
        sql.insert_many(
            "audit_auditrecord",
            COLUMNS,
            [
                (
                    sql.stored(row.first_at),
                    row.action,
                    row.actor,
                    row.actor_name,
                    row.address,
                    row.request_id,
                    row.target,
                    None,
                    None,
                    row.reason,
                    row.count,
                    sql.stored(row.last_at) if row.count > 1 else None,
                )
                for row in rows
            ],
        )
        return len(rows)

    return sql.in_transaction(work)


def _json(facts: Mapping[str, Any] | None) -> str | None:
    clean = redacted(facts)
    return None if clean is None else orjson.dumps(clean).decode()
