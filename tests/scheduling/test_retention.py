"""Retention and folding: nothing young goes, no count is lost."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.models import Sum
from django.test.utils import CaptureQueriesContext

from k1node.events import log
from k1node.events.models import Event
from scheduling import retention
from scheduling.models import Attempt, MinuteCounter, OutputChunk, Slot, Task, TaskStatus
from tests.databases import Rival, only_postgresql
from tests.factories import NOW, make_attempt, make_schedule, make_task

pytestmark = pytest.mark.django_db

MONTH, WEEK = timedelta(days=30), timedelta(days=7)
OLD = NOW - timedelta(days=31)


def prune() -> int:
    return retention.prune(now=NOW, keep_tasks=MONTH, keep_events=WEEK).rows


def test_old_finished_tasks_go_with_their_attempts_and_output() -> None:
    old = make_task(status=TaskStatus.COMPLETED, finished_at=OLD)
    make_attempt(old)
    OutputChunk.objects.create(task=old, fence=1, position=0, stream="stdout", data=b"x")
    young = make_task(status=TaskStatus.COMPLETED, finished_at=NOW - timedelta(days=29), origin=old)

    prune()

    young.refresh_from_db()
    assert list(Task.objects.all()) == [young]
    assert young.origin is None
    assert not Attempt.objects.exists()
    assert not OutputChunk.objects.exists()


@pytest.mark.parametrize("status", [TaskStatus.QUEUED, TaskStatus.SCHEDULED, TaskStatus.EXECUTING, TaskStatus.PAUSED])
def test_unfinished_tasks_stay_however_old(status: TaskStatus) -> None:
    make_task(status=status, created_at=OLD, due_at=OLD)

    prune()

    assert Task.objects.exists()


def test_old_slots_and_events_go() -> None:
    schedule = make_schedule()
    for at in (OLD, NOW):
        Slot.objects.create(schedule=schedule, due_at=at, last_due_at=at, outcome="fired", recorded_at=at)
    log.publish("old", {}, now=NOW - timedelta(days=8))
    log.publish("young", {}, now=NOW - timedelta(days=6))

    prune()

    assert [slot.recorded_at for slot in Slot.objects.all()] == [NOW]
    assert [event.name for event in Event.objects.all()] == ["young"]


def test_pruning_works_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    monkeypatch.setattr(retention, "MOST_BATCHES", 2)
    for _ in range(5):
        make_task(status=TaskStatus.COMPLETED, finished_at=OLD)

    assert prune() == 4
    assert prune() == 1


def count(minute: datetime, worker: str, completed: int) -> None:
    minute = minute.replace(second=0, microsecond=0)
    MinuteCounter.objects.create(minute=minute, policy="standard", worker=worker, completed=completed)


def test_folding_loses_no_count_and_leaves_the_present_alone() -> None:
    count(NOW, "a", 1)
    count(NOW - timedelta(hours=1), "a", 10)
    count(NOW - timedelta(hours=1), "b", 20)
    count(NOW - timedelta(days=9), "a", 100)
    count(NOW - timedelta(days=10), "b", 200)

    retention.fold_counters(now=NOW)
    retention.fold_counters(now=NOW)

    rows = MinuteCounter.objects.order_by("minute").values_list("worker", "completed")
    assert list(rows) == [("", 300), ("", 30), ("a", 1)]
    assert MinuteCounter.objects.aggregate(total=Sum("completed"))["total"] == 331


def test_minutes_of_yesterday_become_hours_and_nothing_is_counted_twice() -> None:
    hour = NOW.replace(minute=0) - timedelta(hours=30)
    for minute in (0, 1, 59, 60):
        count(hour + timedelta(minutes=minute), "a", 10**minute if minute < 2 else minute)
    count(NOW - timedelta(hours=25), "a", 7)

    for _ in range(3):
        retention.fold_counters(now=NOW)

    rows = MinuteCounter.objects.order_by("minute").values_list("minute", "completed")
    assert [(minute.hour, minute.minute, completed) for minute, completed in rows] == [
        (hour.hour, 0, 1 + 10 + 59),
        ((hour.hour + 1) % 24, 0, 60),
        (NOW.hour - 1, NOW.minute, 7),
    ]


def test_pruning_looks_at_no_more_than_the_beginning_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    for _ in range(9):
        make_task(status=TaskStatus.COMPLETED, created_at=NOW)

    with CaptureQueriesContext(connection) as captured:
        retention._prune_tasks(NOW - MONTH, 0, lambda pks: ())

    assert len(captured) == 1
    assert "LIMIT 2" in captured[0]["sql"]


def test_old_tasks_behind_many_that_are_not_finished_go_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    monkeypatch.setattr(retention, "MOST_BATCHES", 2)
    for _ in range(20):
        make_task(status=TaskStatus.PAUSED, created_at=OLD)
    make_task(status=TaskStatus.COMPLETED, created_at=OLD, finished_at=OLD)

    assert prune() == 1


def test_what_is_spared_stays_and_is_not_read_again_by_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    monkeypatch.setattr(retention, "MOST_LOOKS", 2)
    for _ in range(6):
        make_task(status=TaskStatus.FAILED, created_at=OLD, finished_at=OLD)
    kept = set(Task.objects.order_by("pk").values_list("pk", flat=True)[:5])

    calls = []
    after = 0
    for _ in range(3):
        pruned = retention.prune(
            now=NOW, keep_tasks=MONTH, keep_events=WEEK, after=after, spared=lambda pks: kept & set(pks)
        )
        after = pruned.after
        calls.append((pruned.rows, pruned.after > 0))

    assert calls == [(0, True), (1, False), (0, True)]
    assert set(Task.objects.values_list("pk", flat=True)) == kept


def test_a_task_from_a_clock_that_was_ahead_does_not_stop_the_pruning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    make_task(status=TaskStatus.COMPLETED, created_at=NOW + 100 * MONTH, finished_at=NOW + 100 * MONTH)
    for _ in range(3):
        make_task(status=TaskStatus.COMPLETED, created_at=OLD, finished_at=OLD)

    assert prune() == 3


@pytest.mark.django_db(transaction=True)
@only_postgresql
def test_a_count_that_arrives_while_its_minute_is_folded_is_kept(rival: Rival, monkeypatch: pytest.MonkeyPatch) -> None:
    minute = NOW - timedelta(hours=1)
    count(minute, "a", 1)
    found, came = MinuteCounter.objects.get_or_create, list[None]()

    def late(**kwargs: Any) -> object:
        if not came:
            came.append(rival.do(count, minute, "b", 10))
        return found(**kwargs)

    locked = MinuteCounter.objects.select_for_update
    monkeypatch.setattr(
        type(MinuteCounter.objects), "select_for_update", lambda self: _Late(locked(), late), raising=False
    )
    retention.fold_counters(now=NOW)

    assert MinuteCounter.objects.aggregate(total=Sum("completed"))["total"] == 11


class _Late:
    """What select_for_update() gave, with a rival that writes just before the folded row is looked up."""

    def __init__(self, rows: object, late: object) -> None:
        self.rows, self.get_or_create = rows, late
