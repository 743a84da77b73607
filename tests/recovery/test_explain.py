"""Why is this task not running: the one reason that holds it."""

import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient

from recovery import breakers, explain, holds, interventions
from recovery.models import Breaker
from recovery.records import By
from scheduling.models import Control, Node, Task, TaskStatus
from tests.factories import NOW, make_gate, make_task

pytestmark = pytest.mark.django_db

MINUTE = timedelta(minutes=1)
ANA = By("ana")


def make_node(**fields: Any) -> Node:
    """Return a live node with four workers, none of them busy."""
    defaults = {
        "node_id": uuid.uuid4(),
        "hostname": "alpha",
        "started_at": NOW,
        "beat_at": NOW,
        "workers_beat_at": NOW,
        "workers": 4,
        "max_concurrent": 4,
        "max_cpu_percent": 80,
        "max_memory_percent": 85,
    }
    return Node.objects.create(**defaults | fields)


def why(task: Task) -> tuple[str, str]:
    found = explain.explain(task, now=NOW)
    assert found.reason in explain.REASONS
    return found.reason, found.message


@pytest.mark.parametrize(
    ("fields", "reason", "message"),
    [
        ({"status": "completed"}, "ended", "It has ended: completed."),
        ({"status": "executing"}, "running", "It runs."),
        (
            {"status": "executing", "started_at": None},
            "claimed",
            "A worker has it in its hands and starts it after a few short tasks.",
        ),
        (
            {"status": "executing", "control": Control.CANCEL, "control_reason": "Cancelled by ana"},
            "ending",
            "It is being ended: Cancelled by ana.",
        ),
        ({"status": "scheduled", "due_at": NOW + MINUTE}, "not_due", "It is due at 2026-03-04 05:07:07 UTC."),
        (
            {"status": "scheduled", "due_at": NOW},
            "not_due",
            "It is due now; the clock moves it to the queue within a second.",
        ),
        (
            {"status": "scheduled", "due_at": NOW + MINUTE, "attempt": 2, "last_error": "no disk"},
            "backoff",
            "Attempt 2 failed (no disk); it is tried again at 2026-03-04 05:07:07 UTC.",
        ),
        ({"status": "queued"}, "no_node", "No node is up: no clock has reported within 15 seconds."),
    ],
)
def test_a_state_says_why(fields: dict[str, Any], reason: str, message: str) -> None:
    assert why(make_task(**fields)) == (reason, message)


def test_a_paused_one_says_until_when() -> None:
    task = make_task()
    interventions.pause(task, By("ana", "disk full"), until=NOW + MINUTE, now=NOW)
    task.refresh_from_db()

    found, late = explain.explain(task, now=NOW), explain.explain(task, now=NOW + MINUTE)

    begin = "It was paused by ana until 2026-03-04 05:07:07 UTC: disk full."
    assert found.message == f"{begin} It goes on by itself then."
    assert found.facts == {"since": NOW, "until": NOW + MINUTE, "by": "ana"}
    assert late.message == f"{begin} That is over; the clock resumes it within a second."


@pytest.mark.parametrize("status", [TaskStatus.QUEUED, TaskStatus.EXECUTING])
def test_a_paused_one_names_who_paused_it_and_why(status: TaskStatus) -> None:
    task = make_task(status=status)
    interventions.pause(task, By("ben"), now=NOW - MINUTE)
    interventions.resume(task, By("ben"), now=NOW - MINUTE)
    interventions.pause(task, By("ana", "disk full"), now=NOW)
    task.refresh_from_db()

    found = explain.explain(task, now=NOW)

    assert found.message == "It was paused by ana: disk full. It goes on when somebody resumes it."
    assert (found.reason, found.facts) == ("paused", {"since": NOW, "until": None, "by": "ana"})


