"""ETag, If-None-Match and If-Match: nothing unchanged is sent again, and nobody overwrites what they have not seen."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection, transaction
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries
from rest_framework.test import APIClient

from batches import submission
from k1node.access import keys
from k1node.api import conditional, document
from k1node.operations import jobs
from recovery import breakers
from recovery.records import By
from scheduling.models import RetryPolicy, Schedule
from tests.databases import Rival
from tests.factories import NOW, make_dead_letter, make_delivery, make_policy, make_schedule, make_task, make_webhook
from tests.webhooks import redelivering

Clients = Callable[..., APIClient]
pytestmark = pytest.mark.django_db

SCHEDULE = "/api/v2/scheduler/schedules/backup"


def a_schedule() -> str:
    make_schedule(task_id="backup")
    return SCHEDULE


def a_policy() -> str:
    make_policy(name="gentle")
    return "/api/v2/retry-policies/gentle"


def a_breaker() -> str:
    breakers.create("billing", {}, By("ana"), now=NOW)
    return "/api/v2/circuit-breaker/billing"


def an_api_key() -> str:
    key, _ = keys.issue("deploy", ["scheduler:read"])
    return f"/api/v2/api-keys/{key.public_id}"


def a_task() -> str:
    return f"/api/v2/tasks/{make_task().task_id}"


def a_dead_letter() -> str:
    return f"/api/v2/queue/dlq/{make_dead_letter().dlq_id}"


def a_redrive() -> str:
    job = jobs.plan("redrive", [1], arguments={}, selection={}, pace=jobs.Pace(), by="ana", now=timezone.now())
    return f"/api/v2/queue/dlq/redrives/{job.operation_id}"


def a_webhook() -> str:
    return f"/api/v2/webhooks/{make_webhook().webhook_id}"


def a_delivery() -> str:
    row = make_delivery()
    return f"/api/v2/webhooks/{row.webhook.webhook_id}/deliveries/{row.delivery_id}"


def a_redelivery() -> str:
    row = make_delivery(state="failed")
    job, _ = redelivering.recover(row.webhook, since=NOW, by="ana", now=timezone.now())
    return f"/api/v2/webhooks/{row.webhook.webhook_id}/redeliveries/{job.operation_id}"


def a_batch() -> str:
    row = submission.submit([{"handler": "python:noop"}], by="ana", now=NOW)
    return f"/api/v2/tasks/batch/{row.batch_id}"


# By path in the document: a maker of one, and the method of its changes with two bodies, if there is any.
SETTINGS: dict[str, tuple[Callable[[], str], dict[str, Any], dict[str, Any]]] = {
    "/scheduler/schedules/{scheduleId}": (a_schedule, {"priority": 7}, {"priority": 8}),
    "/retry-policies/{name}": (a_policy, {"max_attempts": 7}, {"max_attempts": 8}),
    "/circuit-breaker/{breakerId}": (a_breaker, {"min_calls": 7}, {"min_calls": 8}),
    "/api-keys/{keyId}": (an_api_key, {"requests_per_hour": 7}, {"requests_per_hour": 8}),
    "/webhooks/{webhookId}": (a_webhook, {"max_in_flight": 7}, {"max_in_flight": 8}),
}
RECORDS: dict[str, Callable[[], str]] = {
    "/tasks/{taskId}": a_task,
    "/tasks/batch/{batchId}": a_batch,
    "/queue/dlq/{dlqId}": a_dead_letter,
    "/queue/dlq/redrives/{redriveId}": a_redrive,
    "/webhooks/{webhookId}/deliveries/{deliveryId}": a_delivery,
    "/webhooks/{webhookId}/redeliveries/{redeliveryId}": a_redelivery,
}
resources = pytest.mark.parametrize(
    "make", [*(make for make, _, _ in SETTINGS.values()), *RECORDS.values()], ids=lambda make: make.__name__
)
settings = pytest.mark.parametrize(("make", "one", "other"), SETTINGS.values(), ids=SETTINGS)


@pytest.fixture
def admin(api_client: Clients) -> APIClient:
    return api_client("admin")


def patch(client: APIClient, path: str, body: dict[str, Any], if_match: str | None = None) -> Any:
    return client.patch(path, body, format="json", headers={} if if_match is None else {"If-Match": if_match})


def code_of(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


# --- reading ----------------------------------------------------------------------------------------------------


@resources
def test_what_is_unchanged_is_not_sent_again(admin: APIClient, make: Callable[[], str]) -> None:
    path = make()

    first = admin.get(path)
    again = admin.get(path, headers={"If-None-Match": first["ETag"]})

    assert (first.status_code, first["Cache-Control"]) == (200, "private, no-cache")
    assert (again.status_code, again.content, again["ETag"]) == (304, b"", first["ETag"])
    assert again["Cache-Control"] == "private, no-cache"
    assert not {"Content-Type", "Content-Length"} & set(again.headers)
    assert again["X-Request-Id"] != first["X-Request-Id"]


@resources
def test_head_has_the_same_tag(admin: APIClient, make: Callable[[], str]) -> None:
    path = make()

    etag = admin.get(path)["ETag"]

    assert admin.head(path)["ETag"] == etag
    assert admin.head(path, headers={"If-None-Match": etag}).status_code == 304


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ("{etag}", 304),
        ("W/{etag}", 304),
        ('"other", {etag}', 304),
        ('W/"a,b" ,, {etag},', 304),
        ("*", 304),
        (" * ", 304),
        ('"other"', 200),
        ('""', 200),
        ("{version}", 200),
    ],
)
def test_every_form_of_if_none_match_is_read(admin: APIClient, value: str, status: int) -> None:
    path = a_schedule()
    etag = admin.get(path)["ETag"]

    given = value.format(etag=etag, version=etag.partition("-")[0] + '"')

    assert admin.get(path, headers={"If-None-Match": given}).status_code == status


@pytest.mark.parametrize("value", ["", "x", '"', '"a', 'a"b"', '"a" "b"', "W/*", '*, "a"', 'w/"a"', ",", '"a b"'])
@pytest.mark.parametrize("header", ["If-None-Match", "If-Match"])
def test_what_is_no_tag_is_refused(admin: APIClient, header: str, value: str) -> None:
    path = a_schedule()
    call = admin.get if header == "If-None-Match" else admin.delete

    response = call(path, headers={header: value})

    assert code_of(response) == (400, "INVALID_REQUEST")
    assert [detail["field"] for detail in response.json()["error"]["details"]] == [header]
    assert Schedule.objects.exists()


def test_a_change_of_any_kind_changes_the_tag(admin: APIClient) -> None:
    path = a_schedule()
    before = admin.get(path)["ETag"]

    admin.post(f"{path}/run", {}, format="json")
    Schedule.objects.update(last_error="Something")
    after = admin.get(path, headers={"If-None-Match": before})

    assert (after.status_code, after["ETag"] == before) == (200, False)


def test_each_version_of_the_api_has_its_own_tag_for_the_same_settings(admin: APIClient) -> None:
    path = a_schedule()

    plain = admin.get(path)
    own = admin.get(path, headers={"Accept": "application/vnd.k1node.v1+json"})

    assert plain["ETag"] != own["ETag"]
    assert plain["ETag"].partition("-")[0] == own["ETag"].partition("-")[0]


def test_lists_and_what_is_missing_have_no_tag(admin: APIClient) -> None:
    a_schedule()

    listing, missing = admin.get("/api/v2/scheduler/schedules"), admin.get("/api/v2/scheduler/schedules/none")

    assert [("ETag" in response, response["Cache-Control"]) for response in (listing, missing)] == [
        (False, "no-store")
    ] * 2


# --- writing ----------------------------------------------------------------------------------------------------


@settings
def test_a_change_over_one_that_was_not_seen_is_refused(
    admin: APIClient, make: Callable[[], str], one: dict[str, Any], other: dict[str, Any]
) -> None:
    path = make()
    seen = admin.get(path)["ETag"]

    first, second, removal = (
        patch(admin, path, one, seen),
        patch(admin, path, other, seen),
        admin.delete(path, headers={"If-Match": seen}),
    )

    assert first.status_code == 200
    assert code_of(second) == code_of(removal) == (412, "PRECONDITION_FAILED")
    assert second.json()["error"]["message"] == "The resource has changed since it was read"
    assert admin.get(path).json() | one == admin.get(path).json()


@settings
def test_the_answer_to_a_change_has_the_tag_for_the_next_one(
    admin: APIClient, make: Callable[[], str], one: dict[str, Any], other: dict[str, Any]
) -> None:
    path = make()

    first = patch(admin, path, one, admin.get(path)["ETag"])
    assert first["ETag"] == admin.get(path)["ETag"]
    second = patch(admin, path, other, first["ETag"])
    removal = admin.delete(path, headers={"If-Match": second["ETag"]})

    assert [response.status_code for response in (first, second, removal)] == [200, 200, 204]
    assert first["Cache-Control"] == "no-store"


@settings
def test_without_if_match_or_with_a_star_any_state_will_do(
    admin: APIClient, make: Callable[[], str], one: dict[str, Any], other: dict[str, Any]
) -> None:
    path = make()

    assert patch(admin, path, one).status_code == 200
    assert patch(admin, path, other, "*").status_code == 200
    assert admin.delete(path, headers={"If-Match": "*"}).status_code == 204


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/api/v2/scheduler/schedules",
            {"task_id": "new", "handler": "python:noop", "schedule_type": "cron", "schedule_expr": "0 2 * * *"},
        ),
        ("/api/v2/retry-policies", {"name": "new", "multiplier": 3}),
        ("/api/v2/circuit-breaker", {"breaker_id": "new", "min_calls": 3}),
        ("/api/v2/api-keys", {"name": "new", "scopes": ["scheduler:read"]}),
        ("/api/v2/webhooks", {"name": "new", "url": "https://receiver.example/hook", "events": ["*"]}),
    ],
)
def test_what_was_just_made_can_be_changed_under_its_tag(admin: APIClient, path: str, body: dict[str, Any]) -> None:
    made = admin.post(path, body, format="json")

    read = admin.get(made["Location"])

    assert (made.status_code, made["ETag"]) == (201, read["ETag"])
    assert admin.delete(made["Location"], headers={"If-Match": made["ETag"]}).status_code == 204


def test_an_entry_made_by_hand_has_its_tag(admin: APIClient) -> None:
    body = {"task_id": "a", "handler": "python:noop", "error_code": 1, "error_message": "x", "parameters": {}}

    made = admin.post("/api/v2/queue/dlq", body, format="json")

    assert (made.status_code, made["ETag"]) == (201, admin.get(made["Location"])["ETag"])


def test_what_changes_by_itself_does_not_stand_in_the_way(admin: APIClient) -> None:
    schedule, breaker = a_schedule(), a_breaker()
    seen, seen_breaker = admin.get(schedule)["ETag"], admin.get(breaker)["ETag"]

    admin.post(f"{schedule}/run", {}, format="json")
    Schedule.objects.update(last_error="Something", next_fire_at=NOW)
    admin.post(f"{breaker}/open", {}, format="json")

    assert patch(admin, schedule, {"priority": 7}, seen).status_code == 200
    assert patch(admin, breaker, {"min_calls": 7}, seen_breaker).status_code == 200
    assert admin.get(schedule, headers={"If-None-Match": seen}).status_code == 200


def test_one_of_several_tags_is_enough_but_not_a_weak_one(admin: APIClient) -> None:
    path = a_schedule()
    seen = admin.get(path)["ETag"]

    assert code_of(patch(admin, path, {"priority": 7}, f"W/{seen}")) == (412, "PRECONDITION_FAILED")
    assert patch(admin, path, {"priority": 7}, f'"other", {seen}').status_code == 200


def test_another_of_the_same_name_is_not_the_one_that_was_read(admin: APIClient) -> None:
    path = a_schedule()
    seen = admin.get(path)["ETag"]
    admin.delete(path)
    a_schedule()

    assert patch(admin, path, {"priority": 7}, seen).status_code == 412


def test_a_missing_one_is_missing_and_a_bad_change_is_bad_whatever_the_tag(admin: APIClient) -> None:
    path = a_schedule()

    assert patch(admin, "/api/v2/scheduler/schedules/none", {}, '"a"').status_code == 404
    assert patch(admin, "/api/v2/retry-policies/none", {}, '"a"').status_code == 404
    assert admin.delete("/api/v2/circuit-breaker/none", headers={"If-Match": '"a"'}).status_code == 404
    assert patch(admin, path, {"priority": 99}, '"a"').status_code == 400


def test_only_if_match_costs_a_lock(admin: APIClient, django_assert_num_queries: DjangoAssertNumQueries) -> None:
    path = a_policy()
    seen = patch(admin, path, {"max_attempts": 6})["ETag"]
    savepoints = 2  # in place of BEGIN and COMMIT, since a test is a transaction already

    with django_assert_num_queries(8):
        again = patch(admin, path, {"max_attempts": 7})
    with django_assert_num_queries(8 + 1 + savepoints):
        assert patch(admin, path, {"max_attempts": 8}, again["ETag"]).status_code == 200

    assert seen != again["ETag"]


# --- at the same time -------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_a_change_waits_for_one_under_way_and_compares_after_it(admin: APIClient, rival: Rival) -> None:
    path = a_schedule()
    seen = admin.get(path)["ETag"]
    reached, go_on = threading.Event(), threading.Event()

    def change_slowly() -> None:
        with transaction.atomic():
            Schedule.objects.update(priority=9)
            reached.set()
            assert go_on.wait(10)

    slow = rival.start(change_slowly)
    assert reached.wait(10)
    other = Rival()
    try:
        waiting = other.start(patch, admin, path, {"priority": 7}, seen)
        time.sleep(0.2)
        assert not waiting.done()
        go_on.set()
        slow.result(10)

        assert code_of(waiting.result(10)) == (412, "PRECONDITION_FAILED")
    finally:
        go_on.set()
        other.close()
    assert Schedule.objects.get().priority == 9


@settings
@pytest.mark.django_db(transaction=True)
def test_of_many_changes_under_one_tag_exactly_one_wins(
    make: Callable[[], str], one: dict[str, Any], other: dict[str, Any]
) -> None:
    path = make()
    text = keys.issue("test", ["admin"])[1]
    (field,) = one

    def change(number: int, seen: str) -> int:
        client = APIClient()
        client.credentials(HTTP_AUTHORIZATION=f"Bearer {text}")
        try:
            return int(patch(client, path, {field: 1 + number}, seen).status_code)
        finally:
            connection.close()

    reader = APIClient()
    reader.credentials(HTTP_AUTHORIZATION=f"Bearer {text}")
    with ThreadPoolExecutor(4) as pool:
        for round_ in range(5):
            seen = reader.get(path)["ETag"]
            numbers = [number for number in range(5) if reader.get(path).json()[field] != 1 + number][:4]
            statuses = list(pool.map(change, numbers, [seen] * 4))

            assert sorted(statuses) == [200, 412, 412, 412], round_


# --- tags -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parameters",
    [
        {"long name": 1, "b": {"z": 1, "a": [True, None, "1"]}, "a": 2},
        {"number": 1e22, "other": 1.0, "third": -0.0, "fourth": 1e-7, "fifth": 1.5e300, "sixth": 2**63 - 1},
        {"text": "ü\U0001f600 \u2028"},
    ],
)
def test_a_version_is_the_same_before_and_after_the_database_had_it(parameters: dict[str, Any]) -> None:
    written = make_schedule(parameters=parameters, starts_at=NOW)
    read = Schedule.objects.get()

    fields = ("parameters", "starts_at", "retry_policy", "enabled")
    assert conditional.version(written, fields) == conditional.version(read, fields)
    assert conditional.version(RetryPolicy(multiplier=2), ("multiplier",)) == conditional.version(
        RetryPolicy(multiplier=2.0), ("multiplier",)
    )


@pytest.mark.parametrize(("one", "other"), [(1, "1"), (1, True), (0, None), ([1], 1), (2**53, 2**53 + 1), ({}, [])])
def test_values_that_differ_have_versions_that_differ(one: Any, other: Any) -> None:
    versions = [conditional.version(Schedule(parameters={"a": value}), ("parameters",)) for value in (one, other)]

    assert len(set(versions)) == 2


def test_the_document_declares_what_the_endpoints_do() -> None:
    content = document.build()
    paths: dict[str, Any] = content["paths"]

    def operations(method: str, mark: str) -> set[str]:
        reference = {"$ref": f"#/components/parameters/{mark}"}
        return {path for path, item in paths.items() if reference in item.get(method, {}).get("parameters", [])}

    assert operations("get", "IfNoneMatch") == {*SETTINGS, *RECORDS}
    assert operations("patch", "IfMatch") == operations("delete", "IfMatch") == set(SETTINGS)
    assert not operations("post", "IfMatch") | operations("get", "IfMatch")
    for path in (*SETTINGS, *RECORDS):
        answers = paths[path]["get"]["responses"]
        assert "ETag" in answers["200"]["headers"]
        assert "content" not in answers["304"]
    for path in SETTINGS:
        assert paths[path]["patch"]["responses"]["412"] == {"$ref": "#/components/responses/PreconditionFailed"}
        assert "412" in paths[path]["delete"]["responses"]
        assert "ETag" in paths[path]["patch"]["responses"]["200"]["headers"]
        made = paths[path.rpartition("/")[0]]["post"]["responses"]["201"]["headers"]
        assert {"ETag", "Location"} <= set(made)
