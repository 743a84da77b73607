"""Batches that a caller asks for: all of the tasks, or none and every problem by its place in the list.

The items are read and checked before the transaction (batches.items). In it the gate, the batch and the tasks are
made: they wait behind the gate where it has a limit or an order, and the first are let through at once.

A batch that is submitted open takes more tasks until it is closed; it cannot end before.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import orjson
from django.db import IntegrityError, connection, transaction

from batches import items
from batches.models import Batch
from k1node.audit import trail
from k1node.lib import sql
from k1node.lib.errors import Conflict, Detail, FieldInvalid, NotFound
from k1node.lib.ids import prefixed
from scheduling import gates, parking, queue, tasks
from scheduling.models import FailureRule, Gate, GateKind
from scheduling.queue import NewTask

MOST_TASKS = 10_000  # in one call
MOST_CONCURRENT = 10_000
NAMED_MOST = 1_000  # ids that are taken


class BatchIdTaken(Conflict):
    """A batch with this id exists already"""

    def __init__(self, batch_id: str) -> None:
        super().__init__(
            f"A batch with this id exists already: {batch_id}",
            details=(Detail("batch_id", f"'{batch_id}' is taken", "Choose another id, or leave it out to get one"),),
        )


class TaskIdsTaken(Conflict):
    """Tasks with these ids exist already"""


class NotOpen(Conflict):
    """The batch takes no more tasks"""


@dataclass(frozen=True, slots=True)
class Options:
    """How the tasks of a batch run. Without any, they run as single tasks would."""

    fail_fast: bool = False
    fail_fast_running: str = Batch.FailFastRunning.FINISH
    parallel: bool = True
    max_concurrent: int | None = None

    def check(self) -> None:
        """Raise FieldInvalid for what cannot be."""
        if self.max_concurrent is not None and not 1 <= self.max_concurrent <= MOST_CONCURRENT:
            raise FieldInvalid(
                "options.max_concurrent", f"Must be from 1 to {MOST_CONCURRENT}", "Leave it out for no limit"
            )
        if self.fail_fast_running not in Batch.FailFastRunning.values:
            raise FieldInvalid(
                "options.fail_fast_running",
                "Is not one of the choices",
                f"Use one of: {', '.join(Batch.FailFastRunning.values)}",
            )

    def new_gate(self, batch_id: str) -> Gate:
        rule = FailureRule.CONTINUE
        if self.fail_fast:
            ends_running = self.fail_fast_running == Batch.FailFastRunning.CANCEL
            rule = FailureRule.CANCEL_RUNNING if ends_running else FailureRule.CANCEL_WAITING
        return Gate(
            kind=GateKind.BATCH,
            key=batch_id,
            limit=self.max_concurrent if self.parallel else 1,
            ordered=not self.parallel,
            on_failure=rule,
        )


def submit(
    given: Sequence[Any],
    *,
    batch_id: str = "",
    defaults: Mapping[str, Any] | None = None,
    options: Options | None = None,
    is_open: bool = False,
    owner: str = "",
    by: str,
    now: datetime,
) -> Batch:
    """Put all of the tasks on the queue, as one batch.

    `given` and `defaults` are as they came in the JSON of a request. Raises InvalidRequest, BatchIdTaken, TaskIdsTaken.
    """
    options = options or Options()
    name = batch_id or prefixed("batch")
    shared: dict[str, Any] = {}
    new: list[NewTask] = []

    def read_shared() -> None:
        shared.update(items.read_defaults(defaults))

    def read_items() -> None:
        new.extend(items.read(given, shared, by, now=now))

    checks: list[Callable[[], None]] = [
        options.check,
        lambda: _check_id(name),
        lambda: _check_count(given, may_be_empty=is_open),
    ]
    tasks.check_all(*checks, read_shared)
    read_items()
    _refuse_duplicates(given)

    def work() -> Batch:
        try:
            with transaction.atomic():
                gate = options.new_gate(name)
                gate.save(force_insert=True)
                batch = Batch(
                    batch_id=name,
                    gate=gate,
                    total=len(new),
                    last_due_at=_last_due(new, now),
                    open=is_open,
                    defaults=shared,
                    owner=owner[:200],
                    created_by=by[:150],
                    created_at=now,
                    **asdict(options),
                )
                batch.save(force_insert=True)
        except IntegrityError:
            raise BatchIdTaken(name) from None
        _enqueue(gate, new, now=now)
        trail.record("batch.submitted", f"batch:{name}", after={"total": len(new), **asdict(options)}, by=by, now=now)
        return batch

    return _committed(work, given)


def add(batch: Batch, given: Sequence[Any], *, by: str, now: datetime) -> Batch:
    """Add all of the tasks to an open batch. Raises InvalidRequest, TaskIdsTaken, NotOpen."""
    _check_count(given, may_be_empty=False)
    new = items.read(given, batch.defaults, by, now=now)
    _refuse_duplicates(given)

    def work() -> Batch:
        # Before the gate: a settlement that moves a breaker takes its door first, too.
        parking.closed_doors(each.circuit_breaker for each in new)
        row, gate = lock(batch.pk)
        _refuse_closed(row, gate)
        row.total += len(new)
        row.last_due_at = max(filter(None, (row.last_due_at, _last_due(new, now))), default=None)
        row.save(update_fields=("total", "last_due_at"))
        _enqueue(gate, new, now=now)
        trail.record("batch.added", f"batch:{row.batch_id}", after={"added": len(new)}, by=by, now=now)
        return row

    return _committed(work, given)


def close(batch: Batch, *, by: str, now: datetime) -> Batch:
    """Let an open batch end once its tasks have. Raises NotOpen."""

    def work() -> Batch:
        row, _gate = lock(batch.pk)
        if not row.open:
            raise NotOpen("It is closed already")
        row.open = False
        row.save(update_fields=("open",))
        trail.record("batch.closed", f"batch:{row.batch_id}", after={"total": row.total}, by=by, now=now)
        return row

    return sql.in_transaction(work)


def lock(pk: int) -> tuple[Batch, Gate]:
    """Return a batch and its gate, locked in this order, before any task. Raises NotFound. Needs a transaction."""
    rows = Batch.objects.filter(pk=pk)
    batch = (rows.select_for_update() if sql.is_postgresql() else rows).first()
    if batch is None:
        raise NotFound()
    gate = batch.gate = gates.lock([batch.gate_id])[batch.gate_id]
    return batch, gate


def _check_id(batch_id: str) -> None:
    if not tasks.NAME.fullmatch(batch_id):
        raise FieldInvalid("batch_id", "Is not a usable id", tasks.NAME_RULE)


def _check_count(given: Sequence[Any], *, may_be_empty: bool) -> None:
    if not given and not may_be_empty:
        raise FieldInvalid("tasks", "Must not be empty", "Name at least one task, or submit the batch open")
    if len(given) > MOST_TASKS:
        raise FieldInvalid(
            "tasks",
            f"Must have at most {MOST_TASKS:,} items, not {len(given):,}",
            "Submit the batch open and add the others in further calls",
        )


def _last_due(new: Sequence[NewTask], now: datetime) -> datetime | None:
    last = max((each.due_at for each in new), default=now)
    return last if last > now else None


def _refuse_closed(batch: Batch, gate: Gate) -> None:
    if batch.cancelled_at is not None:
        raise NotOpen("It has been cancelled")
    if gate.spent:
        raise NotOpen("One of its tasks has failed, and it is to fail fast")
    if not batch.open:
        raise NotOpen()


def _enqueue(gate: Gate, new: Sequence[NewTask], *, now: datetime) -> None:
    """Make the tasks members of the locked gate, count them, and let the first through."""
    waits = gates.admit(gate, len(new))
    queue.insert(new, gate.pk, is_blocked=waits, may_bundle=gates.may_bundle(gate), now=now)
    if waits:
        gates.release(gate, now=now)
    gates.save(gate)


# --- ids --------------------------------------------------------------------------------------------------------


def _committed(work: Callable[[], Batch], given: Sequence[Any]) -> Batch:
    """Run `work` in a transaction; what is taken is named by its place."""
    try:
        _refuse_schedules(given)
        return sql.in_transaction(work)
    except queue.TaskIdTaken:
        ids = _ids(given)
        taken = _found("scheduling_task", ids)
        raise _taken([(place, task_id) for task_id, place in ids.items() if task_id in taken]) from None


def _ids(given: Sequence[Any]) -> dict[str, int]:
    """Return the ids that the caller has chosen, with their places."""
    return {each["task_id"]: place for place, each in enumerate(given) if "task_id" in each}


def _refuse_duplicates(given: Sequence[Any]) -> None:
    counts = Counter(each["task_id"] for each in given if "task_id" in each)
    if len(counts) == counts.total():
        return
    seen: set[str] = set()
    twice = []
    for place, each in enumerate(given):
        task_id = each.get("task_id")
        if task_id in seen:
            twice.append((place, task_id))
        elif task_id is not None:
            seen.add(task_id)
    raise _taken(twice, "is in the list twice")


def _refuse_schedules(given: Sequence[Any]) -> None:
    """A schedule's id stands for its latest run wherever a task is named."""
    ids = _ids(given)
    if not ids:
        return
    taken = _found("scheduling_schedule", ids)
    if taken:
        raise _taken([(ids[task_id], task_id) for task_id in sorted(taken, key=ids.__getitem__)])


def _found(table: str, ids: Iterable[str]) -> set[str]:
    """Return those of the ids that rows of the table have: one parameter, however many there are."""
    listed = "jsonb_array_elements_text(%s::jsonb)" if sql.is_postgresql() else "json_each(%s)"
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT task_id FROM {table} WHERE task_id IN (SELECT value FROM {listed})",
            [orjson.dumps(list(ids)).decode()],
        )
        return {task_id for (task_id,) in cursor.fetchall()}


def _taken(found: Sequence[tuple[int, str]], why: str = "is taken") -> TaskIdsTaken:
    named = tuple(
        Detail(f"tasks[{place}].task_id", f"'{task_id}' {why}", "Choose another id, or leave it out to get one")
        for place, task_id in found[:NAMED_MOST]
    )
    ids = ", ".join(task_id for _, task_id in found[:20])
    more = f" and {len(found) - 20:,} more" if len(found) > 20 else ""
    return TaskIdsTaken(f"{len(found):,} of the task ids are taken: {ids}{more}", details=named)
