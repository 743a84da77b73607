"""How far batches are, and when they will have ended."""

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from batches import progress, steering, submission
from batches.models import Batch
from batches.progress import Progress
from scheduling import claims
from scheduling.models import Node, Task
from tests.batches.running import ANA, after, claim, clock, settle, submit, work
from tests.databases import ON_POSTGRESQL
from tests.factories import NOW, make_attempt, make_task

pytestmark = pytest.mark.django_db


def estimate(batch: Batch, *, seconds: float = 0) -> float | None:
    """Return in how many seconds the batch will have ended."""
    now = after(seconds=seconds)
    row, report = progress.read(batch)
    end = progress.estimate(row, report, now=now)
    return None if end is None else (end - now).total_seconds()


def make_node(slots: int) -> Node:
    return Node.objects.create(
        node_id=f"00000000-0000-0000-0000-{slots:012}",
        hostname="here",
        started_at=NOW,
        beat_at=after(days=1),
        max_concurrent=slots,
    )


def test_everything_is_counted_in_one_statement() -> None:
    batch = submit(5, max_concurrent=3)
    settle(claim())
    held = claim(2)

    with CaptureQueriesContext(connection) as captured:
        _, report = progress.read(batch)

    assert len(captured) == 1
    assert len(held) == 2
    assert report == Progress("in_progress", 5, 1, 0, 2, 2, 0, 0)
    assert report.percent == 20


def test_what_is_claimed_in_a_bundle_and_has_not_begun_waits() -> None:
    batch = submit(5)

    claims.claim(owner="w", now=NOW, window=4, choose=len)

    _, report = progress.read(batch)
    assert (report.in_progress, report.waiting) == (1, 4)


def test_the_running_are_found_through_those_that_run() -> None:
    submit(50)

    with connection.cursor() as cursor:
        query = str(progress.with_progress(Batch.objects.all()).query)
        cursor.execute(f"EXPLAIN {'' if ON_POSTGRESQL else 'QUERY PLAN '}{query}")
        plan = str(cursor.fetchall())

    if not ON_POSTGRESQL:  # which chooses by statistics
        assert "task_leases" in plan
        assert "SCAN scheduling_task" not in plan


@pytest.mark.parametrize("status", progress.STATUSES)
def test_batches_are_found_by_their_status(status: str) -> None:
    for name in ("submitted", "in_progress", "paused", "completed"):
        batch = submission.submit([{"task_id": name, "handler": "python:noop"}], batch_id=name, by="ana", now=NOW)
        if name == "paused":
            steering.pause(batch, ANA, now=NOW)
    Task.objects.filter(task_id="completed").update(priority=9)
    Task.objects.filter(task_id="in_progress").update(priority=8)
    work(1)
    claim()
    clock()

    found = set(progress.of_status(Batch.objects.all(), status).values_list("batch_id", flat=True))

    assert found == ({status} if status in ("submitted", "in_progress", "paused", "completed") else set())
    for row in progress.with_progress(Batch.objects.filter(batch_id__in=found)):
        assert progress.progress_of(row).status == status


# --- estimates --------------------------------------------------------------------------------------------------


def test_nobody_knows_without_a_node_or_a_run_of_the_handler() -> None:
    batch = submit(4)
    assert estimate(batch) is None

    make_node(2)
    assert estimate(batch) is None


def test_at_first_the_runs_of_the_same_handlers_say_it() -> None:
    make_node(2)
    for _ in range(3):
        make_attempt(make_task(handler="python:noop", status="completed"), duration_ms=3000)
    make_attempt(make_task(handler="python:other", status="completed"), duration_ms=90_000)

    assert estimate(submit(4)) == 6.0


def test_what_runs_at_once_is_limited_by_the_batch() -> None:
    make_node(8)
    make_attempt(make_task(handler="python:noop", status="completed"), duration_ms=1000)

    assert estimate(submit(6, max_concurrent=3)) == 2.0


def test_later_its_own_pace_says_it() -> None:
    make_node(1)
    batch = submit(100)
    settle(claim())
    clock()
    for number in range(1, 40):
        work(1, now=after(seconds=number))

    assert estimate(batch, seconds=40) == pytest.approx(60, rel=0.05)


def test_a_pause_is_no_pace() -> None:
    make_node(1)
    batch = submit(100)
    settle(claim())
    clock()
    for number in range(1, 30):
        work(1, now=after(seconds=number))
    steering.pause(batch, ANA, now=after(seconds=30))
    assert estimate(batch, seconds=31) is None
    steering.resume(batch, ANA, now=after(hours=1))
    for number in range(30):
        work(1, now=after(hours=1, seconds=number))

    assert estimate(batch, seconds=3600 + 30) == pytest.approx(40, rel=0.05)


def test_what_is_due_later_is_waited_for() -> None:
    make_node(1)
    make_attempt(make_task(handler="python:noop", status="completed"), duration_ms=1000)
    batch = submission.submit(
        [{"handler": "python:noop", "delay_until": (NOW + timedelta(hours=2)).isoformat()}], by="ana", now=NOW
    )

    assert estimate(batch) == 7200


def test_there_is_none_for_what_is_open_or_has_ended() -> None:
    make_node(1)
    make_attempt(make_task(handler="python:noop", status="completed"), duration_ms=1000)
    batch = submit(1, is_open=True)
    assert estimate(batch) is None
    submission.close(batch, by="ana", now=NOW)
    assert estimate(batch) == 1.0
    work(1)
    assert estimate(batch) is None
