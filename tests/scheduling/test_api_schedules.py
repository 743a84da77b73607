"""The schedule endpoints: the design's messages, what is refused and how, scopes, pages, previews, the ledger."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from scheduling import schedules
from scheduling.models import OverlapPolicy, Schedule, ScheduleTally, ScheduleType, Slot, Task
from tests.conftest import HandlerRoot
from tests.factories import make_schedule, make_task
from tests.scheduling.query_counts import committed

NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
LIST = "/api/v2/scheduler/schedules"
NEW = {
    "task_id": "backup-daily",
    "handler": "python:noop",
    "schedule_type": "cron",
    "schedule_expr": "0 2 * * *",
}
# As the design's example has them.
DESIGN_FIELDS = {
    "task_id",
    "schedule_type",
    "schedule_expr",
    "priority",
    "enabled",
    "created_at",
    "last_executed",
    "next_execution",
    "execution_count",
    "failure_count",
    "average_duration_ms",
}

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


@pytest.fixture
def trigger(api_client: Clients) -> APIClient:
    return api_client("scheduler:trigger")


def details(response: Any) -> dict[str, dict[str, Any]]:
    """Return the details of an error body by field."""
    assert response.json()["error"]["code"] in ("INVALID_REQUEST", "CONFLICT")
    return {detail["field"]: detail for detail in response.json()["error"]["details"]}


def on(expression: str, **fields: Any) -> Schedule:
    defaults = {
        "handler": "python:noop",
        "schedule_type": ScheduleType.EVENT,
        "schedule_expr": expression,
        "overlap_policy": OverlapPolicy.ALLOW,
    }
    return make_schedule(**defaults | fields)


# --- create -----------------------------------------------------------------------------------------------------


def test_the_designs_schedule_is_created(writer: APIClient, handler_root: HandlerRoot) -> None:
    handler_root.write("ops/agents/backup.sh", "true")
    body = {
        "task_id": "backup-daily",
        "task_name": "Daily Backup",
        "handler": "bash ops/agents/backup.sh",
        "schedule_type": "cron",
        "schedule_expr": "0 2 * * *",
        "priority": 8,
        "circuit_breaker": "default",
        "retry_policy": "standard",
    }

    response = writer.post(LIST, body, format="json")

    assert (response.status_code, response["Location"]) == (201, f"{LIST}/backup-daily")
    shown = response.json()
    assert {name: shown[name] for name in body} == body
    assert set(shown) >= DESIGN_FIELDS
    assert (shown["next_execution"], shown["last_executed"]) == ("2026-03-05T02:00:00.000+00:00", None)
    assert (shown["execution_count"], shown["failure_count"], shown["average_duration_ms"]) == (0, 0, None)
    assert (shown["description"], shown["created_by"]) == ("At 02:00", "test")
    assert writer.get(response["Location"]).json() == shown


def test_every_field_that_can_be_written_is_shown_as_written(writer: APIClient) -> None:
    body = {
        **NEW,
        "schedule_type": "event",
        "schedule_expr": "order.*",
        "task_name": "Ship",
        "parameters": {"a": [1, {"b": None}]},
        "event_filter": {"source": "shop"},
        "timezone": "Europe/Berlin",
        "priority": 1,
        "timeout_ms": 5,
        "retry_policy": "aggressive",
        "circuit_breaker": "shop",
        "enabled": False,
        "paused_until": "2026-03-05T00:00:00.000+00:00",
        "pause_reason": "Stocktaking",
        "overlap_policy": "cancel_running",
        "catch_up": "all",
        "catch_up_window_ms": 60_000,
        "catch_up_cap": 7,
        "jitter_ms": 1000,
        "starts_at": "2026-03-01T00:00:00.000+00:00",
        "ends_at": "2026-04-01T00:00:00.000+00:00",
        "skip_next": True,
    }

    response = writer.post(LIST, body, format="json")

    assert response.status_code == 201, response.json()
    assert {name: response.json()[name] for name in body} == body
    assert set(schedules.EDITABLE) | {"task_id"} == set(body)


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        pytest.param({"schedule_expr": "61 * * * *"}, "schedule_expr", "61", id="minute 61"),
        pytest.param({"schedule_expr": "0 0 2 * * *"}, "schedule_expr", "6 fields", id="six fields"),
        pytest.param({"schedule_expr": ""}, "schedule_expr", "empty", id="empty"),
        pytest.param({"schedule_expr": "   "}, "schedule_expr", "empty", id="blank"),
        pytest.param({"schedule_expr": "0 0 31 2 *"}, "schedule_expr", "never fires", id="31 February"),
        pytest.param({"schedule_expr": 5}, "schedule_expr", "not a number", id="expression is a number"),
        pytest.param(
            {"schedule_type": "event", "schedule_expr": "a b"}, "schedule_expr", "event", id="not an event name"
        ),
        pytest.param({"schedule_type": "daily"}, "schedule_type", "choices", id="unknown type"),
        pytest.param({"handler": "bash ../etc/x.sh"}, "handler", "not under", id="outside the root"),
        pytest.param({"handler": "bash ops/x.sh; rm -rf /"}, "handler", "operator", id="shell operator"),
        pytest.param({"handler": "bash -c ls"}, "handler", "option", id="-c"),
        pytest.param({"handler": ""}, "handler", "empty", id="empty handler"),
        pytest.param({"handler": "python:nope"}, "handler", "nope", id="unknown Python handler"),
        pytest.param(
            {"handler": "python:sleep", "parameters": {"seconds": "x"}}, "parameters.seconds", "number", id="parameters"
        ),
        pytest.param({"parameters": []}, "parameters", "object", id="parameters are a list"),
        pytest.param({"parameters": {"a": "x" * 70_000}}, "parameters", "bytes", id="parameters too large"),
        pytest.param({"priority": 0}, "priority", "from 1 to 10", id="priority 0"),
        pytest.param({"priority": 11}, "priority", "from 1 to 10", id="priority 11"),
        pytest.param({"priority": "high"}, "priority", "not a string", id="priority high"),
        pytest.param({"priority": True}, "priority", "not a boolean", id="priority true"),
        pytest.param({"timezone": "Europe/Berln"}, "timezone", "time zone", id="unknown zone"),
        pytest.param({"timezone": ""}, "timezone", "time zone", id="empty zone"),
        pytest.param({"retry_policy": "standrad"}, "retry_policy", "standrad", id="unknown policy"),
        pytest.param({"retry_policy": ""}, "retry_policy", "no retry policy", id="empty policy"),
        pytest.param({"overlap_policy": "wait"}, "overlap_policy", "choices", id="unknown overlap policy"),
        pytest.param({"catch_up": "some"}, "catch_up", "choices", id="unknown catch-up"),
        pytest.param({"catch_up_cap": 1001}, "catch_up_cap", "from 0 to 1000", id="cap too high"),
        pytest.param({"circuit_breaker": "a/b"}, "circuit_breaker", "name", id="breaker name"),
        pytest.param({"task_id": "batch"}, "task_id", "reserved", id="reserved id"),
        pytest.param({"task_id": "a/b"}, "task_id", "id", id="id with a slash"),
        pytest.param({"starts_at": "tomorrow"}, "starts_at", "ISO 8601", id="no time"),
        pytest.param({"starts_at": "2026-03-05T00:00:00"}, "starts_at", "offset", id="no offset"),
        pytest.param(
            {"starts_at": "2026-03-05T00:00:00Z", "ends_at": "2026-03-04T00:00:00Z"},
            "ends_at",
            "later",
            id="ends before it starts",
        ),
        pytest.param({"enabled": "yes"}, "enabled", "true or false", id="enabled yes"),
        pytest.param({"scheduel_expr": "x"}, "scheduel_expr", "Unknown", id="unknown field"),
        pytest.param({"event_filter": {"a": 1}}, "event_filter", "event schedule", id="filter of a cron schedule"),
    ],
)
def test_bad_input_is_refused_by_field_with_a_suggestion(
    writer: APIClient, fields: dict[str, Any], field: str, message: str
) -> None:
    response = writer.post(LIST, NEW | fields, format="json")

    assert response.status_code == 400
    found = details(response)
    assert list(found) == [field]
    assert message in found[field]["message"]
    assert found[field]["suggestion"]
    assert not Schedule.objects.exists()


@pytest.mark.parametrize("field", sorted(NEW))
def test_what_every_schedule_needs_is_asked_for(writer: APIClient, field: str) -> None:
    response = writer.post(LIST, {name: value for name, value in NEW.items() if name != field}, format="json")

    assert (response.status_code, set(details(response))) == (400, {field})


def test_all_problems_come_at_once(writer: APIClient) -> None:
    body = NEW | {"schedule_expr": "61 * * * *", "priority": "high", "handler": "ls", "retry_policy": "x"}

    response = writer.post(LIST, body, format="json")

    assert set(details(response)) == {"schedule_expr", "priority", "handler", "retry_policy"}


def test_a_second_schedule_of_one_id_is_a_conflict(writer: APIClient) -> None:
    writer.post(LIST, NEW, format="json")

    response = writer.post(LIST, NEW, format="json")

    assert (response.status_code, response.json()["error"]["code"]) == (409, "CONFLICT")
    assert "backup-daily" in details(response)["task_id"]["message"]
    assert Schedule.objects.count() == 1


# --- read -------------------------------------------------------------------------------------------------------


def test_a_schedule_shows_its_figures(reader: APIClient) -> None:
    schedule = make_schedule(task_id="backup", next_fire_at=NOW + 5 * MINUTE)
    for shard, completed, failed, ms in ((0, 3, 1, 3000), (5, 1, 0, 2000)):
        ScheduleTally.objects.create(
            schedule=schedule, shard=shard, completed=completed, failed=failed, completed_ms=ms, last_started_at=NOW
        )

    shown = reader.get(f"{LIST}/backup").json()

    assert (shown["execution_count"], shown["failure_count"], shown["average_duration_ms"]) == (5, 1, 1250)
    assert shown["last_executed"] == "2026-03-04T12:00:00.000+00:00"
    assert shown["next_execution"] == "2026-03-04T12:05:00.000+00:00"


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        pytest.param("", ["a", "b", "c"], id="all"),
        pytest.param("type=cron", ["a", "b"], id="cron"),
        pytest.param("type=event", ["c"], id="event"),
        pytest.param("enabled=true", ["a", "c"], id="enabled"),
        pytest.param("enabled=false", ["b"], id="disabled"),
        pytest.param("type=event&enabled=false", [], id="both"),
        pytest.param("limit=2", ["a", "b"], id="a page"),
        pytest.param("limit=2&page=2", ["c"], id="the next page"),
    ],
)
def test_schedules_are_listed_by_their_id(reader: APIClient, query: str, ids: list[str]) -> None:
    make_schedule(task_id="b", enabled=False)
    on("x", task_id="c")
    make_schedule(task_id="a")

    response = reader.get(f"{LIST}?{query}")

    body = response.json()
    assert (response.status_code, set(body)) == (200, {"schedules", "pagination"})
    assert [schedule["task_id"] for schedule in body["schedules"]] == ids
    assert all(set(schedule) >= DESIGN_FIELDS for schedule in body["schedules"])
    assert body["pagination"]["total"] == (3 if "limit" in query else len(ids))


@pytest.mark.parametrize("query", ["type=daily", "enabled=maybe", "page=0", "limit=101", "sort=priority"])
def test_a_filter_that_means_nothing_is_refused(reader: APIClient, query: str) -> None:
    response = reader.get(f"{LIST}?{query}")

    assert (response.status_code, set(details(response))) == (400, {query.split("=")[0]})


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("get", "/nope"),
        ("patch", "/nope"),
        ("delete", "/nope"),
        ("post", "/nope/run"),
        ("get", "/nope/preview"),
        ("get", "/nope/slots"),
    ],
)
def test_an_unknown_schedule_is_not_found(api_client: Clients, method: str, path: str) -> None:
    response = getattr(api_client("scheduling:admin"), method)(f"{LIST}{path}")

    assert (response.status_code, response.json()["error"]["code"]) == (404, "NOT_FOUND")


# --- update and delete ------------------------------------------------------------------------------------------


def test_a_patch_changes_what_it_names(writer: APIClient) -> None:
    make_schedule(task_id="backup", priority=3, next_fire_at=NOW)

    response = writer.patch(f"{LIST}/backup", {"enabled": False}, format="json")

    body = response.json()
    assert (response.status_code, body["enabled"], body["priority"]) == (200, False, 3)
    assert body["next_execution"] is None


def test_a_patch_can_take_a_pause_away(writer: APIClient) -> None:
    make_schedule(task_id="backup", paused_until=NOW + MINUTE, ends_at=NOW + MINUTE)

    body = writer.patch(f"{LIST}/backup", {"paused_until": None, "ends_at": None}, format="json").json()

    assert (body["paused_until"], body["ends_at"]) == (None, None)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        pytest.param({"task_id": "other"}, "task_id", id="id"),
        pytest.param({"task_id": "backup"}, "task_id", id="the same id"),
        pytest.param({"created_at": "2026-01-01T00:00:00Z"}, "created_at", id="unknown"),
        pytest.param({"schedule_expr": "a.b"}, "schedule_expr", id="an event's name for a cron schedule"),
        pytest.param({"schedule_type": "event"}, "schedule_expr", id="a cron expression for an event schedule"),
        pytest.param({"priority": None}, "priority", id="null"),
        pytest.param({"handler": "ls"}, "handler", id="handler"),
        pytest.param({"ends_at": "2020-01-01T00:00:00Z", "starts_at": "2021-01-01T00:00:00Z"}, "ends_at", id="period"),
    ],
)
def test_a_bad_patch_changes_nothing(writer: APIClient, changes: dict[str, Any], field: str) -> None:
    schedule = make_schedule(task_id="backup")

    response = writer.patch(f"{LIST}/backup", changes, format="json")

    assert (response.status_code, list(details(response))) == (400, [field])
    assert Schedule.objects.get().updated_at == schedule.updated_at


def test_a_deleted_schedule_is_gone_and_its_tasks_are_not(writer: APIClient) -> None:
    schedule = make_schedule(task_id="backup")
    make_task(task_id="backup-1", schedule=schedule)

    response = writer.delete(f"{LIST}/backup")

    assert (response.status_code, response.content) == (204, b"")
    assert writer.get(f"{LIST}/backup").status_code == 404
    shown = writer.get("/api/v2/tasks/backup-1").json()
    assert (shown["status"], shown["schedule"]) == ("queued", None)


# --- run now, trigger -------------------------------------------------------------------------------------------


def test_a_run_at_once_is_accepted_and_can_be_followed(trigger: APIClient) -> None:
    make_schedule(task_id="backup", handler="python:noop", enabled=False, parameters={"a": 1})

    response = trigger.post(f"{LIST}/backup/run", {"parameters": {"b": 2}}, format="json")

    body = response.json()
    assert (response.status_code, body["status"], body["schedule"]) == (202, "queued", "backup")
    followed = trigger.get(response["Location"]).json()
    assert (followed["task_id"], followed["parameters"]) == (body["task_id"], {"a": 1, "b": 2})


def test_a_run_at_once_needs_no_body(trigger: APIClient) -> None:
    make_schedule(task_id="backup", handler="python:noop")

    assert trigger.post(f"{LIST}/backup/run").status_code == 202


def test_a_run_that_the_overlap_policy_leaves_out_is_a_conflict(trigger: APIClient) -> None:
    make_schedule(task_id="backup", handler="python:noop", overlap_policy=OverlapPolicy.SKIP)
    trigger.post(f"{LIST}/backup/run")

    response = trigger.post(f"{LIST}/backup/run")

    assert response.status_code == 409
    assert "an earlier run has not ended" in response.json()["error"]["message"]
    assert Task.objects.count() == 1


def test_an_event_is_answered_as_the_design_says(trigger: APIClient) -> None:
    for fields in ({}, {}, {"paused_until": NOW + MINUTE}):
        on("webhook.*", **fields)
    on("webhook.received", event_filter={"source": "elsewhere"})
    body = {"event": "webhook.received", "metadata": {"source": "external-service", "webhook_id": "wh-12345"}}

    response = trigger.post("/api/v2/scheduler/trigger", body, format="json")

    assert response.status_code == 202
    assert response.json() == {
        "message": "Event triggered",
        "event": "webhook.received",
        "matching_schedules": 3,
        "queued_tasks": 2,
        "timestamp": "2026-03-04T12:00:00.000+00:00",
    }
    assert [task.parameters["event"]["name"] for task in Task.objects.all()] == ["webhook.received"] * 2


@pytest.mark.parametrize(
    ("body", "field"),
    [
        pytest.param({}, "event", id="no event"),
        pytest.param({"event": "a*"}, "event", id="a pattern"),
        pytest.param({"event": "a" * 201}, "event", id="too long"),
        pytest.param({"event": 5}, "event", id="a number"),
        pytest.param({"event": "a", "metadata": []}, "metadata", id="metadata is a list"),
        pytest.param({"event": "a", "metadata": {"x": "y" * 70_000}}, "metadata", id="metadata too large"),
        pytest.param({"event": "a", "data": {}}, "data", id="unknown field"),
    ],
)
def test_a_bad_event_is_refused(trigger: APIClient, body: dict[str, Any], field: str) -> None:
    response = trigger.post("/api/v2/scheduler/trigger", body, format="json")

    assert (response.status_code, list(details(response))) == (400, [field])


# --- preview ----------------------------------------------------------------------------------------------------


def test_a_preview_shows_the_next_runs_in_both_clocks(reader: APIClient) -> None:
    make_schedule(task_id="backup", schedule_expr="30 2 * * *", timezone="Europe/Berlin")

    body = reader.get(f"{LIST}/backup/preview?count=2").json()

    assert body == {
        "schedule_expr": "30 2 * * *",
        "timezone": "Europe/Berlin",
        "description": "At 02:30 (Europe/Berlin)",
        "fire_times": [
            {"utc": "2026-03-05T01:30:00.000+00:00", "local": "2026-03-05T02:30:00+01:00"},
            {"utc": "2026-03-06T01:30:00.000+00:00", "local": "2026-03-06T02:30:00+01:00"},
        ],
        "warnings": [
            "On 2026-03-29 02:30 does not exist in Europe/Berlin; the run starts at 03:00.",
            "On 2026-10-25 02:30 comes twice in Europe/Berlin; only the first time runs.",
        ],
    }


@pytest.mark.parametrize(
    ("fields", "times"),
    [
        pytest.param({}, ["12:05", "12:10", "12:15"], id="as it is"),
        pytest.param({"enabled": False}, ["12:05", "12:10", "12:15"], id="disabled"),
        pytest.param({"paused_until": NOW + 7 * MINUTE}, ["12:10", "12:15", "12:20"], id="after the pause"),
        pytest.param({"starts_at": NOW + 15 * MINUTE}, ["12:15", "12:20", "12:25"], id="from its start"),
        pytest.param({"ends_at": NOW + 10 * MINUTE}, ["12:05", "12:10"], id="up to its end"),
        pytest.param({"skip_next": True}, ["12:10", "12:15", "12:20"], id="without the skipped"),
        pytest.param({"schedule_type": "event", "schedule_expr": "a.*"}, [], id="an event schedule"),
    ],
)
def test_a_preview_shows_what_will_run(reader: APIClient, fields: dict[str, Any], times: list[str]) -> None:
    make_schedule(task_id="backup", **fields)

    body = reader.get(f"{LIST}/backup/preview?count=3").json()

    assert [each["utc"][11:16] for each in body["fire_times"]] == times
    assert body["description"]


def test_an_expression_is_previewed_before_it_is_saved(reader: APIClient) -> None:
    query = {"schedule_expr": "0 9 * * MON", "timezone": "Asia/Tokyo", "count": "1"}

    body = reader.get("/api/v2/scheduler/preview", query).json()

    assert body["fire_times"] == [{"utc": "2026-03-09T00:00:00.000+00:00", "local": "2026-03-09T09:00:00+09:00"}]
    assert (body["description"], body["warnings"]) == ("At 09:00, only on Monday (Asia/Tokyo)", [])


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({}, "schedule_expr"),
        ({"schedule_expr": "61 * * * *"}, "schedule_expr"),
        ({"schedule_expr": ""}, "schedule_expr"),
        ({"schedule_expr": "* * * * *", "timezone": "Mars"}, "timezone"),
        ({"schedule_expr": "* * * * *", "count": 0}, "count"),
        ({"schedule_expr": "* * * * *", "count": 101}, "count"),
        ({"schedule_expr": "* * * * *", "zone": "UTC"}, "zone"),
    ],
)
def test_a_preview_of_nonsense_is_refused(reader: APIClient, query: dict[str, Any], field: str) -> None:
    response = reader.get("/api/v2/scheduler/preview", query)

    assert (response.status_code, list(details(response))) == (400, [field])


# --- the ledger -------------------------------------------------------------------------------------------------


def make_slots(schedule: Schedule, count: int) -> None:
    for number in range(count):
        at = NOW + number * MINUTE
        task = make_task(task_id=f"{schedule.task_id}-{number}", schedule=schedule)
        Slot.objects.create(
            schedule=schedule, due_at=at, last_due_at=at, outcome="fired", task=task, recorded_at=at + MINUTE
        )


def test_the_ledger_is_listed_newest_first(reader: APIClient) -> None:
    schedule = make_schedule(task_id="backup")
    make_slots(schedule, 1)
    make_slots(make_schedule(), 1)
    Slot.objects.create(
        schedule=schedule,
        due_at=NOW + MINUTE,
        last_due_at=NOW + 5 * MINUTE,
        count=5,
        outcome="missed",
        reason="no clock ran",
        recorded_at=NOW,
    )

    body = reader.get(f"{LIST}/backup/slots").json()

    assert body["slots"] == [
        {
            "due_at": "2026-03-04T12:01:00.000+00:00",
            "last_due_at": "2026-03-04T12:05:00.000+00:00",
            "count": 5,
            "outcome": "missed",
            "reason": "no clock ran",
            "task_id": None,
            "recorded_at": "2026-03-04T12:00:00.000+00:00",
        },
        {
            "due_at": "2026-03-04T12:00:00.000+00:00",
            "last_due_at": "2026-03-04T12:00:00.000+00:00",
            "count": 1,
            "outcome": "fired",
            "reason": "",
            "task_id": "backup-0",
            "recorded_at": "2026-03-04T12:01:00.000+00:00",
        },
    ]
    assert body["pagination"] == {"page": 1, "limit": 20, "total": 2, "next_cursor": None}


def test_the_pages_of_the_ledger_follow_each_other_while_it_grows(reader: APIClient) -> None:
    schedule = make_schedule(task_id="backup")
    make_slots(schedule, 5)
    seen: list[str] = []
    address: str | None = f"{LIST}/backup/slots?limit=2"

    while address:
        response = reader.get(address)
        body = response.json()
        seen += [slot["due_at"][14:16] for slot in body["slots"]]
        at = NOW + timedelta(hours=1) + len(seen) * MINUTE
        Slot.objects.create(schedule=schedule, due_at=at, last_due_at=at, outcome="fired", recorded_at=at)
        cursor = body["pagination"]["next_cursor"]
        address = f"{LIST}/backup/slots?limit=2&cursor={cursor}" if cursor else None
        assert ("Link" in response) is bool(cursor)

    assert seen == ["04", "03", "02", "01", "00"]


@pytest.mark.parametrize("query", ["cursor=x", "cursor=azE6MQ&page=2", "cursor=azE6OTk5OTk5OTk5OTk5OTk5OTk5", "at=1"])
def test_a_page_of_the_ledger_that_means_nothing_is_refused(reader: APIClient, query: str) -> None:
    make_schedule(task_id="backup")

    assert reader.get(f"{LIST}/backup/slots?{query}").status_code == 400


def test_the_run_of_a_slot_may_no_longer_be_kept(reader: APIClient) -> None:
    schedule = make_schedule(task_id="backup")
    make_slots(schedule, 1)
    Task.objects.all()._raw_delete("default")

    assert reader.get(f"{LIST}/backup/slots").json()["slots"][0]["task_id"] is None


# --- scopes and figures -----------------------------------------------------------------------------------------

OPERATIONS = [
    ("get", LIST, "scheduler:read"),
    ("get", f"{LIST}/backup", "scheduler:read"),
    ("get", f"{LIST}/backup/preview", "scheduler:read"),
    ("get", f"{LIST}/backup/slots", "scheduler:read"),
    ("get", "/api/v2/scheduler/preview", "scheduler:read"),
    ("get", "/api/v2/scheduler/queue", "scheduler:read"),
    ("get", "/api/v2/tasks", "scheduler:read"),
    ("get", "/api/v2/tasks/backup", "scheduler:read"),
    ("get", "/api/v2/tasks/backup/output", "scheduler:read"),
    ("post", LIST, "scheduler:write"),
    ("patch", f"{LIST}/backup", "scheduler:write"),
    ("delete", f"{LIST}/backup", "scheduler:write"),
    ("post", "/api/v2/tasks", "scheduler:write"),
    ("post", f"{LIST}/backup/run", "scheduler:trigger"),
    ("post", "/api/v2/scheduler/trigger", "scheduler:trigger"),
]


@pytest.mark.parametrize(("method", "path", "scope"), OPERATIONS)
def test_every_operation_is_opened_by_its_scope_alone(api_client: Clients, method: str, path: str, scope: str) -> None:
    others = {"scheduler:read", "scheduler:write", "scheduler:trigger", "error-recovery:admin", "batch:admin"} - {scope}
    if scope == "scheduler:read":
        others -= {"scheduler:write", "scheduler:trigger"}  # whoever writes may read

    statuses = {name: getattr(api_client(name), method)(path).status_code for name in (*others, scope)}

    assert {statuses[name] for name in others} == {403}
    assert statuses[scope] not in (401, 403)
    assert getattr(api_client(), method)(path).status_code == 401


@pytest.mark.parametrize("name", ["GET /scheduler/schedules", "GET /scheduler/schedules/{id}/slots"])
def test_a_longer_list_takes_no_more_queries(reader: APIClient, name: str) -> None:
    path = name.removeprefix("GET ").replace("{id}", "backup")
    schedule = make_schedule(task_id="backup")
    counts = []

    for extra in (2, 12):
        for _ in range(extra):
            other = make_schedule()
            for shard in range(3):
                ScheduleTally.objects.create(schedule=other, shard=shard, completed=1, last_started_at=NOW)
        Slot.objects.all().delete()
        Task.objects.all().delete()
        make_slots(schedule, extra)
        reader.get(f"/api/v2{path}")  # notes the key's use
        with CaptureQueriesContext(connection) as queries:
            assert reader.get(f"/api/v2{path}").status_code == 200
        counts.append(len(queries))

    assert counts == [committed(name)] * 2
