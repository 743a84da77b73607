"""Every event by its name: what it says, and the shape of its data. A new event needs a line here before a publish.

Receivers get it in one envelope, {id, timestamp, event, data}. Later versions may add to the data, never take away.
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
        "output": {"type": "string", "description": "The end of what it wrote"},
    },
}
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
            "required": ["id", "timestamp", "event", "data"],
            "properties": {
                "id": {"type": "string", "description": "The same in every attempt to deliver it"},
                "timestamp": MOMENT,
                "event": {"type": "string", "const": self.name},
                "data": self.data(),
            },
        }

    def sample(self) -> dict[str, Any]:
        """Return a whole message."""
        return {"id": "wh-evt-123", "timestamp": AT, "event": self.name, "data": dict(self.example)}


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


def _redrive(summary: str, state: str, done: int, more: Mapping[str, Any] | None = None) -> Event:
    return Event(
        summary,
        {
            "operation_id": {"type": "string", "description": "The redrive"},
            "state": {"type": "string", "const": state},
            "total": COUNT,
            "done": COUNT,
            "refused": COUNT,
        },
        {"operation_id": "redrive-7sh2k9", "state": state, "total": 150, "done": done, "refused": 0, **(more or {})},
        optional={"reason": {"type": "string", "description": "What it waits for, or why it stopped"}, "by": BY},
    )


def _retry_failed(summary: str, state: str, done: int, more: Mapping[str, Any] | None = None) -> Event:
    event = _redrive(summary, state, done, more)
    shape = {**event.shape, "operation_id": {"type": "string", "description": "The bulk job"}}
    return Event(summary, shape, {**event.example, "operation_id": "retry-failed-7sh2k9"}, event.optional)


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
    "redrive.started": _redrive("A redrive has begun, or goes on", "running", 0, {"by": "operator-user-1"}),
    "redrive.stopped": _redrive("A redrive rests", "stopped", 40, {"reason": "The breaker api-service-1 is open"}),
    "redrive.completed": _redrive("A redrive is through", "completed", 150),
    "redrive.cancelled": _redrive("A redrive was cancelled", "cancelled", 40, {"by": "operator-user-1"}),
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
    "retry-failed.started": _retry_failed(
        "The failed tasks of a batch are being retried", "running", 0, {"by": "operator-user-1"}
    ),
    "retry-failed.stopped": _retry_failed(
        "The retries of a batch's failed tasks rest", "stopped", 40, {"reason": "The batch was cancelled"}
    ),
    "retry-failed.completed": _retry_failed("All failed tasks of a batch have been retried", "completed", 150),
    "retry-failed.cancelled": _retry_failed(
        "The retries of a batch's failed tasks were cancelled", "cancelled", 40, {"by": "operator-user-1"}
    ),
}
EVENTS: dict[str, Event] = {
    name: Event(event.summary, event.shape, event.example, event.optional, name) for name, event in _EVENTS.items()
}