def test_a_blocked_one_names_what_it_waits_for() -> None:
    gate = make_gate(limit=1, in_flight=1, waiting=1)
    make_task(task_id="first", gate=gate, status=TaskStatus.EXECUTING)
    task = make_task(gate=gate, blocked_on=gate, status=TaskStatus.BLOCKED)

    assert why(task) == ("blocked", "It waits until first has ended.")


def test_a_closed_gate_is_named() -> None:
    gate = make_gate(key="all", closed=True, waiting=1)

    assert why(make_task(gate=gate, blocked_on=gate, status=TaskStatus.BLOCKED)) == (
        "blocked",
        "It waits behind a closed gate, hold all.",
    )


def test_a_gate_with_nothing_before_it_is_about_to_let_it_through() -> None:
    assert why(make_task(status=TaskStatus.BLOCKED))[1].startswith("Nothing is before it any more")


@pytest.mark.parametrize(
    ("node", "reason", "message"),
    [
        ({"beat_at": NOW - MINUTE}, "no_node", "No node is up: no clock has reported within 15 seconds."),
        ({"workers_beat_at": None}, "no_workers", "Nodes are up, but none has workers that answer."),
        ({"workers_beat_at": NOW - MINUTE}, "no_workers", "Nodes are up, but none has workers that answer."),
        ({"running": 4}, "no_worker_free", "It is next. Every worker is busy: 4 running."),
        (
            {"running": 1, "cpu_percent": 97.5},
            "resource_limit",
            "It is next. alpha is at its limits (CPU 97.5 of 80 %, memory 0 of 85 %) and runs one task at a time.",
        ),
        (
            {"running": 0, "cpu_percent": 97.5},
            "starting",
            "It is next, and a worker is free: it starts within a second.",
        ),
        (
            {"running": 1, "cpu_percent": 100, "max_cpu_percent": 100},
            "starting",
            "It is next, and a worker is free: it starts within a second.",
        ),
        ({}, "starting", "It is next, and a worker is free: it starts within a second."),
    ],
)
def test_a_queued_one_waits_for_what_the_nodes_lack(node: dict[str, Any], reason: str, message: str) -> None:
    make_node(**node)

    assert why(make_task()) == (reason, message)


def test_one_free_node_is_enough() -> None:
    make_node(running=4)
    make_node(hostname="beta")

    assert why(make_task())[0] == "starting"


def test_what_comes_first_is_counted() -> None:
    make_node(running=4)
    task = make_task(priority=5)
    make_task(priority=9)
    make_task(priority=5, due_at=NOW - MINUTE)
    make_task(priority=1)

    found = explain.explain(task, now=NOW)

    assert (found.reason, found.facts["ahead"]) == ("behind", 2)
    assert found.message == ("2 tasks of higher priority or longer due start first. Every worker is busy: 4 running.")


def test_a_single_one_is_told_as_one() -> None:
    make_node()
    make_task(priority=9)

    assert why(make_task())[1] == "1 task of higher priority or longer due starts first."


def test_far_behind_the_counting_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "MOST_AHEAD", 2)
    make_node()
    for _ in range(4):
        make_task(priority=9)

    assert why(make_task())[1] == "More than 2 tasks of higher priority or longer due start first."


# --- where it is asked --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["scheduler:read", "error-recovery:read"])
def test_the_endpoint_tells_it(
    api_client: Callable[..., APIClient], monkeypatch: pytest.MonkeyPatch, scope: str
) -> None:
    monkeypatch.setattr("recovery.api.views.database_now", lambda: NOW)
    make_task(task_id="job", status=TaskStatus.SCHEDULED, due_at=NOW + MINUTE)

    response = api_client(scope).get("/api/v2/tasks/job/explain")

    assert (response.status_code, response.json()) == (
        200,
        {
            "task_id": "job",
            "status": "scheduled",
            "reason": "not_due",
            "message": "It is due at 2026-03-04 05:07:07 UTC.",
            "facts": {"until": "2026-03-04T05:07:07.890+00:00"},
            "timestamp": "2026-03-04T05:06:07.890+00:00",
        },
    )


