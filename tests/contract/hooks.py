"""What schemathesis cannot learn from the document, and only where it means to send something right.

A schema says what one value may be. It cannot say which scripts lie on this node, which of two numbers must be the
smaller, or that a moment must lie ahead. Whatever is generated to be wrong goes out as it is.
"""

import itertools
import os
from collections.abc import Callable, MutableMapping
from typing import Any

import schemathesis
from schemathesis import GenerationMode

HANDLERS = ("python:noop", "bash ops/agents/greet.sh", "bash ops/agents/fail.sh")
EXPRESSIONS = {"cron": ("0 2 * * *", "@daily", "*/15 8-18 * * MON-FRI"), "event": ("order.created", "order.*", "*")}
POLICIES = ("standard", "aggressive", "conservative")
ZONES = ("UTC", "Europe/Berlin", "Asia/Shanghai")
AHEAD = "2099-01-01T00:00:00Z"
AGO = "2026-01-01T00:00:00Z"
# (smaller, larger): of these two numbers the first must not be more than the second.
ORDERED = (("min_calls", "window_size"), ("open_ms", "open_cap_ms"), ("first_wait_ms", "cap_ms"))
# What a new row has where nothing is said, for the number that is missing.
DEFAULTS = {
    "min_calls": 5,
    "window_size": 20,
    "open_ms": 60_000,
    "open_cap_ms": 900_000,
    "first_wait_ms": 30_000,
    "cap_ms": 900_000,
}


OWN_KEY = os.environ.get("K1_CONTRACT_KEY_ID", "")
INTEGERS = range(-(2**63), 2**63)
NUMBERS = itertools.count(1)


def pick(values: tuple[str, ...], given: object) -> str:
    """Return one of `values`, the same one for the same `given`."""
    return values[len(str(given)) % len(values)]


def right_body(body: dict[str, Any], operation_id: str) -> None:
    """Change what the schema lets through and the node, by other rules, does not."""
    for name in list(body):
        body[name] = storable(body[name])
    if operation_id == "createDLQEntry" and "task_id" in body:
        # One that a task has must name what that runs.
        body["task_id"] = f"elsewhere-{next(NUMBERS)}"
    if operation_id in ("submitBatch", "addBatchTasks"):
        right_batch(body)
    replace(body, "handler", lambda given: pick(HANDLERS, given))
    if not isinstance(body.get("retry_policy"), dict):  # that of a webhook has its own figures
        replace(body, "retry_policy", lambda given: pick(POLICIES, given))
    replace(body, "timezone", lambda given: pick(ZONES, given))
    if operation_id in ("createApiKey", "updateApiKey"):
        replace(body, "scopes", lambda given: ["scheduler:read"])
        replace(body, "allowed_cidrs", lambda given: [])
    if operation_id == "issueToken":
        replace(body, "scope", lambda given: "scheduler:read")
    if operation_id in ("createWebhook", "updateWebhook"):
        replace(body, "name", lambda given: f"webhook-{next(NUMBERS)}")
        replace(body, "url", lambda given: "https://receiver.example/hook")
        replace(body, "events", lambda given: ["task.completed"])
        replace(body, "headers", lambda given: {"X-Tenant": "blue"})
    if operation_id == "startRedelivery":
        replace(body, "since", lambda given: AGO)
        replace(body, "events", lambda given: given and ["task.completed"])
    if operation_id == "testWebhook":
        replace(body, "event", lambda given: "task.failed")
    # One that fits the pattern may still be the base64 of too few bytes, or no base64 at all.
    body.pop("secret", None)
    for name in ("until", "paused_until", "delay_until", "expires_at"):
        replace(body, name, lambda given: given and AHEAD)
    if "schedule_expr" in body or "schedule_type" in body:
        kind = body.setdefault("schedule_type", "cron")
        body["schedule_expr"] = pick(EXPRESSIONS[kind], body.get("schedule_expr"))
    if body.get("schedule_type") != "event":
        body.pop("event_filter", None)
    for name in ("starts_at", "ends_at"):
        body.pop(name, None)
    for smaller, larger in ORDERED:
        if smaller in body or larger in body:
            low, high = sorted(body.get(name, DEFAULTS[name]) for name in (smaller, larger))
            body[smaller], body[larger] = low, high
    if operation_id == "updateRetryPolicy":
        replace(body, "retired", lambda given: False)
    if isinstance(parameters := body.get("parameters"), dict):
        parameters.pop("timeout_ms", None)
    if isinstance(options := body.get("options"), dict) and isinstance(options.get("modify_parameters"), dict):
        options["modify_parameters"].pop("timeout_ms", None)


def right_batch(body: dict[str, Any]) -> None:
    """Give a batch, or what is added to one, tasks that can be made, and ids that are new."""
    replace(body, "batch_id", lambda given: f"batch-{next(NUMBERS)}")
    for item in [body.get("defaults"), *body.setdefault("tasks", [])]:
        if isinstance(item, dict):
            right_body(item, "createTask")
            replace(item, "task_id", lambda given: f"item-{next(NUMBERS)}")
    if not body["tasks"]:
        body["tasks"].append({})
    for item in body["tasks"]:
        item.setdefault("handler", HANDLERS[0])


def storable(value: Any) -> Any:
    """Return `value` without NUL characters and integers over 64 bits, which no schema of a free object can refuse."""
    match value:
        case str():
            return value.replace("\0", "")
        case dict():
            return {storable(key): storable(item) for key, item in value.items()}
        case list():
            return [storable(item) for item in value]
        case int() if value not in INTEGERS:
            return 0
    return value


def right_query(query: dict[str, Any]) -> None:
    replace(query, "policy", lambda given: pick(POLICIES, given))
    replace(query, "timezone", lambda given: pick(ZONES, given))
    replace(query, "schedule_expr", lambda given: pick(EXPRESSIONS["cron"], given))
    query.pop("cursor", None)  # made by the node; nobody can guess one
    replace(query, "page", lambda given: 1)


def right_headers(headers: MutableMapping[str, Any]) -> None:
    """Name this request alone, and whatever state the resource is in."""
    replace(headers, "Idempotency-Key", lambda given: f"key-{next(NUMBERS)}")
    replace(headers, "If-Match", lambda given: "*")
    replace(headers, "If-None-Match", lambda given: '"another"')


def replace(values: MutableMapping[str, Any], name: str, change: Callable[[Any], Any]) -> None:
    if name in values:
        values[name] = change(values[name])


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    if case.path_parameters and case.path_parameters.get("keyId") == OWN_KEY:
        # Whoever ends the key it asks with learns nothing more.
        case.path_parameters["keyId"] = "key-another"
    if case.meta is None or case.meta.generation.mode != GenerationMode.POSITIVE:
        return
    if isinstance(case.body, dict):
        right_body(case.body, case.operation.definition.raw["operationId"])
    if case.query:
        right_query(case.query)
    if case.headers:
        right_headers(case.headers)
