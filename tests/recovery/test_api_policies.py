"""The endpoints of retry policies: what they say, what they refuse, and what retiring one means."""

from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from recovery import policies
from recovery.models import Intervention
from recovery.records import By
from scheduling.models import RetryPolicy, Schedule, Task
from tests.factories import NOW, make_policy, make_schedule, make_task

pytestmark = pytest.mark.django_db
LIST = "/api/v2/retry-policies"
ANA = By("ana", "too eager")
GENTLE = {
    "name": "gentle",
    "max_attempts": 4,
    "first_wait_ms": 1000,
    "multiplier": 3.5,
    "cap_ms": 10_000,
    "jitter": "equal",
    "deadline_ms": 60_000,
}


@pytest.fixture
def client(api_client: Callable[..., APIClient]) -> APIClient:
    return api_client("error-recovery:admin")


def post(client: APIClient, body: dict[str, Any]) -> Any:
    return client.post(LIST, body, format="json")


def patch(client: APIClient, name: str, body: dict[str, Any]) -> Any:
    return client.patch(f"{LIST}/{name}", body, format="json")


def problem(response: Any) -> tuple[int, str, str, str]:
    (detail,) = response.json()["error"]["details"]
    return response.status_code, detail["field"], detail["message"], detail["suggestion"]


def test_the_list_has_what_a_reader_needs(client: APIClient) -> None:
    make_schedule()
    make_policy(name="old", retired=True)

    answer = client.get(LIST).json()

    assert [found["name"] for found in answer["policies"]] == ["aggressive", "conservative", "standard"]
    assert answer["policies"][2] == {
        "name": "standard",
        "max_attempts": 5,
        "first_wait_ms": 30_000,
        "multiplier": 2.0,
        "cap_ms": 900_000,
        "jitter": "full",
        "deadline_ms": None,
        "waits_ms": [30_000, 60_000, 120_000, 240_000],
        "built_in": True,
        "retired": False,
        "schedules": 1,
    }
    assert answer["pagination"] == {"page": 1, "limit": 20, "total": 3}


def test_retired_ones_are_listed_when_asked_for(client: APIClient) -> None:
    make_policy(name="old", retired=True)

    answer = client.get(LIST, {"include_retired": "true"}).json()

    assert [(found["name"], found["retired"]) for found in answer["policies"]][2] == ("old", True)


def test_the_list_costs_the_same_for_many(client: APIClient) -> None:
    client.get(LIST)  # the first use of a key is noted
    counts = []
    for _ in range(3):
        make_schedule(retry_policy=make_policy())
        with CaptureQueriesContext(connection) as captured:
            client.get(LIST)
        counts.append(len(captured))

    assert counts == [4, 4, 4]  # the key, how many, the rows, their schedules


def test_one_is_made_and_recorded(client: APIClient) -> None:
    response = post(client, GENTLE | {"reason": "for the bank"})

    assert (response.status_code, response["Location"]) == (201, f"{LIST}/gentle")
    extra = {"waits_ms": [1000, 3500, 10_000], "built_in": False, "retired": False, "schedules": 0}
    assert response.json() == GENTLE | extra
    assert client.get(f"{LIST}/gentle").json() == response.json()
    row = Intervention.objects.get()
    assert (row.action, row.policy, row.performed_by, row.reason) == ("configure", "gentle", "test", "for the bank")
    assert (row.before, row.after) == ({}, {key: value for key, value in GENTLE.items() if key != "name"})
    assert row.subject == "retry policy gentle"


