"""Moving one task by hand: what each state allows, what it refuses and why, and what it does to the gates' counts."""

from collections.abc import Callable, Iterable
from datetime import timedelta

import pytest
from django.db import connection, transaction

from scheduling import claims, gates, steering
from scheduling.models import Control, FailureRule, Gate, Task, TaskStatus
from scheduling.steering import Impossible, Locked
from tests.databases import Rival, only_postgresql
from tests.factories import NOW, make_gate, make_task

pytestmark = pytest.mark.django_db

LATER = NOW + timedelta(minutes=1)
FINAL = (TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.SKIPPED, TaskStatus.CANCELLED)


def locked(task: Task) -> Locked:
    found = steering.lock(task.pk)
    assert found is not None
    return found


def test_what_is_gone_is_not_locked() -> None:
    assert steering.lock(1) is None


@pytest.mark.parametrize("status", [TaskStatus.QUEUED, TaskStatus.SCHEDULED])
def test_a_paused_task_is_not_claimed_until_it_is_resumed(status: TaskStatus) -> None:
    task = make_task(status=status)

    steering.pause(locked(task), now=NOW)

    task.refresh_from_db()
    assert (task.status, task.paused_at) == (TaskStatus.PAUSED, NOW)
    assert not claims.is_waiting()
    assert not claims.is_staging_due(now=LATER)
    steering.resume(locked(task), now=LATER)
    task.refresh_from_db()
    assert (task.status, task.paused_at) == (TaskStatus.QUEUED, None)


def test_a_resumed_task_still_waits_for_its_time() -> None:
    task = make_task(status=TaskStatus.PAUSED, due_at=LATER)

    steering.resume(locked(task), now=NOW)

    assert Task.objects.get().status == TaskStatus.SCHEDULED


def test_a_running_command_is_only_asked() -> None:
    task = make_task(status=TaskStatus.EXECUTING, handler="bash a.sh")

    steering.pause(locked(task), now=NOW)

    task.refresh_from_db()
    assert (task.status, task.control, task.paused_at) == (TaskStatus.EXECUTING, Control.PAUSE, NOW)
    steering.resume(locked(task), now=LATER)
    task.refresh_from_db()
    assert (task.control, task.paused_at, task.lease_owner) == ("", None, "worker")


@pytest.mark.parametrize("status", [TaskStatus.QUEUED, TaskStatus.EXECUTING])
def test_a_pause_that_ends_by_itself_is_overdue_then(status: TaskStatus) -> None:
    task = make_task(status=status, handler="bash a.sh")

    steering.pause(locked(task), until=LATER, now=NOW)

    task.refresh_from_db()
    assert (task.paused_at, task.paused_until) == (NOW, LATER)
    assert steering.overdue(now=LATER - timedelta(microseconds=1), limit=9) == []
    assert steering.overdue(now=LATER, limit=9) == [task]
    with pytest.raises(Impossible):
        steering.resume_overdue(locked(task), now=NOW)
    steering.resume_overdue(locked(task), now=LATER)
    task.refresh_from_db()
    assert (task.status, task.control, task.paused_at, task.paused_until) == (status, "", None, None)
    with pytest.raises(Impossible):
        steering.resume_overdue(locked(task), now=LATER)


@pytest.mark.parametrize("status", [TaskStatus.QUEUED, TaskStatus.EXECUTING])
@pytest.mark.parametrize("end", [TaskStatus.CANCELLED, TaskStatus.SKIPPED, None])
def test_whatever_ends_a_pause_ends_its_time(status: TaskStatus, end: TaskStatus | None) -> None:
    task = make_task(status=status, handler="bash a.sh")
    steering.pause(locked(task), until=LATER, now=NOW)

    if end is None:
        steering.resume(locked(task), now=NOW)
    else:
        steering.end(locked(task), end, "why", now=NOW)

    assert Task.objects.get().paused_until is None
    assert steering.overdue(now=LATER, limit=9) == []


def test_the_longest_overdue_go_first() -> None:
    tasks = [make_task(status=TaskStatus.PAUSED, paused_until=NOW - timedelta(minutes=n)) for n in range(3)]

    assert steering.overdue(now=NOW, limit=2) == [tasks[2], tasks[1]]


