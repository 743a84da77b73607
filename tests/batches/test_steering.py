"""What people do to batches, and to single tasks of them."""

import time
from threading import Event
from typing import Any

import pytest
from django.db import connection, transaction

from batches import progress, steering, submission, upkeep
from batches.models import Batch
from batches.steering import BatchRefuses, NothingToRetry
from batches.submission import NotOpen, Options
from k1node.lib import sql
from k1node.operations import jobs
from k1node.operations.models import Operation
from recovery import dead_letters, interventions, supervision
from recovery.models import DeadLetter
from recovery.retries import Changes
from scheduling import claims, gates, parking
from scheduling.models import Control, Gate, Task, TaskStatus
from tests.batches.running import (
    AGAIN,
    ANA,
    DRAINED,
    FAILED,
    after,
    claim,
    clock,
    counts,
    ends,
    events,
    settle,
    statuses,
    submit,
    work,
)
from tests.databases import Rival, only_postgresql, only_sqlite
from tests.factories import NOW, make_policy

pytestmark = pytest.mark.django_db


def task(name: str) -> Task:
    return Task.objects.get(task_id=name)


# --- pause and resume -------------------------------------------------------------------------------------------


def test_a_paused_batch_starts_nothing_and_what_runs_ends() -> None:
    batch = submit(4)
    held = claim()

    steering.pause(batch, ANA, now=NOW)

    assert claim() == []
    assert counts(batch) == {"waiting": 3, "in_flight": 1}
    settle(held)
    assert counts(batch) == {"waiting": 3, "completed": 1}
    assert progress.read(batch)[1].status == "paused"


def test_a_resumed_batch_goes_on_where_it_stood() -> None:
    batch = submit(3, parallel=False)
    work(1)
    steering.pause(batch, ANA, now=NOW)

    steering.resume(batch, ANA, now=NOW)

    assert counts(batch) == {"waiting": 1, "in_flight": 1, "completed": 1}
    assert work(2) == ["t1", "t2"]


def test_a_retry_that_comes_back_to_a_paused_batch_waits_in_it() -> None:
    batch = submit(2)
    held = claim()
    steering.pause(batch, ANA, now=NOW)

    settle(held, FAILED, AGAIN)

    assert counts(batch) == {"waiting": 2}
    claims.stage(now=after(hours=1))
    assert claim(now=after(hours=1)) == []
    steering.resume(batch, ANA, now=after(hours=1))
    assert len(claim(2, now=after(hours=1))) == 2


def test_what_is_given_back_to_a_paused_batch_waits_in_it() -> None:
    batch = submit(2)
    held = claim(2)
    steering.pause(batch, ANA, now=NOW)

    claims.give_back(held[:1])
    settle(held[1:], DRAINED)

    assert counts(batch) == {"waiting": 2}
    assert claim() == []


def test_what_a_dead_worker_held_of_a_paused_batch_waits_in_it() -> None:
    batch = submit(2)
    claim(2)
    steering.pause(batch, ANA, now=NOW)

    supervision.rescue_worker("w", None, supervision.Policies(), now=NOW)

    assert counts(batch) == {"waiting": 2}


def test_a_paused_task_that_is_resumed_waits_for_its_paused_batch() -> None:
    batch = submit(2)
    interventions.pause(task("t0"), ANA, now=NOW)
    steering.pause(batch, ANA, now=NOW)
    assert counts(batch) == {"waiting": 1, "in_flight": 1}

    interventions.resume(task("t0"), ANA, now=NOW)

    assert counts(batch) == {"waiting": 2}
    assert task("t0").status == TaskStatus.BLOCKED
    assert events("task.resumed")[0]["status"] == "blocked"


def test_what_is_added_to_a_paused_batch_waits() -> None:
    batch = submit(1, is_open=True)
    steering.pause(batch, ANA, now=NOW)

    submission.add(batch, [{"handler": "python:noop"}], by="ana", now=NOW)

    assert counts(batch) == {"waiting": 2}


def test_a_pause_and_a_resume_are_done_once() -> None:
    batch = submit(1)
    with pytest.raises(BatchRefuses):
        steering.resume(batch, ANA, now=NOW)
    steering.pause(batch, ANA, now=NOW)
    with pytest.raises(BatchRefuses):
        steering.pause(batch, ANA, now=NOW)


def test_a_paused_batch_without_anything_left_ends() -> None:
    batch = submit(1)
    held = claim()
    steering.pause(batch, ANA, now=NOW)
    settle(held)

    clock()

    assert ends()[0]["status"] == "completed"
    assert not Gate.objects.get(pk=batch.gate_id).closed