def test_what_is_left_out_is_usual(client: APIClient) -> None:
    answer = post(client, {"name": "gentle"}).json()

    usual = client.get(f"{LIST}/standard").json()
    assert answer == usual | {"name": "gentle", "built_in": False}


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        pytest.param({"name": "a b"}, "name", "Is not a usable name", id="name"),
        pytest.param({"name": "a" * 65}, "name", "Must have at most 64 characters", id="long name"),
        pytest.param({"max_attempts": 0}, "max_attempts", "Must be from 1 to 100", id="attempts"),
        pytest.param({"max_attempts": 2.5}, "max_attempts", "Must be a whole number, not", id="fraction"),
        pytest.param({"first_wait_ms": -1}, "first_wait_ms", "Must be from 0 to 2592000000", id="first wait"),
        pytest.param({"cap_ms": 10**12}, "cap_ms", "Must be from 0 to 2592000000", id="cap"),
        pytest.param({"cap_ms": 999}, "cap_ms", "Must not be less than first_wait_ms", id="cap below first"),
        pytest.param({"multiplier": 0.5}, "multiplier", "Must be at least 1", id="multiplier"),
        pytest.param({"multiplier": "2"}, "multiplier", "Must be a number, not a string", id="text"),
        pytest.param({"jitter": "half"}, "jitter", "'half' is not one of the choices", id="jitter"),
        pytest.param({"deadline_ms": 10}, "deadline_ms", "Must be from 1000 to 2592000000", id="deadline"),
        pytest.param({"attempts": 3}, "attempts", "Unknown field", id="unknown"),
    ],
)
def test_what_cannot_be_is_refused(client: APIClient, body: dict[str, Any], field: str, message: str) -> None:
    response = post(client, GENTLE | body)

    (detail,) = response.json()["error"]["details"]
    assert (response.status_code, detail["field"]) == (400, field)
    assert detail["message"].startswith(message)
    assert not RetryPolicy.objects.filter(name="gentle").exists()
    assert not Intervention.objects.exists()


def test_what_is_missing_is_said(client: APIClient) -> None:
    assert problem(post(client, {}))[:3] == (400, "name", "This field is required")


def test_a_taken_name_is_refused(client: APIClient) -> None:
    post(client, GENTLE)

    response = post(client, GENTLE)

    assert problem(response) == (409, "name", "'gentle' is taken", "Choose another name")
    assert Intervention.objects.count() == 1


def test_a_retired_one_keeps_its_name(client: APIClient) -> None:
    make_policy(name="gentle", retired=True)

    suggestion = problem(post(client, GENTLE))[3]

    assert suggestion == "It is retired: restore it, or choose another name"


def test_a_change_is_recorded_with_what_it_was(client: APIClient) -> None:
    post(client, GENTLE)

    response = patch(client, "gentle", {"max_attempts": 9, "deadline_ms": None, "reason": "longer"})

    assert (response.status_code, response.json()["max_attempts"], response.json()["deadline_ms"]) == (200, 9, None)
    row = Intervention.objects.latest("pk")
    assert {key: (row.before[key], row.after[key]) for key in row.after if row.before[key] != row.after[key]} == {
        "max_attempts": (4, 9),
        "deadline_ms": (60_000, None),
    }
    assert row.reason == "longer"


def test_what_changes_nothing_is_not_recorded(client: APIClient) -> None:
    make_policy(name="gentle")

    assert patch(client, "gentle", {"max_attempts": 5}).status_code == 200
    assert patch(client, "gentle", {}).status_code == 200
    assert not Intervention.objects.exists()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"cap_ms": 1}, "cap_ms"),
        ({"first_wait_ms": 900_001}, "cap_ms"),
        ({"name": "x"}, "name"),
        ({"retired": True}, "retired"),
    ],
)
def test_a_change_that_cannot_be_is_refused(client: APIClient, body: dict[str, Any], field: str) -> None:
    before = RetryPolicy.objects.values().get(pk="standard")

    response = patch(client, "standard", body)

    assert problem(response)[:2] == (400, field)
    assert RetryPolicy.objects.values().get(pk="standard") == before
    assert not Intervention.objects.exists()


