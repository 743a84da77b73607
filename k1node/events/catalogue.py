"""Every event by its name: what it says, and the shape of its data. A new event needs a line here before a publish.

Receivers get it in one envelope, {id, timestamp, event, data, occurred_at}. Later versions may add to the data, never
take away.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Shape = dict[str, Any]

TEXT: Shape = {"type": "string"}
MOMENT: Shape = {"type": "string", "format": "date-time"}
MOMENT_OR_NULL: Shape = {"type": ["string", "null"], "format": "date-time"}
COUNT: Shape = {"type": "integer", "minimum": 0}
TASK_ID: Shape = {"type": "string", "description": "The task"}
SCHEDULE_ID: Shape = {"type": "string", "description": "The schedule"}
BY: Shape = {"type": "string", "description": "Who did it: a user's name, or a key's"}
REASON: Shape = {"type": "string", "description": "Why, in the words of who did it; empty: nothing was said"}

RESULT: Shape = {
    "type": "object",
    "required": ["exit_code", "duration_ms", "output"],
    "properties": {
        "exit_code": {"type": ["integer", "null"]},
        "duration_ms": {"type": ["integer", "null"], "minimum": 0},
        "output": {"type": "string", "description": "The beginning of what it wrote, at most 8 kB"},
        "output_truncated": {"type": "boolean", "const": True, "description": "There where it wrote more"},
        "output_url": {
            "type": "string",
            "format": "uri-reference",
            "description": "Where the rest is to be had, for a key with scheduler:read; only with output_truncated",
        },
    },
}
PROGRESS: Shape = {
    "type": "object",
    "required": ["total", "completed", "failed", "in_progress"],
    "properties": {
        **dict.fromkeys(("total", "completed", "failed", "in_progress"), COUNT),
        **dict.fromkeys(("skipped", "cancelled"), COUNT),
    },
}
TEST = "webhook.test"  # of no fact: sent when somebody asks for it, and not to be subscribed to
AT = "2025-11-09T12:37:29.000+00:00"


@dataclass(frozen=True, slots=True)
class Event:
    """`shape` and `optional` are the properties of its data; `example` is such data."""

    summary: str
    shape: Mapping[str, Shape]
    example: Mapping[str, Any]
    optional: Mapping[str, Shape] = field(default_factory=dict)
    name: str = ""

    def data(self) -> Shape:
        return {
            "type": "object",
            "required": sorted(self.shape),
            "properties": {**self.shape, **self.optional},
        }

    def envelope(self) -> Shape:
        """Return the schema of the whole message."""
        return {
            "type": "object",
            "description": self.summary,
            "required": ["id", "timestamp", "event", "data", "occurred_at"],
            "properties": {
                "id": {"type": "string", "description": "The same in every attempt to deliver it"},
                "timestamp": {**MOMENT, "description": "When this attempt was sent"},
                "event": {"type": "string", "const": self.name},
                "data": self.data(),
                "occurred_at": {**MOMENT, "description": "When it happened; the same in every attempt"},
            },
        }

    def sample(self) -> dict[str, Any]:
        """Return a whole message."""
        return {
            "id": "wh-evt-123",
            "timestamp": AT,
            "event": self.name,
            "data": dict(self.example),
            "occurred_at": AT,
        }


def _ended(summary: str, status: str, example: Mapping[str, Any]) -> Event:
    """Return an event of a run that has ended."""
    return Event(
        summary,
        {
            "task_id": TASK_ID,
            "status": {"type": "string", "const": status},
            "attempt": {"type": "integer", "minimum": 0, "description": "Attempts spent"},
            "result": RESULT,
        },
        {"task_id": "task-1", "status": status, "attempt": 1, **example},
        optional={"error": TEXT},
    )


def _stopped(summary: str, status: str) -> Event:
    """Return an event of a task that ends before its handler does: with the run's result only if there was one."""
    return Event(
        summary,
        {"task_id": TASK_ID, "status": {"type": "string", "const": status}},
        {"task_id": "task-1", "status": status, "by": "operator-user-1"},
        optional={"by": BY, "until": MOMENT, "attempt": COUNT, "result": RESULT, "error": TEXT},
    )


