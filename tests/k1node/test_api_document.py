"""The committed OpenAPI document: the code's own, the design's names, an example for everything."""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from k1node.access.scopes import DESCRIPTIONS
from k1node.api import declared, document
from k1node.events.catalogue import EVENTS
from k1node.management.commands.openapi import DOCUMENT
from tests.breaking import breaking_changes, committed

BOTH = {"application/json", "application/vnd.k1node.v2+json"}
OPERATIONS = [
    ("get", "/metrics/retry-stats", "getRetryStats", "Get retry engine metrics", "Error Recovery"),
    ("get", "/queue/dlq", "listDLQEntries", "List dead letter queue entries", "Error Recovery"),
    ("post", "/queue/dlq", "createDLQEntry", "Manually add entry to DLQ", "Error Recovery"),
    ("post", "/queue/dlq/{dlqId}/resubmit", "resubmitDLQEntry", "Resubmit failed task from DLQ", "Error Recovery"),
    ("get", "/scheduler/schedules", "listSchedules", "List all schedules", "Scheduling"),
    ("post", "/scheduler/schedules", "createSchedule", "Create new schedule", "Scheduling"),
    ("get", "/scheduler/schedules/{scheduleId}", "getSchedule", "Get schedule details", "Scheduling"),
    ("patch", "/scheduler/schedules/{scheduleId}", "updateSchedule", "Update schedule", "Scheduling"),
    ("delete", "/scheduler/schedules/{scheduleId}", "deleteSchedule", "Delete schedule", "Scheduling"),
    ("post", "/scheduler/trigger", "triggerEvent", "Trigger event-based schedules", "Scheduling"),
    ("get", "/scheduler/queue", "getQueueStatus", "Get priority queue status", "Scheduling"),
]
ANSWERS = [
    ("getRetryStats", "200", "Retry statistics", "RetryStats"),
    ("listDLQEntries", "200", "DLQ entries list", "DLQList"),
    ("createDLQEntry", "201", "DLQ entry created", None),
    ("resubmitDLQEntry", "202", "Resubmission queued", None),
    ("listSchedules", "200", "List of schedules", "ScheduleList"),
    ("createSchedule", "201", "Schedule created", None),
    ("getSchedule", "200", "Schedule details", "Schedule"),
    ("updateSchedule", "200", "Schedule updated", None),
    ("deleteSchedule", "204", "Schedule deleted", None),
    ("triggerEvent", "202", "Event triggered, schedules queued", None),
    ("getQueueStatus", "200", "Queue status", "QueueStatus"),
]
BODIES = [
    ("createDLQEntry", "DLQEntryInput"),
    ("createSchedule", "ScheduleInput"),
    ("updateSchedule", "ScheduleUpdate"),
]
FIELDS = [
    ("DLQEntry", ("dlq_id", "task_id", "timestamp", "error_code", "error_message", "status")),
    (
        "Schedule",
        *[("task_id", "schedule_type", "schedule_expr", "priority", "enabled", "last_executed", "next_execution")],
    ),
    ("QueueStatus", ("timestamp", "queue_status", "resource_usage", "resource_limits", "pending_tasks")),
    ("RetryStats", ("timestamp", "interval", "metrics", "timeseries")),
]
COMPONENTS = [
    *(("parameters", name) for name in ("PageParam", "LimitParam")),
    *(("responses", name) for name in ("Unauthorized", "NotFound", "TooManyRequests")),
    *(
        ("schemas", name)
        for name in (
            *("RetryStats", "DLQEntry", "DLQList", "DLQEntryInput", "Schedule", "ScheduleList", "ScheduleInput"),
            *("ScheduleUpdate", "QueueStatus", "Error", "RateLimitError", "Problem"),
        )
    ),
    *(("securitySchemes", name) for name in ("ApiKey", "JWT", "OAuth2", "OperatorSession")),
]


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """Return the document as a client reads it."""
    content: dict[str, Any] = orjson.loads(document.written())
    return content


def by_id(whole: dict[str, Any], operation_id: str) -> dict[str, Any]:
    return next(each for _, _, each in document.operations(whole) if each["operationId"] == operation_id)


