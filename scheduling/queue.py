"""Putting tasks on the queue, and taking waiting ones off it again.

A new task is `queued`, or `scheduled` when it is due later, or `blocked` behind its gate or the closed door of its
breaker. Everything that makes tasks comes through here: the API, slots, triggers, retries, resubmissions and batches.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson
from django.db import IntegrityError, connection, transaction

from k1node.events import log
from k1node.lib import sql, wake
from k1node.lib.errors import Conflict, Detail, FieldInvalid
from scheduling import gates, handlers, parking, registry
from scheduling.models import Control, RetryPolicy, Schedule, Task, TaskStatus

RESERVED_IDS = {"batch"}
DEFAULT_PRIORITY = 5
DEFAULT_TIMEOUT_MS = 3_600_000
DEFAULT_POLICY = "standard"


class TaskIdTaken(Conflict):
    """A task with this id exists already"""

    def __init__(self, task_ids: Sequence[str]) -> None:
        super().__init__(
            f"A task with this id exists already: {', '.join(task_ids)}",
            details=tuple(
                Detail("task_id", f"'{task_id}' is taken", "Choose another id, or leave it out to get one")
                for task_id in task_ids
            ),
        )


class PolicyUnknown(FieldInvalid):
    """No retry policy that may be chosen has this name."""


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task to be enqueued, already validated (see check())."""

    task_id: str
    handler: str
    due_at: datetime
    parameters: dict[str, Any] = field(default_factory=dict)
    task_name: str = ""
    priority: int = DEFAULT_PRIORITY
    timeout_ms: int = DEFAULT_TIMEOUT_MS
    retry_policy: str = DEFAULT_POLICY
    circuit_breaker: str = ""
    schedule_id: int | None = None
    gate_id: int | None = None
    is_blocked: bool = False  # waits behind its gate
    may_bundle: bool = False  # its gate does not mind when several are claimed at once (gates.may_bundle)
    created_by: str = ""
    solo: bool = False
    origin_id: int | None = None  # the task that this one is a retry of


def check(handler: str, parameters: dict[str, Any], retry_policy: str) -> None:
    """Raise FieldInvalid or ParametersInvalid unless a task like this can run."""
    parsed = handlers.parse(handler)
    if isinstance(parsed, handlers.PythonHandler):
        registry.check_parameters(parsed.name, parameters)
    check_policy(retry_policy)


def check_policy(name: str, *, keep: bool = False) -> None:
    """Raise PolicyUnknown unless what is new may name this retry policy.

    With `keep`, which needs a transaction, that stays true until its end.
    """
    rows = RetryPolicy.objects.filter(pk=name)
    if keep and sql.is_postgresql():
        rows = rows.select_for_update(no_key=True)  # tasks that name it can be enqueued meanwhile
    is_retired = list(rows.values_list("retired", flat=True))
    if is_retired == [False]:
        return
    known = ", ".join(RetryPolicy.objects.filter(retired=False).values_list("name", flat=True)[:20])
    what = f"The retry policy '{name}' is retired" if is_retired else f"There is no retry policy '{name}'"
    raise PolicyUnknown("retry_policy", what, f"Use one of: {known}")


def enqueue(tasks: Sequence[NewTask], *, now: datetime) -> list[Task]:
    """Insert the tasks in one transaction; raise TaskIdTaken (and insert none) if an id exists already."""
    _refuse_twice(tasks)
    with _ids_free(tasks):
        closed = parking.closed_doors(new.circuit_breaker for new in tasks)
        created = [_row(new, closed.get(new.circuit_breaker), now) for new in tasks]
        _insert(created, now)
        wake.tell()
        return created


