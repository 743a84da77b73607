"""The retry budget: a share of the calls, a floor besides, and nothing lost."""

from datetime import timedelta

import pytest
from django.db import transaction
from hypothesis import given
from hypothesis import strategies as st

from recovery import breakers, supervision
from recovery.models import Breaker
from recovery.records import By
from recovery.retry_budget import CALLS, FLOOR, MOST, Budget, earned, saved, spent
from scheduling import claims
from scheduling.models import Attempt, Task
from scheduling.outcomes import Outcome, OutcomeKind
from tests.factories import NOW, make_policy, make_task

SECOND = timedelta(seconds=1)


def test_what_is_saved_up_is_spent_first_and_then_one_a_second() -> None:
    budget, dues = Budget(credit=2 * CALLS), []

    for _ in range(5):
        budget, due_at = spent(budget, NOW)
        dues.append((due_at - NOW).total_seconds())

    assert dues == [0, 0, 0, 1, 2]


def test_one_put_off_is_never_due_before_its_policy_says() -> None:
    budget = Budget(credit=0, free_at=NOW + SECOND)

    _, due_at = spent(budget, NOW + 10 * SECOND)

    assert due_at == NOW + 10 * SECOND


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=60))
def test_no_more_than_the_share_and_the_floor_however_they_come(turns: list[tuple[int, int]]) -> None:
    budget, calls, at_once = Budget(), 0, 0
    put_off = []
    for came, failed in turns:
        budget, calls = earned(budget, came), calls + came
        for _ in range(failed):
            credit = budget.credit
            budget, due_at = spent(budget, NOW)
            if budget.credit < credit:
                at_once += 1
            else:
                put_off.append(due_at)
        budget = saved(budget)

    assert at_once <= MOST + calls / CALLS
    assert all(after - before >= FLOOR for before, after in zip(put_off, put_off[1:], strict=False))
    assert 0 <= budget.credit <= CALLS * MOST


def fail(count: int, breaker: str = "api") -> None:
    """Fail so many first attempts, in one settlement."""
    for _ in range(count):
        make_task(circuit_breaker=breaker, retry_policy_id="at-once")
    settle(OutcomeKind.FAILED)


def settle(kind: OutcomeKind) -> None:
    policies = supervision.Policies()
    with transaction.atomic():
        held = claims.claim(owner="me", now=NOW, window=200, choose=len)
        done = [supervision.conclude(claim, Outcome(kind, NOW, NOW, 1, 1), policies) for claim in held]
        supervision.settle(done, worker="w", shard=0, now=NOW)


def waits() -> list[float]:
    dues = (
        Task.objects.filter(status__in=("queued", "scheduled"), attempt=1)
        .order_by("due_at")
        .values_list("due_at", flat=True)
    )
    return [(due_at - NOW).total_seconds() for due_at in dues]


@pytest.mark.django_db
def test_retries_of_what_fails_beyond_the_share_are_put_off_and_none_is_lost() -> None:
    make_policy(name="at-once", first_wait_ms=0, jitter="none")
    breakers.create("api", {"window_size": 100, "min_calls": 100}, By("ana"), now=NOW)

    fail(15)

    # Ten saved up, three that the fifteen calls have earned, and two in their turn.
    assert waits() == [0] * 13 + [0, 1]
    assert set(Task.objects.values_list("attempt", flat=True)) == {1}
    assert Attempt.objects.filter(retry_at=NOW + SECOND).count() == 1


@pytest.mark.django_db
def test_a_bundle_in_which_one_call_in_ten_fails_pays_for_all_its_retries() -> None:
    make_policy(name="at-once", first_wait_ms=0, jitter="none")
    policies = supervision.Policies()
    for _ in range(3):
        for _ in range(200):
            make_task(circuit_breaker="api", retry_policy_id="at-once")
        with transaction.atomic():
            held = claims.claim(owner="me", now=NOW, window=200, choose=len)
            kinds = [OutcomeKind.FAILED if place % 10 == 0 else OutcomeKind.COMPLETED for place in range(200)]
            ends = [Outcome(kind, NOW, NOW, 1, 1) for kind in kinds]
            done = [supervision.conclude(claim, end, policies) for claim, end in zip(held, ends, strict=True)]
            supervision.settle(done, worker="w", shard=0, now=NOW)
        Task.objects.filter(status="queued").update(status="skipped")

    assert not Task.objects.filter(due_at__gt=NOW).exists()


@pytest.mark.django_db
def test_without_a_breaker_there_is_no_budget() -> None:
    make_policy(name="at-once", first_wait_ms=0, jitter="none")

    fail(30, breaker="")

    assert waits() == [0] * 30


@pytest.mark.django_db
def test_a_breaker_without_a_failure_in_its_window_has_all_back() -> None:
    make_policy(name="at-once", first_wait_ms=0, jitter="none")
    breakers.create("api", {}, By("ana"), now=NOW)
    Breaker.objects.update(retry_credit=0, retry_free_at=NOW + 60 * SECOND, window="sss")

    fail(3)

    assert waits() == [0] * 3
