"""Retry statistics: equal to a recount of the attempts, whatever was settled."""

import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import transaction
from rest_framework.test import APIClient

from recovery import metrics
from scheduling import claims, retention, settlement
from scheduling.models import Attempt, MinuteCounter, Task, TaskStatus
from scheduling.outcomes import Action, Decision, Outcome, OutcomeKind
from scheduling.settlement import Settlement
from tests.factories import make_policy, make_task

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 3, 4, 5, 6, 40, tzinfo=UTC)


def count(minutes_ago: int, policy: str = "standard", **counts: int) -> None:
    minute = NOW.replace(second=0, microsecond=0) - timedelta(minutes=minutes_ago)
    MinuteCounter.objects.create(minute=minute, policy=policy, worker="w", **counts)


def figures(interval: str = "24h", policy: str | None = None) -> dict[str, Any]:
    found: dict[str, Any] = metrics.retry_stats(interval, policy, now=NOW)["metrics"]
    return found


def test_without_tasks_there_are_zeros_and_no_rates() -> None:
    stats = metrics.retry_stats("24h", None, now=NOW)

    nothing = {"count": 0, "success_rate": None}
    assert stats["metrics"] == {
        "total_tasks_retried": 0,
        "successful_first_attempt": 0,
        "successful_after_retry": 0,
        "failed_permanently": 0,
        "success_rate": None,
        "average_attempts": None,
        "by_policy": {"standard": nothing, "aggressive": nothing, "conservative": nothing},
    }
    assert len(stats["timeseries"]) == 24


def test_figures_add_up_over_policies_and_workers() -> None:
    count(1, completed=90, completed_after_retry=10, failed=10, failed_after_retry=4, finished_attempts=130)
    count(2, "aggressive", completed=10, completed_after_retry=5, finished_attempts=20)

    assert figures() == {
        "total_tasks_retried": 19,
        "successful_first_attempt": 85,
        "successful_after_retry": 15,
        "failed_permanently": 10,
        "success_rate": 0.9091,
        "average_attempts": 1.3636,
        "by_policy": {
            "standard": {"count": 14, "success_rate": 0.9},
            "aggressive": {"count": 5, "success_rate": 1.0},
            "conservative": {"count": 0, "success_rate": None},
        },
    }


def test_one_policy_alone() -> None:
    count(1, completed=1, finished_attempts=1)
    count(1, "aggressive", failed=1, finished_attempts=10)

    only = figures(policy="aggressive")

    assert (only["failed_permanently"], only["successful_first_attempt"]) == (1, 0)
    assert only["by_policy"] == {"aggressive": {"count": 0, "success_rate": 0.0}}


def test_a_policy_of_the_operators_own_is_told_when_it_did_something() -> None:
    count(1, "patient", completed=1, finished_attempts=1)

    assert figures()["by_policy"]["patient"] == {"count": 0, "success_rate": 1.0}


@pytest.mark.parametrize(
    ("interval", "minutes_ago", "counts"),
    [
        ("1h", 0, True),
        ("1h", 59, True),
        ("1h", 60, False),
        ("24h", 24 * 60 - 1, True),
        ("24h", 24 * 60, False),
        # It is 05:06: the 167 clock hours before this one.
        ("7d", 167 * 60 + 6, True),
        ("7d", 167 * 60 + 7, False),
    ],
)
def test_an_interval_ends_with_this_minute_and_is_as_long_as_it_says(
    interval: str, minutes_ago: int, counts: bool
) -> None:
    count(minutes_ago, completed=1, attempts=1, successes=1, finished_attempts=1)

    stats = metrics.retry_stats(interval, None, now=NOW)

    assert stats["metrics"]["successful_first_attempt"] == int(counts)
    assert sum(step["attempts"] for step in stats["timeseries"]) == int(counts)


@pytest.mark.parametrize(("interval", "steps", "last_hour"), [("1h", 12, 0), ("24h", 24, 23), ("7d", 168, 167)])
def test_the_course_is_told_in_even_steps(interval: str, steps: int, last_hour: int) -> None:
    count(0, attempts=3, successes=2)

    course = metrics.retry_stats(interval, None, now=NOW)["timeseries"]

    starts = [step["start"] for step in course]
    assert len(course) == steps
    assert {after - before for before, after in zip(starts, starts[1:], strict=False)} == {
        metrics.INTERVALS[interval].step
    }
    assert (course[-1]["hour"], course[-1]["attempts"], course[-1]["successes"]) == (last_hour, 3, 2)