def test_overdue_ones_are_found_along_their_index() -> None:
    query = Task.objects.filter(paused_until__lte=NOW, status__in=("paused", "executing")).order_by("paused_until")

    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL enable_seqscan = off")
    assert "task_paused_until" in query.explain()


def test_a_python_handler_without_checkpoints_cannot_be_paused_while_it_runs() -> None:
    task = make_task(status=TaskStatus.EXECUTING, handler="python:noop")

    with pytest.raises(Impossible, match="never calls context.checkpoint"):
        steering.pause(locked(task), now=NOW)

    assert Task.objects.get().control == ""


def test_one_with_checkpoints_can() -> None:
    task = make_task(status=TaskStatus.EXECUTING, handler="python:sleep")

    steering.pause(locked(task), now=NOW)

    assert Task.objects.get().control == Control.PAUSE


def test_one_that_was_given_back_while_it_was_to_end_is_only_ended() -> None:
    task = make_task(control=Control.CANCEL, control_reason="by ana")

    with pytest.raises(Impossible, match="being ended already"):
        steering.pause(locked(task), now=NOW)

    assert "pause" not in steering.possible(task)
    steering.end(locked(task), TaskStatus.SKIPPED, "by ben", now=NOW)
    task.refresh_from_db()
    assert (task.status, task.control, task.last_error) == (TaskStatus.SKIPPED, "", "by ben")


@pytest.mark.parametrize("status", FINAL)
def test_nothing_moves_a_task_that_has_ended(status: TaskStatus) -> None:
    task = make_task(status=status)
    before = Task.objects.values().get()

    for change in (
        lambda: steering.pause(locked(task), now=LATER),
        lambda: steering.resume(locked(task), now=LATER),
        lambda: steering.end(locked(task), TaskStatus.SKIPPED, "why", now=LATER),
        lambda: steering.reprioritise(locked(task), 9),
    ):
        with pytest.raises(Impossible, match=f"has ended: {status}"):
            change()

    assert Task.objects.values().get() == before


def test_a_second_pause_is_refused() -> None:
    waiting, running = make_task(), make_task(status=TaskStatus.EXECUTING)
    for task in (waiting, running):
        steering.pause(locked(task), now=NOW)

        with pytest.raises(Impossible, match="paused already"):
            steering.pause(locked(task), now=LATER)


@pytest.mark.parametrize("status", [TaskStatus.QUEUED, TaskStatus.EXECUTING])
def test_what_is_not_paused_is_not_resumed(status: TaskStatus) -> None:
    task = make_task(status=status)

    with pytest.raises(Impossible, match="not paused"):
        steering.resume(locked(task), now=NOW)


def test_what_waits_for_its_turn_is_not_paused() -> None:
    task = make_task(status=TaskStatus.BLOCKED)

    with pytest.raises(Impossible, match="waits for its turn"):
        steering.pause(locked(task), now=NOW)


@pytest.mark.parametrize("status", [TaskStatus.QUEUED, TaskStatus.SCHEDULED, TaskStatus.PAUSED])
def test_ending_a_task_in_flight_lets_the_next_one_of_its_gate_through(status: TaskStatus) -> None:
    gate = make_gate(limit=1, in_flight=1, waiting=1)
    task = make_task(status=status, gate=gate)
    behind = make_task(status=TaskStatus.BLOCKED, gate=gate, blocked_on=gate)

    steering.end(locked(task), TaskStatus.SKIPPED, "Skipped by ana", now=LATER)

    task.refresh_from_db()
    behind.refresh_from_db()
    gate.refresh_from_db()
    assert (task.status, task.finished_at, task.last_error) == (TaskStatus.SKIPPED, LATER, "Skipped by ana")
    assert behind.status == TaskStatus.QUEUED
    assert (gate.in_flight, gate.waiting, gate.skipped) == (1, 0, 1)


def test_ending_a_waiting_task_takes_it_off_its_gate() -> None:
    gate = make_gate(limit=1, in_flight=1, waiting=1)
    task = make_task(status=TaskStatus.BLOCKED, gate=gate, blocked_on=gate)

    steering.end(locked(task), TaskStatus.CANCELLED, "why", now=LATER)

    gate.refresh_from_db()
    assert Task.objects.get().status == TaskStatus.CANCELLED
    assert (gate.in_flight, gate.waiting, gate.cancelled) == (1, 0, 1)


