"""The rescue: which of a dead worker's tasks are lost, which go back."""

import threading
import time
from datetime import timedelta

import pytest
from django.db import connection, transaction
from pytest_django import DjangoAssertNumQueries

from recovery import supervision
from scheduling import claims, gates
from scheduling.claims import Claim
from scheduling.models import Attempt, RetryPolicy, Task, TaskStatus
from scheduling.outcomes import Action, Outcome, OutcomeKind
from tests.databases import Rival, only_postgresql
from tests.factories import NOW, make_attempt, make_gate, make_task

pytestmark = pytest.mark.django_db

LATER = NOW + timedelta(minutes=1)


def take(count: int = 1, owner: str = "dead") -> list[Claim]:
    with transaction.atomic():
        return claims.claim(owner=owner, now=NOW, window=200, choose=lambda head: min(count, len(head)))


def states() -> list[tuple[str, int, bool]]:
    return list(Task.objects.order_by("pk").values_list("status", "attempt", "solo"))


def test_only_the_task_that_really_ran_is_lost() -> None:
    for _ in range(3):
        make_task()
    bundle = take(3)

    held = supervision.rescue_worker("dead", (bundle[1].id, bundle[1].fence), supervision.Policies(), now=LATER)

    assert held == 3
    assert states() == [("queued", 0, False), ("scheduled", 1, True), ("queued", 0, False)]
    attempt = Attempt.objects.get()
    assert (attempt.task_id, attempt.outcome, attempt.exit_code) == (bundle[1].id, "lost", 137)


def test_a_worker_that_died_between_runs_loses_nothing() -> None:
    make_task()
    take()

    supervision.rescue_worker("dead", None, supervision.Policies(), now=LATER)

    assert states() == [("queued", 0, False)]
    assert not Attempt.objects.exists()


def test_the_tasks_of_other_workers_are_left_alone() -> None:
    make_task()
    (claim,) = take(owner="alive")

    held = supervision.rescue_worker("dead", (claim.id, claim.fence), supervision.Policies(), now=LATER)

    assert held == 0
    assert states() == [("executing", 0, False)]


def test_an_expired_claim_of_one_task_is_lost() -> None:
    make_task()
    take()

    count = supervision.rescue_expired(supervision.Policies(), now=LATER)

    assert count == 1
    assert states() == [("scheduled", 1, True)]
    assert Task.objects.get().due_at == LATER + timedelta(seconds=2)


def test_an_expired_bundle_goes_back_unspent_to_run_one_by_one() -> None:
    for _ in range(2):
        make_task()
    take(2)

    supervision.rescue_expired(supervision.Policies(), now=LATER)

    assert states() == [("queued", 0, True), ("queued", 0, True)]


def test_a_task_that_is_lost_for_the_last_time_fails() -> None:
    RetryPolicy.objects.filter(pk="standard").update(max_attempts=2)
    make_task(attempt=1, solo=True)
    take()

    supervision.rescue_expired(supervision.Policies(), now=LATER)

    task = Task.objects.get()
    assert (task.status, task.attempt, task.exit_code) == (TaskStatus.FAILED, 2, 137)
    assert task.last_error == "Its worker died while it ran"


def test_policies_are_read_again_when_they_are_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    policies = supervision.Policies()
    before = policies.get("standard").max_attempts
    RetryPolicy.objects.filter(pk="standard").update(max_attempts=9)
    fresh = policies.get("standard").max_attempts

    monkeypatch.setattr(supervision, "POLICIES_FRESH_SECONDS", -1.0)

    assert (before, fresh, policies.get("standard").max_attempts) == (5, 5, 9)


def test_a_policy_that_is_gone_falls_back_to_the_standard_figures() -> None:
    assert supervision.Policies().get("gone") == supervision.FALLBACK


def test_the_first_loss_of_a_gates_member_is_a_first_loss() -> None:
    make_task(gate=make_gate(limit=1, in_flight=1), solo=True)
    take()

    supervision.rescue_expired(supervision.Policies(), now=LATER)

    assert Task.objects.get().due_at == LATER + timedelta(seconds=2)