def _steered(summary: str, statuses: list[str], example: Mapping[str, Any]) -> Event:
    return Event(
        summary,
        {"task_id": TASK_ID, "status": {"type": "string", "enum": statuses}, "by": BY},
        {"task_id": "task-1", "by": "operator-user-1", **example},
        optional={"until": {**MOMENT, "description": "When it goes on by itself"}},
    )


def _schedule(summary: str, more: Mapping[str, Shape] | None = None, example: Mapping[str, Any] | None = None) -> Event:
    return Event(
        summary,
        {"task_id": SCHEDULE_ID, **(more or {}), "by": BY},
        {"task_id": "backup-daily", **(example or {}), "by": "operator-user-1"},
    )


def _breaker(summary: str, state: str, example: Mapping[str, Any]) -> Event:
    return Event(
        summary,
        {
            "breaker_id": TEXT,
            "state": {"type": "string", "const": state},
            "reason": {"type": "string", "description": "Why, in a sentence"},
            "failure_rate": {"type": "number", "minimum": 0, "maximum": 1},
            "until": {**MOMENT_OR_NULL, "description": "When it changes by itself"},
        },
        {"breaker_id": "api-service-1", "state": state, **example},
        optional={"by": BY},
    )


def _moved(summary: str) -> Event:
    return Event(
        summary,
        {"dlq_id": TEXT, "task_id": TASK_ID, "by": BY, "reason": REASON},
        {
            "dlq_id": "dlq-task-1-1667953049123",
            "task_id": "task-1",
            "by": "operator-user-1",
            "reason": "Known issue",
        },
    )


def _job(kind: str, summary: str, state: str, done: int, more: Mapping[str, Any] | None = None) -> Event:
    return Event(
        summary,
        {
            "operation_id": {"type": "string", "description": f"The {kind}"},
            "state": {"type": "string", "const": state},
            "total": COUNT,
            "done": COUNT,
            "refused": COUNT,
        },
        {"operation_id": f"{kind}-7sh2k9", "state": state, "total": 150, "done": done, "refused": 0, **(more or {})},
        optional={"reason": {"type": "string", "description": "What it waits for, or why it stopped"}, "by": BY},
    )


def _batch(summary: str, statuses: list[str], counts: Mapping[str, int]) -> Event:
    names = ("total", "completed", "failed", "skipped", "cancelled")
    return Event(
        summary,
        {
            "batch_id": TEXT,
            "status": {"type": "string", "enum": statuses},
            "round": {"type": "integer", "minimum": 1, "description": "Each retry after the end begins another"},
            "progress": {"type": "object", "required": list(names), "properties": dict.fromkeys(names, COUNT)},
        },
        {
            "batch_id": "batch-export-20251109",
            "status": statuses[0],
            "round": 1,
            "progress": {**dict.fromkeys(names, 0), **counts},
        },
        optional={"by": BY},
    )


def _alert(summary: str, state: str, example: Mapping[str, Any]) -> Event:
    return Event(
        summary,
        {
            "alert": {"type": "string", "description": "Its name"},
            "state": {"type": "string", "const": state},
            "summary": {"type": "string", "description": "What is the matter, in a sentence"},
            "since": {**MOMENT, "description": "When it began to fire"},
        },
        {"alert": "error-rate", "state": state, **example},
        optional={
            "severity": {"type": "string", "enum": ["info", "warning", "critical"]},
            "value": {"type": "number", "description": "What was measured"},
            "threshold": {"type": "number", "description": "What it is measured by"},
        },
    )


SUCCESS = {"exit_code": 0, "duration_ms": 1250, "output": "..."}
FAILURE = {"result": {"exit_code": 1, "duration_ms": 830, "output": "disk full"}, "error": "Exit code 1"}

