"""The task endpoints: submitting one, listing, following it, reading what it writes."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from scheduling import queue
from scheduling.models import GateKind, OutputChunk, Task, TaskStatus
from scheduling.output import HEAD_BYTES
from tests.conftest import HandlerRoot
from tests.factories import make_attempt, make_gate, make_schedule, make_task
from tests.scheduling.query_counts import committed

NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
LIST = "/api/v2/tasks"

Clients = Callable[..., APIClient]


@pytest.fixture(autouse=True)
def _at_noon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduling.api.views.database_now", lambda: NOW)


@pytest.fixture
def writer(api_client: Clients) -> APIClient:
    return api_client("scheduler:write")


@pytest.fixture
def reader(api_client: Clients) -> APIClient:
    return api_client("scheduler:read")


def details(response: Any) -> list[str]:
    """Return the fields an error body names."""
    return [detail["field"] for detail in response.json()["error"]["details"]]


def write(task: Task, *pieces: tuple[int, str, bytes], fence: int = 1) -> None:
    OutputChunk.objects.bulk_create(
        OutputChunk(task=task, fence=fence, position=position, stream=stream, data=data)
        for position, stream, data in pieces
    )


# --- submit -----------------------------------------------------------------------------------------------------


def test_a_handler_is_all_a_task_needs(writer: APIClient) -> None:
    response = writer.post(LIST, {"handler": "python:noop"}, format="json")

    body = response.json()
    assert (response.status_code, body["status"], body["due_at"]) == (202, "queued", "2026-03-04T12:00:00.000+00:00")
    assert response["Location"] == f"{LIST}/{body['task_id']}"
    task = Task.objects.get()
    assert (task.task_id, task.created_by) == (body["task_id"], "test")
    assert (task.priority, task.timeout_ms, task.retry_policy_id, task.circuit_breaker) == (
        5,
        3_600_000,
        "standard",
        "",
    )
    assert writer.get(response["Location"]).json()["task_id"] == task.task_id


def test_every_field_of_a_task_is_kept(writer: APIClient, handler_root: HandlerRoot) -> None:
    handler_root.write("ops/agents/export.sh", "true")
    body = {
        "task_id": "export-1",
        "task_name": "Export",
        "handler": "bash ops/agents/export.sh",
        "parameters": {"format": "csv"},
        "priority": 9,
        "timeout_ms": 5000,
        "retry_policy": "aggressive",
        "circuit_breaker": "exports",
    }

    response = writer.post(LIST, {**body, "delay_until": "2026-03-04T14:00:00+01:00"}, format="json")

    assert (response.status_code, response.json()["status"]) == (202, "scheduled")
    shown = writer.get(f"{LIST}/export-1").json()
    assert {name: shown[name] for name in body} == body
    assert shown["due_at"] == "2026-03-04T13:00:00.000+00:00"


@pytest.mark.parametrize("delay_until", [None, "2026-03-04T11:00:00Z"])
def test_a_delay_that_has_passed_is_none(writer: APIClient, delay_until: str | None) -> None:
    response = writer.post(LIST, {"handler": "python:noop", "delay_until": delay_until}, format="json")

    assert (response.json()["status"], response.json()["due_at"]) == ("queued", "2026-03-04T12:00:00.000+00:00")


@pytest.mark.parametrize(
    ("handler", "name", "breaker"),
    [
        pytest.param("python:noop", "", "", id="none unless named"),
        pytest.param("python:noop", "shared", "shared", id="named"),
        pytest.param("python:noop", "default", "python-noop", id="of the handler"),
        pytest.param("bash ops/agents/export.sh -v", "default", "bash-ops-agents-export.sh--v", id="of the command"),
    ],
)
def test_default_is_a_breaker_of_the_handlers_own(
    writer: APIClient, handler_root: HandlerRoot, handler: str, name: str, breaker: str
) -> None:
    handler_root.write("ops/agents/export.sh", "true")

    writer.post(LIST, {"handler": handler, "circuit_breaker": name}, format="json")

    assert Task.objects.get().circuit_breaker == breaker


def test_the_breaker_of_a_long_handler_has_a_name_that_fits() -> None:
    from scheduling import tasks

    names = {tasks.breaker_of(f"bash {'x' * 300}{number}", "default") for number in range(3)}

    assert len(names) == 3
    for name in names:
        tasks.check_breaker(name)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        pytest.param({"handler": None}, "handler", id="handler null"),
        pytest.param({"handler": ""}, "handler", id="no handler"),
        pytest.param({"handler": "bash /etc/passwd"}, "handler", id="outside the root"),
        pytest.param({"handler": "bash -c id"}, "handler", id="-c"),
        pytest.param({"handler": "python:sleep", "parameters": {"second": 1}}, "parameters.second", id="parameters"),
        pytest.param({"priority": 11}, "priority", id="priority"),
        pytest.param({"timeout_ms": 0}, "timeout_ms", id="timeout"),
        pytest.param({"retry_policy": "x"}, "retry_policy", id="policy"),
        pytest.param({"circuit_breaker": "status"}, "circuit_breaker", id="reserved breaker"),
        pytest.param({"task_id": "batch"}, "task_id", id="reserved id"),
        pytest.param({"task_id": "Batch"}, "task_id", id="reserved id in another case"),
        pytest.param({"task_id": ""}, "task_id", id="empty id"),
        pytest.param({"task_id": "a" * 121}, "task_id", id="id too long"),
        pytest.param({"delay_until": "soon"}, "delay_until", id="delay"),
        pytest.param({"schedule": "x"}, "schedule", id="unknown field"),
        pytest.param({"status": "completed"}, "status", id="not to be written"),
    ],
)
def test_a_bad_task_is_refused(writer: APIClient, fields: dict[str, Any], field: str) -> None:
    response = writer.post(LIST, {"handler": "python:noop"} | fields, format="json")

    assert (response.status_code, details(response)) == (400, [field])
    assert not Task.objects.exists()


@pytest.mark.parametrize("holder", ["task", "schedule"])
def test_an_id_is_taken_once(writer: APIClient, holder: str) -> None:
    if holder == "task":
        make_task(task_id="backup")
    else:
        make_schedule(task_id="backup")

    response = writer.post(LIST, {"task_id": "backup", "handler": "python:noop"}, format="json")

    assert (response.status_code, response.json()["error"]["code"]) == (409, "CONFLICT")
    assert details(response) == ["task_id"]


# --- follow -----------------------------------------------------------------------------------------------------


def test_a_task_shows_its_attempts_the_latest_first(reader: APIClient) -> None:
    schedule, batch = make_schedule(task_id="backup"), make_gate(kind=GateKind.BATCH, key="export")
    origin = make_task(task_id="task-0")
    task = make_task(
        task_id="task-1",
        schedule=schedule,
        gate=batch,
        origin=origin,
        status=TaskStatus.COMPLETED,
        attempt=2,
        exit_code=0,
        duration_ms=1000,
        parameters={"a": 1},
    )
    make_attempt(task, fence=1, number=1, outcome="failed", decision="retry", exit_code=3, error="It broke")
    make_attempt(task, fence=3, number=2, value={"rows": 7}, output_bytes=12)

    body = reader.get(f"{LIST}/task-1").json()

    assert (body["schedule"], body["batch"], body["origin"]) == ("backup", "export", "task-0")
    assert (body["status"], body["attempt"], body["parameters"]) == ("completed", 2, {"a": 1})
    assert body["result"] == {"exit_code": 0, "duration_ms": 1000, "value": {"rows": 7}}
    assert [(each["attempt"], each["outcome"], each["error"]) for each in body["attempts"]] == [
        (2, "completed", ""),
        (1, "failed", "It broke"),
    ]
    assert [each["output"] for each in body["attempts"]] == [
        f"{LIST}/task-1/output?fence=3",
        f"{LIST}/task-1/output?fence=1",
    ]


def test_only_the_newest_fifty_attempts_are_shown(reader: APIClient) -> None:
    task = make_task(task_id="task-1")
    for fence in range(1, 53):
        make_attempt(task, fence=fence, number=fence)

    attempts = reader.get(f"{LIST}/task-1").json()["attempts"]

    assert [each["fence"] for each in attempts] == list(range(52, 2, -1))


def test_a_task_that_has_not_run_has_no_result(reader: APIClient) -> None:
    make_task(task_id="task-1")

    assert reader.get(f"{LIST}/task-1").json()["result"] is None


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        pytest.param({"status": "executing"}, "executing", id="running"),
        pytest.param({"status": "executing", "paused_at": NOW}, "paused", id="stopped"),
        pytest.param({"status": "executing", "started_at": None}, "queued", id="claimed and unstarted"),
        pytest.param({"status": "paused"}, "paused", id="paused"),
    ],
)
def test_the_status_is_the_one_people_mean(reader: APIClient, fields: dict[str, Any], status: str) -> None:
    make_task(task_id="task-1", **fields)

    assert reader.get(f"{LIST}/task-1").json()["status"] == status
    assert [task["status"] for task in reader.get(f"{LIST}?status={status}").json()["tasks"]] == [status]


def test_a_schedules_id_means_its_latest_run(reader: APIClient) -> None:
    schedule = make_schedule(task_id="backup")
    for number in (1, 2):
        make_task(task_id=f"backup-{number}", schedule=schedule)

    assert reader.get(f"{LIST}/backup").json()["task_id"] == "backup-2"
    assert reader.get(f"{LIST}/backup/output").json()["task_id"] == "backup-2"


@pytest.mark.parametrize("path", ["/nope", "/nope/output", "/idle"])
def test_an_unknown_task_is_not_found(reader: APIClient, path: str) -> None:
    make_schedule(task_id="idle")

    assert reader.get(f"{LIST}{path}").status_code == 404


# --- list -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        pytest.param({}, ["d", "c", "b", "a"], id="all"),
        pytest.param({"status": "failed"}, ["c"], id="status"),
        pytest.param({"status": "queued"}, ["d", "b", "a"], id="queued"),
        pytest.param({"schedule": "backup"}, ["b", "a"], id="schedule"),
        pytest.param({"schedule": "unknown"}, [], id="unknown schedule"),
        pytest.param({"batch": "export"}, ["c", "a"], id="batch"),
        pytest.param({"handler": "python:noop"}, ["d"], id="handler"),
        pytest.param({"since": "2026-03-04T12:02:00Z"}, ["d", "c"], id="since"),
        pytest.param({"since": "2026-03-04T13:02:00+01:00", "status": "queued"}, ["d"], id="since and status"),
        pytest.param({"schedule": "backup", "batch": "export"}, ["a"], id="schedule and batch"),
    ],
)
def test_tasks_are_listed_newest_first(reader: APIClient, query: dict[str, str], ids: list[str]) -> None:
    schedule, batch = make_schedule(task_id="backup"), make_gate(kind=GateKind.BATCH, key="export")
    make_task(task_id="a", schedule=schedule, gate=batch, created_at=NOW)
    make_task(task_id="b", schedule=schedule, created_at=NOW + MINUTE)
    make_task(task_id="c", gate=batch, status="failed", created_at=NOW + 2 * MINUTE)
    make_task(task_id="d", handler="python:noop", created_at=NOW + 3 * MINUTE)

    response = reader.get(LIST, query)

    body = response.json()
    assert (response.status_code, [task["task_id"] for task in body["tasks"]]) == (200, ids)
    assert body["pagination"] == {"page": 1, "limit": 20, "total": len(ids), "next_cursor": None}


@pytest.mark.parametrize(
    "query",
    ["status=running", "since=yesterday", "since=2026-03-04", "limit=0", "cursor=x", "task_id=a", "status=a&status=b"],
)
def test_a_filter_that_means_nothing_is_refused(reader: APIClient, query: str) -> None:
    response = reader.get(f"{LIST}?{query}")

    assert (response.status_code, details(response)) == (400, [query.split("=")[0]])


def test_pages_follow_each_other_while_the_list_grows(reader: APIClient) -> None:
    for number in range(5):
        make_task(task_id=f"task-{number}")
    seen: list[str] = []
    address: str | None = f"{LIST}?limit=2"

    while address:
        page = reader.get(address).json()
        seen += [task["task_id"] for task in page["tasks"]]
        make_task()
        cursor = page["pagination"]["next_cursor"]
        address = f"{LIST}?limit=2&cursor={cursor}" if cursor else None

    assert seen == ["task-4", "task-3", "task-2", "task-1", "task-0"]


@pytest.mark.parametrize(
    "path",
    [
        "/tasks",
        "/tasks?status=queued",
        "/tasks?status=failed",
        "/tasks?schedule=backup",
        "/tasks?batch=export",
        "/tasks/{id}",
        "/tasks/{id}/output",
    ],
)
def test_a_longer_list_takes_no_more_queries(reader: APIClient, path: str) -> None:
    schedule, batch = make_schedule(task_id="backup"), make_gate(kind=GateKind.BATCH, key="export")
    first = make_task(task_id="first")
    address = f"/api/v2{path.replace('{id}', 'first')}"
    counts: list[int] = []

    for extra in (2, 12):
        for number in range(extra):
            fence = len(counts) * 100 + number
            make_attempt(first, fence=fence)
            write(first, (number * 10, "stdout", b"0123456789"), fence=fence)
            make_task(schedule=schedule, gate=batch, origin=first, status="failed")
            make_task(schedule=schedule, gate=batch, origin=make_task())
        reader.get(address)  # notes the key's use
        with CaptureQueriesContext(connection) as queries:
            assert reader.get(address).status_code == 200
        counts.append(len(queries))

    assert counts == [committed(f"GET {path}")] * 2


# --- output -----------------------------------------------------------------------------------------------------


def test_output_is_read_in_pages_while_the_task_runs(reader: APIClient) -> None:
    task = make_task(task_id="task-1", status=TaskStatus.EXECUTING)
    write(task, (0, "stdout", b"hello\n"), (6, "stderr", b"oops\n"))

    body = reader.get(f"{LIST}/task-1/output").json()

    assert body == {
        "task_id": "task-1",
        "attempt": 1,
        "fence": 1,
        "offset": 0,
        "next_offset": 11,
        "total": 11,
        "complete": False,
        "cut": [],
        "chunks": [
            {"offset": 0, "stream": "stdout", "text": "hello\n"},
            {"offset": 6, "stream": "stderr", "text": "oops\n"},
        ],
    }
    write(task, (11, "stdout", b"bye\n"))
    assert reader.get(f"{LIST}/task-1/output?offset=11").json()["chunks"] == [
        {"offset": 11, "stream": "stdout", "text": "bye\n"}
    ]


def test_what_was_cut_is_said(reader: APIClient) -> None:
    task = make_task(task_id="task-1", status=TaskStatus.COMPLETED)
    make_attempt(task, fence=1, output_bytes=HEAD_BYTES + 3)
    write(task, (0, "stdout", b"head"), (HEAD_BYTES, "stdout", b"\xffok"))

    body = reader.get(f"{LIST}/task-1/output").json()

    assert (body["cut"], body["total"], body["complete"]) == ([{"from": 4, "to": HEAD_BYTES}], HEAD_BYTES + 3, True)
    assert body["chunks"][-1]["text"] == "\ufffdok"


def test_an_earlier_attempt_can_be_read(reader: APIClient) -> None:
    task = make_task(task_id="task-1")
    for fence in (1, 2):
        make_attempt(task, fence=fence, number=fence, output_bytes=5)
        write(task, (0, "stdout", f"try {fence}".encode()), fence=fence)

    texts = {
        query: reader.get(f"{LIST}/task-1/output{query}").json()["chunks"][0]["text"]
        for query in ("", "?attempt=1", "?attempt=2", "?fence=1")
    }

    assert texts == {"": "try 2", "?attempt=1": "try 1", "?attempt=2": "try 2", "?fence=1": "try 1"}
    assert reader.get(f"{LIST}/task-1/output?attempt=3").status_code == 404


def test_a_task_that_has_not_run_has_an_empty_page(reader: APIClient) -> None:
    make_task(task_id="task-1")

    body = reader.get(f"{LIST}/task-1/output").json()

    assert (body["attempt"], body["chunks"], body["complete"]) == (None, [], False)


@pytest.mark.parametrize("query", ["offset=-1", "offset=x", "limit=1", "limit=300000", "attempt=x", "from=3"])
def test_a_page_of_output_that_means_nothing_is_refused(reader: APIClient, query: str) -> None:
    make_task(task_id="task-1")

    response = reader.get(f"{LIST}/task-1/output?{query}")

    assert (response.status_code, details(response)) == (400, [query.split("=")[0]])


def test_a_task_submitted_is_the_next_to_be_claimed(writer: APIClient) -> None:
    from scheduling import claims

    writer.post(LIST, {"task_id": "low", "handler": "python:noop", "priority": 1}, format="json")
    writer.post(LIST, {"task_id": "high", "handler": "python:noop", "priority": 10}, format="json")

    claimed = claims.claim(owner="w", now=NOW, window=10, choose=len)

    assert [claim.task_id for claim in claimed] == ["high", "low"]
    assert {"batch"} == queue.RESERVED_IDS
