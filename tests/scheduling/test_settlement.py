"""Settlements: what a run's end changes, all of it or nothing."""

from dataclasses import replace
from datetime import datetime, timedelta
from urllib.parse import urlsplit

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.urls import resolve
from pytest_django import Settings

from k1node.events.models import Event
from scheduling import claims, gates, settlement
from scheduling.claims import Claim
from scheduling.models import Attempt, MinuteCounter, OutputChunk, ScheduleTally, Task, TaskStatus
from scheduling.outcomes import Action, Decision, Outcome, OutcomeKind
from scheduling.output import EXCERPT_BYTES, HEAD_BYTES, STDERR, STDOUT, TAIL_BYTES, BoundedOutput, Chunk
from scheduling.settlement import Settlement
from tests.factories import NOW, make_gate, make_schedule, make_task

pytestmark = pytest.mark.django_db

END = NOW + timedelta(milliseconds=1500)
COMPLETE = Decision(Action.COMPLETE, spent=True)
FAIL = Decision(Action.FAIL, spent=True)


def take(count: int = 1) -> list[Claim]:
    with transaction.atomic():
        return claims.claim(owner="me", now=NOW, window=200, choose=lambda head: min(count, len(head)))


def ran(kind: OutcomeKind = OutcomeKind.COMPLETED, exit_code: int | None = 0, error: str = "") -> Outcome:
    return Outcome(kind, NOW, END, 1500, exit_code, error)


def settle(*settlements: Settlement, now: datetime = END) -> list[Settlement]:
    with transaction.atomic():
        return settlement.settle(settlements, worker="w-1", shard=1, now=now)


def retry_at(moment: datetime) -> Decision:
    return Decision(Action.RETRY, spent=True, due_at=moment)


def test_a_completed_run_ends_the_task_and_leaves_an_attempt_an_event_and_counters() -> None:
    task = make_task()
    (claim,) = take()

    settle(Settlement(claim, Outcome(OutcomeKind.COMPLETED, NOW, END, 1500, 0, "", {"rows": 3}), COMPLETE))

    task.refresh_from_db()
    assert (task.status, task.attempt, task.exit_code, task.duration_ms) == (TaskStatus.COMPLETED, 1, 0, 1500)
    assert (task.started_at, task.finished_at, task.lease_owner, task.lease_expires_at) == (NOW, END, "", None)
    attempt = Attempt.objects.get()
    assert (attempt.task, attempt.fence, attempt.number, attempt.outcome) == (task, 1, 1, "completed")
    assert (attempt.decision, attempt.worker, attempt.value) == ("complete", "w-1", {"rows": 3})
    event = Event.objects.get()
    assert (event.name, event.occurred_at) == ("task.completed", END)
    assert event.data == {
        "task_id": task.task_id,
        "status": "completed",
        "attempt": 1,
        "result": {"exit_code": 0, "duration_ms": 1500, "output": ""},
    }
    counter = MinuteCounter.objects.get()
    assert (counter.minute, counter.policy, counter.worker) == (END.replace(second=0, microsecond=0), "standard", "w-1")
    assert (counter.attempts, counter.successes, counter.completed, counter.failed) == (1, 1, 1, 0)


def test_a_retry_waits_for_its_time_and_counts_as_an_attempt() -> None:
    task = make_task()
    (claim,) = take()
    again = END + timedelta(seconds=30)

    settle(Settlement(claim, ran(OutcomeKind.FAILED, 3, "Exited with status 3"), retry_at(again)))

    task.refresh_from_db()
    assert (task.status, task.attempt, task.due_at) == (TaskStatus.SCHEDULED, 1, again)
    assert (task.last_error, task.finished_at, task.exit_code) == ("Exited with status 3", None, 3)
    assert Event.objects.get().name == "task.retrying"
    counter = MinuteCounter.objects.get()
    assert (counter.attempts, counter.retries, counter.completed, counter.failed) == (1, 1, 0, 0)


