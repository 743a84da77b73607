"""Gates: exact counts, releases in order, and the sweep that mends."""

import logging
import time
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction

from scheduling import claims, gates, queue, schedules
from scheduling.models import ACTIVE, FailureRule, Gate, GateKind, OverlapPolicy, Schedule, Task, TaskStatus
from tests.databases import ON_POSTGRESQL, Rival, only_postgresql
from tests.factories import NOW, make_gate, make_schedule, make_task

pytestmark = pytest.mark.django_db


def waiting(gate: Gate, **fields: object) -> Task:
    return make_task(status=TaskStatus.BLOCKED, blocked_on=gate, gate=gate, **fields)


def end(gate: Gate, *statuses: TaskStatus) -> list[str]:
    return gates.settled(gates.lock([gate.pk]), [(gate.pk, status) for status in statuses], now=NOW)


def counts(gate: Gate) -> tuple[int, int]:
    gate.refresh_from_db()
    return gate.waiting, gate.in_flight


def admit(schedule: Schedule) -> gates.Admission:
    found = gates.overlap_gates([schedule])
    admission = gates.admit_overlap(schedule, found.get(schedule.pk))
    gates.save_counts(found.values())
    return admission


def test_an_ordered_gate_releases_the_oldest_whatever_its_priority() -> None:
    gate = make_gate(limit=1, in_flight=1, waiting=2, ordered=True)
    first, second = waiting(gate, priority=1), waiting(gate, priority=10)

    end(gate, TaskStatus.COMPLETED)

    first.refresh_from_db()
    second.refresh_from_db()
    assert (first.status, second.status) == (TaskStatus.QUEUED, TaskStatus.BLOCKED)


def test_a_released_task_that_is_due_later_is_scheduled() -> None:
    gate = make_gate(limit=1, in_flight=1, waiting=1)
    task = waiting(gate, due_at=NOW + timedelta(minutes=1))

    end(gate, TaskStatus.COMPLETED)

    task.refresh_from_db()
    assert task.status == TaskStatus.SCHEDULED


def test_a_closed_gate_releases_nothing() -> None:
    gate = make_gate(closed=True, waiting=1, in_flight=1)
    waiting(gate)

    end(gate, TaskStatus.COMPLETED)

    assert counts(gate) == (1, 0)


def test_a_gate_without_a_limit_releases_all() -> None:
    gate = make_gate(in_flight=1, waiting=3)
    for _ in range(3):
        waiting(gate)

    end(gate, TaskStatus.COMPLETED)

    assert counts(gate) == (0, 3)


def test_a_failure_cancels_the_waiting_where_the_rule_says_so() -> None:
    gate = make_gate(limit=1, in_flight=1, waiting=2, on_failure=FailureRule.CANCEL_WAITING)
    tasks = [waiting(gate), waiting(gate)]

    cancelled = end(gate, TaskStatus.FAILED)

    gate.refresh_from_db()
    assert sorted(cancelled) == sorted(task.task_id for task in tasks)
    assert (gate.waiting, gate.in_flight, gate.failed, gate.cancelled) == (0, 0, 1, 2)
    assert set(Task.objects.values_list("status", flat=True)) == {TaskStatus.CANCELLED}


def test_every_end_is_counted_by_its_kind() -> None:
    gate = make_gate(in_flight=4)

    end(gate, TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.SKIPPED, TaskStatus.CANCELLED)

    gate.refresh_from_db()
    assert (gate.in_flight, gate.completed, gate.failed, gate.skipped, gate.cancelled) == (0, 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("policy", "second", "third"),
    [
        (OverlapPolicy.ALLOW, TaskStatus.QUEUED, TaskStatus.QUEUED),
        (OverlapPolicy.SKIP, None, None),
        (OverlapPolicy.QUEUE_ONE, TaskStatus.BLOCKED, None),
        (OverlapPolicy.CANCEL_RUNNING, TaskStatus.BLOCKED, TaskStatus.BLOCKED),
    ],
)
def test_overlap_policies(policy: OverlapPolicy, second: TaskStatus | None, third: TaskStatus | None) -> None:
    schedule = make_schedule(overlap_policy=policy)

    admitted = [admit(schedule).status for _ in range(3)]

    assert admitted == [TaskStatus.QUEUED, second, third]


def test_runs_that_are_active_when_a_schedule_first_needs_its_gate_become_members() -> None:
    schedule = make_schedule(overlap_policy=OverlapPolicy.SKIP)
    task = make_task(schedule=schedule, status=TaskStatus.EXECUTING)

    admission = admit(schedule)

    task.refresh_from_db()
    assert admission.status is None
    assert task.gate == Gate.objects.get(kind=GateKind.OVERLAP, key=str(schedule.pk))


def test_the_sweep_releases_what_waits_for_nothing() -> None:
    gate = make_gate(limit=1, waiting=1)
    waiting(gate)

    gates.sweep(now=NOW)

    assert counts(gate) == (0, 1)


