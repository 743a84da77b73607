"""Small SQLite files beside the main database, for counts that must never wait for its writers.

A thread keeps one connection to each file. Nothing in these files is worth keeping: one that is damaged, after a power
cut perhaps, is made anew, and whoever still has the old one open notices that by the file's number on the disk.
"""

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

BUSY_SECONDS = 5.0  # that a statement may wait for another process
OPENING_TRIES = 100
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@dataclass(frozen=True, slots=True)
class _Open:
    connection: sqlite3.Connection
    inode: int
    pid: int  # a connection from before a fork is the parent's


class _Mine(threading.local):
    def __init__(self) -> None:
        self.files: dict[Path, _Open] = {}


_mine = _Mine()


def run(
    path: Path, schema: Sequence[str], statement: str, values: Sequence[Any] | Mapping[str, Any]
) -> tuple[list[tuple[Any, ...]], int]:
    """Run one statement on the file, made by `schema` where it is not there; return its rows and how many it changed.

    Raises sqlite3.Error where the file can be neither used nor made.
    """
    try:
        return _run(path, schema, statement, values)
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in DAMAGED:
            raise
        logger.warning("A file of counts was damaged and is made anew", extra={"file": path.name, "reason": str(error)})
        _forget(path)
        for suffix in ("", "-wal", "-shm"):
            with suppress(OSError):
                path.with_name(path.name + suffix).unlink()
        return _run(path, schema, statement, values)


def _run(
    path: Path, schema: Sequence[str], statement: str, values: Sequence[Any] | Mapping[str, Any]
) -> tuple[list[tuple[Any, ...]], int]:
    cursor = _connection(path, schema).execute(statement, values)
    return cursor.fetchall(), cursor.rowcount


def _connection(path: Path, schema: Sequence[str]) -> sqlite3.Connection:
    found = _mine.files.get(path)
    if found is not None:
        if found.pid == os.getpid() and found.inode == _inode(path):
            return found.connection
        _forget(path)
    opened = _opened(path, schema)
    # Only now that it is whole: a connection without its tables would fail for as long as the thread lives.
    _mine.files[path] = _Open(opened, _inode(path), os.getpid())
    return opened


def _opened(path: Path, schema: Sequence[str]) -> sqlite3.Connection:
    opened = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        for remaining in reversed(range(OPENING_TRIES)):
            try:
                opened.execute("PRAGMA journal_mode=WAL")
                break
            except sqlite3.OperationalError:
                # Changing the mode does not wait for whoever is changing it at the same moment.
                if not remaining:
                    raise
                time.sleep(0.02)
        opened.execute("PRAGMA synchronous=OFF")
        for statement in schema:
            opened.execute(statement)
    except BaseException:
        opened.close()
        raise
    return opened


def _forget(path: Path) -> None:
    found = _mine.files.pop(path, None)
    if found is not None and found.pid == os.getpid():
        found.connection.close()


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0
