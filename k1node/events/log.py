"""Writing and reading the event log.

Everybody who follows the log (fan-out to webhooks, live pages, notices) uses `read_after` or `read_named`, and
remembers the Cursor it gives. On SQLite write transactions exclude each other, so ids appear in order and the last id
is cursor enough. On PostgreSQL an id is taken before the commit, so a row with a lower id can appear after one with a
higher id: rows are read in the order (xid, id) and only below the oldest transaction still running, beyond which
nothing can appear any more.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from django.db import connection

from k1node.lib import sql

COLUMNS = {"name": "text", "occurred_at": "timestamptz", "data": "jsonb"}


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """A place in the log: everything up to and including it has been seen."""

    xid: int = 0  # 0 on SQLite
    id: int = 0


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    cursor: Cursor
    name: str
    occurred_at: datetime
    data: dict[str, Any]


def publish(name: str, data: dict[str, Any], *, now: datetime) -> None:
    """Add one fact to the log, in the caller's transaction."""
    publish_many([(name, data)], now=now)


def publish_many(facts: Sequence[tuple[str, dict[str, Any]]], *, now: datetime) -> None:
    """Add several facts in one statement."""
    publish_json([(name, orjson.dumps(data).decode()) for name, data in facts], now=now)


def publish_json(facts: Sequence[tuple[str, str]], *, now: datetime) -> None:
    """Add several facts whose data is JSON text already."""
    stamp = sql.stored(now)
    sql.insert_many("events_event", COLUMNS, [(name, stamp, data) for name, data in facts])


def read_after(cursor: Cursor, limit: int = 500) -> list[LoggedEvent]:
    """Return up to `limit` events that come after `cursor`, oldest first; none is ever stepped over."""
    with connection.cursor() as db:
        if connection.vendor == "postgresql":
            db.execute(
                "SELECT xid::text::bigint, id, name, occurred_at, data::text FROM events_event"
                " WHERE (xid, id) > (%s::text::xid8, %s) AND xid < pg_snapshot_xmin(pg_current_snapshot())"
                " ORDER BY xid, id LIMIT %s",
                [str(cursor.xid), cursor.id, limit],
            )
        else:
            db.execute(
                "SELECT 0, id, name, occurred_at, data FROM events_event WHERE id > %s ORDER BY id LIMIT %s",
                [cursor.id, limit],
            )
        return _events(db.fetchall())


def _events(rows: Sequence[tuple[Any, ...]]) -> list[LoggedEvent]:
    return [
        LoggedEvent(Cursor(xid, pk), name, sql.moment(at), orjson.loads(data))  # type: ignore[arg-type]
        for xid, pk, name, at, data in rows
    ]


def read_named(cursor: Cursor, names: Collection[str], limit: int = 1000) -> tuple[list[LoggedEvent], Cursor]:
    """Return those of the next `limit` events that bear one of `names`, and the cursor behind all `limit`.

    For a follower of rare events in a busy log: what it does not want is passed over inside the database. The cursor
    that comes back is the one given when nothing follows it.
    """
    with connection.cursor() as db:
        # Nothing can appear any more between the two ends, so two statements see the same rows.
        if connection.vendor == "postgresql":
            start: list[Any] = [str(cursor.xid), cursor.id]
            db.execute(
                "SELECT xid::text::bigint, id FROM (SELECT xid, id FROM events_event"
                " WHERE (xid, id) > (%s::text::xid8, %s) AND xid < pg_snapshot_xmin(pg_current_snapshot())"
                " ORDER BY xid, id LIMIT %s) AS page ORDER BY page.xid DESC, page.id DESC LIMIT 1",
                [*start, limit],
            )
            last = db.fetchone()
            if last is None:
                return [], cursor
            db.execute(
                "SELECT xid::text::bigint, id, name, occurred_at, data::text FROM events_event"
                " WHERE (xid, id) > (%s::text::xid8, %s) AND (xid, id) <= (%s::text::xid8, %s) AND name = ANY(%s)"
                " ORDER BY xid, id",
                [*start, str(last[0]), last[1], list(names)],
            )
        else:
            db.execute(
                "SELECT max(id) FROM (SELECT id FROM events_event WHERE id > %s ORDER BY id LIMIT %s)",
                [cursor.id, limit],
            )
            last = (0, db.fetchone()[0])
            if last[1] is None:
                return [], cursor
            marks = ", ".join(["%s"] * len(names))
            db.execute(
                "SELECT 0, id, name, occurred_at, data FROM events_event"
                f" WHERE id > %s AND id <= %s AND name IN ({marks}) ORDER BY id",
                [cursor.id, last[1], *names],
            )
        return _events(db.fetchall()), Cursor(*last)


def end() -> Cursor:
    """Return the cursor behind which nothing lies yet: a follower that starts here sees only what comes."""
    with connection.cursor() as db:
        if connection.vendor == "postgresql":
            db.execute(
                "SELECT xid::text::bigint, id FROM events_event"
                " WHERE xid < pg_snapshot_xmin(pg_current_snapshot()) ORDER BY xid DESC, id DESC LIMIT 1"
            )
        else:
            db.execute("SELECT 0, id FROM events_event ORDER BY id DESC LIMIT 1")
        row = db.fetchone()
    return Cursor(*row) if row else Cursor()
