"""The endpoints of circuit breakers and of the hold."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from recovery import breakers, holds
from recovery.models import Breaker, Hold, Intervention
from recovery.records import By
from scheduling.models import TaskStatus
from tests.factories import NOW, make_task

pytestmark = pytest.mark.django_db
STATUS, HOLD = "/api/v2/circuit-breaker/status", "/api/v2/scheduler/hold"
MOMENT = "2026-03-04T05:06:07.890+00:00"
LATER = "2026-03-04T05:07:07.890+00:00"
ANA = By("ana", "it is down")


@pytest.fixture(autouse=True)
def _at_a_fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recovery.api.breaker_views.database_now", lambda: NOW)


@pytest.fixture
def client(api_client: Callable[..., APIClient]) -> APIClient:
    return api_client("error-recovery:admin")


def make_breaker(name: str = "api", **fields: Any) -> Breaker:
    breakers.create(name, {}, ANA, now=NOW)
    Breaker.objects.filter(breaker_id=name).update(**fields)
    return Breaker.objects.get(breaker_id=name)


def post(client: APIClient, verb: str, body: dict[str, Any] | None = None, name: str = "api") -> Any:
    return client.post(f"/api/v2/circuit-breaker/{name}/{verb}", body or {}, format="json")


def test_the_status_is_as_designed(client: APIClient) -> None:
    make_breaker(window="ss" + "f" * 2)
    late = make_breaker("db", state="OPEN", window="f" * 5, open_until=NOW + timedelta(seconds=12))
    make_task(circuit_breaker="db", status=TaskStatus.BLOCKED, blocked_on=late.gate)

    answer = client.get(STATUS).json()

    assert answer == {
        "timestamp": MOMENT,
        "breakers": [
            {
                "breaker_id": "api",
                "state": "CLOSED",
                "failure_rate": 0.5,
                "failure_count": 2,
                "success_count": 2,
                "last_state_change": MOMENT,
                "timeout_remaining_ms": 0,
                "waiting": 0,
                "held": None,
            },
            {
                "breaker_id": "db",
                "state": "OPEN",
                "failure_rate": 1.0,
                "failure_count": 5,
                "success_count": 0,
                "last_state_change": MOMENT,
                "timeout_remaining_ms": 12000,
                "waiting": 1,
                "held": None,
            },
        ],
        "pagination": {"page": 1, "limit": 20, "total": 2},
    }


def test_the_status_of_one(client: APIClient) -> None:
    make_breaker()
    make_breaker("db")

    answer = client.get(STATUS, {"breaker_id": "db"}).json()

    assert [found["breaker_id"] for found in answer["breakers"]] == ["db"]
    assert client.get(STATUS, {"breaker_id": "none"}).json()["breakers"] == []


def test_the_status_costs_the_same_for_many(client: APIClient) -> None:
    counts = []
    for number in range(12):
        make_breaker(f"b-{number}", state="HALF-OPEN" if number % 2 else "OPEN")
        with CaptureQueriesContext(connection) as captured:
            client.get(STATUS)
        counts.append(len(captured))

    assert counts[-1] == counts[1]


def test_open_close_and_reset(client: APIClient) -> None:
    make_breaker()

    opened = post(client, "open", {"reason": "maintenance", "until": LATER})
    assert opened.status_code == 202
    assert (opened.json()["state"], opened.json()["timeout_remaining_ms"]) == ("OPEN", 59_999)
    assert opened.json()["held"] == {"state": "open", "by": "test", "reason": "maintenance", "until": LATER}
    closed = post(client, "close").json()
    assert (closed["state"], closed["held"]["state"], closed["held"]["until"]) == ("CLOSED", "closed", None)
    assert post(client, "reset").json()["held"] is None
    assert list(Intervention.objects.order_by("pk").values_list("action", flat=True))[1:] == ["open", "close", "reset"]


def test_a_probe_names_its_task(client: APIClient) -> None:
    found = make_breaker(state="OPEN", generation=1, window="fffff", open_until=NOW + timedelta(minutes=1))
    make_task(task_id="first", circuit_breaker="api", status=TaskStatus.BLOCKED, blocked_on=found.gate)

    response = post(client, "probe")

    assert (response.status_code, response.json()) == (
        202,
        {"breaker_id": "api", "state": "HALF-OPEN", "task_id": "first"},
    )
    assert response["Location"] == "/api/v2/tasks/first"
    again = post(client, "probe")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "CONFLICT")


@pytest.mark.parametrize("verb", ["open", "close", "reset", "probe"])
def test_an_unknown_breaker_is_not_found(client: APIClient, verb: str) -> None:
    response = post(client, verb)

    assert (response.status_code, response.json()["error"]["code"]) == (404, "NOT_FOUND")


@pytest.mark.parametrize("verb", ["open", "close"])
def test_an_end_that_has_passed_is_refused(client: APIClient, verb: str) -> None:
    make_breaker()

    response = post(client, verb, {"until": MOMENT})

    assert response.status_code == 400
    assert response.json()["error"]["details"][0]["field"] == "until"
    assert Breaker.objects.get().pin == ""


def test_settings_are_made_read_changed_and_deleted(client: APIClient) -> None:
    made = client.post("/api/v2/circuit-breaker", {"breaker_id": "api", "probes": 1}, format="json")
    assert (made.status_code, made["Location"]) == (201, "/api/v2/circuit-breaker/api")
    changed = client.patch("/api/v2/circuit-breaker/api", {"open_ms": 5000}, format="json")
    assert changed.status_code == 200
    found = client.get("/api/v2/circuit-breaker/api").json()
    assert {name: found[name] for name in breakers.FIGURES} == {
        "window_size": 20,
        "min_calls": 5,
        "failure_percent": 50,
        "open_ms": 5000,
        "open_cap_ms": 900_000,
        "probes": 1,
    }
    assert client.delete("/api/v2/circuit-breaker/api").status_code == 204
    assert client.get("/api/v2/circuit-breaker/api").status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"window_size": 0}, "window_size"),
        ({"window_size": 1001}, "window_size"),
        ({"failure_percent": 101}, "failure_percent"),
        ({"open_ms": 1}, "open_ms"),
        ({"probes": 0}, "probes"),
        ({"min_calls": 21}, "min_calls"),
        ({"open_cap_ms": 100}, "open_cap_ms"),
        ({"breaker_id": "other"}, "breaker_id"),
    ],
)
def test_bad_settings_are_refused_by_name(client: APIClient, body: dict[str, Any], field: str) -> None:
    make_breaker()

    response = client.patch("/api/v2/circuit-breaker/api", body, format="json")

    assert response.status_code == 400
    assert [detail["field"] for detail in response.json()["error"]["details"]] == [field]


@pytest.mark.parametrize("name", ["status", "default", "a b", "-a", "x" * 121])
def test_a_name_that_cannot_be_is_refused(client: APIClient, name: str) -> None:
    response = client.post("/api/v2/circuit-breaker", {"breaker_id": name}, format="json")

    assert response.status_code == 400
    assert response.json()["error"]["details"][0]["field"] == "breaker_id"
    assert not Breaker.objects.exists()


def test_changes_of_settings_keep_their_reason_and_none_is_no_change(client: APIClient) -> None:
    reason = {"reason": "vendor asked"}
    client.post("/api/v2/circuit-breaker", {"breaker_id": "api", **reason}, format="json")
    for _ in range(2):
        client.patch("/api/v2/circuit-breaker/api", {"open_ms": 5000, **reason}, format="json")
    client.patch("/api/v2/circuit-breaker/api", {}, format="json")
    client.delete("/api/v2/circuit-breaker/api", reason, format="json")

    assert list(Intervention.objects.order_by("pk").values_list("action", "reason")) == [
        ("configure", "vendor asked"),
        ("configure", "vendor asked"),
        ("delete", "vendor asked"),
    ]


def test_readers_read_and_only_admins_change(api_client: Callable[..., APIClient]) -> None:
    make_breaker()
    reader, writer = api_client("error-recovery:read"), api_client("error-recovery:write")

    assert reader.get(STATUS).status_code == 200
    assert reader.get(HOLD).status_code == 200
    assert {post(writer, verb).status_code for verb in ("open", "close", "reset", "probe")} == {403}
    assert writer.post(HOLD, {}, format="json").status_code == 403
    assert writer.post(f"{HOLD}/release", {}, format="json").status_code == 403
    assert writer.patch("/api/v2/circuit-breaker/api", {}, format="json").status_code == 403


# --- the hold ---------------------------------------------------------------------------------------------------


def test_everything_is_held_and_released(client: APIClient) -> None:
    assert client.get(HOLD).json() == {"held": False}

    held = client.post(HOLD, {"reason": "disk full", "until": LATER}, format="json")
    assert (held.status_code, held.json()) == (
        202,
        {"held": True, "reason": "disk full", "by": "test", "since": MOMENT, "until": LATER},
    )
    assert client.get(HOLD).json() == held.json()
    assert client.post(HOLD, {}, format="json").status_code == 409
    assert client.post(f"{HOLD}/release", {}, format="json").json() == {"held": False}
    assert client.post(f"{HOLD}/release", {}, format="json").status_code == 409


def test_a_hold_that_would_be_over_is_refused(client: APIClient) -> None:
    response = client.post(HOLD, {"until": MOMENT}, format="json")

    assert response.json()["error"]["details"][0]["field"] == "until"
    assert not Hold.objects.exists()
    assert holds.current() is None