def test_the_sweep_mends_counts_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    gate = make_gate(limit=1, in_flight=1, waiting=1)
    task = waiting(gate)

    with caplog.at_level(logging.ERROR):
        gates.sweep(now=NOW)

    task.refresh_from_db()
    assert task.status == TaskStatus.QUEUED
    assert counts(gate) == (0, 1)
    assert "Gate counts mended" in caplog.text


def test_the_sweep_goes_round_in_bounded_steps() -> None:
    busy = [make_gate(in_flight=1) for _ in range(3)]
    for gate in busy:
        make_task(gate=gate)

    assert gates.sweep(now=NOW, limit=2) == busy[1].pk
    assert gates.sweep(now=NOW, after=busy[1].pk, limit=2) == 0


def test_runs_that_were_allowed_to_overlap_become_members_when_they_no_longer_may() -> None:
    schedule = make_schedule(overlap_policy=OverlapPolicy.SKIP)
    admit(schedule)  # the gate exists already
    gate = Gate.objects.get()
    gates.settled(gates.lock([gate.pk]), [(gate.pk, TaskStatus.COMPLETED)], now=NOW)
    schedules.update(schedule, {"overlap_policy": OverlapPolicy.ALLOW}, "me", now=NOW)
    task = make_task(schedule=schedule, status=TaskStatus.EXECUTING)

    schedule = schedules.update(schedule, {"overlap_policy": OverlapPolicy.SKIP}, "me", now=NOW)

    task.refresh_from_db()
    assert (task.gate_id, counts(gate)) == (gate.pk, (0, 1))
    assert admit(schedule).status is None


def test_the_members_in_flight_are_found_without_reading_those_that_have_ended() -> None:
    gate = make_gate()
    for status in TaskStatus:
        make_task(status=status, gate=gate, **({"blocked_on": gate} if status == TaskStatus.BLOCKED else {}))
    parked = make_task(status=TaskStatus.BLOCKED, gate=gate, blocked_on=make_gate(kind=GateKind.BREAKER))

    members = gates.in_flight(gate)

    assert {task.status for task in members} == set(ACTIVE)
    assert [task for task in members if task.status == TaskStatus.BLOCKED] == [parked]
    if not ON_POSTGRESQL:  # which chooses by statistics
        assert "task_in_flight" in members.explain()
        assert "task_waiters" in Task.objects.filter(blocked_on=gate, status=TaskStatus.BLOCKED).explain()


@pytest.mark.django_db(transaction=True)
@only_postgresql
def test_an_earlier_run_that_is_given_back_at_this_moment_is_ended_all_the_same(rival: Rival) -> None:
    schedule = make_schedule()
    gate = make_gate(limit=1, in_flight=1, waiting=1)
    task = make_task(gate=gate)
    with transaction.atomic():
        held = claims.claim(owner="me", now=NOW, window=1, choose=len)
    given: list[Future[int]] = []

    def at_the_second_update(execute: Any, sql: str, *rest: Any) -> Any:
        if sql.startswith("UPDATE") and '"control"' in sql and not given:
            given.append(rival.start(claims.give_back, held))
            time.sleep(0.3)
        return execute(sql, *rest)

    with connection.execute_wrapper(at_the_second_update), transaction.atomic():
        queue.end_earlier_runs(schedule, gate.pk, keep="newer", now=NOW)

    given[0].result(5)
    task.refresh_from_db()
    assert (task.status, task.control) == (TaskStatus.QUEUED, "cancel")  # which the next claim keeps


# --- gates of batches -------------------------------------------------------------------------------------------


def batch_gate(**fields: Any) -> Gate:
    return make_gate(kind=GateKind.BATCH, **fields)


def test_a_spent_gate_releases_nothing_until_one_of_its_tasks_is_retried() -> None:
    gate = batch_gate(limit=1, in_flight=1, waiting=1, spent=True)
    waiting(gate)
    locked = gates.lock([gate.pk])[gate.pk]
    assert gates.release(locked, now=NOW) == 0

    gates.replace(locked, [], 0)

    assert (locked.spent, locked.reopened) == (False, True)


def test_a_failure_under_a_rule_that_ends_running_ones_asks_them_but_those_that_a_person_ends() -> None:
    gate = batch_gate(in_flight=3, on_failure=FailureRule.CANCEL_RUNNING)
    runs, skipped = (
        make_task(gate=gate, status=TaskStatus.EXECUTING, control=control, control_reason="")
        for control in ("", "skip")
    )

    end(gate, TaskStatus.FAILED)

    for task, control in ((runs, "cancel"), (skipped, "skip")):
        task.refresh_from_db()
        assert task.control == control