# --- cancel -----------------------------------------------------------------------------------------------------


def test_a_cancelled_batch_ends_what_waits_and_asks_what_runs() -> None:
    batch = submit(4, max_concurrent=2)
    held = claim()

    steering.cancel(batch, ANA, now=NOW)

    assert counts(batch) == {"in_flight": 1, "cancelled": 3}
    assert task("t0").control == Control.CANCEL
    assert len(events("task.cancelled")) == 3
    assert ends() == []
    settle(held)
    clock()
    (end,) = ends()
    assert (end["status"], end["by"], end["progress"]["cancelled"]) == ("cancelled", "ana", 4)


def test_what_comes_back_after_a_cancellation_is_cancelled() -> None:
    batch = submit(3)
    held = claim(3)
    steering.cancel(batch, ANA, now=NOW)

    claims.give_back(held[:1])
    settle(held[1:2], DRAINED)
    assert claim() == []
    clock()
    supervision.rescue_expired(supervision.Policies(), now=after(minutes=1))
    clock(now=after(minutes=1))

    assert counts(batch) == {"cancelled": 3}
    assert ends()[0]["status"] == "cancelled"


def test_a_cancelled_batch_takes_nothing_more() -> None:
    batch = submit(1, is_open=True)

    steering.cancel(batch, ANA, now=NOW)

    with pytest.raises(NotOpen):
        submission.add(batch, [{"handler": "python:noop"}], by="ana", now=NOW)
    with pytest.raises(BatchRefuses):
        steering.cancel(batch, ANA, now=NOW)
    clock()
    with pytest.raises(BatchRefuses):
        steering.pause(batch, ANA, now=NOW)


# --- single tasks -----------------------------------------------------------------------------------------------


def test_a_task_that_is_skipped_or_cancelled_lets_the_next_through() -> None:
    batch = submit(4, parallel=False)

    interventions.skip(task("t0"), ANA, now=NOW)
    interventions.cancel(task("t2"), ANA, now=NOW)

    assert statuses() == ["skipped", "queued", "cancelled", "blocked"]
    assert counts(batch) == {"waiting": 1, "in_flight": 1, "skipped": 1, "cancelled": 1}


def test_a_retry_takes_the_place_of_what_failed() -> None:
    batch = submit(2, max_concurrent=1)
    work(1, FAILED)
    assert counts(batch) == {"in_flight": 1, "failed": 1}

    made = interventions.retry(task("t0"), ANA, now=NOW)

    assert counts(batch) == {"in_flight": 1, "waiting": 1}
    assert (made.status, made.gate_id, task("t0").gate_id) == (TaskStatus.BLOCKED, batch.gate_id, None)
    work(2)
    clock()
    assert ends()[0]["progress"] == {"total": 2, "completed": 2, "failed": 0, "skipped": 0, "cancelled": 0}


def test_a_retry_of_the_original_takes_the_place_of_its_latest_retry() -> None:
    batch = submit(1)
    work(1, FAILED)
    interventions.retry(task("t0"), ANA, now=NOW)
    work(1, FAILED)

    interventions.retry(task("t0"), ANA, now=NOW)

    assert counts(batch) == {"in_flight": 1}
    assert [each.task_id for each in Task.objects.filter(gate=batch.gate)] == ["t0-retry-2"]


def test_a_resubmitted_dead_letter_takes_its_place_too() -> None:
    batch = submit(1)
    work(1, FAILED)
    clock()

    dead_letters.resubmit(DeadLetter.objects.select_related("task").get(), Changes(), ANA, now=NOW)

    assert counts(batch) == {"in_flight": 1}
    work(1)
    clock()
    assert [(end["round"], end["status"]) for end in ends()] == [(1, "failed"), (2, "completed")]


def test_a_retry_in_a_paused_batch_waits() -> None:
    batch = submit(2)
    work(1, FAILED)
    steering.pause(batch, ANA, now=NOW)

    interventions.retry(task("t0"), ANA, now=NOW)

    assert counts(batch) == {"waiting": 2}


def test_a_retry_keeps_to_the_bundles_of_its_batch() -> None:
    submit(1)
    work(1, FAILED)

    assert not interventions.retry(task("t0"), ANA, now=NOW).solo


# --- failed ones once more --------------------------------------------------------------------------------------