def test_a_retry_without_a_wait_is_queued_at_once() -> None:
    task = make_task()
    (claim,) = take()

    settle(Settlement(claim, ran(OutcomeKind.FAILED, 3, "no"), retry_at(END)))

    task.refresh_from_db()
    assert (task.status, task.due_at, task.attempt) == (TaskStatus.QUEUED, END, 1)
    assert Event.objects.get().data["status"] == "queued"


def test_counters_add_up_over_settlements_of_one_minute() -> None:
    make_task()
    make_task(attempt=2)
    first, second = take(2)

    settle(Settlement(first, ran(), COMPLETE))
    settle(Settlement(second, ran(), COMPLETE))

    counter = MinuteCounter.objects.get()
    assert (counter.attempts, counter.completed, counter.completed_after_retry) == (2, 2, 1)
    assert counter.finished_attempts == 1 + 3


@pytest.mark.parametrize(
    ("action", "status", "event"),
    [
        (Action.FAIL, TaskStatus.FAILED, "task.failed"),
        (Action.CANCEL, TaskStatus.CANCELLED, "task.cancelled"),
        (Action.SKIP, TaskStatus.SKIPPED, "task.skipped"),
    ],
)
def test_final_decisions_end_the_task(action: Action, status: TaskStatus, event: str) -> None:
    task = make_task()
    (claim,) = take()

    settle(Settlement(claim, ran(OutcomeKind.FAILED, 1), Decision(action, spent=action is Action.FAIL)))

    task.refresh_from_db()
    assert (task.status, task.finished_at) == (status, END)
    assert Event.objects.get().name == event


def test_a_drained_run_goes_back_unspent_and_uncounted() -> None:
    task = make_task()
    (claim,) = take()

    settle(Settlement(claim, ran(OutcomeKind.DRAINED, None), Decision(Action.AGAIN, spent=False)))

    task.refresh_from_db()
    assert (task.status, task.attempt, task.started_at, task.due_at) == (TaskStatus.QUEUED, 0, None, NOW)
    assert not Event.objects.exists()
    assert not MinuteCounter.objects.exists()
    assert Attempt.objects.get().outcome == "drained"


def test_a_late_result_changes_nothing() -> None:
    task = make_task()
    (claim,) = take()
    Task.objects.filter(pk=task.pk).update(fence=claim.fence + 1)

    settled = settle(Settlement(claim, ran(), COMPLETE))

    task.refresh_from_db()
    assert settled == []
    assert task.status == TaskStatus.EXECUTING
    assert not Attempt.objects.exists()
    assert not Event.objects.exists()
    assert not MinuteCounter.objects.exists()


def test_of_a_bundle_the_held_ones_are_settled_and_the_lost_one_is_left() -> None:
    lost, kept = make_task(priority=9), make_task()
    bundle = take(2)
    Task.objects.filter(pk=lost.pk).update(status=TaskStatus.QUEUED, lease_expires_at=None)

    settled = settle(*(Settlement(claim, ran(), COMPLETE) for claim in bundle))

    assert [s.claim.id for s in settled] == [kept.pk]
    assert Attempt.objects.get().task_id == kept.pk


def test_one_fence_is_settled_once() -> None:
    make_task()
    (claim,) = take()

    first = settle(Settlement(claim, ran(), COMPLETE))
    second = settle(Settlement(claim, ran(OutcomeKind.FAILED, 1), FAIL))

    assert (len(first), len(second)) == (1, 0)
    assert Attempt.objects.get().outcome == "completed"


def test_a_lost_task_runs_alone_from_now_on() -> None:
    task = make_task()
    (claim,) = take()

    settle(Settlement(claim, ran(OutcomeKind.LOST, 137), retry_at(END)))

    task.refresh_from_db()
    assert task.solo


