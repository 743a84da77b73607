"""What pages and endpoints read: figures, tasks by id and by filter, output in pages, readiness."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import OperationalError, connection

from k1node.lib.node_id import node_id
from scheduling import queries
from scheduling.models import GateKind, MinuteCounter, Node, OutputChunk, ScheduleTally, Task, TaskStatus
from scheduling.output import HEAD_BYTES
from scheduling.queries import Run, Statistics
from tests.factories import make_attempt, make_gate, make_schedule, make_task

NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)

pytestmark = pytest.mark.django_db


def make_node(**fields: Any) -> Node:
    defaults = {"node_id": uuid4(), "hostname": "a", "started_at": NOW, "beat_at": NOW}
    return Node.objects.create(**defaults | fields)


def unstarted(**fields: Any) -> Task:
    """Return a task that is claimed in a bundle and has not started."""
    return make_task(**{"status": TaskStatus.EXECUTING, "started_at": None} | fields)


# --- the queue --------------------------------------------------------------------------------------------------


def test_an_empty_node_has_an_empty_queue() -> None:
    assert queries.queue_status(NOW) == {
        "timestamp": NOW,
        "queue_status": {"queued": 0, "executing": 0, "completed": 0},
        "resource_usage": {"concurrent_tasks": 0, "total_cpu_percent": 0, "total_memory_percent": 0},
        "resource_limits": {"max_concurrent_tasks": 0, "max_cpu_percent": 0, "max_memory_percent": 0},
        "pending_tasks": [],
    }


def test_an_unstarted_claim_counts_as_queued_and_a_paused_run_as_executing() -> None:
    make_task()
    unstarted()
    make_task(status=TaskStatus.EXECUTING)
    make_task(status=TaskStatus.EXECUTING, paused_at=NOW)
    for status in ("scheduled", "blocked", "paused", "completed", "failed"):
        make_task(status=status)

    assert queries.queue_status(NOW)["queue_status"] == {"queued": 2, "executing": 2, "completed": 0}


def test_completed_counts_from_the_beginning() -> None:
    for minute, count in ((datetime(1970, 1, 1, tzinfo=UTC), 140), (NOW, 5)):
        MinuteCounter.objects.create(minute=minute, policy="standard", worker="w", completed=count)

    assert queries.queue_status(NOW)["queue_status"]["completed"] == 145


def test_a_long_queue_is_counted_up_to_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "COUNT_CAP", 3)
    for _ in range(3):
        make_task()

    assert queries.queue_status(NOW)["queue_status"] == {"queued": 3, "executing": 0, "completed": 0}
    make_task()
    assert queries.queue_status(NOW)["queue_status"] == {
        "queued": 3,
        "queued_capped": True,
        "executing": 0,
        "completed": 0,
    }


def test_live_nodes_are_added_up_and_their_percentages_averaged() -> None:
    shared = {"max_cpu_percent": 80, "max_memory_percent": 85, "max_concurrent": 4}
    make_node(running=2, cpu_percent=30, memory_percent=40, **shared)
    make_node(running=1, cpu_percent=40.5, memory_percent=44, beat_at=NOW - 14 * SECOND, **shared)
    make_node(running=9, cpu_percent=99, memory_percent=99, beat_at=NOW - 16 * SECOND, **shared)

    status = queries.queue_status(NOW)

    assert status["resource_usage"] == {
        "concurrent_tasks": 3,
        "total_cpu_percent": 35.2,
        "total_memory_percent": 42,
    }
    assert status["resource_limits"] == {"max_concurrent_tasks": 8, "max_cpu_percent": 80, "max_memory_percent": 85}


def test_pending_tasks_come_in_the_order_of_claims() -> None:
    make_task(task_id="low", priority=1, due_at=NOW - 60 * SECOND, created_at=NOW - 60 * SECOND)
    make_task(task_id="later", priority=9, due_at=NOW - SECOND, created_at=NOW - SECOND)
    make_task(task_id="first", priority=9, due_at=NOW - 2 * SECOND, created_at=NOW - 90 * SECOND)
    unstarted(task_id="claimed", priority=9, due_at=NOW - 3 * SECOND, created_at=NOW)
    make_task(task_id="running", status=TaskStatus.EXECUTING)
    make_task(task_id="delayed", status=TaskStatus.SCHEDULED)

    pending = queries.queue_status(NOW)["pending_tasks"]

    assert [(row["task_id"], row["priority"], row["wait_time_ms"]) for row in pending] == [
        ("claimed", 9, 0),
        ("first", 9, 2000),
        ("later", 9, 1000),
        ("low", 1, 60_000),
    ]
    assert pending[1]["enqueued_at"] == NOW - 2 * SECOND


def test_only_the_first_fifty_are_shown() -> None:
    for _ in range(55):
        make_task()

    assert len(queries.queue_status(NOW)["pending_tasks"]) == 50


def test_queue_status_reads_by_indexes_alone() -> None:
    statements: list[str] = []

    def note(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        statements.append(sql)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        queries.queue_status(NOW)

    assert len(statements) == 5
    if connection.vendor == "sqlite":
        of_tasks = [each for each in statements if "scheduling_task" in each]
        for each in of_tasks:
            with connection.cursor() as cursor:
                cursor.execute("EXPLAIN QUERY PLAN " + each.replace("%s", "1"))
                plan = " ".join(str(row[3]) for row in cursor.fetchall())
            assert "SCAN scheduling_task USING" in plan or "SEARCH" in plan, plan
            assert "TEMP B-TREE" not in plan or "started_at IS NULL" in each, plan


# --- schedules --------------------------------------------------------------------------------------------------


def test_statistics_add_the_shards_up() -> None:
    busy, idle, failing = make_schedule(), make_schedule(), make_schedule()
    for shard, completed, failed, ms in ((0, 3, 1, 3000), (5, 1, 0, 2001)):
        ScheduleTally.objects.create(
            schedule=busy,
            shard=shard,
            completed=completed,
            failed=failed,
            completed_ms=ms,
            last_started_at=NOW + shard * SECOND,
        )
    ScheduleTally.objects.create(schedule=failing, shard=0, failed=2, last_started_at=NOW)

    found = queries.statistics([busy, idle, failing])

    assert found == {
        busy.pk: Statistics(5, 1, 1250, NOW + 5 * SECOND),
        failing.pk: Statistics(2, 2, None, NOW),
    }
    assert all(type(each.execution_count) is int for each in found.values())


# --- tasks ------------------------------------------------------------------------------------------------------


def test_a_schedules_id_means_its_latest_run() -> None:
    schedule = make_schedule(task_id="backup")
    make_schedule(task_id="idle")
    make_task(task_id="backup-1", schedule=schedule)
    latest = make_task(task_id="backup-2", schedule=schedule)
    plain = make_task(task_id="plain")

    assert queries.task_by_id("backup") == latest
    assert queries.task_by_id("backup-2") == latest
    assert queries.task_by_id("plain") == plain
    assert queries.task_by_id("idle") is None
    assert queries.task_by_id("unknown") is None


STATES = [
    pytest.param({"status": "scheduled"}, "scheduled", id="scheduled"),
    pytest.param({"status": "queued"}, "queued", id="queued"),
    pytest.param({"status": "executing", "started_at": None}, "queued", id="claimed and unstarted"),
    pytest.param({"status": "executing"}, "executing", id="executing"),
    pytest.param({"status": "executing", "paused_at": NOW}, "paused", id="stopped"),
    pytest.param({"status": "paused"}, "paused", id="paused before it ran"),
    pytest.param({"status": "blocked"}, "blocked", id="blocked"),
    pytest.param({"status": "completed"}, "completed", id="completed"),
    pytest.param({"status": "failed"}, "failed", id="failed"),
    pytest.param({"status": "skipped"}, "skipped", id="skipped"),
    pytest.param({"status": "cancelled"}, "cancelled", id="cancelled"),
]


@pytest.mark.parametrize(("fields", "shown"), STATES)
@pytest.mark.parametrize("few", [True, False], ids=["few", "many"])
def test_a_task_is_listed_under_the_status_it_shows(
    fields: dict[str, Any], shown: str, few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "FEW", 1_000 if few else 0)
    task = make_task(**fields)

    found = [status for status in queries.CONDITIONS if task in queries.tasks(status=status)]

    assert queries.shown_status(task) == shown
    assert found == [shown]


def test_filters_narrow_each_other() -> None:
    schedule, batch = make_schedule(task_id="backup"), make_gate(kind=GateKind.BATCH, key="export")
    make_gate(kind=GateKind.HOLD, key="other")
    a = make_task(schedule=schedule, gate=batch, handler="python:noop")
    b = make_task(schedule=schedule)
    c = make_task(gate=batch, status="failed")

    assert set(queries.tasks(schedule="backup")) == {a, b}
    assert set(queries.tasks(batch="export")) == {a, c}
    assert set(queries.tasks(schedule="backup", batch="export")) == {a}
    assert set(queries.tasks(handler="python:noop")) == {a}
    assert set(queries.tasks(batch="export", status="failed")) == {c}
    assert not queries.tasks(schedule="unknown")
    assert not queries.tasks(batch="other")


def test_since_finds_what_was_created_then_or_later() -> None:
    made = [make_task(created_at=NOW + minutes * 60 * SECOND) for minutes in range(20)]
    Task.objects.filter(pk__in=[task.pk for task in made[3:7]]).delete()
    # A transaction that took longer: a lower id, a later time.
    Task.objects.filter(pk=made[9].pk).update(created_at=NOW + 12 * 60 * SECOND)

    def since(minutes: int) -> list[int]:
        found = queries.tasks(created_since=NOW + minutes * 60 * SECOND).order_by("pk")
        return [made.index(task) for task in found]

    assert since(-5) == [0, 1, 2, *range(7, 20)]
    assert since(5) == list(range(7, 20))
    assert since(12) == [9, *range(12, 20)]
    assert since(19) == [19]
    assert since(20) == []
    assert len(queries.tasks(created_since=datetime(1, 1, 1, tzinfo=UTC))) == 16


def test_since_finds_nothing_in_an_empty_table() -> None:
    assert not queries.tasks(created_since=NOW)


def test_a_run_is_running_under_its_fence_only() -> None:
    task = make_task(status=TaskStatus.EXECUTING, fence=3)
    over = make_task(status=TaskStatus.COMPLETED, fence=3)

    assert queries.is_running(task.pk, 3)
    assert not queries.is_running(task.pk, 2)
    assert not queries.is_running(over.pk, 3)


# --- output -----------------------------------------------------------------------------------------------------


def write(task: Task, *pieces: tuple[int, str, bytes], fence: int = 1) -> None:
    OutputChunk.objects.bulk_create(
        OutputChunk(task=task, fence=fence, position=position, stream=stream, data=data)
        for position, stream, data in pieces
    )


def texts(page: queries.Output) -> list[tuple[int, str, str]]:
    return [(piece["offset"], piece["stream"], piece["text"]) for piece in page["chunks"]]


def test_both_streams_come_in_the_order_of_writing() -> None:
    task = make_task(status=TaskStatus.COMPLETED)
    write(task, (3, "stderr", b"no\n"), (0, "stdout", b"one"), (6, "stdout", b"two"))

    page = queries.output_from(task, Run(1, 1, 9), 0, 65_536)

    assert texts(page) == [(0, "stdout", "one"), (3, "stderr", "no\n"), (6, "stdout", "two")]
    assert (page["offset"], page["next_offset"], page["total"], page["complete"]) == (0, 9, 9, True)
    assert page["cut"] == []


def test_a_page_begins_in_the_middle_of_a_chunk() -> None:
    task = make_task()
    write(task, (0, "stdout", b"abcdef"), (6, "stdout", b"ghi"))

    page = queries.output_from(task, Run(1, 1, 9), 4, 65_536)

    assert texts(page) == [(4, "stdout", "ef"), (6, "stdout", "ghi")]


def test_pages_follow_each_other_without_gap_or_overlap() -> None:
    task = make_task()
    data = bytes(range(32, 127)) * 100
    write(task, *((at, "stdout", data[at : at + 1000]) for at in range(0, len(data), 1000)))
    offset, read, pages = 0, "", 0

    while True:
        page = queries.output_from(task, Run(1, 1, len(data)), offset, 2048)
        read += "".join(piece["text"] for piece in page["chunks"])
        offset, pages = page["next_offset"], pages + 1
        if page["complete"]:
            break

    assert read.encode() == data
    assert pages == 4


def test_output_grows_while_the_task_runs() -> None:
    task = make_task(status=TaskStatus.EXECUTING)
    write(task, (0, "stdout", b"one\n"))
    run = queries.run_of(task)
    assert run == Run(1, 1, None)

    first = queries.output_from(task, run, 0, 65_536)
    write(task, (4, "stdout", b"two\n"))
    second = queries.output_from(task, run, first["next_offset"], 65_536)
    third = queries.output_from(task, run, second["next_offset"], 65_536)

    assert (texts(first), first["total"], first["complete"]) == ([(0, "stdout", "one\n")], 4, False)
    assert (texts(second), second["total"], second["complete"]) == ([(4, "stdout", "two\n")], 8, False)
    assert (texts(third), third["next_offset"], third["complete"]) == ([], 8, False)


def test_what_was_cut_is_said() -> None:
    task = make_task()
    write(task, (0, "stdout", b"head"), (HEAD_BYTES, "stdout", b"tail"))

    page = queries.output_from(task, Run(1, 1, HEAD_BYTES + 4), 0, 65_536)
    later = queries.output_from(task, Run(1, 1, HEAD_BYTES + 4), 100, 65_536)

    assert page["cut"] == [{"from": 4, "to": HEAD_BYTES}]
    assert texts(page) == [(0, "stdout", "head"), (HEAD_BYTES, "stdout", "tail")]
    assert page["complete"]
    assert later["cut"] == [{"from": 100, "to": HEAD_BYTES}]


def test_an_end_that_was_never_stored_is_a_cut() -> None:
    task = make_task()
    write(task, (0, "stdout", b"abc"))

    page = queries.output_from(task, Run(1, 1, 10), 0, 65_536)

    assert (page["cut"], page["next_offset"], page["complete"]) == ([{"from": 3, "to": 10}], 10, True)


def test_a_character_split_between_chunks_is_whole() -> None:
    task = make_task()
    euro = "€".encode()
    write(task, (0, "stdout", b"a" + euro[:1]), (2, "stderr", b"!"), (3, "stdout", euro[1:] + b"b"))

    page = queries.output_from(task, Run(1, 1, 6), 0, 65_536)

    assert texts(page) == [(0, "stdout", "a"), (2, "stderr", "!"), (3, "stdout", "€b")]


def test_a_character_that_is_not_all_there_yet_waits_for_its_end() -> None:
    task = make_task(status=TaskStatus.EXECUTING)
    euro = "€".encode()
    write(task, (0, "stdout", b"a" + euro[:2]))
    run = Run(1, 1, None)

    first = queries.output_from(task, run, 0, 65_536)
    waiting = queries.output_from(task, run, first["next_offset"], 65_536)
    write(task, (3, "stdout", euro[2:] + b"b"))
    second = queries.output_from(task, run, waiting["next_offset"], 65_536)

    assert (texts(first), first["next_offset"]) == ([(0, "stdout", "a")], 1)
    assert (texts(waiting), waiting["next_offset"]) == ([], 1)
    assert "".join(text for _, _, text in texts(second)) == "€b"


def test_what_is_not_utf8_is_replaced_and_never_withheld_at_the_end() -> None:
    task = make_task()
    write(task, (0, "stdout", b"a\xffb\xe2"))

    page = queries.output_from(task, Run(1, 1, 4), 0, 65_536)

    assert texts(page) == [(0, "stdout", "a�b�")]
    assert page["complete"]


@pytest.mark.parametrize("offset", [9, 10, 2**53])
def test_an_offset_at_or_behind_the_end_gives_an_empty_page(offset: int) -> None:
    task = make_task()
    write(task, (0, "stdout", b"ends here"))

    page = queries.output_from(task, Run(1, 1, 9), offset, 65_536)

    assert (page["chunks"], page["cut"], page["next_offset"], page["complete"]) == ([], [], offset, True)


def test_a_task_that_has_not_run_has_no_output() -> None:
    page = queries.output_from(make_task(), None, 0, 65_536)

    assert (page["attempt"], page["chunks"], page["complete"]) == (None, [], False)


def test_the_latest_run_is_the_one_going_on_or_the_last_attempt() -> None:
    task = make_task(status=TaskStatus.EXECUTING, fence=4, attempt=1)
    make_attempt(task, fence=1, number=1, output_bytes=10)
    make_attempt(task, fence=3, number=1, outcome="drained", output_bytes=30)

    assert queries.run_of(task) == Run(2, 4, None)
    assert queries.run_of(task, attempt=2) == Run(2, 4, None)
    assert queries.run_of(task, attempt=1) == Run(1, 3, 30)
    assert queries.run_of(task, fence=1) == Run(1, 1, 10)
    assert queries.run_of(task, attempt=7) is None
    Task.objects.filter(pk=task.pk).update(started_at=None)  # claimed, and not started
    assert queries.run_of(Task.objects.get(pk=task.pk)) == Run(1, 3, 30)


# --- the node ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "clock", "workers"),
    [
        pytest.param(None, False, False, id="never reported"),
        pytest.param({}, True, False, id="no worker yet"),
        pytest.param({"workers_beat_at": NOW}, True, True, id="all well"),
        pytest.param({"workers_beat_at": NOW - 16 * SECOND}, True, False, id="workers silent"),
        pytest.param({"beat_at": NOW - 16 * SECOND, "workers_beat_at": NOW}, False, True, id="clock silent"),
    ],
)
def test_a_node_is_ready_when_everything_beats(
    fields: dict[str, Any] | None, clock: bool, workers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "database_now", lambda: NOW)
    if fields is not None:
        make_node(node_id=node_id(), **fields)

    assert queries.readiness() == {"database": True, "clock": clock, "workers": workers}


def test_a_node_without_its_database_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> datetime:
        raise OperationalError("gone")

    monkeypatch.setattr(queries, "database_now", fail)

    assert queries.readiness() == {"database": False, "clock": False, "workers": False}