_EVENTS: dict[str, Event] = {
    "task.started": Event(
        "A run has begun; not said of tasks that run in bundles",
        {"task_id": TASK_ID, "status": {"type": "string", "const": "executing"}},
        {"task_id": "task-1", "status": "executing"},
    ),
    "task.completed": _ended("A task has done its work", "completed", {"result": SUCCESS}),
    "task.failed": _ended("A task has failed for good", "failed", FAILURE | {"attempt": 5}),
    "task.retrying": Event(
        "A run has failed and will be tried again",
        {
            "task_id": TASK_ID,
            "status": {"type": "string", "enum": ["scheduled", "queued"]},
            "attempt": {"type": "integer", "minimum": 0, "description": "Attempts spent"},
            "result": RESULT,
            "retry_at": MOMENT,
        },
        {"task_id": "task-1", "status": "scheduled", "attempt": 1, "retry_at": AT, **FAILURE},
        optional={"error": TEXT},
    ),
    "task.cancelled": _stopped("A task was cancelled", "cancelled"),
    "task.skipped": _stopped("A task was skipped", "skipped"),
    "task.paused": _steered("A task was paused", ["paused"], {"status": "paused"}),
    "task.resumed": _steered(
        "A paused task goes on", ["scheduled", "queued", "executing", "blocked"], {"status": "queued"}
    ),
    "schedule.created": _schedule(
        "A schedule was made",
        {"schedule_type": {"type": "string", "enum": ["cron", "event"]}, "schedule_expr": TEXT},
        {"schedule_type": "cron", "schedule_expr": "0 2 * * *"},
    ),
    "schedule.updated": _schedule(
        "A schedule was changed",
        {"changed": {"type": "array", "items": TEXT, "description": "The names of the fields"}},
        {"changed": ["enabled"]},
    ),
    "schedule.deleted": _schedule("A schedule was deleted"),
    "schedule.missed": Event(
        "Due times have passed that nothing made up for",
        {"task_id": SCHEDULE_ID, "first": MOMENT, "last": MOMENT, "count": {"type": "integer", "minimum": 1}},
        {"task_id": "backup-daily", "first": AT, "last": AT, "count": 1},
    ),
    "breaker.opened": _breaker(
        "A circuit breaker has opened: what names it does not start",
        "OPEN",
        {"reason": "12 of the last 20 calls failed", "failure_rate": 0.6, "until": AT},
    ),
    "breaker.half_open": _breaker(
        "A circuit breaker tries whether it can close",
        "HALF-OPEN",
        {"reason": "Its time is over: probes try", "failure_rate": 0.6, "until": None},
    ),
    "breaker.closed": _breaker(
        "A circuit breaker has closed: tasks start again",
        "CLOSED",
        {"reason": "3 probes succeeded", "failure_rate": 0.0, "until": None},
    ),
    "dlq.added": Event(
        "A task is on the dead letter queue",
        {"dlq_id": TEXT, "task_id": TASK_ID, "error_code": {"type": "integer"}, "error_message": TEXT},
        {
            "dlq_id": "dlq-task-1-1667953049123",
            "task_id": "task-1",
            "error_code": 500,
            "error_message": "Service unavailable (max retries exceeded)",
        },
        optional={"by": BY},
    ),
    "dlq.resubmitted": Event(
        "A dead letter does its work again, as a new task",
        {"dlq_id": TEXT, "task_id": TASK_ID, "new_task_id": TEXT, "by": BY},
        {
            "dlq_id": "dlq-task-1-1667953049123",
            "task_id": "task-1",
            "new_task_id": "task-1-retry-2",
            "by": "operator-user-1",
        },
    ),
    "dlq.archived": _moved("A dead letter was put aside"),
    "dlq.unarchived": _moved("A dead letter is pending again"),
    "hold.started": Event(
        "Nothing starts any more, on any node",
        {"by": BY, "reason": REASON, "until": {**MOMENT_OR_NULL, "description": "When it ends by itself"}},
        {"by": "operator-user-1", "reason": "Database maintenance", "until": AT},
    ),
    "hold.ended": Event(
        "Tasks start again",
        {"by": BY, "reason": REASON},
        {"by": "operator-user-1", "reason": "Maintenance is over"},
    ),
    "redrive.started": _job("redrive", "A redrive has begun, or goes on", "running", 0, {"by": "operator-user-1"}),
    "redrive.stopped": _job(
        "redrive", "A redrive rests", "stopped", 40, {"reason": "The breaker api-service-1 is open"}
    ),
    "redrive.completed": _job("redrive", "A redrive is through", "completed", 150),
    "redrive.cancelled": _job("redrive", "A redrive was cancelled", "cancelled", 40, {"by": "operator-user-1"}),
    "redelivery.started": _job(
        "redelivery", "A redelivery has begun, or goes on", "running", 0, {"by": "operator-user-1"}
    ),
    "redelivery.stopped": _job(
        "redelivery", "A redelivery rests", "stopped", 40, {"reason": "The webhook is not active: enable it first"}
    ),
    "redelivery.completed": _job("redelivery", "A redelivery is through", "completed", 150),
    "redelivery.cancelled": _job(
        "redelivery", "A redelivery was cancelled", "cancelled", 40, {"by": "operator-user-1"}
    ),
    "batch.completed": _batch(
        "All tasks of a batch have ended, and some have done their work",
        ["completed", "completed_with_failures"],
        {"total": 2, "completed": 2},
    ),
    "batch.failed": _batch(
        "A batch has ended without its work: it was to fail fast, nothing has completed, or it was cancelled",
        ["failed", "cancelled"],
        {"total": 2, "failed": 1, "cancelled": 1},
    ),
    "retry-failed.started": _job(
        "retry-failed", "The failed tasks of a batch are being retried", "running", 0, {"by": "operator-user-1"}
    ),
    "retry-failed.stopped": _job(
        "retry-failed",
        "The retries of a batch's failed tasks rest",
        "stopped",
        40,
        {"reason": "The batch was cancelled"},
    ),
    "retry-failed.completed": _job("retry-failed", "All failed tasks of a batch have been retried", "completed", 150),
    "retry-failed.cancelled": _job(
        "retry-failed",
        "The retries of a batch's failed tasks were cancelled",
        "cancelled",
        40,
        {"by": "operator-user-1"},
    ),
    "alert.firing": _alert(
        "Something is the matter with the node",
        "firing",
        {"summary": "7.5 % of the runs have failed", "since": AT, "severity": "critical", "value": 7.5, "threshold": 5},
    ),
    "alert.resolved": _alert(
        "What an alert was about is over",
        "resolved",
        {"summary": "1.2 % of the runs have failed", "since": AT, "severity": "critical", "value": 1.2, "threshold": 5},
    ),
    TEST: Event(
        "Somebody tries whether a webhook receives; sent when it is asked for, whatever the webhook is for",
        {"webhook_id": {"type": "string", "description": "The webhook"}, "by": BY},
        {"webhook_id": "wh-abc123xyz", "by": "operator-user-1"},
    ),
    "webhook.failing": Event(
        "A webhook fails again and again: it is tried less often. Never sent to that webhook itself",
        {
            "webhook_id": TEXT,
            "name": TEXT,
            "failures": {"type": "integer", "minimum": 1, "description": "In a row"},
            "failing_since": MOMENT,
            "outcome": {"type": "string", "description": "What came of the last attempt, in a word"},
        },
        {
            "webhook_id": "wh-3f8k2m9q7x1c5v0b",
            "name": "Deploy notices",
            "failures": 5,
            "failing_since": AT,
            "outcome": "timeout",
        },
    ),
    "webhook.disabled": Event(
        "A webhook was given up: nothing is sent to it until somebody enables it. Never sent to that webhook itself",
        {"webhook_id": TEXT, "name": TEXT, "reason": {"type": "string", "description": "Why, in a sentence"}},
        {
            "webhook_id": "wh-3f8k2m9q7x1c5v0b",
            "name": "Deploy notices",
            "reason": "Nothing has arrived for 5 days",
        },
    ),
    "node.lost": Event(
        "A node has not been heard of for a while, and was not stopped",
        {
            "node_id": TEXT,
            "hostname": TEXT,
            "last_seen_at": MOMENT,
            "running": {**COUNT, "description": "Tasks that it ran when it was last seen; other nodes run them again"},
        },
        {
            "node_id": "5b2f0c1e-8a4d-4f6b-9c3e-7d1a2b3c4d5e",
            "hostname": "worker-2",
            "last_seen_at": AT,
            "running": 3,
        },
    ),
}
EVENTS: dict[str, Event] = {
    name: Event(event.summary, event.shape, event.example, event.optional, name) for name, event in _EVENTS.items()
}