def test_output_is_stored_with_the_settlement_and_quoted_in_the_event() -> None:
    task = make_task()
    (claim,) = take()
    output = BoundedOutput()
    output.write(STDOUT, b"hello ")
    output.write(STDERR, b"\xff\x00")
    outcome = Outcome(OutcomeKind.COMPLETED, NOW, END, 1500, 0, output=output)

    settle(Settlement(claim, outcome, COMPLETE, tuple(output.take())))

    chunks = OutputChunk.objects.order_by("position").values_list("task_id", "fence", "position", "stream", "data")
    assert [(*row[:4], bytes(row[4])) for row in chunks] == [
        (task.pk, 1, 0, "stdout", b"hello "),
        (task.pk, 1, 6, "stderr", b"\xff\x00"),
    ]
    assert Attempt.objects.get().output_bytes == 8
    assert Event.objects.get().data["result"]["output"].startswith("hello ")


@pytest.mark.parametrize("address", ["", "https://node.example"])
def test_an_event_has_the_beginning_of_long_output_and_says_where_the_rest_is(settings: Settings, address: str) -> None:
    settings.K1NODE_URL = address
    make_task(task_id="nightly")
    (claim,) = take()
    output = BoundedOutput()
    output.write(STDOUT, b"first " + b"x" * EXCERPT_BYTES)

    settle(Settlement(claim, replace(ran(), output=output), COMPLETE, tuple(output.take())))

    result = Event.objects.get().data["result"]
    assert result["output"] == "first " + "x" * (EXCERPT_BYTES - 6)
    assert (result["output_truncated"], result["output_url"]) == (True, f"{address}/api/v2/tasks/nightly/output")
    assert resolve(urlsplit(result["output_url"]).path).url_name == "task-output"


def test_stored_output_that_has_left_the_tail_is_dropped() -> None:
    make_task()
    (claim,) = take()
    early = Chunk(HEAD_BYTES, STDOUT, b"x" * 1000)
    settlement.store_output(claim, [Chunk(0, STDOUT, b"head"), early], early.end)

    total = HEAD_BYTES + 1000 + TAIL_BYTES
    settlement.store_output(claim, [Chunk(total - 10, STDOUT, b"y" * 10)], total)

    assert list(OutputChunk.objects.order_by("position").values_list("position", flat=True)) == [0, total - 10]


def test_a_schedule_s_totals_are_kept() -> None:
    schedule = make_schedule()
    for _ in range(3):
        make_task(schedule=schedule)
    one, two, three = take(3)

    settle(Settlement(one, ran(), COMPLETE), Settlement(two, ran(OutcomeKind.FAILED, 1), FAIL))
    later = Outcome(OutcomeKind.COMPLETED, END, END + timedelta(seconds=1), 1000, 0)
    settle(Settlement(three, later, COMPLETE))

    tally = ScheduleTally.objects.get()
    assert (tally.completed, tally.failed, tally.completed_ms, tally.last_started_at) == (2, 1, 2500, END)


def test_a_final_settlement_lets_the_next_task_through_its_gate() -> None:
    gate = make_gate(limit=1, in_flight=1, waiting=2)
    make_task(gate=gate)
    second = make_task(status=TaskStatus.BLOCKED, blocked_on=gate, gate=gate, priority=7)
    third = make_task(status=TaskStatus.BLOCKED, blocked_on=gate, gate=gate)
    (claim,) = take()

    settle(Settlement(claim, ran(), COMPLETE))

    gate.refresh_from_db()
    second.refresh_from_db()
    third.refresh_from_db()
    assert (gate.in_flight, gate.waiting, gate.completed) == (1, 1, 1)
    assert (second.status, second.blocked_on, third.status) == (TaskStatus.QUEUED, None, TaskStatus.BLOCKED)


def test_a_retry_keeps_its_place_behind_the_gate() -> None:
    gate = make_gate(limit=1, in_flight=1, waiting=1)
    make_task(gate=gate)
    make_task(status=TaskStatus.BLOCKED, blocked_on=gate, gate=gate)
    (claim,) = take()

    settle(Settlement(claim, ran(OutcomeKind.FAILED, 1), retry_at(END)))

    gate.refresh_from_db()
    assert (gate.in_flight, gate.waiting) == (1, 1)


