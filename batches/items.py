"""Reading the items of a batch: thousands in a fraction of a second, with the words of the API for a single task.

An item is held against plain conditions that nearly every one meets. Only one that does not goes to the serializer of
single tasks, which takes it after all (a number written as 5.0) or says what is wrong with it. What is the same for
many (handlers, policies, breakers, moments) is looked at once.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import orjson
from rest_framework.exceptions import ValidationError

from k1node.api.errors import flatten
from k1node.api.serializers import MAX_OBJECT_BYTES
from k1node.lib.errors import Detail, InvalidRequest
from k1node.lib.ids import random_part
from scheduling import handlers, queue, registry, tasks
from scheduling.api.serializers import TaskInput
from scheduling.queue import NewTask

MOST_EXPLAINED = 500  # bad items that are told what is wrong with them; the others are named
MOST_STORED = 32 * 1024 * 1024  # bytes of parameters: defaults are stored with every item
KNOWN = frozenset(
    (
        "task_id",
        "task_name",
        "handler",
        "parameters",
        "priority",
        "timeout_ms",
        "retry_policy",
        "circuit_breaker",
        "delay_until",
    )
)
MAX_NAME = 200


class DefaultsInput(TaskInput):
    """What the tasks of a batch share; each may say otherwise, and its parameters are laid over these."""

    task_id = None  # type: ignore[assignment]


def read_defaults(raw: Any) -> dict[str, Any]:
    """Return the defaults as they are stored, JSON; raises InvalidRequest with every problem."""
    if raw is None or raw == {}:
        return {}
    try:
        DefaultsInput(partial=True).run_validation(raw)
    except ValidationError as error:
        raise InvalidRequest(details=tuple(flatten(error.detail, "defaults"))) from None
    return dict(raw)


def read(raw: Sequence[Any], defaults: Mapping[str, Any], by: str, *, now: datetime) -> list[NewTask]:
    """Return the items as new tasks, without a gate; raises InvalidRequest naming every bad one.

    Once the parameters are too much together, what comes after is not looked at.
    """
    reader = _Reader(defaults, by, now)
    items: list[NewTask] = []
    for place, each in enumerate(raw):
        item = reader.plain(each) or reader.exact(place, each)
        if item is not None:
            items.append(item)
        if reader.is_full:
            break  # what is left would be made only to be refused, a thousand times the request's own size
    if reader.problems:
        raise InvalidRequest(details=tuple(reader.problems))
    return items


class _Reader:
    def __init__(self, defaults: Mapping[str, Any], by: str, now: datetime) -> None:
        self.problems: list[Detail] = []
        self._defaults = defaults
        self._shared = defaults.get("parameters") or {}
        self._by = by[:150]
        self._now = now
        self._serializer = TaskInput()
        self._moment = self._serializer.fields["delay_until"]
        # A made up id is this and the number of the item: as hard to guess, and a single call for all.
        self._ids = random_part()
        self._made = 0
        self._stored = 0
        self._bad = 0
        self._handlers: dict[str, tuple[str, registry.Registered | None] | None] = {}
        self._policies: dict[str, bool] = {}
        self._breakers: dict[tuple[str, str], str | None] = {}
        self._moments: dict[str, datetime | None] = {}

    def plain(self, raw: Any) -> NewTask | None:
        """Return the new task of an item in which all is as it mostly is; None says nothing about any other."""
        if type(raw) is not dict or not raw.keys() <= KNOWN:
            return None
        values = {**self._defaults, **raw} if self._defaults else raw
        get = values.get
        handler = self._handler(get("handler"))
        if handler is None:
            return None
        text, registered = handler
        parameters = get("parameters", {})
        if type(parameters) is not dict:
            return None
        if self._shared and "parameters" in raw:
            parameters = {**self._shared, **parameters}
        if parameters and not self._fits(parameters, registered):
            return None
        if registered is not None and not parameters and registered.problems(parameters):
            return None
        task_id, name = get("task_id"), get("task_name", "")
        if "task_id" not in raw:
            task_id = self._new_id()
        elif type(task_id) is not str or not tasks.NAME.fullmatch(task_id) or task_id.lower() in queue.RESERVED_IDS:
            return None
        if name != "" and not (
            type(name) is str and len(name) <= MAX_NAME and name.isprintable() and name == name.strip()
        ):
            return None
        priority, timeout = get("priority", queue.DEFAULT_PRIORITY), get("timeout_ms", queue.DEFAULT_TIMEOUT_MS)
        if type(priority) is not int or not tasks.PRIORITIES[0] <= priority <= tasks.PRIORITIES[1]:
            return None
        if type(timeout) is not int or not tasks.TIMEOUTS_MS[0] <= timeout <= tasks.TIMEOUTS_MS[1]:
            return None
        policy = get("retry_policy", queue.DEFAULT_POLICY)
        breaker = self._breaker(text, get("circuit_breaker", ""))
        due_at = self._due(get("delay_until"))
        if due_at is None or breaker is None or not self._is_policy(policy):
            return None
        return NewTask(task_id, text, due_at, parameters, name, priority, timeout, policy, breaker, created_by=self._by)

    def exact(self, place: int, raw: Any) -> NewTask | None:
        """Return the new task of any item, or None with what is wrong with it among the problems."""
        self._bad += 1
        if self._bad > MOST_EXPLAINED:
            self.problems.append(Detail(f"tasks[{place}]", "Is not usable either", "Mend the others first"))
            return None
        given = raw
        if isinstance(raw, Mapping):
            given = {**self._defaults, **raw}
            if self._shared and isinstance(raw.get("parameters"), Mapping):
                given["parameters"] = {**self._shared, **raw["parameters"]}
        path = f"tasks[{place}]"
        try:
            values = self._serializer.run_validation(given)
        except ValidationError as error:
            self.problems += flatten(error.detail, path)
            return None
        handler, parameters = values["handler"], values.get("parameters") or {}
        try:
            tasks.check_handler(handler, parameters)
        except InvalidRequest as error:
            self.problems += [Detail(f"{path}.{each.field}", each.message, each.suggestion) for each in error.details]
            return None
        if not self._has_room(len(orjson.dumps(parameters))):
            return None
        return NewTask(
            values.get("task_id") or self._new_id(),
            handler,
            max(values.get("delay_until") or self._now, self._now),
            parameters,
            values.get("task_name", ""),
            values.get("priority", queue.DEFAULT_PRIORITY),
            values.get("timeout_ms", queue.DEFAULT_TIMEOUT_MS),
            values.get("retry_policy", queue.DEFAULT_POLICY),
            tasks.breaker_of(handler, values.get("circuit_breaker", "")),
            created_by=self._by,
        )

    @property
    def is_full(self) -> bool:
        return self._stored > MOST_STORED

    def _new_id(self) -> str:
        self._made += 1
        return f"task-{self._ids}-{self._made}"

    def _fits(self, parameters: dict[str, Any], registered: registry.Registered | None) -> bool:
        try:
            size = len(orjson.dumps(parameters))
        except TypeError:
            return False
        if size > MAX_OBJECT_BYTES or (registered is not None and registered.problems(parameters)):
            return False
        return self._has_room(size)

    def _has_room(self, size: int) -> bool:
        before, self._stored = self._stored, self._stored + size
        if before <= MOST_STORED < self._stored:
            self.problems.append(
                Detail(
                    "defaults.parameters",
                    f"With them the tasks have over {MOST_STORED:,} bytes of parameters",
                    "Pass a reference instead",
                )
            )
        return True

    def _handler(self, given: Any) -> tuple[str, registry.Registered | None] | None:
        if type(given) is not str:
            return None
        if given not in self._handlers:
            self._handlers[given] = None
            text = given.strip()
            with suppress(InvalidRequest):
                handlers.parse(text)
                self._handlers[given] = (text, handlers.registered(text))
        return self._handlers[given]

    def _is_policy(self, given: Any) -> bool:
        if type(given) is not str:
            return False
        if given not in self._policies:
            try:
                queue.check_policy(given)
                self._policies[given] = True
            except InvalidRequest:
                self._policies[given] = False
        return self._policies[given]

    def _breaker(self, handler: str, given: Any) -> str | None:
        if type(given) is not str:
            return None
        if not given:
            return ""
        key = (handler, given)
        if key not in self._breakers:
            self._breakers[key] = None
            with suppress(InvalidRequest):
                tasks.check_breaker(given)
                self._breakers[key] = tasks.breaker_of(handler, given)
        return self._breakers[key]

    def _due(self, given: Any) -> datetime | None:
        if given is None:
            return self._now
        if type(given) is not str:
            return None
        if given not in self._moments:
            self._moments[given] = None
            with suppress(ValidationError):
                self._moments[given] = max(self._moment.run_validation(given), self._now)
        return self._moments[given]
