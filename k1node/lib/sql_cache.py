"""Django's cache in SQL, counting exactly: one statement each, whatever other processes do at the same moment.

Django's own database cache adds in Python and loses counts. On PostgreSQL this is an unlogged table (empty after a
crash of the server), on SQLite a small file of its own, so that a count never waits for the writers of the queue.
Numbers can be counted, everything else is kept as JSON: nothing that is read back is run.
"""

import json
import logging
import math
import random
import sqlite3
import time
from pathlib import Path
from typing import Any

from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache
from django.db import DatabaseError, connection

from k1node.lib import sql, sqlite_file

logger = logging.getLogger(__name__)

TABLE = "k1node_cache"
COLUMNS = "key TEXT PRIMARY KEY, number BIGINT, value TEXT, expires_at DOUBLE PRECISION NOT NULL"  # Unix seconds
INDEX = f"CREATE INDEX IF NOT EXISTS {TABLE}_expires_at ON {TABLE} (expires_at)"  # for _forget_some
SCHEMA = (f"CREATE TABLE IF NOT EXISTS {TABLE} ({COLUMNS})", INDEX)
FORGET_AT_ONCE = 1000

PUT = f"""
INSERT INTO {TABLE} (key, number, value, expires_at) VALUES (%s, %s, %s, %s)
ON CONFLICT (key) DO UPDATE SET number = excluded.number, value = excluded.value, expires_at = excluded.expires_at
"""
ADD = f"{PUT} WHERE {TABLE}.expires_at <= %s RETURNING 1"
COUNT = f"""
UPDATE {TABLE} SET number = number + %s WHERE key = %s AND number IS NOT NULL AND expires_at > %s RETURNING number
"""
READ = f"SELECT number, value FROM {TABLE} WHERE key = %s AND expires_at > %s"
TOUCH = f"UPDATE {TABLE} SET expires_at = %s WHERE key = %s AND expires_at > %s RETURNING 1"
DROP = f"DELETE FROM {TABLE} WHERE key = %s RETURNING 1"


class SqlCache(BaseCache):
    """`LOCATION` is the file on SQLite; on PostgreSQL the table is made by a migration.

    Values are whole numbers or what JSON can hold.

    What fails in the database fails like a full memcached, without an exception: add() says that nothing was added,
    incr() that there is no such key. Whoever guards a door with these counts then keeps it closed.
    """

    def __init__(self, location: str, params: dict[str, Any]) -> None:
        super().__init__(params)
        self._file = Path(location)

    def add(self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        key = self.make_and_validate_key(key, version=version)
        if random.random() < 0.01:
            self._forget_some()
        return bool(self._run(ADD, [key, *_stored(value), self._until(timeout), time.time()]))

    def set(self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        key = self.make_and_validate_key(key, version=version)
        self._run(PUT, [key, *_stored(value), self._until(timeout)])

    def get(self, key: str, default: Any = None, version: int | None = None) -> Any:
        rows = self._run(READ, [self.make_and_validate_key(key, version=version), time.time()])
        if not rows:
            return default
        number, value = rows[0]
        return json.loads(value) if number is None else number

    def incr(self, key: str, delta: int = 1, version: int | None = None) -> int:
        """Return the number after adding `delta`. Raises ValueError if there is none under `key`."""
        rows = self._run(COUNT, [delta, self.make_and_validate_key(key, version=version), time.time()])
        if not rows:
            raise ValueError(f"Key {key!r} not found, or no number")
        return int(rows[0][0])

    def touch(self, key: str, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        key = self.make_and_validate_key(key, version=version)
        return bool(self._run(TOUCH, [self._until(timeout), key, time.time()]))

    def delete(self, key: str, version: int | None = None) -> bool:
        return bool(self._run(DROP, [self.make_and_validate_key(key, version=version)]))

    def clear(self) -> None:
        self._run(f"DELETE FROM {TABLE}", [])

    def _forget_some(self) -> None:
        """Delete entries whose time is over; one in a hundred additions does, so they cannot pile up."""
        chosen = f"SELECT key FROM {TABLE} WHERE expires_at <= %s LIMIT {FORGET_AT_ONCE}{sql.skip_locked()}"
        self._run(f"DELETE FROM {TABLE} WHERE key {sql.among_selected(chosen)}", [time.time()])

    def _until(self, timeout: Any) -> float:
        until = self.get_backend_timeout(timeout)
        return math.inf if until is None else until

    def _run(self, statement: str, values: list[Any]) -> list[tuple[Any, ...]]:
        try:
            if sql.is_postgresql():
                with connection.cursor() as cursor:
                    cursor.execute(statement, values)
                    return cursor.fetchall() if cursor.description else []
            return sqlite_file.run(self._file, SCHEMA, statement.replace("%s", "?"), values)[0]
        except (DatabaseError, sqlite3.Error):
            logger.warning("The cache did not answer", exc_info=True)
            return []


def _stored(value: Any) -> tuple[int | None, str | None]:
    if type(value) is int:
        return value, None
    return None, json.dumps(value)
