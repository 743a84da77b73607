"""New tasks for tasks that have ended: what a retry by hand and the resubmission of dead letters share.

ready() checks, outside any transaction, that such tasks could run. make() then does it for any number of tasks, in the
caller's transaction and in a fixed number of statements: lock (dead letters, schedules, doors, gates, tasks with their
originals, each in the order of their keys), admit, number, enqueue, and write down what was done. A task that cannot
be retried leaves the others alone: its answer is the reason.

The new task of a batch takes the place that its original, or the latest retry of that, has there: the batch has as many
tasks as before. The one that had it has no batch any more.

A retry is linked to the original task and numbered by it: task-1-retry-1, then task-1-retry-2, also for a retry of
task-1-retry-1. While one of them has not ended there is no other, so a second press does not run it twice.

The dead letter of a task that is retried is resubmitted, whichever way it was asked for.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson
from django.db.models import Q, QuerySet

from k1node.events import log
from k1node.lib import sql
from k1node.lib.errors import Conflict, FieldInvalid, K1NodeError, NotFound
from recovery import records
from recovery.models import DeadLetter, Intervention
from recovery.records import By, Done
from scheduling import gates, handlers, parking, queue, tasks
from scheduling.gates import Admission
from scheduling.models import ACTIVE, FINISHED, Gate, GateKind, Schedule, Task, TaskStatus
from scheduling.queue import NewTask
from scheduling.steering import Impossible

Status = DeadLetter.Status

NUMBERS_TRIED = 50  # ids of retries that somebody has given to tasks of their own
MOST_BYTES = 64 * 1024  # of parameters, as of those of a new task
TIMEOUT = "timeout_ms"  # the one parameter that is also a property of the task
RESOLVED_COLUMNS = {
    "status": "text",
    "resolved_at": "timestamptz",
    "resolved_by": "text",
    "reason": "text",
    "new_task_id": "bigint",
    "new_task_name": "text",
    "changes": "jsonb",
    "id": "bigint",
}


class DeadLetterRefuses(Conflict):
    """The dead letter's present state does not allow this"""


@dataclass(frozen=True, slots=True)
class Changes:
    """What the new task has instead of the old one's. `parameters` are laid over the old ones, key by key."""

    parameters: Mapping[str, Any] = field(default_factory=dict)
    retry_policy: str | None = None

    def as_json(self) -> dict[str, Any]:
        told: dict[str, Any] = {"parameters": dict(self.parameters)} if self.parameters else {}
        return told | ({"retry_policy": self.retry_policy} if self.retry_policy else {})

    def check(self) -> None:
        """Raise FieldInvalid where they cannot fit any task."""
        if TIMEOUT in self.parameters:
            _check_timeout(self.parameters[TIMEOUT])
        if self.retry_policy is not None:
            queue.check_policy(self.retry_policy)


@dataclass(frozen=True, slots=True)
class Ready:
    """A task that has ended, and what its retry would run."""

    task: Task
    changes: Changes
    parameters: dict[str, Any]
    timeout_ms: int
    error: K1NodeError | None = None  # why it could not run


def ready(found: Sequence[Task], changes: Changes) -> list[Ready]:
    """Return what retries of the tasks would run. Raises FieldInvalid where the changes cannot fit any task."""
    changes.check()
    return [as_changed(task, changes) for task in found]


def as_changed(task: Task, changes: Changes) -> Ready:
    """Return what a retry of the task would run; the changes are checked."""
    given = {**task.parameters, **changes.parameters}
    known = handlers.registered(task.handler)
    if known is not None and not known.takes(TIMEOUT):
        given.pop(TIMEOUT, None)  # meant for the task alone
    error = None
    try:
        if changes.parameters:
            _check_size(task.parameters, given)
        tasks.check_handler(task.handler, given)
    except K1NodeError as refusal:
        error = refusal
    return Ready(task, changes, given, int(changes.parameters.get(TIMEOUT, task.timeout_ms)), error)


