"""The time loop, ticked by hand."""

import logging
import time
from datetime import datetime, timedelta

import pytest
from django.db import OperationalError, connection, transaction

from k1node import clock as clock_module
from k1node.clock import Clock
from k1node.lib.board import BUSY, FREE, GONE, Board
from k1node.lib.clock_time import database_now
from k1node.lib.node_id import node_id
from scheduling import claims, nodes, retention, slots
from scheduling.models import Node, Slot, Task, TaskStatus
from tests.factories import make_schedule, make_task

pytestmark = pytest.mark.django_db


@pytest.fixture
def clock(board: Board) -> Clock:
    return Clock(board)


def test_a_tick_stages_fires_and_reports(clock: Clock) -> None:
    now = database_now()
    delayed = make_task(status=TaskStatus.SCHEDULED, due_at=now - timedelta(seconds=1))
    make_schedule(task_id="minutely", schedule_expr="* * * * *", next_fire_at=now - timedelta(seconds=1))

    clock.tick(now)

    delayed.refresh_from_db()
    assert delayed.status == TaskStatus.QUEUED
    assert Slot.objects.get().outcome == "fired"
    assert Node.objects.get().beat_at == now


def test_a_pause_that_is_over_ends(clock: Clock) -> None:
    now = database_now()
    task = make_task(status=TaskStatus.PAUSED, paused_at=now, paused_until=now - timedelta(hours=1), due_at=now)

    clock.tick(now)

    task.refresh_from_db()
    assert (task.status, task.paused_until) == (TaskStatus.QUEUED, None)


def test_a_duty_that_fails_does_not_stop_the_others(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(**_: object) -> bool:
        raise OperationalError("gone away")

    monkeypatch.setattr(claims, "is_staging_due", broken)
    monkeypatch.setattr(connection, "close", lambda: None)

    with caplog.at_level(logging.ERROR):
        clock.tick(database_now())

    assert Node.objects.exists()
    assert "A duty of the clock failed" in caplog.text


def dead_worker(board: Board, *, running: claims.Claim | None) -> None:
    slot = board.take_slot(0)
    row = board.slot(slot.index)
    row.pid, row.born, row.state = 4_000_000, 7, GONE
    if running is not None:
        row.task, row.fence = running.id, running.fence


def held(count: int) -> list[claims.Claim]:
    with transaction.atomic():
        return claims.claim(owner=f"{node_id()}:4000000:7", now=database_now(), window=9, choose=lambda _: count)


def test_the_tasks_of_a_dead_worker_of_this_node_are_rescued_at_once(clock: Clock, board: Board) -> None:
    for _ in range(2):
        make_task()
    bundle = held(2)
    dead_worker(board, running=bundle[0])

    clock.tick(database_now())

    assert list(Task.objects.order_by("pk").values_list("status", flat=True)) == ["scheduled", "queued"]
    assert board.slot(0).state == FREE


def test_a_busy_slot_is_never_rescued(clock: Clock, board: Board) -> None:
    make_task()
    (claim,) = held(1)
    dead_worker(board, running=claim)
    board.slot(0).state = BUSY

    clock.tick(database_now())

    assert Task.objects.get().status == TaskStatus.EXECUTING


def test_expired_leases_are_left_alone_until_the_clock_has_watched_for_a_whole_lease(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_task()
    held(1)
    later = database_now() + timedelta(minutes=1)

    clock.rescue_expired(later)
    too_early = Task.objects.get().status
    monkeypatch.setattr(clock, "_seen_since", clock_module._suspend_aware() - 21)
    clock.rescue_expired(later)

    assert (too_early, Task.objects.get().status) == (TaskStatus.EXECUTING, TaskStatus.SCHEDULED)


def test_a_gap_in_its_own_sight_starts_the_watch_again(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    make_task()
    held(1)
    monkeypatch.setattr(clock, "_seen_since", clock_module._suspend_aware() - 1000)
    monkeypatch.setattr(clock, "_seen_at", clock_module._suspend_aware() - 500)

    clock.tick(database_now() + timedelta(minutes=10))

    assert Task.objects.get().status == TaskStatus.EXECUTING


def test_the_clock_sleeps_until_the_next_slot_but_never_long(clock: Clock) -> None:
    far = clock._patience()
    make_schedule(next_fire_at=database_now() + timedelta(milliseconds=50))
    near = clock._patience()
    make_schedule(next_fire_at=database_now() - timedelta(seconds=5))
    overdue = clock._patience()

    assert far == clock_module.TICK
    assert 0 < near <= 0.05
    assert overdue == 0.001


def test_a_node_reports_its_workers_only_while_they_beat(board: Board) -> None:
    now = database_now()
    nodes.report(board, started_at=now, now=now)
    silent = nodes.own_beats(now=now)
    board.open_cluster(3)
    nodes.report(board, started_at=now, now=now)

    assert silent == (True, False)
    assert nodes.own_beats(now=now) == (True, True)
    assert nodes.own_beats(now=now + timedelta(minutes=1)) == (False, False)
    assert [node.workers for node in nodes.live(now=now)] == [3]


def test_a_duty_that_always_fails_does_not_keep_expired_leases_alive(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(now: datetime) -> None:
        raise ValueError("a bug of ours")

    next(duty for duty in clock.duties if duty.name == "stage").work = broken
    monkeypatch.setattr(connection, "close", lambda: None)
    monkeypatch.setattr(clock, "_seen_since", clock_module._suspend_aware() - 1000)
    clock.tick(database_now())
    make_task()
    held(1)

    next(duty for duty in clock.duties if duty.name == "rescue expired").due = 0
    clock.tick(database_now() + timedelta(minutes=10))

    assert Task.objects.get().status == TaskStatus.SCHEDULED


def test_a_slot_that_cannot_be_fired_is_not_tried_a_thousand_times_a_second(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(**_: object) -> int:
        raise OperationalError("disk full")

    make_schedule(next_fire_at=database_now() - timedelta(seconds=1))
    monkeypatch.setattr(slots, "fire_due", broken)
    monkeypatch.setattr(connection, "close", lambda: None)

    clock.tick(database_now())

    assert clock._patience() == clock_module.TICK


def test_pruning_goes_on_soon_while_there_is_more(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    monkeypatch.setattr(retention, "MOST_BATCHES", 1)
    now = database_now()
    old = now - timedelta(days=31)
    for _ in range(3):
        make_task(status=TaskStatus.COMPLETED, created_at=old, finished_at=old)
    waits = []

    for _ in range(2):
        clock._tidying.due = 0
        clock.tick(now)
        waits.append(round(clock._tidying.due - time.monotonic()))

    assert waits == [1, 60]
    assert not Task.objects.exists()


def test_a_flood_of_due_delays_does_not_keep_the_clock_from_its_other_duties(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock_module, "DUTY_SECONDS", 0.0)
    monkeypatch.setattr(clock_module, "STAGE_MOST", 1)
    now = database_now()
    for _ in range(3):
        make_task(status=TaskStatus.SCHEDULED, due_at=now - timedelta(seconds=1))

    clock.tick(now)

    assert Task.objects.filter(status=TaskStatus.SCHEDULED).count() >= 2
    assert Node.objects.exists()