def insert(tasks: Sequence[NewTask], gate_id: int, *, is_blocked: bool, may_bundle: bool, now: datetime) -> None:
    """Do as enqueue() for thousands of tasks of one gate, whose rows nobody wants to see."""
    _refuse_twice(tasks)
    with _ids_free(tasks):
        closed = parking.closed_doors({new.circuit_breaker for new in tasks})
        stamp = sql.stored(now)
        rows = []
        for new in tasks:
            status, blocked_on_id = _placed(new.due_at, closed.get(new.circuit_breaker), gate_id, is_blocked, now)
            rows.append(
                (
                    new.task_id,
                    new.task_name,
                    new.schedule_id,
                    new.handler,
                    _as_json(new.parameters),
                    new.priority,
                    new.timeout_ms,
                    new.retry_policy,
                    new.circuit_breaker,
                    status.value,
                    stamp if new.due_at is now else sql.stored(new.due_at),
                    gate_id,
                    blocked_on_id,
                    new.solo or not may_bundle,
                    new.origin_id,
                    new.created_by,
                    stamp,
                    *BEGINNING,
                )
            )
        sql.insert_many("scheduling_task", ALL_COLUMNS, rows)
        wake.tell()


def _refuse_twice(tasks: Sequence[NewTask]) -> None:
    ids = Counter(new.task_id for new in tasks)
    if len(ids) < len(tasks):
        raise TaskIdTaken(sorted(task_id for task_id, count in ids.items() if count > 1)[:50])


@contextmanager
def _ids_free(tasks: Sequence[NewTask]) -> Iterator[None]:
    """Run what inserts the tasks in a transaction; raise TaskIdTaken if an id exists already."""
    try:
        with transaction.atomic():
            yield
    except IntegrityError:
        taken = Task.objects.filter(task_id__in=[new.task_id for new in tasks]).values_list("task_id", flat=True)
        if not taken:
            raise
        raise TaskIdTaken(sorted(taken[:50])) from None


def _as_json(parameters: dict[str, Any]) -> str:
    if not parameters:
        return "{}"
    try:
        return orjson.dumps(parameters).decode()
    except TypeError:  # a number over 64 bits, or half of a surrogate pair
        return json.dumps(parameters)


# Written out: by way of the models, thousands take three times as long.
COLUMNS = {
    "task_id": "text",
    "task_name": "text",
    "schedule_id": "bigint",
    "handler": "text",
    "parameters": "jsonb",
    "priority": "int",
    "timeout_ms": "bigint",
    "retry_policy": "text",
    "circuit_breaker": "text",
    "status": "text",
    "due_at": "timestamptz",
    "gate_id": "bigint",
    "blocked_on_id": "bigint",
    "solo": "bool",
    "origin_id": "bigint",
    "created_by": "text",
    "created_at": "timestamptz",
}
# What every new task begins with; the columns have no defaults of their own.
BEGINS_WITH = {
    "attempt": ("int", 0),
    "fence": ("bigint", 0),
    "permit": ("bigint", 0),
    "retry_count": ("int", 0),
    "lease_owner": ("text", ""),
    "control": ("text", ""),
    "control_reason": ("text", ""),
    "last_error": ("text", ""),
}
ALL_COLUMNS = COLUMNS | {name: kind for name, (kind, _) in BEGINS_WITH.items()}
BEGINNING = tuple(value for _, value in BEGINS_WITH.values())


def _insert(rows: Sequence[Task], now: datetime) -> None:
    """Insert new tasks and give them their keys."""
    if not rows:
        return
    stamp = sql.stored(now)
    values = [
        (
            row.task_id,
            row.task_name,
            row.schedule_id,
            row.handler,
            _as_json(row.parameters),
            row.priority,
            row.timeout_ms,
            row.retry_policy_id,
            row.circuit_breaker,
            str(row.status),
            sql.stored(row.due_at),
            row.gate_id,
            row.blocked_on_id,
            row.solo,
            row.origin_id,
            row.created_by,
            stamp,
            *BEGINNING,
        )
        for row in rows
    ]
    keys = {
        task_id: pk for pk, task_id in sql.insert_many_returning("scheduling_task", ALL_COLUMNS, values, "id, task_id")
    }
    for row in rows:
        row.pk = keys[row.task_id]
        row._state.adding, row._state.db = False, "default"