def test_what_has_failed_is_retried_as_a_new_round() -> None:
    batch = submit(5)
    work(2, FAILED)
    work(3)
    clock()

    job = steering.retry_failed(batch, ANA, now=NOW)

    assert progress.read(batch)[1].status == "in_progress"
    clock()
    job.refresh_from_db()
    assert (job.state, job.done, job.refused) == (Operation.State.COMPLETED, 2, 0)
    assert counts(batch) == {"in_flight": 2, "completed": 3}
    work(2)
    clock()
    assert [(end["round"], end["status"]) for end in ends()] == [(1, "completed_with_failures"), (2, "completed")]
    assert ends()[1]["progress"]["total"] == 5


def test_a_batch_does_not_end_before_its_retries_are_made() -> None:
    batch = submit(1)
    work(1, FAILED)
    clock()
    steering.retry_failed(batch, ANA, now=NOW)

    upkeep.tend(now=NOW)

    assert len(ends()) == 1
    with pytest.raises(BatchRefuses):
        steering.retry_failed(batch, ANA, now=NOW)


def test_a_batch_that_failed_fast_retries_what_its_rule_has_cancelled_in_order() -> None:
    batch = submit(4, parallel=False, fail_fast=True)
    interventions.cancel(task("t3"), ANA, now=NOW)
    work(1)
    work(1, FAILED)
    clock()
    assert counts(batch) == {"completed": 1, "failed": 1, "cancelled": 2}
    assert ends()[0]["status"] == "failed"

    steering.retry_failed(batch, ANA, now=NOW)
    clock()

    assert counts(batch) == {"in_flight": 1, "waiting": 1, "completed": 1, "cancelled": 1}
    assert work(2) == ["t1-retry-1", "t2-retry-1"]


def test_a_failure_among_the_retries_of_a_batch_that_fails_fast_ends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "AT_ONCE", 1)
    batch = submit(3, fail_fast=True)
    settle(claim(3), FAILED)
    clock()
    job = steering.retry_failed(batch, ANA, now=NOW)
    jobs.tend({steering.RETRY_FAILED.name: steering.RETRY_FAILED}, now=NOW)
    assert work(1, FAILED) == ["t0-retry-1"]

    clock()

    assert claim() == []
    assert counts(batch) == {"failed": 3}
    job.refresh_from_db()
    assert (job.state, job.done, job.refused) == (Operation.State.COMPLETED, 1, 2)
    assert [end["status"] for end in ends()] == ["failed", "failed"]


def test_there_must_be_something_to_retry() -> None:
    batch = submit(1)
    work(1)

    with pytest.raises(NothingToRetry):
        steering.retry_failed(batch, ANA, now=NOW)


def test_a_cancellation_ends_the_retries_too() -> None:
    batch = submit(2)
    work(2, FAILED)
    clock()
    job = steering.retry_failed(batch, ANA, now=NOW)

    steering.cancel(batch, ANA, now=NOW)
    clock()

    job.refresh_from_db()
    assert (job.state, job.said) == (Operation.State.STOPPED, "The batch was cancelled")
    assert counts(batch) == {"failed": 2}
    assert [end["status"] for end in ends()] == ["failed", "cancelled"]


@only_sqlite  # PostgreSQL decides by figures, and these tables are empty
def test_retries_read_no_other_tasks_of_batches() -> None:
    batch = submit(20)
    work(20, FAILED)
    steering.retry_failed(batch, ANA, now=NOW)
    plans: list[str] = []

    def explained(execute: Any, query: str, values: Any, *rest: Any) -> Any:
        if query.startswith("SELECT"):
            with connection.cursor() as cursor:
                cursor.cursor.execute(f"EXPLAIN QUERY PLAN {query}".replace("%s", "?"), values)
                plans.extend(row[-1] for row in cursor.cursor.fetchall())
        return execute(query, values, *rest)

    with connection.execute_wrapper(explained):
        jobs.tend({steering.RETRY_FAILED.name: steering.RETRY_FAILED}, now=NOW)

    assert any("task_origin" in plan for plan in plans)
    assert not [plan for plan in plans if "task_gate" in plan or "SCAN scheduling_task" in plan]


# --- the rule of failures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("running", ["finish", "cancel"])
def test_after_a_failure_nothing_further_starts(running: str) -> None:
    batch = submit(6, fail_fast=True, fail_fast_running=running)
    held = claim(2)
    interventions.pause(task("t5"), ANA, now=NOW)

    settle(held[:1], FAILED)

    assert claim() == []
    assert counts(batch) == {"in_flight": 1, "failed": 1, "cancelled": 4}
    assert task("t1").control == ("cancel" if running == "cancel" else "")
    assert task("t2").last_error == gates.CANCELLED_BY_RULE
    settle(held[1:])
    clock()
    (end,) = ends()
    assert end["status"] == "failed"
    assert end["progress"]["completed"] == (0 if running == "cancel" else 1)