def test_a_retired_one_is_for_nothing_new_and_goes_on_for_its_tasks(api_client: Callable[..., APIClient]) -> None:
    client = api_client("error-recovery:admin", "scheduler:write")
    task = make_task(retry_policy=make_policy(name="gentle"))

    response = client.delete(f"{LIST}/gentle", {"reason": "unused"}, format="json")

    assert response.status_code == 204
    assert client.get(f"{LIST}/gentle").json()["retired"] is True
    assert "gentle" not in [found["name"] for found in client.get(LIST).json()["policies"]]
    row = Intervention.objects.get()
    assert (row.action, row.policy, row.reason) == ("delete", "gentle", "unused")
    assert (row.before, row.after) == ({"retired": False}, {"retired": True})
    task.refresh_from_db()
    assert task.retry_policy_id == "gentle"
    refusal = (
        "The retry policy 'gentle' is retired",
        "Use one of: aggressive, conservative, standard",
    )
    new = {"handler": "python:noop", "retry_policy": "gentle"}
    assert problem(client.post("/api/v2/tasks", new, format="json")) == (400, "retry_policy", *refusal)
    rule = {"task_id": "backup", "schedule_type": "cron", "schedule_expr": "* * * * *"}
    assert problem(client.post("/api/v2/scheduler/schedules", new | rule, format="json"))[2:] == refusal
    assert (Task.objects.count(), Schedule.objects.count()) == (1, 0)


def test_a_retired_one_is_restored(client: APIClient) -> None:
    make_policy(name="gentle", retired=True)

    answer = patch(client, "gentle", {"retired": False}).json()

    assert answer["retired"] is False
    row = Intervention.objects.get()
    assert (row.action, row.before["retired"], row.after["retired"]) == ("configure", True, False)


def test_one_that_a_schedule_names_stays(client: APIClient) -> None:
    policy = make_policy(name="gentle")
    for name in ("zebra", "backup"):
        make_schedule(task_id=name, retry_policy=policy)

    response = client.delete(f"{LIST}/gentle")

    assert response.status_code == 409
    assert response.json()["error"]["message"] == "The schedule 'backup' names it: give that another policy first"
    assert RetryPolicy.objects.get(pk="gentle").retired is False


@pytest.mark.parametrize("name", ["standard", "aggressive", "conservative"])
def test_built_in_ones_stay(client: APIClient, name: str) -> None:
    response = client.delete(f"{LIST}/{name}")

    assert (response.status_code, response.json()["error"]["code"]) == (409, "CONFLICT")
    assert "built in" in response.json()["error"]["message"]


def test_one_is_retired_once(client: APIClient) -> None:
    make_policy(name="gentle", retired=True)

    response = client.delete(f"{LIST}/gentle")

    assert (response.status_code, response.json()["error"]["message"]) == (409, "It is retired already")


def test_unknown_ones_are_not_found(client: APIClient) -> None:
    assert client.get(f"{LIST}/none").status_code == 404
    assert patch(client, "none", {"max_attempts": 2}).status_code == 404
    assert client.delete(f"{LIST}/none").status_code == 404


def test_who_may_only_read_changes_nothing(api_client: Callable[..., APIClient]) -> None:
    reader = api_client("error-recovery:write")

    assert reader.get(LIST).status_code == 200
    assert reader.get(f"{LIST}/standard").status_code == 200
    assert post(reader, GENTLE).status_code == 403
    assert patch(reader, "standard", {"max_attempts": 2}).status_code == 403
    assert reader.delete(f"{LIST}/standard").status_code == 403


def test_a_retry_is_as_its_task_was(client: APIClient) -> None:
    task = make_task(task_id="job", status="failed", retry_policy=make_policy(name="gentle"), handler="python:noop")
    policies.retire("gentle", ANA, now=NOW)

    same = client.post("/api/v2/tasks/job/retry", {}, format="json")
    other = client.post("/api/v2/tasks/job/retry", {"retry_policy": "gentle"}, format="json")

    assert same.status_code == 202
    assert Task.objects.get(origin=task).retry_policy_id == "gentle"
    assert problem(other)[:2] == (400, "retry_policy")
