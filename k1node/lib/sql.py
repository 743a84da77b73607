"""Statements over many rows at once, the fastest way each database has, and moments as each database stores them."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar

import orjson
from django.db import DatabaseError, OperationalError, connection, transaction

Row = Sequence[Any]
# Column name -> PostgreSQL type.
Columns = dict[str, str]


@cache
def is_postgresql() -> bool:
    """Say which of the two databases this process talks to; settings cannot change under it."""
    return connection.vendor == "postgresql"


def stored(moment: datetime | None) -> Any:
    """Return `moment` as raw SQL wants it: naive UTC text on SQLite, unchanged on PostgreSQL."""
    if moment is None or is_postgresql():
        return moment
    # isoformat leaves zero microseconds out, as Django does; the last six characters are the offset.
    return (moment if moment.tzinfo is UTC else moment.astimezone(UTC)).isoformat(" ")[:-6]


def moment(value: Any) -> datetime | None:
    """Return what raw SQL gave for a timestamp as aware UTC."""
    if value is None:
        return None
    # SQLite gives a naive datetime for a column, text for an expression.
    read: datetime = datetime.fromisoformat(value) if isinstance(value, str) else value
    return read.replace(tzinfo=UTC) if read.tzinfo is None else read


def moment_mark() -> str:
    """Return a typed placeholder for a moment, for places where PostgreSQL cannot infer the type."""
    return "%s::timestamptz" if is_postgresql() else "%s"


def insert_many(table: str, columns: Columns, rows: Sequence[Row], *, unless_there: bool = False) -> None:
    """Insert `rows` (values in the order of `columns`, moments already `stored`).

    With `unless_there` those that a unique constraint refuses are left out, and are no error.
    """
    if not rows:
        return
    names = ", ".join(f'"{name}"' for name in columns)
    tail = " ON CONFLICT DO NOTHING" if unless_there else ""
    with connection.cursor() as cursor:
        if is_postgresql():
            cursor.execute(
                f'INSERT INTO "{table}" ({names}) SELECT * FROM {_recordset(columns)}{tail}', [_json(columns, rows)]
            )
        else:
            marks = ", ".join(["%s"] * len(columns))
            cursor.executemany(f'INSERT INTO "{table}" ({names}) VALUES ({marks}){tail}', rows)


SQLITE_VALUES = 32_000  # a statement takes no more


def insert_many_returning(table: str, columns: Columns, rows: Sequence[Row], returning: str) -> list[tuple[Any, ...]]:
    """Insert `rows` as insert_many does; return what each new row has in the columns `returning`, in no order."""
    names = ", ".join(f'"{name}"' for name in columns)
    found: list[tuple[Any, ...]] = []
    with connection.cursor() as cursor:
        if is_postgresql():
            cursor.execute(
                f'INSERT INTO "{table}" ({names}) SELECT * FROM {_recordset(columns)} RETURNING {returning}',
                [_json(columns, rows)],
            )
            found += cursor.fetchall()
            return found
        at_once = SQLITE_VALUES // len(columns)
        marks = f"({', '.join(['%s'] * len(columns))})"
        for start in range(0, len(rows), at_once):
            part = rows[start : start + at_once]
            cursor.execute(
                f'INSERT INTO "{table}" ({names}) VALUES {", ".join([marks] * len(part))} RETURNING {returning}',
                [value for row in part for value in row],
            )
            found += cursor.fetchall()
    return found


def update_many(table: str, columns: Columns, rows: Sequence[Row], *, also: str = "") -> None:
    """Set every column but `id` (which must be the last of `columns`) in the rows with those ids.

    `also` is more of the SET clause, the same for all rows. Rows must already be locked by the caller.
    """
    if not rows:
        return
    names = [name for name in columns if name != "id"]
    also = f", {also}" if also else ""
    with connection.cursor() as cursor:
        if is_postgresql():
            sets = ", ".join(f'"{name}" = v."{name}"' for name in names)
            cursor.execute(
                f'UPDATE "{table}" SET {sets}{also} FROM {_recordset(columns)} WHERE "{table}".id = v.id',
                [_json(columns, rows)],
            )
        else:
            sets = ", ".join(f'"{name}" = %s' for name in names)
            cursor.executemany(f'UPDATE "{table}" SET {sets}{also} WHERE id = %s', rows)


def _recordset(columns: Columns) -> str:
    listed = ", ".join(f'"{name}" {kind}' for name, kind in columns.items())
    return f"json_to_recordset(%s) AS v({listed})"


def _json(columns: Columns, rows: Sequence[Row]) -> str:
    """Return the rows as one JSON text: one parameter, which the driver quotes in C; arrays it quotes item by item."""
    names = list(columns)
    prepared = [_prepared.get(kind) for kind in columns.values()]
    if any(prepared):
        rows = [
            [
                value if prepare is None or value is None else prepare(value)
                for prepare, value in zip(prepared, row, strict=True)
            ]
            for row in rows
        ]
    return orjson.dumps([dict(zip(names, row, strict=True)) for row in rows]).decode()


# What JSON has no form for: JSON that is text already, and bytes in PostgreSQL's own notation.
_prepared: dict[str, Callable[[Any], Any]] = {
    "jsonb": lambda text: orjson.Fragment(text),
    "bytea": lambda data: "\\x" + bytes(data).hex(),
}


def among(ids: Sequence[int]) -> tuple[str, list[Any]]:
    """Return "IN …" for primary keys, and its parameters: one for PostgreSQL, whose driver takes each apart."""
    if is_postgresql():
        return "= ANY(%s::bigint[])", ["{" + ",".join(map(str, ids)) + "}"]
    return f"IN ({', '.join(['%s'] * len(ids))})", list(ids)


RETRYABLE = {"40001", "40P01"}  # serialization failure, deadlock


def is_retryable(error: DatabaseError) -> bool:
    """Say whether the same transaction, run again from its start, may succeed."""
    state = getattr(error.__cause__, "sqlstate", None)
    return state in RETRYABLE or (connection.vendor == "sqlite" and "locked" in str(error))


TRIES = 3
Result = TypeVar("Result")


def in_transaction(work: Callable[[], Result]) -> Result:
    """Return work(), run in one transaction, again up to three times if the database asks for that.

    `work` may run more than once, so it must not change anything outside the database.
    """
    for remaining in reversed(range(TRIES)):
        try:
            with transaction.atomic():
                return work()
        except OperationalError as error:
            if not remaining or connection.in_atomic_block or not is_retryable(error):
                raise
    raise AssertionError("unreachable")


def among_selected(query: str) -> str:
    """Return "IN …" for the ids of a locking query with a LIMIT, which must be run once.

    PostgreSQL may run the query of an IN again for each row that it joins, and then each run locks other rows.
    """
    return f"= ANY(ARRAY({query}))" if is_postgresql() else f"IN ({query})"


def skip_locked() -> str:
    """Return the row-locking clause for rows that rivals may be taking at the same moment."""
    return " FOR UPDATE SKIP LOCKED" if is_postgresql() else ""


def for_update() -> str:
    """Return the row-locking clause; SQLite's write transactions exclude each other as a whole."""
    return " FOR UPDATE" if is_postgresql() else ""