def test_a_failure_that_is_tried_again_is_none_yet() -> None:
    batch = submit(2, fail_fast=True)

    settle(claim(), FAILED, AGAIN)

    assert counts(batch) == {"in_flight": 2}


def test_a_retry_that_comes_back_after_a_failure_is_cancelled() -> None:
    batch = submit(3, fail_fast=True)
    held = claim(2)
    settle(held[:1], FAILED)

    settle(held[1:], FAILED, AGAIN)

    assert counts(batch) == {"failed": 1, "cancelled": 2}


# --- limits -----------------------------------------------------------------------------------------------------


def test_a_backoff_holds_no_place() -> None:
    batch = submit(3, max_concurrent=1)

    settle(claim(), FAILED, AGAIN)

    assert counts(batch) == {"waiting": 2, "in_flight": 1}
    assert [each.task_id for each in claim()] == ["t1"]


def test_a_backoff_that_is_over_is_let_through_by_the_clock() -> None:
    make_policy(name="slow", max_attempts=3, first_wait_ms=60_000, jitter="none")
    batch = submission.submit(
        [{"task_id": "t0", "handler": "python:noop", "retry_policy": "slow"}],
        batch_id="b",
        options=submission.Options(max_concurrent=1),
        by="ana",
        now=NOW,
    )
    settle(claim(), FAILED, AGAIN)
    clock()
    assert counts(batch) == {"waiting": 1}

    clock(now=after(seconds=61))

    assert counts(batch) == {"in_flight": 1}
    assert len(claim(now=after(seconds=61))) == 1


def test_one_by_one_a_backoff_keeps_its_place() -> None:
    batch = submit(2, parallel=False)

    settle(claim(), FAILED, AGAIN)
    clock()

    assert counts(batch) == {"waiting": 1, "in_flight": 1}
    assert claim() == []
    clock(now=after(hours=1))
    assert [each.task_id for each in claim(now=after(hours=1))] == ["t0"]


def test_priorities_hold_between_batches() -> None:
    for name, priority in (("low", 2), ("high", 8)):
        submission.submit(
            [{"task_id": f"{name}-{n}", "handler": "python:noop", "priority": priority} for n in range(3)],
            batch_id=name,
            options=submission.Options(max_concurrent=1),
            by="ana",
            now=NOW,
        )

    assert work(6) == ["high-0", "high-1", "high-2", "low-0", "low-1", "low-2"]


def test_an_open_batch_does_not_end_before_it_is_closed() -> None:
    batch = submit(1, is_open=True)
    work(1)
    clock()
    assert ends() == []

    submission.close(batch, by="ana", now=NOW)
    clock()

    assert ends()[0]["status"] == "completed"
    assert Batch.objects.get().ended_at == NOW


# --- two at the same moment -------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
@only_postgresql
@pytest.mark.parametrize("verb", ["add", "retry"])
def test_new_tasks_do_not_get_in_each_others_way_with_an_end_that_moves_their_breaker(
    verb: str, rival: Rival, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [{"task_id": "t0", "handler": "python:noop", "circuit_breaker": "x"}]
    batch = submission.submit(
        tasks, batch_id="b", options=Options(max_concurrent=1), is_open=True, owner="key:1", by="ana", now=NOW
    )
    settle(claim(), FAILED)
    door = parking.make_doors(["x"])["x"]
    parking.set_door(door.pk, closed=True, generation=1)
    # A deadlock would be resolved and what was ended of it repeated; here it is an error.
    monkeypatch.setattr(sql, "is_retryable", lambda error: False)
    has_door = Event()

    def end_of_a_probe() -> None:
        with transaction.atomic():
            parking.set_door(door.pk, closed=False, generation=2)
            has_door.set()
            time.sleep(0.3)
            gates.lock([batch.gate_id])

    probe = rival.start(end_of_a_probe)
    assert has_door.wait(5)
    if verb == "add":
        submission.add(batch, [{**tasks[0], "task_id": "t1"}], by="ana", now=NOW)
    else:
        interventions.retry(task("t0"), ANA, now=NOW)

    probe.result(10)
    assert Task.objects.filter(gate=batch.gate_id).exclude(status=TaskStatus.FAILED).exists()
