"""The intervention endpoints: answers as designed, refusals with their reason, the history."""

from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from recovery import interventions
from recovery.records import By
from scheduling.models import Task, TaskStatus
from tests.factories import NOW, make_schedule, make_task

pytestmark = pytest.mark.django_db
MOMENT = "2026-03-04T05:06:07.890+00:00"


@pytest.fixture(autouse=True)
def _at_a_fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recovery.api.views.database_now", lambda: NOW)


@pytest.fixture
def client(api_client: Callable[..., APIClient]) -> APIClient:
    return api_client("error-recovery:write")


def address(task: Task, verb: str) -> str:
    return f"/api/v2/tasks/{task.task_id}/{verb}"


@pytest.mark.parametrize(
    ("verb", "status", "answer"),
    [
        ("pause", TaskStatus.QUEUED, {"status": "paused", "paused_at": MOMENT}),
        ("resume", TaskStatus.PAUSED, {"status": "running", "resumed_at": MOMENT}),
        ("skip", TaskStatus.QUEUED, {"status": "skipped", "reason": "Manual"}),
        ("cancel", TaskStatus.EXECUTING, {"status": "cancelled", "reason": "Manual"}),
    ],
)
def test_it_answers_as_designed(client: APIClient, verb: str, status: TaskStatus, answer: dict[str, Any]) -> None:
    response = client.post(address(make_task(status=status), verb), {"reason": "Manual"}, format="json")

    assert (response.status_code, response.json()) == (202, answer)


def test_a_pause_may_end_by_itself(api_client: Callable[..., APIClient]) -> None:
    client = api_client("error-recovery:write", "scheduler:read")
    task = make_task(task_id="job")

    response = client.post(address(task, "pause"), {"until": "2026-03-04T06:07:07.890+01:00"}, format="json")

    end = "2026-03-04T05:07:07.890+00:00"
    assert response.status_code == 202
    assert response.json() == {"status": "paused", "paused_at": MOMENT, "paused_until": end}
    assert client.get("/api/v2/tasks/job").json()["paused_until"] == end
    assert client.get("/api/v2/tasks").json()["tasks"][0]["paused_until"] == end
    assert client.get(address(task, "explain")).json()["facts"]["until"] == end
    history = client.get(address(task, "intervention-history")).json()["interventions"]
    assert history[0]["after"] == {"status": "paused", "priority": 5, "until": "2026-03-04T05:07:07.890000+00:00"}


def test_an_empty_body_is_enough(client: APIClient) -> None:
    response = client.post(address(make_task(), "skip"))

    assert (response.status_code, response.json()) == (202, {"status": "skipped", "reason": None})


def test_a_retry_names_the_new_task(client: APIClient) -> None:
    task = make_task(task_id="task-1", status=TaskStatus.FAILED)

    response = client.post(
        address(task, "retry"), {"parameters": {"seconds": 2}, "retry_policy": "aggressive"}, format="json"
    )

    assert (response.status_code, response.json()) == (202, {"status": "queued", "new_task_id": "task-1-retry-1"})
    assert response["Location"] == "/api/v2/tasks/task-1-retry-1"
    made = Task.objects.get(task_id="task-1-retry-1")
    assert (made.parameters, made.retry_policy_id) == ({"seconds": 2}, "aggressive")


def test_a_priority_is_changed(client: APIClient) -> None:
    response = client.post(address(make_task(), "priority"), {"priority": 9}, format="json")

    assert (response.status_code, response.json()) == (202, {"status": "queued", "priority": 9})


@pytest.mark.parametrize(
    ("verb", "body", "field"),
    [
        ("priority", {}, "priority"),
        ("priority", {"priority": 11}, "priority"),
        ("priority", {"priority": "high"}, "priority"),
        ("pause", {"reason": 5}, "reason"),
        ("pause", {"reason": "x" * 501}, "reason"),
        ("pause", {"until": MOMENT}, "until"),
        ("pause", {"until": "tomorrow"}, "until"),
        ("resume", {"until": "2026-03-04T05:07:07Z"}, "until"),
        ("skip", {"why": "because"}, "why"),
        ("retry", {"parameters": []}, "parameters"),
        ("retry", {"retry_policy": "none-such"}, "retry_policy"),
    ],
)
def test_bad_input_is_refused_by_field(client: APIClient, verb: str, body: dict[str, Any], field: str) -> None:
    task = make_task(status=TaskStatus.FAILED if verb == "retry" else TaskStatus.QUEUED)

    response = client.post(address(task, verb), body, format="json")

    error = response.json()["error"]
    assert (response.status_code, error["code"], error["details"][0]["field"]) == (400, "INVALID_REQUEST", field)


@pytest.mark.parametrize("verb", ["pause", "resume", "skip", "cancel"])
def test_a_task_that_has_ended_is_a_conflict_with_the_reason(client: APIClient, verb: str) -> None:
    response = client.post(address(make_task(status=TaskStatus.COMPLETED), verb))

    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (409, "CONFLICT")
    assert error["message"] == "It has ended: completed"


@pytest.mark.parametrize("verb", ["pause", "resume", "skip", "cancel", "retry"])
def test_an_unknown_task_is_not_found(client: APIClient, verb: str) -> None:
    assert client.post(f"/api/v2/tasks/none-such/{verb}").status_code == 404


def test_a_schedule_s_id_means_its_latest_run(client: APIClient) -> None:
    schedule = make_schedule(task_id="backup")
    earlier = make_task(schedule=schedule)
    latest = make_task(schedule=schedule)

    client.post("/api/v2/tasks/backup/pause")

    earlier.refresh_from_db()
    latest.refresh_from_db()
    assert (earlier.status, latest.status) == (TaskStatus.QUEUED, TaskStatus.PAUSED)


@pytest.mark.parametrize("scope", ["scheduler:write", "error-recovery:read"])
def test_other_scopes_do_not_intervene(api_client: Callable[..., APIClient], scope: str) -> None:
    assert api_client(scope).post(address(make_task(), "pause")).status_code == 403


# --- the history --------------------------------------------------------------------------------------------------


def test_the_history_is_told_oldest_first(client: APIClient) -> None:
    task = make_task(task_id="task-1")
    client.post(address(task, "pause"), {"reason": "Debugging issue"}, format="json")
    client.post(address(task, "resume"))

    body = client.get(address(task, "intervention-history")).json()

    assert (body["task_id"], body["pagination"]) == ("task-1", {"page": 1, "limit": 20, "total": 2})
    assert [
        (each["timestamp"], each["action"], each["reason"], each["performed_by"]) for each in body["interventions"]
    ] == [(MOMENT, "pause", "Debugging issue", "test"), (MOMENT, "resume", None, "test")]
    assert body["interventions"][1]["before"] == {"status": "paused", "priority": 5}
    assert body["interventions"][1]["after"] == {"status": "queued", "priority": 5}


def test_the_history_costs_the_same_however_long_it_is(client: APIClient) -> None:
    task = make_task()
    client.get(address(task, "intervention-history"))
    counts = []
    for _ in range(2):
        for _ in range(5):
            interventions.pause(task, By("ana"), now=NOW)
            interventions.resume(task, By("ana"), now=NOW)
        with CaptureQueriesContext(
            connection,
        ) as queries:
            client.get(address(task, "intervention-history"))
        counts.append(len(queries))

    assert counts == [4, 4]
