"""Huey's side: a queue in SQLite, and a task that only notes that it ran.

Each worker process has a file of its own in BENCH_HUEY_FOLDER, mapped into memory: how many tasks it ran, and when the
first and the last did (bench.huey_note). Noting costs about a microsecond.
"""

import os
import sqlite3
import time
from collections.abc import Callable
from mmap import mmap
from pathlib import Path
from typing import Any

from huey import SqliteHuey  # type: ignore[import-untyped]

from bench.huey_note import NOTE

FOLDER = Path(os.environ["BENCH_HUEY_FOLDER"])


class Connection(sqlite3.Connection):
    """Syncs as BENCH_HUEY_SYNCHRONOUS says; unset, as Huey comes, which is SQLite's default: at each commit."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if synchronous := os.environ.get("BENCH_HUEY_SYNCHRONOUS"):
            self.execute(f"PRAGMA synchronous={synchronous}")


huey = SqliteHuey(filename=str(FOLDER / "huey.db"), results=False, factory=Connection)


def _note_of_this_process() -> Callable[[], None]:
    path = FOLDER / f"{os.getpid()}.ran"
    path.write_bytes(bytes(NOTE.size))
    with path.open("r+b") as file:
        memory = mmap(file.fileno(), NOTE.size)
    count = 0
    first = time.time()

    def note() -> None:
        nonlocal count
        count += 1
        NOTE.pack_into(memory, 0, count, first, time.time())

    return note


_notes: dict[int, Callable[[], None]] = {}


@huey.task()  # type: ignore[untyped-decorator]
def noop() -> None:
    """Note that it ran."""
    note = _notes.get(os.getpid())
    if note is None:
        note = _notes[os.getpid()] = _note_of_this_process()
    note()