def test_the_endpoint_is_closed_to_others_and_knows_no_unknown_task(api_client: Callable[..., APIClient]) -> None:
    make_task(task_id="job")

    assert api_client("webhooks:read").get("/api/v2/tasks/job/explain").status_code == 403
    assert api_client("scheduler:read").get("/api/v2/tasks/none-such/explain").status_code == 404


def test_it_asks_five_questions_at_the_most(django_assert_max_num_queries: Any) -> None:
    make_node()
    gate = make_gate(waiting=1)
    made = [
        make_task(),
        make_task(status=TaskStatus.PAUSED),
        make_task(status=TaskStatus.BLOCKED, gate=gate, blocked_on=gate),
        make_task(status=TaskStatus.EXECUTING),
    ]
    for task in made:
        with django_assert_max_num_queries(5):
            explain.explain(Task.objects.get(pk=task.pk), now=NOW)


def test_the_page_of_a_task_says_it(admin_client: Client) -> None:
    waiting, ended = make_task(), make_task(status=TaskStatus.COMPLETED)

    pages = [
        admin_client.get(reverse("admin:scheduling_task_change", args=(task.pk,))).content.decode()
        for task in (waiting, ended)
    ]

    assert "No node is up" in pages[0]
    assert "No node is up" not in pages[1]
    assert "It has ended" not in pages[1]


# --- breakers and the hold --------------------------------------------------------------------------------------


OPEN_UNTIL = "is open until 2026-03-04 05:06:07 UTC: 4 of the last 5 calls failed. A few tasks try then;"


def behind_a_breaker(**fields: Any) -> Task:
    breakers.create("api", {}, ANA, now=NOW)
    Breaker.objects.update(**fields)
    return make_task(circuit_breaker="api", status=TaskStatus.BLOCKED, blocked_on=Breaker.objects.get().gate)


@pytest.mark.parametrize(
    ("fields", "reason", "part", "until"),
    [
        pytest.param(
            {"state": "OPEN", "window": "sffff", "open_until": NOW}, "breaker_open", OPEN_UNTIL, NOW, id="open"
        ),
        pytest.param(
            {"state": "OPEN", "pin": "open", "pinned_by": "ben", "pin_reason": "moving house"},
            "breaker_open",
            "held open by ben: moving house. Somebody must reset it.",
            None,
            id="held open",
        ),
        pytest.param(
            {"state": "OPEN", "pin": "open", "pinned_by": "ben", "pinned_until": NOW},
            "breaker_open",
            "held open by ben. It probes at 2026-03-04 05:06:07 UTC.",
            NOW,
            id="held open until",
        ),
        pytest.param({"state": "HALF-OPEN"}, "breaker_half_open", "a few tasks try", None, id="half-open"),
        pytest.param({}, "breaker_closing", "little by little", None, id="closing"),
    ],
)
def test_behind_a_breaker(fields: dict[str, Any], reason: str, part: str, until: datetime | None) -> None:
    task = behind_a_breaker(**fields)

    found = explain.explain(task, now=NOW)

    assert found.reason == reason
    assert part in found.message
    assert found.facts["breaker_id"] == "api"
    assert found.facts.get("until") == until


def test_queued_at_an_open_breaker_it_is_as_good_as_parked() -> None:
    behind_a_breaker()
    breakers.open_("api", ANA, now=NOW)

    assert explain.explain(make_task(circuit_breaker="api"), now=NOW).reason == "breaker_open"
    permit = Breaker.objects.get().generation
    assert explain.explain(make_task(circuit_breaker="api", permit=permit), now=NOW).reason == "no_node"


def test_held_with_everything() -> None:
    holds.hold(By("ana", "disk full"), now=NOW)

    found = explain.explain(make_task(), now=NOW)

    assert (found.reason, found.facts["by"], found.facts["until"]) == ("held", "ana", None)
    assert found.message == "Nothing starts: everything is held by ana: disk full. Somebody must release it."
