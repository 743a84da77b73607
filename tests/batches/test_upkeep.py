"""What the clock does to batches: begun, ended, begun anew, forgotten; by however many clocks, once."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection

from batches import progress, steering, submission, upkeep
from batches.models import Batch
from k1node.lib import sql
from k1node.operations import jobs
from recovery import interventions
from scheduling import gates, retention
from scheduling.models import Gate, Task
from tests.batches.running import ANA, FAILED, after, claim, clock, counts, ends, settle, submit, work
from tests.databases import Rival, only_postgresql, only_sqlite
from tests.factories import NOW

pytestmark = pytest.mark.django_db


def task(name: str) -> Task:
    return Task.objects.get(task_id=name)


def test_it_starts_with_the_first_task() -> None:
    batch = submit(2)
    clock(now=after(seconds=1))
    batch.refresh_from_db()
    assert batch.started_at is None
    assert progress.read(batch)[1].status == "submitted"

    claim(now=after(seconds=5))
    assert progress.read(batch)[1].status == "in_progress"
    clock(now=after(seconds=6))

    batch.refresh_from_db()
    assert batch.started_at == after(seconds=5)


def test_a_batch_that_is_over_before_the_clock_looks_has_started_all_the_same() -> None:
    batch = submit(1)
    work(1)

    clock(now=after(seconds=6))

    batch.refresh_from_db()
    assert (batch.started_at, batch.ended_at) == (NOW, after(seconds=6))


@pytest.mark.parametrize(
    ("ran", "skipped", "options", "status", "event"),
    [
        pytest.param("cc", 0, {}, "completed", "batch.completed", id="all completed"),
        pytest.param("c", 1, {}, "completed", "batch.completed", id="one skipped"),
        pytest.param("cf", 0, {}, "completed_with_failures", "batch.completed", id="one failed"),
        pytest.param("ff", 0, {}, "failed", "batch.failed", id="nothing completed"),
        pytest.param("cf", 0, {"fail_fast": True}, "failed", "batch.failed", id="failed fast"),
    ],
)
def test_how_a_batch_ends(ran: str, skipped: int, options: dict[str, Any], status: str, event: str) -> None:
    batch = submit(2, **options)
    for each in ran:
        settle(claim(), FAILED if each == "f" else "completed")  # type: ignore[arg-type]
    if skipped:
        interventions.skip(task("t1"), ANA, now=NOW)

    assert progress.read(batch)[1].status == status  # before the clock has said so
    clock()

    assert [end["status"] for end in ends()] == [status]
    assert progress.read(batch)[1].status == status


def test_a_retry_after_the_end_is_a_new_round() -> None:
    batch = submit(2)
    work(2, FAILED)
    clock()

    interventions.retry(task("t0"), ANA, now=NOW)
    assert progress.read(batch)[1].status == "in_progress"
    clock()
    interventions.retry(task("t1"), ANA, now=NOW)
    clock()
    work(2)
    clock()

    batch.refresh_from_db()
    assert batch.round == 2
    assert [(end["round"], end["status"]) for end in ends()] == [(1, "failed"), (2, "completed")]


def test_a_retry_that_is_over_before_the_clock_looks_is_a_round_too() -> None:
    submit(1)
    work(1, FAILED)
    clock()

    interventions.retry(task("t0"), ANA, now=NOW)
    work(1)
    clock()

    assert [end["round"] for end in ends()] == [1, 2]


def test_the_end_is_told_once_whatever_is_done_again() -> None:
    submit(1)
    work(1)

    for _ in range(3):
        upkeep.tend(now=NOW)

    assert len(ends()) == 1


@pytest.mark.django_db(transaction=True)
@only_postgresql
def test_two_clocks_end_each_batch_once() -> None:
    for number in range(20):
        batch = submission.submit(
            [{"task_id": f"b{number}", "handler": "python:noop"}], batch_id=f"b{number}", by="ana", now=NOW
        )
        assert batch.total == 1
    work(20)

    def tend() -> None:
        try:
            upkeep.tend(now=NOW)
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(tend) for _ in range(4)]:
            done.result(20)

    assert sorted(end["batch_id"] for end in ends()) == sorted(f"b{number}" for number in range(20))


@pytest.mark.django_db(transaction=True)
def test_a_retry_just_before_the_end_keeps_the_batch_going(rival: Rival) -> None:
    batch = submit(1)
    work(1, FAILED)

    rival.do(interventions.retry, task("t0"), ANA, now=NOW)
    clock()

    assert ends() == []
    assert counts(batch) == {"in_flight": 1}


@pytest.mark.django_db(transaction=True)
@only_postgresql
def test_workers_who_settle_at_once_lose_no_count() -> None:
    batch = submit(40, max_concurrent=4)

    def worker() -> int:
        done = 0
        try:
            while held := claim():
                settle(held)
                done += 1
                assert Task.objects.filter(gate=batch.gate, status="executing").count() <= 4
        finally:
            connection.close()
        return done

    with ThreadPoolExecutor(4) as pool:
        done = [each.result(60) for each in [pool.submit(worker) for _ in range(4)]]

    # One may have found the queue empty while others held all four places; what is left is done here.
    assert sum(done) + len(work(40 - sum(done))) == 40
    assert counts(batch) == {"completed": 40}


@pytest.mark.django_db(transaction=True)
@only_postgresql
@pytest.mark.parametrize("verb", [steering.pause, steering.cancel])
def test_steering_beside_workers_who_settle_and_claim(verb: object) -> None:
    batch = submit(60)

    def worker() -> None:
        try:
            while held := claim(3):
                settle(held)
        finally:
            connection.close()

    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(worker) for _ in range(3)]
        verb(batch, ANA, now=NOW)  # type: ignore[operator]
        for each in running:
            each.result(60)
    clock()

    gate = sql.in_transaction(lambda: gates.lock([batch.gate_id])[batch.gate_id])
    there = list(Task.objects.values_list("status", flat=True))
    assert (gate.waiting, gate.in_flight) == (there.count("blocked"), 0)
    assert (gate.completed, gate.cancelled) == (there.count("completed"), there.count("cancelled"))
    assert gate.waiting + gate.completed + gate.cancelled == 60


def test_a_batch_is_forgotten_with_its_last_task() -> None:
    batch = submit(2)
    work(1)
    interventions.skip(task("t1"), ANA, now=NOW)
    clock()
    later = after(days=40)

    assert upkeep.prune(before=later) == 0
    retention.prune(now=later, keep_tasks=timedelta(days=30), keep_events=timedelta(days=30))
    assert upkeep.prune(before=NOW) == 0
    assert upkeep.prune(before=later) == 1

    assert not Batch.objects.exists()
    assert not Gate.objects.filter(pk=batch.gate_id).exists()


def test_many_batches_cost_a_clock_that_has_nothing_to_do_a_few_statements(
    django_assert_num_queries: object,
) -> None:
    for number in range(20):
        submission.submit([{"handler": "python:noop"}], batch_id=f"b{number}", by="ana", now=NOW)

    with django_assert_num_queries(5):  # type: ignore[operator]
        assert upkeep.tend(now=NOW) == 0
    assert jobs.tend({}, now=NOW) == 0


@only_sqlite  # PostgreSQL decides by figures, and these tables are empty
def test_the_first_start_is_looked_for_among_what_runs() -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {upkeep.STARTED}", [upkeep.MOST])
        plan = "\n".join(row[-1] for row in cursor.fetchall())

    assert "task_leases" in plan
    assert "task_gate" not in plan
