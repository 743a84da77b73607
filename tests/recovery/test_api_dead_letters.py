"""The dead letter queue over HTTP."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from recovery import dead_letters
from recovery.models import DeadLetter
from recovery.records import By
from recovery.retries import Changes
from scheduling.models import OverlapPolicy, Task, TaskStatus
from tests.factories import NOW, make_attempt, make_dead_letter, make_schedule, make_task

pytestmark = pytest.mark.django_db

DLQ = "/api/v2/queue/dlq"
MOMENT = "2026-03-04T05:06:07.890+00:00"
Status = DeadLetter.Status


@pytest.fixture
def client(api_client: Callable[..., APIClient]) -> APIClient:
    return api_client("error-recovery:write", "error-recovery:read")


def post(client: APIClient, path: str, body: dict[str, Any] | None = None) -> Any:
    return client.post(f"{DLQ}{path}", body or {}, format="json")


def failed(task_id: str, **fields: Any) -> DeadLetter:
    return make_dead_letter(make_task(task_id=task_id, status=TaskStatus.FAILED, **fields))


def test_the_list_is_as_designed(client: APIClient) -> None:
    letter = failed("task-1", parameters={"seconds": 1})

    answer = client.get(DLQ).json()

    assert answer["pagination"] == {"page": 1, "limit": 20, "total": 1, "next_cursor": None}
    assert answer["entries"] == [
        {
            "dlq_id": "dlq-task-1-1772600767890",
            "task_id": "task-1",
            "timestamp": MOMENT,
            "error_code": 3,
            "error_message": "disk full",
            "status": "pending",
            "original_parameters": {"seconds": 1},
            "last_resubmit_attempt": None,
            "manual_intervention_required": True,
            "handler": "python:sleep",
            "circuit_breaker": "",
            "fingerprint": letter.fingerprint,
            "new_task_id": None,
        }
    ]


def test_the_list_costs_the_same_for_many(client: APIClient) -> None:
    counts = []
    for _ in range(3):
        for _ in range(8):
            make_dead_letter()
        with CaptureQueriesContext(connection) as captured:
            client.get(DLQ)
        counts.append(len(captured))

    assert counts[1] == counts[2] <= 4


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, ["c", "b", "a"]),
        ({"status": "all"}, ["c", "b", "a"]),
        ({"status": "pending"}, ["a"]),
        ({"status": "archived"}, ["b"]),
        ({"status": "resubmitted"}, ["c"]),
        ({"task_id": "b"}, ["b"]),
        ({"task_id": "nightly"}, ["a"]),
        ({"handler": "python:noop"}, []),
        ({"since": "2026-03-04T05:06:08Z"}, []),
        ({"status": "pending", "until": "2026-03-04T05:06:08Z"}, ["a"]),
    ],
)
def test_filters(client: APIClient, query: dict[str, str], found: list[str]) -> None:
    failed("a", schedule=make_schedule(task_id="nightly"))
    make_dead_letter(make_task(task_id="b", status=TaskStatus.FAILED), status=Status.ARCHIVED)
    make_dead_letter(make_task(task_id="c", status=TaskStatus.FAILED), status=Status.RESUBMITTED)

    assert [entry["task_id"] for entry in client.get(DLQ, query).json()["entries"]] == found


def test_a_wrong_filter_is_named(client: APIClient) -> None:
    response = client.get(DLQ, {"status": "dead"})

    assert response.status_code == 400
    assert response.json()["error"]["details"][0]["field"] == "status"


def test_an_entry_tells_its_story(client: APIClient) -> None:
    first = failed("job", parameters={"seconds": 1})
    made = dead_letters.resubmit(first, Changes({"seconds": 2}, "aggressive"), By("ana", "again"), now=NOW)
    Task.objects.filter(pk=made.pk).update(status=TaskStatus.FAILED, finished_at=NOW)
    make_attempt(made, outcome="failed", error="disk full", exit_code=3)
    second = make_dead_letter(made, previous_dlq_id=first.dlq_id)

    told, before = (client.get(f"{DLQ}/{letter.dlq_id}").json() for letter in (second, first))

    assert [link["task_id"] for link in told["chain"]] == ["job"]
    assert [(run["outcome"], run["exit_code"], run["error"]) for run in told["attempts"]] == [
        ("failed", 3, "disk full")
    ]
    assert told["attempts"][0]["output"] == "/api/v2/tasks/job-retry-1/output?fence=1"
    assert (told["original_parameters"], told["modified_parameters"]) == ({"seconds": 2}, None)
    assert (before["modified_parameters"], before["modified_retry_policy"]) == ({"seconds": 2}, "aggressive")
    assert (before["new_task_id"], before["new_task_status"]) == ("job-retry-1", "failed")
    assert (before["resolved_by"], before["reason"], before["last_resubmit_attempt"]) == ("ana", "again", MOMENT)
    assert client.get(f"{DLQ}/dlq-none-1").status_code == 404


def test_resubmitting_is_as_designed(client: APIClient) -> None:
    letter = failed("task-1", retry_count=1)

    response = post(client, f"/{letter.dlq_id}/resubmit", {"parameters": {"seconds": 0}, "retry_policy": "standard"})

    made = Task.objects.get(task_id="task-1-retry-2")
    body = response.json()
    assert response.status_code == 202
    assert response["Location"] == "/api/v2/tasks/task-1-retry-2"
    assert body.pop("estimated_execution")
    assert body == {
        "message": "Resubmission queued",
        "dlq_id": letter.dlq_id,
        "new_task_id": "task-1-retry-2",
        "status": "queued",
    }
    assert made.parameters == {"seconds": 0}


def test_an_entry_without_a_body_is_resubmitted_as_it_was_and_once(client: APIClient) -> None:
    letter = failed("task-1")

    first = client.post(f"{DLQ}/{letter.dlq_id}/resubmit")
    second = client.post(f"{DLQ}/{letter.dlq_id}/resubmit")

    assert (first.status_code, second.status_code) == (202, 409)
    assert "task-1-retry-1" in second.json()["error"]["message"]


def test_one_that_has_to_wait_says_so(client: APIClient) -> None:
    schedule = make_schedule(overlap_policy=OverlapPolicy.SKIP)
    make_task(schedule=schedule, status=TaskStatus.EXECUTING)
    letter = failed("run-1", schedule=schedule)

    body = post(client, f"/{letter.dlq_id}/resubmit").json()

    assert (body["status"], body["estimated_execution"]) == ("blocked", None)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"parameters": []}, "parameters"),
        ({"parameters": {"timeout_ms": "long"}}, "parameters.timeout_ms"),
        ({"parameters": {"seconds": "many"}}, "parameters.seconds"),
        ({"retry_policy": "none such"}, "retry_policy"),
        ({"params": {}}, "params"),
    ],
)
def test_what_cannot_be_resubmitted_so_is_named(client: APIClient, body: dict[str, Any], field: str) -> None:
    letter = failed("task-1")

    response = post(client, f"/{letter.dlq_id}/resubmit", body)

    assert response.status_code == 400
    assert response.json()["error"]["details"][0]["field"] == field
    letter.refresh_from_db()
    assert letter.status == "pending"


def test_a_batch_is_resubmitted_as_designed(client: APIClient) -> None:
    letters = [failed(f"task-{number}", retry_count=1) for number in (1, 2, 3)]

    response = post(
        client,
        "/batch-resubmit",
        {
            "dlq_ids": [letter.dlq_id for letter in letters],
            "retry_policy": "aggressive",
            "options": {"modify_parameters": {"timeout_ms": 5000}},
        },
    )

    assert response.status_code == 202
    assert response.json() == {
        "resubmitted_count": 3,
        "new_task_ids": ["task-1-retry-2", "task-2-retry-2", "task-3-retry-2"],
    }
    made = Task.objects.filter(task_id__endswith="-retry-2")
    assert {(task.timeout_ms, task.retry_policy_id) for task in made} == {(5000, "aggressive")}


def test_a_batch_with_one_that_cannot_be_leaves_all_as_they_are(client: APIClient) -> None:
    good, spent = failed("good"), make_dead_letter(status=Status.RESUBMITTED, new_task_name="x-retry-1")

    unknown = post(client, "/batch-resubmit", {"dlq_ids": [good.dlq_id, "dlq-none-1"]})
    refused = post(client, "/batch-resubmit", {"dlq_ids": [good.dlq_id, spent.dlq_id]})

    assert (unknown.status_code, refused.status_code) == (404, 409)
    assert "dlq-none-1" in unknown.json()["error"]["message"]
    assert spent.dlq_id in refused.json()["error"]["message"]
    good.refresh_from_db()
    assert good.status == "pending"


@pytest.mark.parametrize(
    ("dlq_ids", "field"),
    [
        ([], "dlq_ids"),
        (["a"] * 1001, "dlq_ids"),
        (["a", "a"], "dlq_ids[1]"),
        ("a", "dlq_ids"),
        ([1], "dlq_ids[0]"),
    ],
)
def test_a_batch_that_makes_no_sense_is_refused(client: APIClient, dlq_ids: Any, field: str) -> None:
    response = post(client, "/batch-resubmit", {"dlq_ids": dlq_ids})

    assert response.status_code == 400
    assert response.json()["error"]["details"][0]["field"] == field


def test_one_is_made_by_hand(client: APIClient) -> None:
    body = {
        "task_id": "elsewhere",
        "handler": "python:sleep",
        "parameters": {"seconds": 1},
        "error_code": 500,
        "error_message": "Service unavailable",
    }

    response = post(client, "", body)
    again = post(client, "", body)

    entry = response.json()
    assert (response.status_code, again.status_code) == (201, 409)
    assert response["Location"] == f"{DLQ}/{entry['dlq_id']}"
    assert (entry["error_code"], entry["original_parameters"], entry["created_by"]) == (500, {"seconds": 1}, "test")
    assert client.get(response["Location"]).json() == entry


@pytest.mark.parametrize("field", ["task_id", "handler", "error_code"])
def test_what_is_missing_is_named(client: APIClient, field: str) -> None:
    body = {"task_id": "a", "handler": "python:noop", "error_code": 1}
    del body[field]

    response = post(client, "", body)

    assert response.status_code == 400
    assert response.json()["error"]["details"][0]["field"] == field


def test_archived_and_back(client: APIClient) -> None:
    one, two = failed("one"), failed("two")
    both = {"dlq_ids": [one.dlq_id, two.dlq_id], "reason": "known"}

    archived = post(client, f"/{one.dlq_id}/archive", {"reason": "nobody needs it"})
    refused = post(client, "/batch-archive", both)
    back = post(client, f"/{one.dlq_id}/unarchive")
    many = post(client, "/batch-archive", both)
    resubmitted = post(client, f"/{one.dlq_id}/resubmit")
    many_back = post(client, "/batch-unarchive", both)

    assert (archived.status_code, archived.json()["status"]) == (202, "archived")
    assert archived.json()["reason"] == "nobody needs it"
    assert (refused.status_code, resubmitted.status_code) == (409, 409)
    assert (back.status_code, back.json()["status"]) == (202, "pending")
    assert many.json() == {"count": 2, "status": "archived"}
    assert many_back.json() == {"count": 2, "status": "pending"}


def test_groups(client: APIClient) -> None:
    for number in range(3):
        make_dead_letter(error_message=f"no route to 10.0.0.{number}", failed_at=NOW - timedelta(days=number))

    answer = client.get(f"{DLQ}/groups").json()

    (group,) = answer["groups"]
    assert (group["count"], group["error_line"], group["error_code"]) == (3, "no route to <address>", 3)
    assert (group["last_failed_at"], group["first_failed_at"]) == (MOMENT, "2026-03-02T05:06:07.890+00:00")
    assert answer["capped"] is False
    found = client.get(DLQ, {"fingerprint": group["fingerprint"]}).json()
    assert found["pagination"]["total"] == 3


def test_readers_read_and_writers_write(api_client: Callable[..., APIClient]) -> None:
    letter = failed("task-1")
    reader, other = api_client("error-recovery:read"), api_client("scheduler:write")

    assert reader.get(DLQ).status_code == 200
    assert post(reader, f"/{letter.dlq_id}/resubmit").status_code == 403
    assert post(reader, "/batch-archive", {"dlq_ids": [letter.dlq_id]}).status_code == 403
    assert other.get(f"{DLQ}/groups").status_code == 403