# --- the contract comes first -------------------------------------------------------------------------------------


def test_the_committed_document_is_that_of_the_code() -> None:
    assert DOCUMENT.read_bytes() == document.written(), "docs/openapi.json is not of this code: run `make openapi`"


def test_nothing_breaks_those_who_use_the_committed_version(whole: dict[str, Any]) -> None:
    before = committed()
    if before is None:
        pytest.skip("There is no earlier version to compare with")

    assert breaking_changes(before, whole) == []


# --- the design's words -------------------------------------------------------------------------------------------


def test_it_says_what_the_design_says_of_it(whole: dict[str, Any]) -> None:
    assert whole["openapi"] == "3.1.0"
    assert (whole["info"]["title"], whole["info"]["version"]) == ("K1.Node API v2", "2.0.0")
    assert whole["info"]["description"].startswith("Error Recovery & Dynamic Scheduling API\n")
    assert "application/vnd.k1node.v1+json" in whole["info"]["description"]
    assert whole["info"]["contact"] == {"name": "API Support", "email": "api@k1node.local"}
    assert whole["servers"] == [
        {"url": "https://api.k1node.local/api/v2", "description": "Production API"},
        {"url": "http://localhost:3000/api/v2", "description": "Development API"},
    ]


@pytest.mark.parametrize(("method", "path", "operation_id", "summary", "tag"), OPERATIONS)
def test_the_design_s_operations_have_its_names(
    whole: dict[str, Any], method: str, path: str, operation_id: str, summary: str, tag: str
) -> None:
    operation = whole["paths"][path][method]

    assert (operation["operationId"], operation["summary"], operation["tags"]) == (operation_id, summary, [tag])


@pytest.mark.parametrize(("operation_id", "status", "description", "schema"), ANSWERS)
def test_the_design_s_answers_have_its_names(
    whole: dict[str, Any], operation_id: str, status: str, description: str, schema: str | None
) -> None:
    answer = by_id(whole, operation_id)["responses"][status]

    assert answer["description"] == description
    if schema is not None:
        assert answer["content"]["application/json"]["schema"] == {"$ref": f"#/components/schemas/{schema}"}


@pytest.mark.parametrize(("operation_id", "schema"), BODIES)
def test_the_design_s_bodies_have_its_names(whole: dict[str, Any], operation_id: str, schema: str) -> None:
    body = by_id(whole, operation_id)["requestBody"]

    assert body["content"]["application/json"]["schema"] == {"$ref": f"#/components/schemas/{schema}"}


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_the_design_s_components_are_there(whole: dict[str, Any], kind: str, name: str) -> None:
    assert name in whole["components"][kind]


@pytest.mark.parametrize(("schema", "fields"), FIELDS)
def test_the_design_s_fields_are_there(whole: dict[str, Any], schema: str, fields: tuple[str, ...]) -> None:
    assert set(fields) <= set(whole["components"]["schemas"][schema]["required"])


def test_created_schedules_have_a_location(whole: dict[str, Any]) -> None:
    assert "Location" in by_id(whole, "createSchedule")["responses"]["201"]["headers"]


def test_too_many_requests_has_the_design_s_headers(whole: dict[str, Any]) -> None:
    named = set(whole["components"]["responses"]["TooManyRequests"]["headers"])

    assert {f"X-RateLimit-{each}" for each in ("Limit", "Remaining", "Reset", "RetryAfter")} <= named


# --- what holds for every operation -------------------------------------------------------------------------------


def test_every_tag_is_described(whole: dict[str, Any]) -> None:
    used = {tag for _, _, operation in document.operations(whole) for tag in operation["tags"]}

    assert used <= {tag["name"] for tag in whole["tags"]} <= declared.TAGS.keys()


def test_every_body_and_answer_has_both_media_types(whole: dict[str, Any]) -> None:
    for method, path, operation in document.operations(whole):
        contents = [operation["requestBody"]["content"]] if "requestBody" in operation else []
        contents += [each["content"] for each in operation["responses"].values() if "content" in each]
        for content in contents:
            assert set(content) == BOTH, f"{method} {path}"
            first, second = content.values()
            assert first == second
    for name, answer in whole["components"]["responses"].items():
        assert set(answer["content"]) == BOTH | {"application/problem+json"}, name