def test_the_second_loss_waits_as_the_policy_says() -> None:
    RetryPolicy.objects.filter(pk="standard").update(jitter="none")
    task = make_task()
    take()
    supervision.rescue_expired(supervision.Policies(), now=LATER)
    Task.objects.filter(pk=task.pk).update(status=TaskStatus.QUEUED)
    take()

    supervision.rescue_expired(supervision.Policies(), now=LATER + timedelta(minutes=1))

    assert Task.objects.get().due_at == LATER + timedelta(minutes=2)


@pytest.mark.django_db(transaction=True)
@only_postgresql
@pytest.mark.parametrize("by", ["lease", "worker"])
def test_a_rescue_locks_gates_before_tasks(rival: Rival, by: str) -> None:
    gate = make_gate(limit=1, in_flight=1)
    make_task()
    task = make_task(gate=gate, solo=True)
    bundle = take(2)
    if by == "lease":  # each claimed alone, so both are lost
        Task.objects.filter(pk=bundle[0].id).update(lease_owner="another")
    inside, waiting = threading.Event(), threading.Event()

    def end_the_gates_runs() -> None:
        with transaction.atomic():
            gates.lock([gate.pk])
            inside.set()
            assert waiting.wait(5)
            time.sleep(0.3)  # the rescue has locked what it can by now
            for pk in (bundle[0].id, task.pk):
                Task.objects.filter(pk=pk).update(control="cancel")

    rivals = rival.start(end_the_gates_runs)
    assert inside.wait(5)
    policies = supervision.Policies()
    policies.get("")
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL deadlock_timeout = '50ms'")
        waiting.set()
        count = (
            supervision.rescue_expired(policies, now=LATER)
            if by == "lease"
            else supervision.rescue_worker("dead", (task.pk, bundle[1].fence), policies, now=LATER)
        )

    rivals.result(10)
    assert count == 2


def test_the_rescue_keeps_the_deadline_of_the_policy() -> None:
    RetryPolicy.objects.filter(name="standard").update(deadline_ms=60_000)
    task = make_task()
    take()
    make_attempt(task, fence=0, started_at=NOW - timedelta(hours=1))

    supervision.rescue_expired(supervision.Policies(), now=LATER)

    task.refresh_from_db()
    assert task.status == TaskStatus.FAILED
    assert task.last_error == "Not tried again: deadline of 1 min reached. Its worker died while it ran"


def test_the_first_starts_of_a_bundle_are_read_at_once_and_only_for_a_deadline(
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    for _ in range(3):
        make_task()
    done = [(claim, Outcome(OutcomeKind.FAILED, NOW, LATER, 10, 1)) for claim in take(3)]
    policies = supervision.Policies()
    policies.read()

    with django_assert_num_queries(0):
        supervision.conclude_all(done, policies)
    RetryPolicy.objects.filter(name="standard").update(deadline_ms=1)
    policies.read()
    with django_assert_num_queries(1):
        settlements = supervision.conclude_all(done, policies)

    assert [each.decision.action for each in settlements] == [Action.FAIL] * 3


def test_the_deadline_counts_from_the_first_attempt_that_was_settled() -> None:
    RetryPolicy.objects.filter(name="standard").update(deadline_ms=7_200_000, jitter="none")
    make_task()
    policies, last = supervision.Policies(), NOW + timedelta(hours=2)

    for started, ended in ((NOW, LATER), (last - timedelta(minutes=2), last)):
        Task.objects.update(status=TaskStatus.QUEUED, due_at=NOW)
        done = [(claim, Outcome(OutcomeKind.FAILED, started, ended, 10, 1, "No route")) for claim in take()]
        with transaction.atomic():
            supervision.settle(supervision.conclude_all(done, policies), worker="w", shard=0, now=ended)

    task = Task.objects.get()
    assert (task.status, task.attempt) == ("failed", 2)
    assert task.last_error == "Not tried again: deadline of 2 h reached. No route"
    assert list(Attempt.objects.order_by("fence").values_list("decision", "error")) == [
        ("retry", "No route"),
        ("fail", task.last_error),
    ]