def add_failed(new: NewTask, *, exit_code: int, error: str, now: datetime) -> Task:
    """Insert a task that has failed elsewhere and never runs; raise TaskIdTaken if its id exists already."""
    row = _row(new, None, now)
    row.status, row.finished_at, row.exit_code, row.last_error = TaskStatus.FAILED, now, exit_code, error
    try:
        with transaction.atomic():
            row.save(force_insert=True)
    except IntegrityError:
        raise TaskIdTaken([new.task_id]) from None
    return row


def _row(new: NewTask, door: parking.Door | None, now: datetime) -> Task:
    """Return the row of a new task; `door` is the closed one of its breaker, which parks what is due."""
    status, blocked_on_id = _placed(new.due_at, door, new.gate_id, new.is_blocked, now)
    return Task(
        task_id=new.task_id,
        task_name=new.task_name,
        schedule_id=new.schedule_id,
        handler=new.handler,
        parameters=new.parameters,
        priority=new.priority,
        timeout_ms=new.timeout_ms,
        retry_policy_id=new.retry_policy,
        circuit_breaker=new.circuit_breaker,
        status=status,
        due_at=new.due_at,
        gate_id=new.gate_id,
        blocked_on_id=blocked_on_id,
        solo=new.solo or (new.gate_id is not None and not new.may_bundle),
        origin_id=new.origin_id,
        created_by=new.created_by,
        created_at=now,
    )


def _placed(
    due_at: datetime, door: parking.Door | None, gate_id: int | None, is_blocked: bool, now: datetime
) -> tuple[TaskStatus, int | None]:
    """Return a new task's first status, and what it is blocked on."""
    if is_blocked:
        return TaskStatus.BLOCKED, gate_id
    if due_at > now:
        return TaskStatus.SCHEDULED, None
    return (TaskStatus.QUEUED, None) if door is None else (TaskStatus.BLOCKED, door.id)


def end_earlier_runs(schedule: Schedule, gate_id: int, *, keep: str, now: datetime) -> int:
    """End every run behind the schedule's locked gate but `keep`, for a newer one; return how many.

    Waiting ones end here; running ones are told to, and let the newer one through when they have ended.
    """
    gate = gates.lock([gate_id])[gate_id]
    ended = {"finished_at": now, "last_error": "Cancelled for a newer run of its schedule"}
    blocked = Task.objects.filter(blocked_on=gate, status=TaskStatus.BLOCKED).exclude(task_id=keep)
    cancelled = list(blocked.values_list("task_id", flat=True))
    if cancelled:
        waiting = blocked.update(status=TaskStatus.CANCELLED, blocked_on=None, **ended)
        gates.withdrawn(gate, TaskStatus.CANCELLED, waiting)
    others = gates.in_flight(gate).exclude(task_id=keep)
    if connection.vendor == "postgresql":
        # Locked first, or one that is claimed or given back between the two updates is missed by both.
        list(others.order_by("pk").select_for_update().values_list("pk"))
    idle = others.exclude(status=TaskStatus.EXECUTING)  # also what is parked behind a breaker
    cancelled += idle.values_list("task_id", flat=True)
    queued = idle.update(
        status=TaskStatus.CANCELLED, blocked_on=None, permit=0, paused_at=None, paused_until=None, **ended
    )
    # One that a person is ending already keeps that person's reason.
    told = (
        others.filter(status=TaskStatus.EXECUTING)
        .exclude(control__in=(Control.CANCEL, Control.SKIP))
        .update(
            control=Control.CANCEL,
            control_reason="A newer run of its schedule is due",
            paused_at=None,
            paused_until=None,
        )
    )
    if queued:
        gates.settled({gate.pk: gate}, [(gate.pk, TaskStatus.CANCELLED)] * queued, now=now)
    log.publish_many(
        [("task.cancelled", {"task_id": task_id, "status": "cancelled"}) for task_id in cancelled], now=now
    )
    return len(cancelled) + told