def test_every_answer_tells_of_limits_and_names_its_request(whole: dict[str, Any]) -> None:
    answers = list(whole["components"]["responses"].values())
    for _, _, operation in document.operations(whole):
        answers += [each for each in operation["responses"].values() if "$ref" not in each]

    for answer in answers:
        for name in declared.ON_EVERY_ANSWER:
            assert answer["headers"][name] == {"$ref": f"#/components/headers/{name}"}


def test_every_operation_takes_every_kind_of_credential_with_its_scopes(whole: dict[str, Any]) -> None:
    for method, path, operation in document.operations(whole):
        if {} in operation["security"] or not operation["security"]:
            continue
        if path == "/auth/token":
            # For every key, whatever its scopes, and for nothing else.
            assert operation["security"] == [{"ApiKey": []}] and "x-required-scopes" not in operation
            continue
        scopes = operation["x-required-scopes"]
        assert scopes and set(scopes) <= DESCRIPTIONS.keys(), f"{method} {path}"
        assert {name for each in operation["security"] for name in each} == set(whole["components"]["securitySchemes"])
        assert [each["OAuth2"] for each in operation["security"] if "OAuth2" in each] == [[each] for each in scopes]


def test_the_oauth_scheme_describes_every_scope(whole: dict[str, Any]) -> None:
    flow = whole["components"]["securitySchemes"]["OAuth2"]["flows"]["authorizationCode"]

    assert flow["scopes"] == DESCRIPTIONS
    assert (flow["authorizationUrl"], flow["tokenUrl"], flow["refreshUrl"]) == (
        "/oauth/authorize",
        "/oauth/token",
        "/oauth/token",
    )


# --- examples -----------------------------------------------------------------------------------------------------


def media(whole: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give every described message with where it is."""
    everything = [*document.operations(whole), *(("post", name, e["post"]) for name, e in whole["webhooks"].items())]
    for method, path, operation in everything:
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            yield f"{method} {path} {kind}", content
        for status, answer in operation["responses"].items():
            for kind, content in answer.get("content", {}).items():
                yield f"{method} {path} {status} {kind}", content
    for name, answer in whole["components"]["responses"].items():
        for kind, content in answer["content"].items():
            yield f"{name} {kind}", content


def test_no_message_lacks_an_example(whole: dict[str, Any]) -> None:
    lacking = [where for where, content in media(whole) if not content.get("examples")]

    assert lacking == [], "Add them to the api/examples.py of the app"


def test_every_example_fits_its_schema(whole: dict[str, Any]) -> None:
    registry = Registry().with_resource("urn:document", Resource.from_contents(whole, DRAFT202012))
    problems = []
    for where, content in media(whole):
        validator = Draft202012Validator(
            {"$ref": f"urn:document{content['schema']['$ref']}"},
            registry=registry,
            format_checker=Draft202012Validator.FORMAT_CHECKER,
        )
        for example in content.get("examples", {}).values():
            if "$ref" in example:
                example = whole["components"]["examples"][example["$ref"].rpartition("/")[2]]
            problems += [
                f"{where}: {error.json_path} {error.message}" for error in validator.iter_errors(example["value"])
            ]

    assert problems == []


def test_no_example_is_of_an_operation_that_is_not_there(whole: dict[str, Any]) -> None:
    from k1node.api.example import collected

    assert collected().keys() <= {operation["operationId"] for _, _, operation in document.operations(whole)}


# --- events -------------------------------------------------------------------------------------------------------


def test_every_event_is_described(whole: dict[str, Any]) -> None:
    assert set(whole["webhooks"]) == set(EVENTS)
    for name, item in whole["webhooks"].items():
        reference = item["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        schema = whole["components"]["schemas"][reference.rpartition("/")[2]]
        assert schema["required"] == ["id", "timestamp", "event", "data", "occurred_at"]
        assert schema["properties"]["event"]["const"] == name
