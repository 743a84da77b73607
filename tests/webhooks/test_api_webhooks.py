"""The endpoints of webhooks and their deliveries: what they say, what they refuse and what they keep to themselves."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from jsonschema import Draft202012Validator
from rest_framework.test import APIClient

from k1node.api.models import IdempotentAnswer
from k1node.events.catalogue import EVENTS
from tests.factories import NOW, SECRET, make_delivery, make_message, make_webhook
from webhooks import delivery_log, rules, signing, signing_secrets
from webhooks.models import Attempt, Delivery, Webhook

pytestmark = pytest.mark.django_db
LIST = "/api/v2/webhooks"
DESIGN = {
    "name": "task-completion-webhook",
    "url": "https://external-service.com/webhooks/k1node",
    "events": ["task.completed", "task.failed"],
    "secret": SECRET,
    "active": True,
    "retry_policy": {"max_retries": 3, "backoff_multiplier": 2},
}
MINIMAL = {name: DESIGN[name] for name in ("name", "url", "events")}
NEXT = "whsec_HxwdHhsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA="
AHEAD = NOW + timedelta(days=36_500)


@pytest.fixture
def client(api_client: Callable[..., APIClient]) -> APIClient:
    return api_client("webhooks:write")


def post(client: APIClient, body: dict[str, Any], path: str = LIST, **headers: str) -> Any:
    return client.post(path, body, format="json", headers=headers)


def patch(client: APIClient, webhook: Webhook, body: dict[str, Any]) -> Any:
    return client.patch(f"{LIST}/{webhook.webhook_id}", body, format="json")


def problems(response: Any) -> list[tuple[str, str, str | None]]:
    assert response.status_code == 400, response.json()
    return [(each["field"], each["message"], each["suggestion"]) for each in response.json()["error"]["details"]]


def queries(call: Callable[[], Any]) -> int:
    with CaptureQueriesContext(connection) as captured:
        assert call().status_code < 300
    return len(captured)


# --- registering --------------------------------------------------------------------------------------------------


def test_a_webhook_is_registered_as_the_design_says(client: APIClient) -> None:
    response = post(client, DESIGN)

    answer = response.json()
    assert response.status_code == 201
    assert response["Location"] == f"{LIST}/{answer['webhook_id']}"
    assert list(answer)[:3] == ["webhook_id", "name", "url"]
    assert (answer["name"], answer["url"], answer["secret"]) == (DESIGN["name"], DESIGN["url"], SECRET)
    assert answer["webhook_id"].startswith("wh-")
    assert client.get(response["Location"]).json() == {name: answer[name] for name in answer if name != "secret"}


def test_what_is_left_out_is_told(client: APIClient) -> None:
    answer = post(client, MINIMAL).json()

    assert signing.is_secret(answer["secret"])
    assert answer["secret_hint"] == answer["secret"][-4:]
    told = {
        "active": True,
        "state": "active",
        "retry_policy": {"max_retries": 3, "backoff_multiplier": 2.0},
        "header_names": [],
        "max_in_flight": 4,
        "per_second": None,
        "rotation": None,
        "failures": 0,
        "open_until": None,
        "last_success_at": None,
        "last_failure_at": None,
        "last_error": "",
        "disabled_at": None,
        "disabled_reason": "",
        "created_by": "test",
    }
    assert answer == answer | told


def test_half_a_retry_policy_is_answered_in_full(client: APIClient) -> None:
    made = post(client, MINIMAL | {"retry_policy": {"backoff_multiplier": 3}}).json()
    webhook = Webhook.objects.get()

    changed = patch(client, webhook, {"retry_policy": {"max_retries": 9}}).json()

    assert made["retry_policy"] == {"max_retries": 3, "backoff_multiplier": 3.0}
    assert changed["retry_policy"] == {"max_retries": 9, "backoff_multiplier": 3.0}


def test_headers_are_told_by_name_only(client: APIClient) -> None:
    response = post(client, MINIMAL | {"headers": {"Authorization": "Bearer abc", "X-Tenant": "blue"}})

    answers = [response, client.get(response["Location"]), client.get(LIST)]
    assert response.json()["header_names"] == ["Authorization", "X-Tenant"]
    assert not any(text in answer.content.decode() for answer in answers for text in ("abc", "blue"))
    assert signing_secrets.headers(Webhook.objects.get()) == {"Authorization": "Bearer abc", "X-Tenant": "blue"}


def test_all_that_is_wrong_is_said_at_once(client: APIClient) -> None:
    response = post(
        client,
        {
            "name": "",
            "url": "http://10.0.0.1/",
            "events": ["task.complete"],
            "secret": "mysecret",
            "retry_policy": {"max_retries": 101, "backoff_multiplier": 0},
            "headers": {"Host": "x"},
            "max_in_flight": 0,
            "per_second": 1001,
            "colour": "red",
        },
    )

    found = {field: (message, suggestion) for field, message, suggestion in problems(response)}
    assert sorted(found) == [
        *("colour", "events", "headers", "max_in_flight", "name", "per_second"),
        *("retry_policy.backoff_multiplier", "retry_policy.max_retries", "secret", "url"),
    ]
    assert found["events"] == ("Unknown event 'task.complete'", "Did you mean task.completed?")
    assert found["secret"][0] == "Must be whsec_ and the base64 of 24 to 64 bytes"
    assert "whsec_$(openssl rand -base64 32)" in (found["secret"][1] or "")
    assert not Webhook.objects.exists()


@pytest.mark.parametrize(
    "url",
    [
        *("https://127.0.0.1/", "https://[::1]/", "https://localhost/", "https://2130706433/", "https://0x7f.1/"),
        *("https://user:pass@a.example/", "https://a.example/#b", "https://a.example:22/", "//a.example/", "x"),
        "https://a.example/" + "b" * 2048,
    ],
)
def test_an_address_that_must_not_be_sent_to_is_refused_when_made_and_when_changed(client: APIClient, url: str) -> None:
    webhook = make_webhook()

    made, changed = post(client, MINIMAL | {"url": url}), patch(client, webhook, {"url": url})

    assert [found[0] for found in problems(made)] == [found[0] for found in problems(changed)] == ["url"]


def test_a_thousand_are_enough(client: APIClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webhooks.endpoints.MOST", 1)
    post(client, MINIMAL)

    response = post(client, MINIMAL)

    assert (response.status_code, response.json()["error"]["code"]) == (409, "CONFLICT")


def test_a_repeated_request_makes_one_webhook_and_does_not_show_the_secret_again(client: APIClient) -> None:
    headers = {"Idempotency-Key": "a-key"}

    first, again = post(client, MINIMAL, **headers), post(client, MINIMAL, **headers)

    secret = first.json()["secret"]
    assert Webhook.objects.count() == 1
    assert again.json() == first.json() | {"secret": f"…{secret[-4:]}"}
    assert secret.encode() not in bytes(IdempotentAnswer.objects.get().body or b"")


# --- reading and changing -----------------------------------------------------------------------------------------


def test_a_failing_webhook_says_so(client: APIClient) -> None:
    webhook = make_webhook(
        failures=rules.OPEN_AFTER, open_until=AHEAD, last_failure_at=NOW, last_success_at=NOW, last_error="No answer"
    )

    answer = client.get(f"{LIST}/{webhook.webhook_id}").json()

    told = {name: answer[name] for name in ("state", "failures", "open_until", "last_failure_at", "last_error")}
    assert told == {
        "state": "failing",
        "failures": 5,
        "open_until": "2126-02-08T05:06:07.890+00:00",
        "last_failure_at": "2026-03-04T05:06:07.890+00:00",
        "last_error": "No answer",
    }


def test_a_disabled_webhook_says_why_and_is_enabled(client: APIClient) -> None:
    webhook = make_webhook(active=False, disabled_at=NOW, disabled_reason="It answered 410 Gone", failures=9)
    path = f"{LIST}/{webhook.webhook_id}"

    before, after = client.get(path).json(), post(client, {}, f"{path}/enable")

    assert (before["state"], before["active"], before["disabled_reason"]) == (
        "disabled",
        False,
        "It answered 410 Gone",
    )
    assert (after.status_code, after.json()["state"], after.json()["disabled_at"]) == (200, "active", None)


def test_the_list_is_narrowed_by_state_and_name(client: APIClient) -> None:
    make_webhook(name="a")
    make_webhook(name="b", active=False)
    make_webhook(name="c", active=False, deleted_at=NOW, secret="")

    def names(**query: str) -> list[str]:
        return [row["name"] for row in client.get(LIST, query).json()["webhooks"]]

    assert names() == ["b", "a"]
    assert names(state="paused") == ["b"]
    assert names(name="a") == ["a"]
    assert names(state="failing") == []


def test_a_deleted_webhook_is_gone(client: APIClient) -> None:
    webhook = make_webhook()
    delivery = make_delivery(webhook)
    path = f"{LIST}/{webhook.webhook_id}"

    assert client.delete(path).status_code == 204
    assert [
        client.get(path).status_code,
        client.delete(path).status_code,
        patch(client, webhook, {"name": "x"}).status_code,
        post(client, {}, f"{path}/test").status_code,
        client.get(f"{path}/deliveries").status_code,
        client.get(f"{path}/deliveries/{delivery.delivery_id}").status_code,
    ] == [404] * 6


def test_a_change_takes_no_secret(client: APIClient) -> None:
    assert [found[0] for found in problems(patch(client, make_webhook(), {"secret": NEXT}))] == ["secret"]


# --- rotating -----------------------------------------------------------------------------------------------------


def test_a_rotation_is_shown_until_it_is_over(client: APIClient) -> None:
    webhook = make_webhook()
    path = f"{LIST}/{webhook.webhook_id}"

    rotated = post(client, {"secret": NEXT, "overlap_seconds": 3600}, f"{path}/rotate-secret")
    during = client.get(path).json()
    Webhook.objects.update(rotates_at=NOW)  # long ago; no sender has come by
    after = client.get(path).json()

    assert (rotated.status_code, rotated.json()["secret"]) == (200, NEXT)
    assert {"secret": NEXT, **during} == rotated.json()
    assert (during["secret_hint"], during["rotation"]["next_secret_hint"]) == (SECRET[-4:], NEXT[-4:])
    assert (after["secret_hint"], after["rotation"]) == (NEXT[-4:], None)


def test_a_rotation_without_a_body_makes_a_secret_and_a_day_of_overlap(client: APIClient) -> None:
    webhook = make_webhook()

    answer = post(client, {}, f"{LIST}/{webhook.webhook_id}/rotate-secret").json()

    webhook.refresh_from_db()
    assert signing.is_secret(answer["secret"])
    assert signing_secrets.keys(webhook, now=NOW) == (SECRET, answer["secret"])


@pytest.mark.parametrize(
    ("body", "field"),
    [({"secret": "x"}, "secret"), ({"overlap_seconds": -1}, "overlap_seconds"), ({"secret": SECRET}, "secret")],
)
def test_a_rotation_that_cannot_be_is_refused(client: APIClient, body: dict[str, Any], field: str) -> None:
    response = post(client, body, f"{LIST}/{make_webhook().webhook_id}/rotate-secret")

    assert [found[0] for found in problems(response)] == [field]


# --- tests and event types ----------------------------------------------------------------------------------------


def test_a_test_is_accepted_and_says_where_its_delivery_is(client: APIClient) -> None:
    webhook = make_webhook(active=False)

    response = post(client, {"event": "task.failed"}, f"{LIST}/{webhook.webhook_id}/test")

    found = client.get(response["Location"]).json()
    assert response.status_code == 202
    assert found == response.json() | {"payload": dict(EVENTS["task.failed"].example), "attempts": []}
    assert (found["is_test"], found["state"], found["event"]) == (True, "pending", "task.failed")


def test_an_unknown_event_to_test_is_suggested(client: APIClient) -> None:
    response = post(client, {"event": "task.fail"}, f"{LIST}/{make_webhook().webhook_id}/test")

    assert problems(response) == [("event", "Unknown event 'task.fail'", "Did you mean task.failed?")]


def test_the_event_types_are_those_that_can_be_asked_for(client: APIClient) -> None:
    found = client.get(f"{LIST}/event-types").json()["event_types"]

    assert [each["name"] for each in found] == sorted(EVENTS.keys() - {"webhook.test"})
    for each in found:
        Draft202012Validator(each["schema"]).validate(each["example"])
    assert post(client, MINIMAL | {"events": [each["name"] for each in found]}).status_code == 201


# --- deliveries ---------------------------------------------------------------------------------------------------


def make_attempt(delivery: Delivery, **fields: Any) -> Attempt:
    defaults: dict[str, Any] = {
        "delivery": delivery,
        "number": 1,
        "started_at": NOW,
        "finished_at": NOW,
        "outcome": "unavailable",
        "status": 503,
        "url": "https://receiver.example/hook",
        "address": "203.0.113.7",
        "request_headers": {"X-Tenant": "(hidden)"},
        "response_headers": {"Server": "internal"},
        "response_body": "the answer",
        "total_ms": 12.5,
    }
    return Attempt.objects.create(**defaults | fields)


def test_a_delivery_is_told_with_its_attempts(client: APIClient) -> None:
    message = make_message(message_id="wh-evt-7", data='{"task_id": "task-7"}')
    row = make_delivery(message=message, state="failed", attempts=2, last_status=503, last_error="503")
    for number in (1, 2):
        make_attempt(row, number=number)

    answer = client.get(f"{LIST}/{row.webhook.webhook_id}/deliveries/{row.delivery_id}").json()

    assert (answer["message_id"], answer["payload"]) == ("wh-evt-7", {"task_id": "task-7"})
    assert (answer["state"], answer["attempt_count"], answer["next_attempt_at"]) == ("failed", 2, None)
    assert [each["number"] for each in answer["attempts"]] == [1, 2]
    first = answer["attempts"][0]
    assert (first["outcome"], first["status"], first["total_ms"], first["address"]) == (
        *("unavailable", 503, 12.5, "203.0.113.7"),
    )


@pytest.mark.parametrize("scope", ["webhooks:write", "webhooks:read", "dashboard:write"])
def test_what_a_receiver_answered_is_for_administrators_alone(api_client: Callable[..., APIClient], scope: str) -> None:
    row = make_delivery(state="failed")
    make_attempt(row)
    path = f"{LIST}/{row.webhook.webhook_id}/deliveries/{row.delivery_id}"

    hidden, shown = api_client(scope).get(path), api_client("admin").get(path)

    assert not any(text in hidden.content.decode() for text in ("the answer", "internal"))
    (attempt,) = hidden.json()["attempts"]
    assert (attempt["response_body"], attempt["response_headers"]) == (None, None)
    (attempt,) = shown.json()["attempts"]
    assert (attempt["response_body"], attempt["response_headers"]) == ("the answer", {"Server": "internal"})


def test_of_many_attempts_the_last_are_told(client: APIClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webhooks.api.delivery_views.MOST_ATTEMPTS", 2)
    row = make_delivery(attempts=3)
    for number in (1, 2, 3):
        make_attempt(row, number=number)

    answer = client.get(f"{LIST}/{row.webhook.webhook_id}/deliveries/{row.delivery_id}").json()

    assert [each["number"] for each in answer["attempts"]] == [2, 3]


def test_deliveries_are_narrowed_and_paged_by_cursor(client: APIClient) -> None:
    webhook = make_webhook()
    rows = [
        make_delivery(webhook, event=event, state=state, created_at=NOW + timedelta(hours=hour))
        for hour, (event, state) in enumerate(
            [("task.failed", "failed"), ("task.completed", "failed"), ("task.completed", "delivered")]
        )
    ]
    make_delivery(make_webhook())
    ids = [row.delivery_id for row in rows]

    def found(**query: str) -> list[int]:
        answer = client.get(f"{LIST}/{webhook.webhook_id}/deliveries", query).json()
        return [ids.index(each["delivery_id"]) for each in answer["deliveries"]]

    assert found() == [2, 1, 0]
    assert found(state="failed") == [1, 0]
    assert found(event="task.completed") == [2, 1]
    assert found(since="2026-03-04T06:06:07.890123Z", until="2026-03-04T07:06:07.890123Z") == [1]
    first = client.get(f"{LIST}/{webhook.webhook_id}/deliveries", {"limit": "2"}).json()
    assert found(limit="2", cursor=first["pagination"]["next_cursor"]) == [0]


def test_those_of_one_event_are_looked_for_so_far_back(client: APIClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_log, "SEARCHED", 3)
    webhook = make_webhook()
    for event in ("task.failed", "task.failed", "task.completed", "task.completed"):
        make_delivery(webhook, event=event)
    make_delivery(webhook, event="task.failed", state="failed")

    def found(**query: str) -> int:
        return len(client.get(f"{LIST}/{webhook.webhook_id}/deliveries", query).json()["deliveries"])

    assert (found(event="task.completed"), found(event="task.failed")) == (2, 1)
    assert found(event="task.failed", state="pending") == 1


def test_a_list_of_a_time_reads_only_what_is_near_it(client: APIClient) -> None:
    webhook = make_webhook()
    for hour in range(100):
        make_delivery(webhook, created_at=NOW + timedelta(hours=hour))

    with CaptureQueriesContext(connection) as captured:
        rows = delivery_log.find(webhook, since=NOW + timedelta(hours=40), until=NOW + timedelta(hours=42))
        assert len(rows) == 2

    assert len(captured) < 30
    assert "pk >=" in str(rows.query) or '"id" >=' in str(rows.query)


def test_a_delivery_of_another_webhook_is_not_found(client: APIClient) -> None:
    path = f"{LIST}/{make_webhook().webhook_id}/deliveries/{make_delivery().delivery_id}"

    assert client.get(path).status_code == 404


# --- costs --------------------------------------------------------------------------------------------------------


def test_each_endpoint_costs_the_same_however_much_there_is(client: APIClient) -> None:
    webhook = make_webhook(active=False)
    delivery = make_delivery(webhook)
    path = f"{LIST}/{webhook.webhook_id}"
    client.get(LIST)  # the first use of a key is noted
    counts = []

    for _ in range(2):
        make_webhook()
        for _ in range(3):
            make_attempt(make_delivery(webhook))
        make_attempt(delivery, number=Attempt.objects.count() + 1)
        counts.append(
            [
                queries(lambda: client.get(LIST)),
                queries(lambda: client.get(path)),
                queries(lambda: client.get(f"{LIST}/event-types")),
                queries(lambda: client.get(f"{path}/deliveries")),
                queries(lambda: client.get(f"{path}/deliveries/{delivery.delivery_id}")),
            ]
        )

    # the key; how many and the rows; the row; nothing; the webhook, how many, the rows; the row and its attempts
    assert counts == [[3, 2, 1, 4, 3]] * 2


def test_each_act_costs_what_it_needs(client: APIClient) -> None:
    webhook = make_webhook()
    path = f"{LIST}/{webhook.webhook_id}"
    client.get(LIST)

    def statements(call: Callable[[], Any]) -> int:
        with CaptureQueriesContext(connection) as captured:
            assert call().status_code < 300
        return sum(not each["sql"].startswith(("SAVEPOINT", "RELEASE")) for each in captured.captured_queries)

    # the key, the row, the row locked, the row written, the record
    assert statements(lambda: patch(client, webhook, {"name": "x"})) == 5
    assert statements(lambda: post(client, {}, f"{path}/enable")) == 5
    assert statements(lambda: post(client, {}, f"{path}/rotate-secret")) == 5
    # ... and how many tests wait, the message, the delivery
    assert statements(lambda: post(client, {}, f"{path}/test")) == 7
    assert statements(lambda: client.delete(path)) == 5