def test_what_comes_back_to_a_limited_gate_makes_room_for_what_is_due() -> None:
    gate = batch_gate(limit=1, in_flight=1, waiting=1)
    back = make_task(gate=gate, status=TaskStatus.SCHEDULED, due_at=NOW + timedelta(minutes=1))
    following = waiting(gate)

    gates.settled(gates.lock([gate.pk]), [], again=[(gate.pk, back.pk)], now=NOW)

    back.refresh_from_db()
    following.refresh_from_db()
    assert (back.status, back.blocked_on_id, following.status) == (TaskStatus.BLOCKED, gate.pk, TaskStatus.QUEUED)
    assert counts(gate) == (1, 1)


def test_a_closed_gate_takes_back_all_but_what_runs_or_a_person_has_paused() -> None:
    gate = batch_gate(in_flight=5)
    door = make_gate(kind=GateKind.BREAKER, closed=True)
    for status in (TaskStatus.QUEUED, TaskStatus.SCHEDULED, TaskStatus.EXECUTING, TaskStatus.PAUSED):
        make_task(gate=gate, status=status)
    make_task(gate=gate, status=TaskStatus.BLOCKED, blocked_on=door)
    locked = gates.lock([gate.pk])[gate.pk]

    assert gates.pull_back(locked) == 3

    assert (locked.waiting, locked.in_flight) == (3, 2)
    assert Task.objects.filter(blocked_on=gate).count() == 3


def test_what_workers_count_side_by_side_is_added_by_whoever_locks_the_gate() -> None:
    gate = batch_gate(in_flight=4)
    for worker in ("a", "b"):
        gates.settled_sharing(gates.share([gate.pk]), [(gate.pk, TaskStatus.COMPLETED)], worker=worker)
    gates.settled_sharing(gates.share([gate.pk]), [(gate.pk, TaskStatus.FAILED)], worker="a")
    assert counts(gate) == (0, 4)
    shown = Gate.objects.get(pk=gate.pk)
    gates.with_tallies([shown])
    assert (shown.in_flight, shown.completed, shown.failed) == (1, 2, 1)

    locked = gates.lock([gate.pk])[gate.pk]

    assert (locked.in_flight, locked.completed, locked.failed) == (1, 2, 1)
    assert counts(gate) == (0, 1)
    assert not gate.tallies.exists()


def test_what_comes_back_to_a_closed_gate_that_is_shared_waits_behind_it() -> None:
    gate = batch_gate(in_flight=1, closed=True)
    back = make_task(gate=gate)

    gates.settled_sharing(gates.share([gate.pk]), [], again=[(gate.pk, back.pk)], worker="a")

    back.refresh_from_db()
    locked = gates.lock([gate.pk])[gate.pk]
    assert (back.status, locked.waiting, locked.in_flight) == (TaskStatus.BLOCKED, 1, 0)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"limit": 3}, id="limit"),
        pytest.param({"ordered": True}, id="order"),
        pytest.param({"on_failure": FailureRule.CANCEL_WAITING}, id="rule"),
    ],
)
def test_a_gate_on_which_an_end_has_consequences_is_not_shared(fields: dict[str, Any]) -> None:
    gate = batch_gate(**fields)

    assert not gates.may_bundle(gate)
    assert gates.share([gate.pk]) == {}


@pytest.mark.django_db(transaction=True)
@only_postgresql
def test_those_who_share_a_gate_exclude_only_whoever_locks_it(rival: Rival) -> None:
    gate = batch_gate(in_flight=1)

    def shared() -> None:
        with transaction.atomic():
            gates.share([gate.pk])

    def locked() -> int:
        with transaction.atomic():
            return gates.lock([gate.pk])[gate.pk].completed

    with transaction.atomic():
        held = gates.share([gate.pk])
        rival.do(shared)
        waits = rival.start(locked)
        time.sleep(0.2)
        assert not waits.done()
        gates.settled_sharing(held, [(gate.pk, TaskStatus.COMPLETED)], worker="a")

    assert waits.result(10) == 1


@pytest.mark.django_db(transaction=True)
@only_postgresql
def test_a_task_that_is_claimed_while_a_failure_ends_its_gate_is_asked_to_end_too(rival: Rival) -> None:
    gate = batch_gate(in_flight=2, on_failure=FailureRule.CANCEL_RUNNING)
    make_task(gate=gate, status=TaskStatus.EXECUTING)
    queued = make_task(gate=gate)
    taken: list[int] = []

    def claim() -> int:
        with transaction.atomic():
            return len(claims.claim(owner="other", now=NOW, window=1, choose=len))

    def before_what_is_idle_ends(execute: Any, sql: str, *rest: Any) -> Any:
        if "status = 'cancelled'" in sql and not taken:
            taken.append(rival.do(claim))
        return execute(sql, *rest)

    with connection.execute_wrapper(before_what_is_idle_ends), transaction.atomic():
        gates.settled(gates.lock([gate.pk]), [(gate.pk, TaskStatus.FAILED)], now=NOW)

    queued.refresh_from_db()
    assert (queued.status, queued.control) == (TaskStatus.EXECUTING, "cancel")
