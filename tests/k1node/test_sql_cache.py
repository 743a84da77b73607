"""The shared cache counts exactly, whoever else counts at the same moment."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import caches
from django.db import connection

from k1node.lib import sql_cache
from k1node.lib.sql_cache import SqlCache
from tests.databases import only_sqlite

pytestmark = pytest.mark.django_db
ROOT = Path(__file__).resolve().parent.parent.parent
PROCESSES, EACH = 4, 150

COUNT_UP = """
import sys, django
from django.conf import settings
settings.DATABASES["default"]["NAME"] = sys.argv[1]
django.setup()
from k1node.lib.sql_cache import SqlCache
cache = SqlCache(sys.argv[2], {})
added = 0
for _ in range(int(sys.argv[3])):
    if cache.add("tries", 1, 600):
        added += 1
    else:
        cache.incr("tries")
print(added)
"""


@pytest.fixture
def cache(tmp_path: Path) -> SqlCache:
    return SqlCache(str(tmp_path / "cache.sqlite3"), {})


@pytest.mark.django_db(transaction=True)
def test_no_count_is_lost_between_processes(tmp_path: Path) -> None:
    file = str(tmp_path / "cache.sqlite3")
    arguments = [sys.executable, "-c", COUNT_UP, str(connection.settings_dict["NAME"]), file, str(EACH)]
    environment = os.environ | {"DJANGO_SETTINGS_MODULE": "k1node.settings", "PYTHONPATH": str(ROOT)}

    counting = [
        subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(PROCESSES)
    ]
    told = [process.communicate(timeout=60) for process in counting]

    assert [process.returncode for process in counting] == [0] * PROCESSES, told
    assert sum(int(out.split()[-1]) for out, _ in told) == 1  # one of them was the first
    assert SqlCache(file, {}).get("tries") == PROCESSES * EACH


def test_the_settings_name_it_and_each_run_has_its_own() -> None:
    assert isinstance(caches["default"], SqlCache)
    assert caches["default"].get("tries") is None


@pytest.mark.parametrize("value", [0, 5, -3, 2**40, "text", None, True, 1.5, {"a": [1, None]}])
def test_values_come_back_as_they_were(cache: SqlCache, value: Any) -> None:
    cache.set("a", value)

    assert cache.get("a", "nothing") == value
    assert type(cache.get("a", "nothing")) is type(value)


def test_a_key_is_added_once_until_its_time_is_over(cache: SqlCache, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.add("a", 1, 10)
    assert not cache.add("a", 2, 10)
    assert cache.incr("a", 5) == 6

    later = time.time() + 11
    monkeypatch.setattr(time, "time", lambda: later)

    assert cache.get("a", "over") == "over"
    with pytest.raises(ValueError, match="not found"):
        cache.incr("a")
    assert not cache.touch("a", 10)
    assert cache.add("a", 7, 10)
    assert cache.get("a") == 7


def test_what_is_no_number_is_not_counted(cache: SqlCache) -> None:
    cache.set("a", "text")

    with pytest.raises(ValueError, match="no number"):
        cache.incr("a")
    assert cache.get("a") == "text"


def test_entries_go_one_by_one_and_together(cache: SqlCache) -> None:
    cache.set_many({"a": 1, "b": 2, "c": 3}, timeout=None)

    assert (cache.delete("a"), cache.delete("a")) == (True, False)
    assert cache.touch("b", 10)
    assert "b" in cache
    cache.clear()
    assert cache.get_many(["b", "c"]) == {}


def test_entries_that_are_over_do_not_pile_up(cache: SqlCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.0)
    for number in range(20):
        cache.add(f"old-{number}", 1, -1)

    cache.add("new", 1, 10)

    assert cache._run(f"SELECT count(*) FROM {sql_cache.TABLE}", [])[0][0] == 1


@only_sqlite
def test_a_file_that_cannot_be_opened_counts_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = SqlCache(str(tmp_path / "missing" / "cache.sqlite3"), {})

    assert not cache.add("a", 1)
    assert cache.get("a") is None
    with pytest.raises(ValueError, match="not found"):
        cache.incr("a")
    assert "The cache did not answer" in caplog.messages


@only_sqlite
def test_a_child_process_opens_a_connection_of_its_own(cache: SqlCache) -> None:
    cache.set("a", 1)
    child = os.fork()
    if not child:
        os._exit(0 if cache.incr("a") == 2 else 1)

    assert os.waitpid(child, 0)[1] == 0
    assert cache.get("a") == 2