def _check_size(before: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    size = len(orjson.dumps(given))
    if size > max(MOST_BYTES, len(orjson.dumps(before))):
        raise FieldInvalid(
            "parameters", f"Must be at most {MOST_BYTES:,} bytes with the original ones, not {size:,}", "Change fewer"
        )


def _check_timeout(given: object) -> None:
    shortest, longest = tasks.TIMEOUTS_MS
    if not isinstance(given, int) or isinstance(given, bool) or not shortest <= given <= longest:
        raise FieldInvalid(
            f"parameters.{TIMEOUT}",
            "Must be a whole number of milliseconds: it sets the task's timeout too",
            f"Use {shortest} to {longest}",
        )


def make(
    wanted: Sequence[Ready], by: By, *, only_pending: bool = False, unless_spent: bool = False, now: datetime
) -> list[Task | K1NodeError]:
    """Queue the tasks once more; return the new task of each, or why there is none. Needs a transaction.

    A run of a schedule goes through the schedule's overlap policy. With `only_pending` the task needs a pending dead
    letter, and a run of a schedule waits for its turn: an overlap policy neither leaves it out nor ends another for it.
    With `unless_spent` a batch that a failure or a cancellation has ended stays ended.
    """
    letters = _locked_letters(each.task.pk for each in wanted)
    schedules = _locked_schedules(each.task.schedule_id for each in wanted)
    # The doors before the gates: a settlement that moves a breaker takes them so too.
    parking.closed_doors(each.task.circuit_breaker for each in wanted)
    gate_of = gates.overlap_gates(list(schedules.values()))
    places = _Places(wanted)
    rows = _locked_tasks(
        [pk for each in wanted for pk in (each.task.pk, each.task.origin_id) if pk is not None] + places.holders
    )
    places.look_again(rows.values())
    # One that was made while this waited for its task: against the order, so at worst this repeats.
    if late := [each.task.pk for each in wanted if each.task.pk not in letters]:
        letters |= _locked_letters(late)
    living = _living(rows.values())
    answers: list[Task | K1NodeError] = []
    new: dict[int, NewTask] = {}  # by its place among the answers
    ends: list[tuple[Schedule, Admission, str]] = []
    numbers = _Numbers(rows)
    for place, each in enumerate(wanted):
        try:
            task = _retryable(each, rows, letters.get(each.task.pk), living, only_pending=only_pending)
            root = rows.get(task.origin_id or 0, task)
            batch = places.gate_of(root)
            if unless_spent and batch is not None and batch.spent:
                raise Impossible("Its batch has been ended since")
            task_id = numbers.next(root)
            schedule = schedules.get(task.schedule_id or 0)
            gate = gate_of.get(schedule.pk) if schedule else None
            admission = _admit(schedule, gate, waits=only_pending) if schedule else None
        except K1NodeError as error:
            answers.append(error)
            continue
        made = _new_task(each, task, root, task_id, admission, batch, by, now)
        living[root.pk] = made.task_id
        places.take(root)
        new[place] = made
        answers.append(each.task)  # until it is made
        if schedule and admission and admission.end_others:
            ends.append((schedule, admission, made.task_id))
    if not new:
        return answers
    gates.save_counts(gate_of.values())
    numbers.save()
    places.leave()
    for place, made_task in zip(new, queue.enqueue(list(new.values()), now=now), strict=True):
        answers[place] = made_task
    released = places.fill(now=now)
    for schedule, admission, task_id in ends:
        assert admission.gate_id is not None
        queue.end_earlier_runs(schedule, admission.gate_id, keep=task_id, now=now)
    made_of = {wanted[place].task.pk: answer for place, answer in enumerate(answers) if isinstance(answer, Task)}
    if ends or released:
        for answer in made_of.values():
            answer.refresh_from_db()
    action = Intervention.Action.RESUBMIT if only_pending else Intervention.Action.RETRY
    _write_down(made_of, rows, letters, wanted, action, by, now)
    return answers


def _retryable(
    each: Ready,
    rows: Mapping[int, Task],
    letter: DeadLetter | None,
    living: Mapping[int, str],
    *,
    only_pending: bool,
) -> Task:
    """Return the locked task; raises why it cannot be retried."""
    task = rows.get(each.task.pk)
    if task is None:
        raise NotFound()
    if only_pending:
        if letter is None:
            raise NotFound()
        if letter.status != Status.PENDING:
            raise DeadLetterRefuses(f"{letter.dlq_id} {refusal(letter)}")
    if task.status not in FINISHED:
        raise Impossible(f"It has not ended: {task.status}. Only a task that has ended is retried")
    if each.error is not None:
        raise each.error
    root = rows.get(task.origin_id or 0, task)
    if root.pk in living:
        raise Impossible(f"Its retry {living[root.pk]} has not ended")
    return task


def refusal(letter: DeadLetter) -> str:
    """Return why an entry that is not pending is not resubmitted, as the end of a sentence."""
    if letter.status == Status.RESUBMITTED:
        return f"has been resubmitted already, as {letter.new_task_name}"
    return "is archived. Unarchive it first"


def _admit(schedule: Schedule, gate: Gate | None, *, waits: bool) -> Admission:
    if waits and gate is not None and (gate.in_flight or gate.waiting):
        gate.waiting += 1
        return Admission(TaskStatus.BLOCKED, gate.pk)
    admission = gates.admit_overlap(schedule, gate)
    if admission.status is None:
        raise Impossible(f"Not retried, {admission.reason}")
    return admission


def _new_task(
    each: Ready,
    task: Task,
    root: Task,
    task_id: str,
    admission: Admission | None,
    batch: Gate | None,
    by: By,
    now: datetime,
) -> NewTask:
    gate_id = batch.pk if batch else admission.gate_id if admission else None
    return NewTask(
        task_id=task_id,
        task_name=task.task_name,
        handler=task.handler,
        parameters=each.parameters,
        priority=task.priority,
        timeout_ms=each.timeout_ms,
        retry_policy=each.changes.retry_policy or str(task.retry_policy_id),
        circuit_breaker=task.circuit_breaker,
        schedule_id=task.schedule_id if admission else None,  # None: the schedule is gone
        gate_id=gate_id,
        is_blocked=gates.makes_wait(batch) if batch else bool(admission and admission.status == TaskStatus.BLOCKED),
        may_bundle=batch is not None and gates.may_bundle(batch),
        due_at=now,
        created_by=by.name[:150],
        solo=task.solo,
        origin_id=root.pk,
    )


def _write_down(
    made_of: Mapping[int, Task],
    rows: Mapping[int, Task],
    letters: Mapping[int, DeadLetter],
    wanted: Sequence[Ready],
    action: Intervention.Action,
    by: By,
    now: datetime,
) -> None:
    """Record each retry, resolve the dead letters, and publish that they are."""
    records.record_many(
        [
            Done(action, {"status": rows[pk].status}, {"new_task_id": made.task_id}, task_id=pk)
            for pk, made in made_of.items()
        ],
        by,
        now=now,
    )
    changes = {each.task.pk: orjson.dumps(each.changes.as_json()).decode() for each in wanted}
    resolved = [
        (letters[pk], made)
        for pk, made in made_of.items()
        if pk in letters and letters[pk].status != Status.RESUBMITTED
    ]
    stamp, name = sql.stored(now), by.name[:150]
    sql.update_many(
        "recovery_deadletter",
        RESOLVED_COLUMNS,
        [
            (
                Status.RESUBMITTED.value,
                stamp,
                name,
                by.reason,
                made.pk,
                made.task_id,
                changes[letter.task_id],
                letter.pk,
            )
            for letter, made in resolved
        ],
    )
    facts = [
        (
            "dlq.resubmitted",
            {
                "dlq_id": letter.dlq_id,
                "task_id": rows[letter.task_id].task_id,
                "new_task_id": made.task_id,
                "by": by.name,
            },
        )
        for letter, made in resolved
    ]
    log.publish_many(facts, now=now)


# --- locks and numbers ------------------------------------------------------------------------------------------


def _locked_letters(task_pks: Iterable[int]) -> dict[int, DeadLetter]:
    """Return the tasks' dead letters, by task; before anything else, as archiving takes them too."""
    found = _locked(DeadLetter.objects.filter(task__in=list(task_pks)))
    return {letter.task_id: letter for letter in found}


def _locked_schedules(pks: Iterable[int | None]) -> dict[int, Schedule]:
    wanted = {pk for pk in pks if pk is not None}
    return {row.pk: row for row in _locked(Schedule.objects.filter(pk__in=wanted))} if wanted else {}


def _locked_tasks(pks: Iterable[int]) -> dict[int, Task]:
    return {row.pk: row for row in _locked(Task.objects.filter(pk__in=set(pks)))}


def _locked(rows: QuerySet[Any]) -> QuerySet[Any]:
    rows = rows.order_by("pk")
    return rows.select_for_update() if sql.is_postgresql() else rows


def _living(rows: Iterable[Task]) -> dict[int, str]:
    """Return the retries that have not ended, by the original task."""
    found = Task.objects.filter(origin__in=[row.pk for row in rows], status__in=ACTIVE)
    return {origin: task_id for origin, task_id in found.values_list("origin_id", "task_id") if origin is not None}


class _Places:
    """The places that the tasks to be retried have in batches: of each original, or of one of its retries."""

    def __init__(self, wanted: Sequence[Ready]) -> None:
        """Lock the gates, before any task."""
        roots = {each.task.origin_id or each.task.pk for each in wanted}
        # Not joined with the gates: SQLite would begin with those of all batches, and read all of their tasks.
        rows = Task.objects.filter(Q(pk__in=roots) | Q(origin__in=roots)).values_list("pk", "gate_id")
        gate_of = {pk: gate_id for pk, gate_id in rows if gate_id is not None}
        batches = set(
            Gate.objects.filter(pk__in=set(gate_of.values()), kind=GateKind.BATCH).values_list("pk", flat=True)
        )
        found = {pk: gate_id for pk, gate_id in gate_of.items() if gate_id in batches}
        self.holders = list(found)
        self._gates = gates.lock(found.values())
        self._held: dict[int, Task] = {}  # by the original
        self._left: dict[int, list[Task]] = {}  # by the gate

    def look_again(self, rows: Iterable[Task]) -> None:
        """Note who has which place, now that the tasks are locked too."""
        self._held = {row.origin_id or row.pk: row for row in rows if row.gate_id in self._gates}

    def gate_of(self, root: Task) -> Gate | None:
        held = self._held.get(root.pk)
        return self._gates[held.gate_id] if held is not None and held.gate_id is not None else None

    def take(self, root: Task) -> None:
        """Let a new task have the place, if there is one."""
        held = self._held.pop(root.pk, None)
        if held is not None and held.gate_id is not None:
            self._left.setdefault(held.gate_id, []).append(held)

    def leave(self) -> None:
        """Take those who had the places out of their batches, and count the new tasks."""
        pks = [row.pk for rows in self._left.values() for row in rows]
        if not pks:
            return
        Task.objects.filter(pk__in=pks).update(gate=None)
        for gate_id, rows in self._left.items():
            gates.replace(self._gates[gate_id], [TaskStatus(row.status) for row in rows], len(rows))

    def fill(self, *, now: datetime) -> int:
        """Let through what may start, and store the counts; return how many were let through."""
        released = 0
        for gate_id in self._left:
            released += gates.release(self._gates[gate_id], now=now)
            gates.save(self._gates[gate_id])
        return released


class _Numbers:
    """The ids of retries, counted by their locked originals."""

    def __init__(self, rows: Mapping[int, Task]) -> None:
        roots = [row for row in rows.values() if row.origin_id not in rows]
        first = {f"{root.task_id}-retry-{root.retry_count + 1}" for root in roots}
        self._taken = set(Task.objects.filter(task_id__in=first).values_list("task_id", flat=True))
        self._counted: dict[int, Task] = {}

    def next(self, root: Task) -> str:
        number = root.retry_count + 1
        if f"{root.task_id}-retry-{number}" in self._taken:
            number = self._free(root, number + 1)
        root.retry_count = number
        self._counted[root.pk] = root
        return f"{root.task_id}-retry-{number}"

    @staticmethod
    def _free(root: Task, start: int) -> int:
        ids = {number: f"{root.task_id}-retry-{number}" for number in range(start, start + NUMBERS_TRIED)}
        taken = set(Task.objects.filter(task_id__in=ids.values()).values_list("task_id", flat=True))
        free = next((number for number in ids if ids[number] not in taken), None)
        if free is None:
            raise queue.TaskIdTaken(sorted(taken))
        return free

    def save(self) -> None:
        rows = [(root.retry_count, root.pk) for root in self._counted.values()]
        sql.update_many("scheduling_task", {"retry_count": "int", "id": "bigint"}, rows)
