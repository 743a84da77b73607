"""Redeliveries over HTTP."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from k1node.clock import KINDS
from k1node.events import log
from k1node.lib.clock_time import database_now
from k1node.operations import jobs
from k1node.operations.models import Operation
from tests.factories import NOW, make_delivery, make_message, make_webhook
from tests.webhooks import redelivering
from webhooks import redelivery
from webhooks.models import Delivery, Webhook

pytestmark = pytest.mark.django_db

SINCE = "2026-03-04T05:00:00.000+00:00"
Clients = Callable[..., APIClient]


@pytest.fixture
def client(api_client: Clients) -> APIClient:
    return api_client("webhooks:write")


@pytest.fixture
def webhook() -> Webhook:
    return make_webhook(webhook_id="wh-one")


def base(webhook: Webhook) -> str:
    return f"/api/v2/webhooks/{webhook.webhook_id}/redeliveries"


def post(client: APIClient, path: str, body: dict[str, Any] | None = None) -> Any:
    return client.post(path, body, format="json")


def failed(webhook: Webhook, count: int = 1) -> list[Delivery]:
    return [make_delivery(webhook, state="failed") for _ in range(count)]


def tend() -> None:
    jobs.tend(KINDS, now=database_now() + timedelta(seconds=1))


def told(response: Any) -> tuple[int, str, list[str]]:
    error = response.json()["error"]
    return response.status_code, error["code"], [detail["field"] for detail in error["details"]]


def test_what_failed_is_delivered_again(client: APIClient, webhook: Webhook) -> None:
    failed(webhook, 2)

    response = post(client, base(webhook), {"mode": "failed", "since": SINCE, "per_second": 50})
    tend()
    answer = client.get(response["Location"]).json()

    assert response.status_code == 202
    begun = response.json()
    assert response["Location"] == f"{base(webhook)}/{begun['redelivery_id']}"
    assert begun["until"] == begun["created_at"] == begun["started_at"]
    until = {begun.pop(name) for name in ("until", "created_at", "started_at")}
    assert begun == {
        "redelivery_id": begun["redelivery_id"],
        "webhook_id": "wh-one",
        "mode": "failed",
        "since": SINCE,
        "events": None,
        "state": "running",
        "said": None,
        "per_second": 50,
        "total": 2,
        "redelivered": 0,
        "refused": 0,
        "remaining": 2,
        "created_by": "test",
        "finished_at": None,
        "capped": False,
    }
    assert len(until) == 1
    assert {name: answer[name] for name in ("state", "redelivered", "remaining", "deliveries", "refusals")} == {
        "state": "completed",
        "redelivered": 2,
        "remaining": 0,
        "deliveries": {"pending": 2},
        "refusals": {},
    }


def test_a_period_is_delivered_again_by_event(client: APIClient, webhook: Webhook) -> None:
    log.publish("task.failed", {}, now=NOW)
    log.publish("task.completed", {}, now=NOW)

    asked = {"mode": "period", "since": SINCE, "until": "2026-03-04T06:00:00Z", "events": ["task.failed"]}
    response = post(client, base(webhook), asked)
    tend()

    assert (response.status_code, response.json()["events"], response.json()["total"]) == (202, ["task.failed"], 1)
    assert Delivery.objects.get().event == "task.failed"


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["mode", "since"]),
        ({"mode": "all", "since": SINCE}, ["mode"]),
        ({"mode": "failed", "since": "yesterday"}, ["since"]),
        ({"mode": "failed", "since": "2999-01-01T00:00:00Z"}, ["since"]),
        ({"mode": "failed", "since": SINCE, "until": SINCE}, ["until"]),
        ({"mode": "failed", "since": SINCE, "per_second": 0}, ["per_second"]),
        ({"mode": "failed", "since": SINCE, "per_second": 10_001}, ["per_second"]),
        ({"mode": "period", "since": SINCE, "events": []}, ["events"]),
        ({"mode": "period", "since": SINCE, "events": ["task.vanished"]}, ["events.0"]),
        ({"mode": "period", "since": SINCE, "more": 1}, ["more"]),
    ],
)
def test_what_cannot_be_asked_for_is_refused_at_its_field(
    client: APIClient, webhook: Webhook, body: dict[str, Any], fields: list[str]
) -> None:
    failed(webhook)

    assert told(post(client, base(webhook), body)) == (400, "INVALID_REQUEST", fields)
    assert not Operation.objects.exists()


@pytest.mark.parametrize("change", [{"active": False}, {}], ids=["not active", "nothing fits"])
def test_what_cannot_be_done_is_a_conflict(client: APIClient, webhook: Webhook, change: dict[str, Any]) -> None:
    if change:
        failed(webhook)
        Webhook.objects.update(**change)

    response = post(client, base(webhook), {"mode": "failed", "since": SINCE})

    assert told(response) == (409, "CONFLICT", [])
    assert response.json()["error"]["message"] == (
        "The webhook is not active: enable it first" if change else "Nothing of that time can be delivered again"
    )


def test_more_than_a_job_may_have_is_said(client: APIClient, webhook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MOST", 2)
    failed(webhook, 3)

    body = post(client, base(webhook), {"mode": "failed", "since": SINCE}).json()

    assert (body["total"], body["capped"]) == (2, True)


def test_one_is_stopped_goes_on_and_is_cancelled(client: APIClient, webhook: Webhook) -> None:
    failed(webhook)
    address = post(client, base(webhook), {"mode": "failed", "since": SINCE})["Location"]

    seen = []
    for verb in ("stop", "stop", "start", "cancel", "cancel"):
        response = post(client, f"{address}/{verb}")
        seen.append((verb, response.status_code, response.json().get("state")))

    assert seen == [
        ("stop", 202, "stopped"),
        ("stop", 409, None),
        ("start", 202, "running"),
        ("cancel", 202, "cancelled"),
        ("cancel", 409, None),
    ]


def test_the_list_has_those_of_the_webhook_the_newest_first(client: APIClient, webhook: Webhook) -> None:
    other = make_webhook()
    jobs_made = []
    for each in (webhook, other, webhook):
        failed(each)
        job, _ = redelivering.recover(each, since=NOW, by="ana", now=NOW + timedelta(hours=1))
        jobs_made.append(job.operation_id)

    answer = client.get(base(webhook)).json()

    assert [row["redelivery_id"] for row in answer["redeliveries"]] == [jobs_made[2], jobs_made[0]]
    assert answer["pagination"] == {"page": 1, "limit": 20, "total": 2, "next_cursor": None}


def test_the_list_costs_the_same_for_many(client: APIClient, webhook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redelivery, "MOST_OPEN", 100)
    counts = []
    for _ in range(3):
        for _ in range(5):
            failed(webhook)
            redelivering.recover(webhook, since=NOW, by="ana", now=NOW + timedelta(hours=1))
        with CaptureQueriesContext(connection) as captured:
            client.get(base(webhook))
        counts.append(len(captured))

    assert counts[1] == counts[2]  # the first request also remembers the key


def test_one_of_another_webhook_is_not_found(client: APIClient, webhook: Webhook) -> None:
    other = make_webhook()
    failed(other)
    job, _ = redelivering.recover(other, since=NOW, by="ana", now=NOW + timedelta(hours=1))

    assert client.get(f"{base(webhook)}/{job.operation_id}").status_code == 404
    assert post(client, f"{base(webhook)}/{job.operation_id}/stop").status_code == 404


def test_a_deleted_webhook_is_not_found(client: APIClient) -> None:
    webhook = make_webhook(active=False, deleted_at=NOW)

    assert client.get(base(webhook)).status_code == 404
    assert post(client, base(webhook), {"mode": "failed", "since": SINCE}).status_code == 404


# --- one delivery -----------------------------------------------------------------------------------------------


def test_one_delivery_is_sent_again(client: APIClient, webhook: Webhook) -> None:
    (row,) = failed(webhook)
    address = f"/api/v2/webhooks/wh-one/deliveries/{row.delivery_id}"

    response = post(client, f"{address}/redeliver")

    body = response.json()
    assert (response.status_code, response["Location"]) == (202, address)
    assert (body["delivery_id"], body["state"], body["redelivered_by"]) == (row.delivery_id, "pending", "test")
    assert (client.get(address).json()["state"], body["message_id"]) == ("pending", row.message.message_id)


def test_one_that_is_on_its_way_is_a_conflict_in_words(client: APIClient, webhook: Webhook) -> None:
    row = make_delivery(webhook, make_message(), state="sending")

    response = post(client, f"/api/v2/webhooks/wh-one/deliveries/{row.delivery_id}/redeliver")

    assert told(response) == (409, "CONFLICT", [])
    assert response.json()["error"]["message"] == "It is sending: it is on its way already"


def test_a_delivery_of_another_webhook_is_not_found(client: APIClient, webhook: Webhook) -> None:
    row = make_delivery(state="failed")

    assert post(client, f"/api/v2/webhooks/wh-one/deliveries/{row.delivery_id}/redeliver").status_code == 404


@pytest.mark.parametrize("scope", ["webhooks:read", "scheduler:write"])
def test_who_may_only_read_begins_nothing(api_client: Clients, webhook: Webhook, scope: str) -> None:
    (row,) = failed(webhook)
    client = api_client(scope)

    assert post(client, base(webhook), {"mode": "failed", "since": SINCE}).status_code == 403
    assert post(client, f"/api/v2/webhooks/wh-one/deliveries/{row.delivery_id}/redeliver").status_code == 403
    assert client.get(base(webhook)).status_code == (200 if scope == "webhooks:read" else 403)