def test_a_cancelled_task_of_a_batch_that_fails_as_one_cancels_nobody() -> None:
    gate = make_gate(limit=1, in_flight=1, waiting=1, on_failure=FailureRule.CANCEL_WAITING)
    task = make_task(gate=gate)
    make_task(status=TaskStatus.BLOCKED, gate=gate, blocked_on=gate)

    assert steering.end(locked(task), TaskStatus.CANCELLED, "why", now=LATER) == []

    assert Task.objects.filter(status=TaskStatus.QUEUED).count() == 1


def test_ending_a_run_is_asked_of_its_worker_and_ends_a_pause() -> None:
    task = make_task(status=TaskStatus.EXECUTING, control=Control.PAUSE, paused_at=NOW)

    steering.end(locked(task), TaskStatus.CANCELLED, "Cancelled by ana", now=LATER)

    task.refresh_from_db()
    assert (task.status, task.control, task.control_reason, task.paused_at) == (
        TaskStatus.EXECUTING,
        Control.CANCEL,
        "Cancelled by ana",
        None,
    )
    for change in (
        lambda: steering.end(locked(task), TaskStatus.SKIPPED, "why", now=LATER),
        lambda: steering.pause(locked(task), now=LATER),
    ):
        with pytest.raises(Impossible, match="being ended already"):
            change()


def test_a_running_task_keeps_its_priority() -> None:
    with pytest.raises(Impossible, match="runs already"):
        steering.reprioritise(locked(make_task(status=TaskStatus.EXECUTING)), 9)


def test_priority_moves_a_task_in_the_queue() -> None:
    make_task(priority=5)
    late = make_task(priority=2)

    steering.reprioritise(locked(late), 9)

    with transaction.atomic():
        (claim,) = claims.claim(owner="w", now=LATER, window=9, choose=lambda _: 1)
    assert claim.id == late.pk


@only_postgresql
@pytest.mark.django_db(transaction=True)
def test_a_gate_that_took_the_task_in_meanwhile_is_counted(rival: Rival, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = make_gate(limit=1, in_flight=1)
    task = make_task()
    lock_gates = gates.lock
    first = True

    def overtaken(ids: Iterable[int]) -> dict[int, Gate]:
        nonlocal first
        if first:
            first = False
            rival.do(lambda: Task.objects.filter(pk=task.pk).update(gate=gate))
        return lock_gates(ids)

    monkeypatch.setattr(gates, "lock", overtaken)

    with transaction.atomic():
        steering.end(locked(task), TaskStatus.CANCELLED, "why", now=LATER)

    gate.refresh_from_db()
    assert (gate.in_flight, gate.cancelled) == (0, 1)


VERBS: dict[str, Callable[[Locked], object]] = {
    "pause": lambda held: steering.pause(held, now=NOW),
    "resume": lambda held: steering.resume(held, now=NOW),
    "skip": lambda held: steering.end(held, TaskStatus.SKIPPED, "why", now=NOW),
    "cancel": lambda held: steering.end(held, TaskStatus.CANCELLED, "why", now=NOW),
    "priority": lambda held: steering.reprioritise(held, 9),
}


@pytest.mark.parametrize("control", Control.values)
@pytest.mark.parametrize("handler", ["bash a.sh", "python:noop", "python:sleep", "python:unknown"])
@pytest.mark.parametrize("status", TaskStatus.values)
def test_what_is_said_to_be_possible_is_what_is_done(status: str, handler: str, control: str) -> None:
    asked = control if status == TaskStatus.EXECUTING or control == Control.CANCEL else ""
    task = make_task(status=TaskStatus(status), handler=handler, control=asked)

    done = []
    for verb, change in VERBS.items():
        with transaction.atomic():
            try:
                change(locked(task))
                done.append(verb)
            except Impossible:
                pass
            transaction.set_rollback(True)

    assert set(done) == set(steering.possible(task)) - {"retry"}
    assert ("retry" in steering.possible(task)) == (status in FINAL)
