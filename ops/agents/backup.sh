#!/usr/bin/env bash
# Back the node's own SQLite database up: a consistent, compressed copy while the node works on.
#
# Parameters:  keep   how many backups stay, the newest ones (default 7)
# Result:      $K1NODE_DATA/backups/k1node-<UTC time>.sqlite3.gz
# Exit codes:  0 done; 1 failed; 64 a bad parameter; 75 another backup runs; 78 this database cannot be copied so
#
# All values reach Python as data; nothing of a parameter becomes part of a command line or of SQL.
set -euo pipefail
umask 077

exec "${K1_PYTHON:-python3}" -I /dev/fd/3 3<<'PYTHON'
import fcntl
import gzip
import os
import re
import shutil
import signal
import sqlite3
import sys
import time
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path

NAME = re.compile(r"k1node-\d{8}T\d{6}Z\.sqlite3\.gz")
DIRECT = "On PostgreSQL use pg_dump (docs/operations.md shows how)."


def fail(code, text):
    print(f"backup: {text}", file=sys.stderr)
    sys.exit(code)


def keep():
    text = os.environ.get("K1_PARAM_KEEP", "7")
    if not re.fullmatch(r"[0-9]{1,4}", text) or int(text) < 1:
        fail(64, f"keep must be a whole number from 1 to 9999, not {text[:50]!r}.")
    return int(text)


def data_folder():
    text = os.environ.get("K1NODE_DATA", "")
    if not text:
        fail(78, "K1NODE_DATA is not set. Run this as a task of the node, or name the node's data folder in it.")
    return Path(text)


def check_is_in_use(database, path):
    """Fail unless the database is the one this very task is in: a node on PostgreSQL may have an old file here."""
    task = os.environ.get("K1_TASK_ID")
    if not task:
        return  # started by hand
    try:
        found = database.execute(
            "SELECT 1 FROM scheduling_task WHERE task_id = ? AND status = 'executing'", [task]
        ).fetchone()
    except sqlite3.DatabaseError as error:
        fail(78, f"{path} is not a database of this node: {error}. {DIRECT}")
    if not found:
        fail(78, f"{path} is not the database this node works with: the task {task} does not run in it. {DIRECT}")


def check_room(folder, size):
    # The copy and its compressed form lie side by side for a while.
    needed, free = size + size // 2, shutil.disk_usage(folder).free
    if free < needed:
        fail(
            1,
            f"the disk is too full: {free:,} bytes are free at {folder}, a backup may take {needed:,}. "
            "Delete old files there, or lower keep; nothing was changed.",
        )


def copy(source, into):
    """Write a consistent copy: the reader sees one moment, and writers do not wait for it."""
    with closing(sqlite3.connect(f"{source.as_uri()}?mode=rw", uri=True, timeout=30, isolation_level=None)) as database:
        check_is_in_use(database, source)
        database.execute("VACUUM INTO ?", [str(into)])
    with closing(sqlite3.connect(into)) as database:
        said = database.execute("PRAGMA quick_check").fetchone()[0]
    if said != "ok":
        fail(1, f"the copy is damaged ({said}), so the database probably is too. Earlier backups are kept.")


def compress(source, into):
    with source.open("rb") as plain, into.open("wb") as file:
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6) as packed:
            shutil.copyfileobj(plain, packed, 1024 * 1024)
        file.flush()
        os.fsync(file.fileno())


def sync(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def main():
    began = time.monotonic()
    most, data = keep(), data_folder()
    source = data / "k1node.sqlite3"
    if not source.is_file():
        fail(78, f"there is no SQLite database at {source}. {DIRECT}")
    folder = data / "backups"
    folder.mkdir(mode=0o700, exist_ok=True)
    lock = (folder / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fail(75, "another backup is being made.")
    for part in folder.glob(".part-*"):  # of a run that was killed
        part.unlink()
    check_room(folder, source.stat().st_size)
    name = f"k1node-{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}.sqlite3"
    plain, packed, final = folder / f".part-{name}", folder / f".part-{name}.gz", folder / f"{name}.gz"
    try:
        copy(source, plain)
        plain_bytes = plain.stat().st_size
        compress(plain, packed)
        packed.rename(final)
        sync(folder)
    finally:
        for part in (plain, packed, Path(f"{plain}-journal")):
            part.unlink(missing_ok=True)
    kept = sorted((each for each in folder.iterdir() if NAME.fullmatch(each.name)), reverse=True)
    for old in kept[most:]:
        old.unlink()
        print(f"Deleted {old.name}")
    seconds = time.monotonic() - began
    print(f"Wrote {final}")
    print(f"{plain_bytes:,} bytes, {final.stat().st_size:,} compressed, in {seconds:.2f} s; checked: ok")
    print(f"{min(len(kept), most)} of at most {most} backups kept")


signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
try:
    main()
except (OSError, sqlite3.Error) as error:
    free = ""
    if os.environ.get("K1NODE_DATA") and os.path.isdir(os.environ["K1NODE_DATA"]):
        free = f" {shutil.disk_usage(os.environ['K1NODE_DATA']).free:,} bytes are free there."
    fail(1, f"{error}.{free} No backup was written; earlier ones are kept.")
PYTHON
