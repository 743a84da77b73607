"""Small files of counts: made where they are missing or damaged, by every thread that has one open."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from k1node.lib import sqlite_file

SCHEMA = ("CREATE TABLE IF NOT EXISTS seen (name TEXT PRIMARY KEY)",)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "counts.sqlite3"


def see(path: Path, name: str) -> int:
    return sqlite_file.run(path, SCHEMA, "INSERT OR IGNORE INTO seen VALUES (?)", (name,))[1]


def seen(path: Path) -> list[str]:
    return [name for (name,) in sqlite_file.run(path, SCHEMA, "SELECT name FROM seen ORDER BY name", ())[0]]


def test_many_threads_open_it_at_once(path: Path) -> None:
    with ThreadPoolExecutor(16) as threads:
        assert sum(threads.map(lambda name: see(path, name), map(str, range(64)))) == 64

    assert len(seen(path)) == 64


def test_a_damaged_file_is_made_anew(path: Path) -> None:
    path.write_bytes(b"this is no database" * 1000)

    assert see(path, "a") == 1
    assert seen(path) == ["a"]


def test_whoever_has_the_old_file_open_goes_over_to_the_new_one(path: Path) -> None:
    with ThreadPoolExecutor(1) as other:
        other.submit(see, path, "old").result(10)
        path.unlink()

        see(path, "new")

        assert other.submit(seen, path).result(10) == ["new"]


def test_a_file_that_could_not_be_opened_is_tried_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_SECONDS", 0.01)
    monkeypatch.setattr(sqlite_file, "OPENING_TRIES", 1)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        see(path, "a")

    holder.execute("ROLLBACK")
    holder.close()

    assert see(path, "a") == 1


def test_a_statement_that_is_wrong_is_no_damage(path: Path) -> None:
    see(path, "a")

    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        sqlite_file.run(path, SCHEMA, "SELECT * FROM elsewhere", ())
    assert seen(path) == ["a"]