def test_the_counters_equal_a_recount_of_what_was_settled() -> None:
    chance = random.Random(7)
    policies = ["standard", "aggressive", make_policy().pk]
    for _ in range(60):
        make_task(retry_policy_id=chance.choice(policies), due_at=NOW)
    for step in range(12):
        _settle_some(chance, NOW - timedelta(minutes=30 - 2 * step))
    retention.fold_counters(now=NOW)

    stats = metrics.retry_stats("1h", None, now=NOW)

    done = list(Task.objects.filter(status__in=(TaskStatus.COMPLETED, TaskStatus.FAILED)))
    completed = [task for task in done if task.status == TaskStatus.COMPLETED]
    assert stats["metrics"]["successful_first_attempt"] == sum(task.attempt == 1 for task in completed)
    assert stats["metrics"]["successful_after_retry"] == sum(task.attempt > 1 for task in completed)
    assert stats["metrics"]["failed_permanently"] == len(done) - len(completed)
    assert stats["metrics"]["total_tasks_retried"] == sum(task.attempt > 1 for task in done)
    assert stats["metrics"]["average_attempts"] == round(sum(task.attempt for task in done) / len(done), 4)
    attempts = Attempt.objects.exclude(outcome="drained")
    assert sum(each["attempts"] for each in stats["timeseries"]) == attempts.count()
    assert sum(each["successes"] for each in stats["timeseries"]) == attempts.filter(outcome="completed").count()


def _settle_some(chance: random.Random, now: datetime) -> None:
    decisions: Sequence[tuple[OutcomeKind, Decision]] = [
        (OutcomeKind.COMPLETED, Decision(Action.COMPLETE, spent=True)),
        (OutcomeKind.FAILED, Decision(Action.FAIL, spent=True)),
        (OutcomeKind.FAILED, Decision(Action.RETRY, spent=True, due_at=now)),
        (OutcomeKind.DRAINED, Decision(Action.AGAIN, spent=False)),
    ]
    with transaction.atomic():
        held = claims.claim(owner="me", now=now, window=20, choose=len)
        ends = [(claim, *chance.choice(decisions)) for claim in held]
        settlements = [Settlement(claim, Outcome(kind, now, now, 1), decision) for claim, kind, decision in ends]
        settlement.settle(settlements, worker=f"w{chance.randint(1, 3)}", shard=0, now=now)
        claims.stage(now=now)


def test_the_endpoint_answers_as_designed(api_client: Callable[..., APIClient]) -> None:
    response = api_client("error-recovery:read").get("/api/v2/metrics/retry-stats?interval=1h&policy=standard")

    body = response.json()
    assert response.status_code == 200
    assert list(body) == ["timestamp", "interval", "metrics", "timeseries"]
    assert (body["interval"], list(body["metrics"]["by_policy"])) == ("1h", ["standard"])
    assert list(body["timeseries"][0]) == ["hour", "start", "attempts", "successes"]


@pytest.mark.parametrize(
    ("query", "field"), [("interval=2h", "interval"), ("policy=none-such", "policy"), ("colour=red", "colour")]
)
def test_bad_filters_are_refused_by_name(api_client: Callable[..., APIClient], query: str, field: str) -> None:
    response = api_client("error-recovery:read").get(f"/api/v2/metrics/retry-stats?{query}")

    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "INVALID_REQUEST")
    assert error["details"][0]["field"] == field
    assert error["details"][0]["suggestion"]


def test_other_scopes_do_not_open_it(api_client: Callable[..., APIClient]) -> None:
    assert api_client("scheduler:read").get("/api/v2/metrics/retry-stats").status_code == 403


def test_it_asks_four_questions_at_the_most(
    api_client: Callable[..., APIClient], django_assert_max_num_queries: Callable[[int], Any]
) -> None:
    client = api_client("error-recovery:read")
    for minute in range(30):
        count(minute, completed=1)
    client.get("/api/v2/metrics/retry-stats")

    with django_assert_max_num_queries(4):
        client.get("/api/v2/metrics/retry-stats?interval=7d&policy=standard")
