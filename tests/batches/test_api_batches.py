"""Batches over HTTP: the design's example, every refusal, whose they are, and what the answers cost."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from batches.api import examples
from batches.models import Batch
from k1node.access import keys
from k1node.api.models import IdempotentAnswer
from k1node.audit.models import AuditRefusal
from k1node.lib.clock_time import database_now
from scheduling.models import Task
from tests.batches.running import FAILED, claim, clock, settle, work
from tests.factories import make_attempt, make_schedule, make_task

pytestmark = pytest.mark.django_db

BASE = "/api/v2/tasks/batch"
Clients = Callable[..., APIClient]


@pytest.fixture
def client(api_client: Clients) -> APIClient:
    return api_client("batch:write")


def given(count: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"task_id": f"t{number}", "handler": "python:noop", **fields} for number in range(count)]


def post(client: APIClient, path: str = "", body: Any = None, *, key: str | None = None) -> Any:
    headers = {} if key is None else {"Idempotency-Key": key}
    return client.post(f"{BASE}{path}", body, format="json", headers=headers)


def submit(client: APIClient, count: int = 3, **body: Any) -> Any:
    return post(client, "", {"batch_id": "b", "tasks": given(count), **body})


def progress(client: APIClient, batch_id: str = "b") -> dict[str, int]:
    """Return the counts that are not zero."""
    answer = client.get(f"{BASE}/{batch_id}").json()
    return {name: count for name, count in answer["progress"].items() if count}


def told(response: Any) -> tuple[int, str, dict[str, str]]:
    error = response.json()["error"]
    return response.status_code, error["code"], {each["field"]: each["message"] for each in error["details"]}


# --- as designed ------------------------------------------------------------------------------------------------


def test_the_design_s_example(client: APIClient) -> None:
    response = post(client, "", examples.SUBMISSION)

    assert response.status_code == 202
    assert response.json() == {
        "batch_id": "batch-export-20251109",
        "status": "submitted",
        "task_count": 2,
        "estimated_completion": None,
    }
    assert response["Location"] == f"{BASE}/batch-export-20251109"

    first, _second = claim(2, now=database_now())
    settle([first], now=database_now())
    answer = client.get(response["Location"]).json()

    assert (answer["batch_id"], answer["status"]) == ("batch-export-20251109", "in_progress")
    assert answer["progress"].items() >= {"total": 2, "completed": 1, "failed": 0}.items()
    assert answer["progress"].keys() == {
        *("total", "completed", "failed", "in_progress", "skipped", "cancelled", "waiting")
    }
    assert answer["tasks"][0] == {
        "task_id": "export-1",
        "status": "completed",
        "result": {"exit_code": 0},
        "error": None,
    }
    assert answer["options"] == examples.OPTIONS
    assert answer["tasks_url"] == f"{BASE}/batch-export-20251109/tasks"


def test_an_estimate_comes_from_measured_runs(client: APIClient, board: Any) -> None:
    make_attempt(make_task(handler="python:noop", status="completed"), duration_ms=2_000)

    body = submit(client, options={"parallel": False}).json()

    assert body["estimated_completion"] is not None
    assert client.get(f"{BASE}/b").json()["estimated_completion"] is not None


def test_a_batch_is_routed_before_a_task_of_that_name(client: APIClient) -> None:
    submit(client)

    assert client.get(BASE).json()["batches"][0]["batch_id"] == "b"
    assert told(post(client, "", {"tasks": [{"task_id": "batch", "handler": "python:noop"}]}))[0] == 400


def test_an_id_that_is_left_out_is_made_up(client: APIClient) -> None:
    body = post(client, "", {"tasks": [{}, {}], "defaults": {"handler": "python:noop"}}).json()

    assert body["batch_id"].startswith("batch-")
    assert body["task_count"] == 2


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ([], {"body"}),
        ({}, {"tasks"}),
        ({"tasks": []}, {"tasks"}),
        ({"tasks": {}}, {"tasks"}),
        ({"tasks": None}, {"tasks"}),
        ({"tasks": given(1), "batch_id": "a/b"}, {"batch_id"}),
        ({"tasks": given(1), "batch_id": ""}, {"batch_id"}),
        ({"tasks": given(1), "batch_id": "x" * 121}, {"batch_id"}),
        ({"tasks": given(1), "defaults": []}, {"defaults"}),
        ({"tasks": given(1), "defaults": {"task_id": "t"}}, {"defaults.task_id"}),
        ({"tasks": given(1), "defaults": {"priority": 11}}, {"defaults.priority"}),
        ({"tasks": given(1), "open": "yes"}, {"open"}),
        ({"tasks": given(1), "options": {"max_concurrent": 0}}, {"options.max_concurrent"}),
        ({"tasks": given(1), "options": {"max_concurrent": 10_001}}, {"options.max_concurrent"}),
        ({"tasks": given(1), "options": {"fail_fast": 1, "parallel": "no"}}, {"options.fail_fast", "options.parallel"}),
        ({"tasks": given(1), "options": {"fail_fast_running": "end"}}, {"options.fail_fast_running"}),
        ({"tasks": given(1), "option": {}}, {"option"}),
        ({"tasks": [{"handler": "python:noop"}, 7]}, {"tasks[1]"}),
        ({"tasks": [{"handler": "python:noop"}, {"handler": "python:noop", "batch": "b"}]}, {"tasks[1].batch"}),
        ({"tasks": [*given(1), {"task_id": "u"}, {"handler": "rm -rf /"}]}, {"tasks[1].handler", "tasks[2].handler"}),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_stored(client: APIClient, body: Any, fields: set[str]) -> None:
    response = post(client, "", body)

    status, code, details = told(response)
    assert (status, code, set(details)) == (400, "INVALID_REQUEST", fields)
    assert not Batch.objects.exists()
    assert not Task.objects.exists()


def test_a_bad_item_is_told_what_to_write(client: APIClient) -> None:
    tasks = given(18)
    tasks[17]["handler"] = "rm -rf /"

    details = post(client, "", {"tasks": tasks}).json()["error"]["details"]

    assert [each["field"] for each in details] == ["tasks[17].handler"]
    assert details[0]["message"]
    assert details[0]["suggestion"]


def test_of_thousands_of_bad_items_the_first_are_explained_and_all_are_named(client: APIClient) -> None:
    tasks = given(10) + [{"task_id": f"u{number}"} for number in range(1_500)] + given(1)[:0]
    tasks += [{"handler": "python:noop"}, {"handler": "python:absent"}]

    _status, _code, details = told(post(client, "", {"tasks": tasks}))

    assert len(details) == 101
    assert list(details)[:2] == ["tasks[10].handler", "tasks[11].handler"]
    assert details["tasks"] == "1,401 more problems, of 1,401 more items: 110-1509, 1511"


def test_over_ten_thousand_go_to_an_open_batch(client: APIClient) -> None:
    response = post(client, "", {"tasks": [{}] * 10_001, "defaults": {"handler": "python:noop"}})

    detail = response.json()["error"]["details"][0]
    assert (response.status_code, detail["field"]) == (400, "tasks")
    assert detail["message"] == "Must have at most 10,000 items, not 10,001"
    assert '"open": true' in detail["suggestion"]


def test_a_body_over_a_megabyte_is_refused(client: APIClient) -> None:
    response = post(client, "", {"tasks": [{"handler": "python:noop", "task_name": "x" * 150}] * 8_000})

    assert told(response)[:2] == (413, "PAYLOAD_TOO_LARGE")


def test_ids_that_are_taken_are_listed(client: APIClient) -> None:
    make_task(task_id="t1")
    make_schedule(task_id="s")
    submit(client, 1, batch_id="other", tasks=[{"task_id": "t0", "handler": "python:noop"}])

    existing = told(submit(client))
    scheduled = told(submit(client, tasks=[*given(1), {"task_id": "s", "handler": "python:noop"}]))
    twice = told(submit(client, tasks=[{"task_id": "u", "handler": "python:noop"}] * 3))

    assert existing[:2] == scheduled[:2] == twice[:2] == (409, "CONFLICT")
    assert existing[2] == {"tasks[0].task_id": "'t0' is taken", "tasks[1].task_id": "'t1' is taken"}
    assert set(scheduled[2]) == {"tasks[1].task_id"}
    assert set(twice[2]) == {"tasks[1].task_id", "tasks[2].task_id"}
    assert not Batch.objects.filter(batch_id="b").exists()


def test_an_id_of_a_batch_is_taken_once(client: APIClient) -> None:
    submit(client)

    status, code, details = told(submit(client, tasks=[{"handler": "python:noop"}]))

    assert (status, code, set(details)) == (409, "CONFLICT", {"batch_id"})


def test_the_same_submission_sent_again_has_one_effect(client: APIClient) -> None:
    body = {"batch_id": "b", "tasks": given(1_000)}

    first, second = post(client, "", body, key="k"), post(client, "", body, key="k")
    other = post(client, "", {**body, "tasks": given(999)}, key="k")

    assert (first.status_code, second.status_code, second.json()) == (202, 202, first.json())
    assert (second["Idempotency-Replayed"], second["Location"]) == ("true", f"{BASE}/b")
    assert told(other)[:2] == (409, "CONFLICT")
    assert Task.objects.count() == 1_000
    assert IdempotentAnswer.objects.count() == 1


def test_a_refused_submission_can_be_mended_under_its_key(client: APIClient) -> None:
    bad = post(client, "", {"tasks": [{"handler": "python:absent"}]}, key="k")
    good = post(client, "", {"tasks": [{"handler": "python:noop"}]}, key="k")

    assert (bad.status_code, good.status_code) == (400, 202)


# --- whose ------------------------------------------------------------------------------------------------------


VERBS = ("close", "cancel", "pause", "resume", "retry-failed")


def test_a_stranger_s_batch_is_not_there(client: APIClient, api_client: Clients) -> None:
    submit(api_client("batch:write"))

    assert client.get(f"{BASE}/b").status_code == 404
    assert client.get(f"{BASE}/b/tasks").status_code == 404
    assert client.get(BASE).json()["batches"] == []
    assert {post(client, f"/b/{verb}").status_code for verb in VERBS} == {404}
    assert post(client, "/b/tasks", {"tasks": given(1)}).status_code == 404


def test_who_may_read_tasks_sees_it_and_may_not_touch_it(api_client: Clients) -> None:
    submit(api_client("batch:write"))
    reader = api_client("batch:write", "scheduler:read")

    refused = [post(reader, f"/b/{verb}") for verb in VERBS] + [post(reader, "/b/tasks", {"tasks": given(1)})]

    assert reader.get(f"{BASE}/b").status_code == reader.get(f"{BASE}/b/tasks").status_code == 200
    assert {(each.status_code, each.json()["error"]["code"]) for each in refused} == {(403, "FORBIDDEN")}
    assert "batch:admin" in refused[0].json()["error"]["message"]
    assert Batch.objects.get().paused_at is None
    assert AuditRefusal.objects.filter(action="access.denied").count()


def test_reading_alone_steers_nothing(api_client: Clients) -> None:
    submit(api_client("batch:write"))
    reader = api_client("scheduler:read")

    assert reader.get(BASE).json()["batches"][0]["batch_id"] == "b"
    assert post(reader, "/b/pause").status_code == submit(reader, batch_id="c").status_code == 403


@pytest.mark.parametrize("scope", ["batch:admin", "admin"])
def test_who_manages_batches_steers_any(api_client: Clients, scope: str) -> None:
    submit(api_client("batch:write"))
    manager = api_client(scope)

    assert post(manager, "/b/pause").status_code == post(manager, "/b/resume").status_code == 202
    assert manager.get(f"{BASE}/b").status_code == 200


def test_a_key_and_its_tokens_have_the_same_batches() -> None:
    _key, text = keys.issue("k", ["batch:write"])
    by_key, by_token = APIClient(), APIClient()
    by_key.credentials(HTTP_AUTHORIZATION=f"Bearer {text}")
    submit(by_key)
    token = by_key.post("/api/v2/auth/token").json()["access_token"]
    by_token.credentials(HTTP_AUTHORIZATION=f"Bearer {token}")

    assert by_token.get(f"{BASE}/b").status_code == 200
    assert post(by_token, "/b/pause").status_code == 202


# --- steering ---------------------------------------------------------------------------------------------------


def test_pause_and_resume(client: APIClient) -> None:
    submit(client, options={"max_concurrent": 1})

    paused = post(client, "/b/pause", {"reason": "Backup"})
    again = post(client, "/b/pause")
    resumed = post(client, "/b/resume")

    assert (paused.status_code, paused.json()["status"], paused.json()["paused_by"]) == (202, "paused", "test")
    assert paused["Location"] == f"{BASE}/b"
    assert told(again)[:2] == (409, "CONFLICT")
    assert (resumed.json()["status"], resumed.json()["paused_at"]) == ("submitted", None)
    assert told(post(client, "/b/resume"))[:2] == (409, "CONFLICT")


def test_cancel(client: APIClient) -> None:
    submit(client)

    response = post(client, "/b/cancel", {"reason": "Not needed"})

    body = response.json()
    assert (response.status_code, body["status"], body["cancel_reason"]) == (202, "cancelled", "Not needed")
    assert progress(client) == {"total": 3, "cancelled": 3}
    assert told(post(client, "/b/cancel"))[:2] == told(post(client, "/b/pause"))[:2] == (409, "CONFLICT")


def test_an_open_batch_takes_tasks_until_it_is_closed(client: APIClient) -> None:
    opened = submit(client, 0, open=True, defaults={"handler": "python:noop", "priority": 7})

    added = post(client, "/b/tasks", {"tasks": [{"task_id": "a"}, {"task_id": "c"}]})
    bad = post(client, "/b/tasks", {"tasks": [{"task_id": "d", "priority": 0}]})
    taken = post(client, "/b/tasks", {"tasks": [{"task_id": "a"}]})
    nothing = post(client, "/b/tasks", {"tasks": []})
    missing = post(client, "/b/tasks", {})
    closed = post(client, "/b/close")
    late = post(client, "/b/tasks", {"tasks": [{"task_id": "e"}]})

    assert (opened.status_code, opened.json()["task_count"]) == (202, 0)
    assert (added.status_code, added.json()["task_count"], added["Location"]) == (202, 2, f"{BASE}/b")
    assert set(Task.objects.values_list("priority", flat=True)) == {7}
    assert told(bad)[0::2] == (400, {"tasks[0].priority": "Must be from 1 to 10"})
    assert told(taken)[0::2] == (409, {"tasks[0].task_id": "'a' is taken"})
    assert (told(nothing)[0], set(told(nothing)[2]), set(told(missing)[2])) == (400, {"tasks"}, {"tasks"})
    assert (closed.status_code, closed.json()["open"], closed.json()["progress"]["total"]) == (202, False, 2)
    assert told(late)[:2] == told(post(client, "/b/close"))[:2] == (409, "CONFLICT")


def test_failed_ones_are_retried_in_a_new_round(client: APIClient) -> None:
    submit(client)
    now = database_now()
    work(1, FAILED, now=now)
    work(2, now=now)
    clock(now=now)
    ended = client.get(f"{BASE}/b").json()

    begun = post(client, "/b/retry-failed", {"reason": "Mended"})
    going = client.get(f"{BASE}/b").json()
    clock(now=database_now() + timedelta(seconds=1))
    after = client.get(f"{BASE}/b").json()

    assert (ended["status"], ended["ended_at"] is not None, ended["round"]) == ("completed_with_failures", True, 1)
    assert (begun.status_code, begun.json()["round"], begun.json()["ended_at"]) == (202, 2, None)
    assert going["retry"] == {
        "state": "running",
        "total": 1,
        "retried": 0,
        "refused": 0,
        "remaining": 1,
        "said": None,
    }
    assert (after["progress"]["total"], after["progress"]["failed"], after["progress"]["waiting"]) == (3, 0, 1)
    assert [each["task_id"] for each in after["tasks"]] == ["t1", "t2", "t0-retry-1"]


def test_without_a_failure_there_is_nothing_to_retry(client: APIClient) -> None:
    submit(client)

    assert told(post(client, "/b/retry-failed"))[:2] == (409, "CONFLICT")


@pytest.mark.parametrize("verb", ["cancel", "pause", "resume", "retry-failed"])
def test_what_a_verb_does_not_know_is_refused(client: APIClient, verb: str) -> None:
    submit(client)

    assert told(post(client, f"/b/{verb}", {"reasons": "x"}))[0::2] == (400, {"reasons": "Unknown field"})


def test_what_is_not_there_is_not_found(api_client: Clients) -> None:
    admin = api_client("admin")

    answers = [admin.get(f"{BASE}/none"), admin.get(f"{BASE}/none/tasks"), post(admin, "/none/tasks", {"tasks": []})]
    answers += [post(admin, f"/none/{verb}") for verb in VERBS]

    assert {each.status_code for each in answers} == {404}


# --- reading ----------------------------------------------------------------------------------------------------


def test_failed_tasks_are_shown_first(client: APIClient) -> None:
    submit(client, 150)
    now = database_now()
    work(3, now=now)
    settle(claim(now=now), FAILED, now=now)

    shown = client.get(f"{BASE}/b").json()["tasks"]

    assert [each["task_id"] for each in shown] == ["t3", "t0", "t1", "t2", *(f"t{number}" for number in range(4, 100))]
    assert (shown[0]["status"], shown[0]["result"]) == ("failed", {"exit_code": 64})
    assert (shown[-1]["status"], shown[-1]["result"]) == ("queued", None)


def test_tasks_come_page_by_page_in_their_order(client: APIClient) -> None:
    submit(client, 5)

    first = client.get(f"{BASE}/b/tasks?limit=2").json()
    second = client.get(f"{BASE}/b/tasks?limit=2&cursor={first['pagination']['next_cursor']}").json()
    third = client.get(f"{BASE}/b/tasks?limit=2&cursor={second['pagination']['next_cursor']}").json()

    pages = [[each["task_id"] for each in page["tasks"]] for page in (first, second, third)]
    assert pages == [["t0", "t1"], ["t2", "t3"], ["t4"]]
    assert first["pagination"]["total"] == 5
    assert third["pagination"]["next_cursor"] is None
    assert first["tasks"][0]["batch"] == "b"


def test_tasks_are_listed_by_state(client: APIClient) -> None:
    submit(client, 9, options={"max_concurrent": 6})
    now = database_now()
    work(1, now=now)
    settle(claim(now=now), FAILED, now=now)
    running, held, unstarted, *_ = claim(3, now=now)
    Task.objects.filter(pk=running.id).update(started_at=now)
    Task.objects.filter(pk=held.id).update(started_at=now, paused_at=now)
    Task.objects.filter(pk=unstarted.id).update(started_at=None)
    Task.objects.filter(task_id="t5").update(status="paused")
    Task.objects.filter(task_id="t6").update(status="scheduled")

    def listed(status: str) -> list[str]:
        page = client.get(f"{BASE}/b/tasks?status={status}").json()
        assert {each["status"] for each in page["tasks"]} <= {status}
        assert page["pagination"]["total"] == len(page["tasks"])
        return [each["task_id"] for each in page["tasks"]]

    assert listed("completed") == ["t0"]
    assert listed("failed") == ["t1"]
    assert listed("executing") == ["t2"]
    assert listed("paused") == ["t3", "t5"]
    assert listed("queued") == ["t4", "t7"]
    assert listed("scheduled") == ["t6"]
    assert listed("blocked") == ["t8"]
    assert listed("skipped") == listed("cancelled") == []
    assert told(client.get(f"{BASE}/b/tasks?status=done"))[:2] == (400, "INVALID_REQUEST")
    assert told(client.get(f"{BASE}/b/tasks?state=failed"))[2] == {"state": "Unknown query parameter"}


def test_batches_are_listed_by_state_and_time(client: APIClient) -> None:
    now = database_now()
    for name in ("going", "paused", "over", "new"):
        submit(client, 0, batch_id=name, tasks=[{"handler": "python:noop"}] * (1 if name != "going" else 2))
        if name == "going":
            settle(claim(now=database_now()), now=database_now())
        if name == "over":
            post(client, "/over/cancel")
    post(client, "/paused/pause")
    clock(now=database_now())
    old = Batch.objects.get(batch_id="new")
    Batch.objects.filter(pk=old.pk).update(created_at=now - timedelta(days=2))

    def listed(query: str) -> list[str]:
        return [each["batch_id"] for each in client.get(f"{BASE}?{query}").json()["batches"]]

    assert listed("") == ["new", "over", "paused", "going"]
    assert listed("status=in_progress") == ["going"]
    assert listed("status=submitted") == ["new"]
    assert listed("status=paused") == ["paused"]
    assert listed("status=cancelled") == ["over"]
    assert listed("status=completed") == []
    day = (now - timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert listed(f"until={day}") == ["new"]
    assert listed(f"since={day}") == ["over", "paused", "going"]
    assert listed("limit=1") == ["new"]
    assert told(client.get(f"{BASE}?status=done"))[2].keys() == {"status"}


def test_what_has_not_changed_is_not_sent_again(client: APIClient) -> None:
    submit(client)
    seen = client.get(f"{BASE}/b")

    same = client.get(f"{BASE}/b", headers={"If-None-Match": seen["ETag"]})
    work(1, now=database_now())
    changed = client.get(f"{BASE}/b", headers={"If-None-Match": seen["ETag"]})

    assert (same.status_code, changed.status_code) == (304, 200)


# --- what it costs ----------------------------------------------------------------------------------------------


def queries(call: Callable[[], Any]) -> int:
    with CaptureQueriesContext(connection) as caught:
        assert call().status_code < 300
    return len(caught)


SUBMISSION, READING, LISTING, PAGE = 18, 6, 4, 4


def test_a_submission_costs_the_same_number_of_statements_for_any_number(client: APIClient) -> None:
    submit(client)  # what is read once for all
    few, many = given(1, task_id="a"), [{"task_id": f"u{number}", "handler": "python:noop"} for number in range(1_000)]

    assert queries(lambda: submit(client, batch_id="few", tasks=few)) == SUBMISSION
    assert queries(lambda: submit(client, batch_id="many", tasks=many)) == SUBMISSION


def test_reading_a_batch_costs_the_same_for_any_size(client: APIClient) -> None:
    submit(client, 2, batch_id="few")
    submit(client, 0, batch_id="many", tasks=[{"handler": "python:noop"}] * 1_000)
    now = database_now()
    settle(claim(now=now), FAILED, now=now)

    assert queries(lambda: client.get(f"{BASE}/many")) == READING
    assert queries(lambda: client.get(f"{BASE}/few")) == READING + 1  # for its failed tasks
    assert queries(lambda: client.get(BASE)) == LISTING
    assert queries(lambda: client.get(f"{BASE}/many/tasks?limit=100&status=queued")) == PAGE
