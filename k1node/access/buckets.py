"""Token buckets that all processes share, and on PostgreSQL all nodes; each take is one statement.

A bucket is one row of two moments, `hour` and `burst`, in microseconds: when the two of them would be full again. A
token costs `interval` of time; a take moves both moments ahead by its cost and is refused, changing nothing, if that
put either further ahead than its bucket is deep (the generic cell rate algorithm: a token bucket kept as one number).
Refilling needs no writer, and a row whose moments have passed says the same as no row.

On SQLite they are in `limits.sqlite3` in the data folder, so that a take never waits for a writer of the main
database; what counts is this machine's clock. On PostgreSQL they are in an unlogged table, since what only counts
requests needs no write-ahead log: after a crash of the server it is empty and everybody begins with full buckets; what
counts is the server's clock.

A clock set back leaves moments far ahead. Twice as far as a bucket is deep no take has put one, so there the bucket
counts as full.
"""

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import InterfaceError, OperationalError, connection

from k1node.lib import sqlite_file
from k1node.lib.sql import is_postgresql

TABLE = "access_ratebucket"


class Unusable(Exception):
    """The buckets can be neither read nor written."""


@dataclass(frozen=True, slots=True)
class Depth:
    """How many tokens each of a bucket's two sides holds, and the microseconds that one token takes to come back."""

    hour: int
    hour_interval: int
    burst: int
    burst_interval: int


@dataclass(frozen=True, slots=True)
class Level:
    """A bucket after a take. `hour` and `burst` are when they are full again, `now` the moment that counts; in µs."""

    taken: bool
    now: int
    hour: int
    burst: int


def take(name: str, cost: int, depth: Depth, *, now: int | None = None) -> Level:
    """Take `cost` tokens (no more than either side holds) from the bucket `name`, from both sides or from neither.

    `now` is in microseconds since 1970 (default: the clock of the database). Raises Unusable.
    """
    values = {
        "name": name,
        "hour_cost": cost * depth.hour_interval,
        "hour_deep": depth.hour * depth.hour_interval,
        "burst_cost": cost * depth.burst_interval,
        "burst_deep": depth.burst * depth.burst_interval,
    }
    return _take_postgresql(name, values, now) if is_postgresql() else _take_sqlite(name, values, now)


def forget(*, now: int | None = None) -> int:
    """Delete the buckets that are full, and so say nothing; return how many."""
    if is_postgresql():
        with connection.cursor() as cursor:
            cursor.execute(f"DELETE FROM {TABLE} WHERE GREATEST(hour, burst) <= {_NOW_POSTGRESQL}", {"now": now})
            return int(cursor.rowcount)
    at = _now() if now is None else now
    return max(_on_sqlite("DELETE FROM bucket WHERE max(hour, burst) <= :now", {"now": at})[1], 0)


def _now() -> int:
    return time.time_ns() // 1000


# --- PostgreSQL ---------------------------------------------------------------------------------------------------
_NOW_POSTGRESQL = "COALESCE(%(now)s::bigint, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)"


def _side_postgresql(side: str) -> str:
    """Return one side after the take; `at` may be a little behind a rival's, whose commit this statement waited for."""
    at = "(SELECT at FROM moment)"
    was = f"{TABLE}.{side}"
    return f"CASE WHEN {was} < {at} OR {was} > {at} + 2 * %({side}_deep)s THEN {at} ELSE {was} END + %({side}_cost)s"


_TAKE_POSTGRESQL = f"""
    WITH moment AS MATERIALIZED (SELECT {_NOW_POSTGRESQL} AS at)
    INSERT INTO {TABLE} (name, hour, burst)
    SELECT %(name)s, at + %(hour_cost)s, at + %(burst_cost)s FROM moment
    ON CONFLICT (name) DO UPDATE SET hour = {_side_postgresql("hour")}, burst = {_side_postgresql("burst")}
    WHERE ({_side_postgresql("hour")}) - %(hour_deep)s <= (SELECT at FROM moment)
      AND ({_side_postgresql("burst")}) - %(burst_deep)s <= (SELECT at FROM moment)
    RETURNING (SELECT at FROM moment), hour, burst
"""


def _take_postgresql(name: str, values: dict[str, Any], now: int | None) -> Level:
    values["now"] = now
    try:
        with connection.cursor() as cursor:
            cursor.execute(_TAKE_POSTGRESQL, values)
            row = cursor.fetchone()
            if row:
                return Level(True, *row)
            cursor.execute(f"SELECT {_NOW_POSTGRESQL}, hour, burst FROM {TABLE} WHERE name = %(name)s", values)
            row = cursor.fetchone()
    except (OperationalError, InterfaceError) as error:
        raise Unusable(str(error)) from error
    return _refused(row, values)


# --- SQLite -------------------------------------------------------------------------------------------------------
def _side_sqlite(side: str) -> str:
    is_past = f"{side} < :now OR {side} > :now + 2 * :{side}_deep"
    return f"CASE WHEN {is_past} THEN :now ELSE {side} END + :{side}_cost"


_TAKE_SQLITE = f"""
    INSERT INTO bucket (name, hour, burst) VALUES (:name, :now + :hour_cost, :now + :burst_cost)
    ON CONFLICT (name) DO UPDATE SET hour = {_side_sqlite("hour")}, burst = {_side_sqlite("burst")}
    WHERE ({_side_sqlite("hour")}) - :hour_deep <= :now AND ({_side_sqlite("burst")}) - :burst_deep <= :now
    RETURNING :now, hour, burst
"""
_SCHEMA_SQLITE = (
    "CREATE TABLE IF NOT EXISTS bucket (name TEXT PRIMARY KEY, hour INTEGER NOT NULL, burst INTEGER NOT NULL)"
    " WITHOUT ROWID",
)


def _take_sqlite(name: str, values: dict[str, Any], now: int | None) -> Level:
    values["now"] = _now() if now is None else now
    rows, _ = _on_sqlite(_TAKE_SQLITE, values)
    if rows:
        return Level(True, *rows[0])
    rows, _ = _on_sqlite("SELECT :now, hour, burst FROM bucket WHERE name = :name", values)
    return _refused(rows[0] if rows else None, values)


def _refused(row: Sequence[int] | None, values: dict[str, Any]) -> Level:
    if row is None:
        # Deleted between the two statements, because it was full again: the next take succeeds.
        at = values["now"] or _now()
        return Level(False, at, at, at)
    return Level(False, *row)


def _on_sqlite(statement: str, values: dict[str, Any]) -> tuple[list[Any], int]:
    """Run one statement; return its rows and how many it changed. Raises Unusable."""
    try:
        return sqlite_file.run(settings.K1NODE_DATA / "limits.sqlite3", _SCHEMA_SQLITE, statement, values)
    except sqlite3.Error as error:
        raise Unusable(str(error)) from error
