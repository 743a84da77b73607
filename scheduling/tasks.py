"""Single tasks that a caller asks for, and the names that tasks, schedules and breakers may have."""

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from hashlib import blake2s
from typing import Any

from k1node.lib import sql
from k1node.lib.errors import Detail, FieldInvalid, InvalidRequest
from k1node.lib.ids import prefixed
from scheduling import handlers, queue, registry
from scheduling.models import Schedule, Task

MAX_ID = 120  # what a run, a retry or a resubmission appends still fits into the column
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
NAME_RULE = "Use 1 to 120 letters, digits, dots, dashes and underscores, beginning with a letter or digit"
RESERVED_BREAKERS = {"status"}
OWN_BREAKER = "default"  # a breaker of one's own, named after the schedule, or else after the handler

PRIORITIES = (1, 10)
TIMEOUTS_MS = (1, 30 * 86_400_000)


class IdInvalid(FieldInvalid):
    """The id cannot be used."""


class BreakerInvalid(FieldInvalid):
    """The circuit breaker cannot have this name."""


def check_id(task_id: str) -> None:
    """Raise IdInvalid unless a task or schedule may be called so."""
    if not NAME.fullmatch(task_id):
        raise IdInvalid("task_id", "Is not a usable id", NAME_RULE)
    if task_id.lower() in queue.RESERVED_IDS:
        raise IdInvalid("task_id", f"{task_id!r} is reserved: it is part of an address", "Choose another id")


def check_breaker(name: str, owner: str = "") -> None:
    """Raise BreakerInvalid unless `name` may name a breaker; `owner` is the schedule `default` would be named after."""
    if name and not NAME.fullmatch(name):
        raise BreakerInvalid("circuit_breaker", "Is not a usable name", NAME_RULE)
    actual = owner if name == OWN_BREAKER and owner else name
    if actual.lower() in RESERVED_BREAKERS:
        raise BreakerInvalid(
            "circuit_breaker", f"{actual!r} is reserved: it is part of an address", "Choose another name"
        )


def check_all(*checks: Callable[[], None]) -> None:
    """Run every check; raise one InvalidRequest with the problems of all."""
    problems: list[Detail] = []
    for check in checks:
        try:
            check()
        except InvalidRequest as error:
            problems += error.details
    if problems:
        raise InvalidRequest(details=tuple(problems))


def check_handler(handler: str, parameters: Mapping[str, Any]) -> None:
    """Raise HandlerNotAllowed, or ParametersInvalid, unless this may run on this node."""
    parsed = handlers.parse(handler)
    if isinstance(parsed, handlers.PythonHandler):
        registry.check_parameters(parsed.name, parameters)


def breaker_of(handler: str, name: str) -> str:
    """Return the breaker of a task without a schedule: `default` means one for its handler, named after that."""
    if name != OWN_BREAKER:
        return name
    own = re.sub(r"[^A-Za-z0-9._-]+", "-", handler).strip("-._")
    if len(own) <= MAX_ID:
        return own
    return f"{own[: MAX_ID - 17]}-{blake2s(handler.encode(), digest_size=8).hexdigest()}"


def submit(values: Mapping[str, Any], by: str, *, now: datetime) -> Task:
    """Put one task on the queue, now or for `delay_until`; raise InvalidRequest or TaskIdTaken.

    `values` are `handler` and any of task_id, task_name, parameters, priority, timeout_ms, retry_policy,
    circuit_breaker, delay_until.
    """
    task_id = values.get("task_id") or prefixed("task")
    handler, parameters = values["handler"], values.get("parameters") or {}
    policy = values.get("retry_policy", queue.DEFAULT_POLICY)
    breaker = values.get("circuit_breaker", "")
    check_all(
        lambda: check_id(task_id),
        lambda: check_handler(handler, parameters),
        lambda: queue.check_policy(policy),
        lambda: check_breaker(breaker),
    )
    new = queue.NewTask(
        task_id=task_id,
        task_name=values.get("task_name", ""),
        handler=handler,
        parameters=parameters,
        priority=values.get("priority", queue.DEFAULT_PRIORITY),
        timeout_ms=values.get("timeout_ms", queue.DEFAULT_TIMEOUT_MS),
        retry_policy=policy,
        circuit_breaker=breaker_of(handler, breaker),
        due_at=max(values.get("delay_until") or now, now),
        created_by=by,
    )
    # A schedule's id stands for its latest run wherever a task is named.
    if values.get("task_id") and Schedule.objects.filter(task_id=task_id).exists():
        raise queue.TaskIdTaken([task_id])
    return sql.in_transaction(lambda: queue.enqueue([new], now=now))[0]
