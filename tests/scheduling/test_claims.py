"""Claims: who gets what, in which order, and for how long."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from scheduling import claims
from scheduling.claims import Claim
from scheduling.models import Task, TaskStatus
from tests.databases import Rival, only_sqlite
from tests.factories import NOW, make_task

pytestmark = pytest.mark.django_db


def take(count: int = 1, *, owner: str = "me", now: datetime = NOW) -> list[Claim]:
    with transaction.atomic():
        return claims.claim(owner=owner, now=now, window=count, choose=len)


def test_the_most_urgent_task_is_claimed_first_then_the_earliest_then_the_oldest() -> None:
    late = make_task(priority=9, due_at=NOW)
    early = make_task(priority=9, due_at=NOW - timedelta(seconds=1))
    twin = make_task(priority=9, due_at=NOW)
    urgent = make_task(priority=10, due_at=NOW)
    idle = make_task(priority=1, due_at=NOW - timedelta(days=1))

    taken = [claim.id for claim in take(5)]

    assert taken == [urgent.pk, early.pk, late.pk, twin.pk, idle.pk]


def test_a_claim_has_a_lease_an_owner_and_the_next_fence() -> None:
    task = make_task(fence=6, parameters={"a": [1, "é"]})

    (claim,) = take()

    task.refresh_from_db()
    assert (task.status, task.lease_owner, task.fence) == (TaskStatus.EXECUTING, "me", 7)
    assert task.lease_expires_at == NOW + claims.LEASE
    assert task.attempt == 0
    assert (claim.fence, claim.parameters) == (7, {"a": [1, "é"]})


def test_of_a_bundle_only_the_first_counts_as_started() -> None:
    first, second = make_task(priority=6), make_task(priority=5)

    take(2)

    first.refresh_from_db()
    second.refresh_from_db()
    assert (first.started_at, second.started_at) == (NOW, None)


def test_the_chooser_sees_the_head_of_the_queue_in_order() -> None:
    make_task(priority=2, handler="python:b")
    make_task(priority=9, handler="python:a", solo=True)
    seen: list[tuple[str, bool]] = []

    def choose(head: Sequence[tuple[str, bool]]) -> int:
        seen.extend(head)
        return 1

    with transaction.atomic():
        claims.claim(owner="me", now=NOW, window=10, choose=choose)

    assert seen == [("python:a", True), ("python:b", False)]


@pytest.mark.parametrize("status", [status for status in TaskStatus if status != TaskStatus.QUEUED])
def test_only_queued_tasks_are_claimed(status: TaskStatus) -> None:
    make_task(status=status)

    assert take() == []
    assert claims.is_waiting() is False


@pytest.mark.django_db(transaction=True)
def test_two_workers_never_get_the_same_task(rival: Rival) -> None:
    for _ in range(40):
        make_task()

    theirs = rival.start(lambda: [claim.id for _ in range(20) for claim in take(1, owner="they")])
    mine = [claim.id for _ in range(20) for claim in take(1, owner="me")]

    taken = mine + theirs.result(20)
    assert len(taken) == len(set(taken)) == 40


def test_a_renewal_extends_the_lease_and_tells_what_an_operator_wants() -> None:
    task = make_task()
    held = take()
    Task.objects.filter(pk=task.pk).update(control="cancel", control_reason="enough")

    renewed = claims.renew(held, now=NOW + timedelta(seconds=5))

    task.refresh_from_db()
    assert renewed == {task.pk: ("cancel", "enough")}
    assert task.lease_expires_at == NOW + timedelta(seconds=5) + claims.LEASE


def test_a_renewal_under_an_old_fence_matches_nothing() -> None:
    task = make_task()
    held = take()
    Task.objects.filter(pk=task.pk).update(fence=99)

    assert claims.renew(held, now=NOW) == {}
    assert claims.controls(held[0]) is None


def test_giving_back_spends_nothing_and_keeps_the_fence() -> None:
    task = make_task()
    held = take()

    count = claims.give_back(held)

    task.refresh_from_db()
    assert count == 1
    assert (task.status, task.attempt, task.fence, task.lease_owner) == (TaskStatus.QUEUED, 0, 1, "")
    assert (task.lease_expires_at, task.started_at) == (None, None)


def test_a_task_that_another_worker_has_by_now_is_not_given_back() -> None:
    make_task()
    mine = take()
    claims.give_back(mine)
    (theirs,) = take(owner="they")

    assert claims.give_back(mine) == 0
    assert set(claims.lock_held([theirs])) == {theirs.id}
    assert claims.lock_held(mine) == {}


def test_staging_moves_what_is_due_and_nothing_else() -> None:
    due = make_task(status=TaskStatus.SCHEDULED, due_at=NOW)
    later = make_task(status=TaskStatus.SCHEDULED, due_at=NOW + timedelta(milliseconds=1))

    moved = claims.stage(now=NOW)

    due.refresh_from_db()
    later.refresh_from_db()
    assert (moved, due.status, later.status) == (1, TaskStatus.QUEUED, TaskStatus.SCHEDULED)
    assert claims.is_staging_due(now=NOW) is False
    assert claims.next_staging_at() == later.due_at


def test_a_lease_that_ran_out_is_found_and_a_live_one_is_not() -> None:
    dead, alive = make_task(priority=9), make_task()
    take(owner="dead", now=NOW - timedelta(minutes=1))
    take(owner="alive")

    with transaction.atomic():
        orphans = claims.expired(now=NOW)

    assert [(orphan.claim.id, orphan.owner) for orphan in orphans] == [(dead.pk, "dead")]
    assert claims.is_any_expired(now=NOW)
    assert [orphan.claim.id for orphan in claims.held_by("alive")] == [alive.pk]


@pytest.mark.django_db(transaction=True)
def test_a_lease_renewed_at_the_last_moment_is_not_expired(rival: Rival) -> None:
    make_task()
    held = take(now=NOW - timedelta(minutes=1))
    assert claims.is_any_expired(now=NOW)

    rival.do(claims.renew, held, now=NOW)

    with transaction.atomic():
        assert claims.expired(now=NOW) == []


def test_the_queue_is_claimed_through_its_index() -> None:
    query = claims.PEEK.replace("%s", "200")

    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET LOCAL enable_seqscan = off")
            cursor.execute(f"EXPLAIN {query}")
        else:
            cursor.execute(f"EXPLAIN QUERY PLAN {query}")
        plan = " ".join(str(column) for row in cursor.fetchall() for column in row)

    assert "task_claim" in plan
    assert "Sort" not in plan and "TEMP B-TREE" not in plan


def test_a_cancellation_of_a_task_that_was_given_back_is_not_forgotten_at_the_next_claim() -> None:
    task = make_task()
    first = take()
    Task.objects.filter(pk=task.pk).update(control="cancel", control_reason="enough")
    claims.give_back(first)

    (again,) = take()

    assert claims.controls(again) == ("cancel", "enough")


@only_sqlite  # PostgreSQL chooses by statistics
def test_the_claims_of_one_worker_are_found_without_reading_the_table() -> None:
    with CaptureQueriesContext(connection) as captured:
        claims.held_by("me")
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {captured[0]['sql']}")
        plan = str(cursor.fetchall())

    assert "task_leases" in plan