def test_the_number_of_statements_does_not_grow_with_those_that_fail_and_say_why() -> None:
    for _ in range(60):
        make_task()
    bundle = take(60)

    def failed(claim: Claim) -> Settlement:
        output = BoundedOutput()
        output.write(STDERR, b"Traceback")
        outcome = Outcome(OutcomeKind.FAILED, NOW, END, 1, 1, "no", output=output)
        return Settlement(claim, outcome, retry_at(END), tuple(output.take()))

    with CaptureQueriesContext(connection) as small:
        settle(*map(failed, bundle[:10]))
    with CaptureQueriesContext(connection) as large:
        settle(*map(failed, bundle[10:]))

    assert len(large) == len(small) <= 10
    assert OutputChunk.objects.count() == 60


def test_the_number_of_statements_does_not_grow_with_the_bundle() -> None:
    for _ in range(60):
        make_task()
    bundle = take(60)

    with CaptureQueriesContext(connection) as small:
        settle(*(Settlement(claim, ran(), COMPLETE) for claim in bundle[:10]))
    with CaptureQueriesContext(connection) as large:
        settle(*(Settlement(claim, ran(), COMPLETE) for claim in bundle[10:]))

    assert len(large) == len(small) <= 10


def test_a_task_that_became_a_member_of_a_gate_while_it_ran_is_counted_at_its_end() -> None:
    schedule = make_schedule(overlap_policy="skip")
    task = make_task(schedule=schedule)
    (claim,) = take()
    gate = next(iter(gates.overlap_gates([schedule]).values()))
    adopted = gate.in_flight

    settle(Settlement(claim, ran(), COMPLETE))

    gate.refresh_from_db()
    task.refresh_from_db()
    assert (adopted, task.gate_id) == (1, gate.pk)
    assert (gate.in_flight, gate.completed) == (0, 1)


@pytest.mark.parametrize(
    ("control", "status"), [("cancel", TaskStatus.CANCELLED), ("skip", TaskStatus.SKIPPED)], ids=["cancel", "skip"]
)
@pytest.mark.parametrize(
    ("kind", "decision"),
    [
        (OutcomeKind.LOST, retry_at(END + timedelta(seconds=2))),
        (OutcomeKind.FAILED, retry_at(END + timedelta(seconds=2))),
        (OutcomeKind.DRAINED, Decision(Action.AGAIN, spent=False)),
    ],
    ids=["lost", "failed", "drained"],
)
def test_what_an_operator_asked_for_outlives_a_run_that_ends_otherwise(
    control: str, status: TaskStatus, kind: OutcomeKind, decision: Decision
) -> None:
    gate = make_gate(limit=1, in_flight=1, waiting=1)
    task = make_task(gate=gate)
    newer = make_task(status=TaskStatus.BLOCKED, blocked_on=gate, gate=gate)
    (claim,) = take()
    Task.objects.filter(pk=task.pk).update(control=control)

    settle(Settlement(claim, ran(kind, 137, "Its worker died while it ran"), decision))

    task.refresh_from_db()
    newer.refresh_from_db()
    assert (task.status, newer.status) == (status, TaskStatus.QUEUED)
    assert task.finished_at == END


def test_a_run_that_completed_before_it_heard_of_its_cancellation_has_completed() -> None:
    task = make_task()
    (claim,) = take()
    Task.objects.filter(pk=task.pk).update(control="cancel")

    settle(Settlement(claim, ran(), COMPLETE))

    task.refresh_from_db()
    assert task.status == TaskStatus.COMPLETED


def test_a_gate_that_has_miscounted_does_not_keep_a_task_from_being_settled() -> None:
    gate = make_gate(limit=1)
    task = make_task(gate=gate)
    (claim,) = take()

    settle(Settlement(claim, ran(), COMPLETE))

    task.refresh_from_db()
    gate.refresh_from_db()
    assert (task.status, gate.in_flight, gate.completed) == (TaskStatus.COMPLETED, 0, 1)
