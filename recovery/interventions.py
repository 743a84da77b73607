"""What operators do to tasks, each with its record: who, when, why, before and after.

One transaction each: lock (scheduling.steering), change, record, publish. The lock makes the answer true: two people
who press at the same moment are one after the other, and the second is told what the first has done.

A retry is a new task, linked to the original one and numbered by it: task-1-retry-1, then task-1-retry-2, also for a
retry of task-1-retry-1. While one of them has not ended there is no other, so a second press does not run it twice.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from django.db.models import Exists, OuterRef

from k1node.events import log
from k1node.lib import sql
from k1node.lib.errors import FieldInvalid, NotFound
from recovery import records
from recovery.models import Intervention
from recovery.records import By
from scheduling import gates, handlers, queries, queue, steering, tasks
from scheduling.models import ACTIVE, FINISHED, Control, Schedule, Task, TaskStatus
from scheduling.queue import NewTask
from scheduling.steering import Impossible, Locked

Action = Intervention.Action

PRUNE_BATCH = 500
NUMBERS_TRIED = 50  # ids of retries that somebody has given to tasks of their own
TIMEOUT = "timeout_ms"  # the one parameter that is also a property of the task
EVENTS = {
    Action.PAUSE: "task.paused",
    Action.RESUME: "task.resumed",
    Action.SKIP: "task.skipped",
    Action.CANCEL: "task.cancelled",
}


def pause(task: Task, by: By, *, now: datetime) -> Intervention:
    """Keep a task from starting, or stop its run where it is; raises Impossible."""
    return _intervene(task, Action.PAUSE, by, lambda locked: steering.pause(locked, now=now), now=now)


def resume(task: Task, by: By, *, now: datetime) -> Intervention:
    """Undo a pause; raises Impossible."""
    return _intervene(task, Action.RESUME, by, lambda locked: steering.resume(locked, now=now), now=now)


def skip(task: Task, by: By, *, now: datetime) -> Intervention:
    """Leave a task out, ending its run if there is one; raises Impossible."""
    return _end(task, Action.SKIP, TaskStatus.SKIPPED, by, now=now)


def cancel(task: Task, by: By, *, now: datetime) -> Intervention:
    """End a task, and its run if there is one; raises Impossible."""
    return _end(task, Action.CANCEL, TaskStatus.CANCELLED, by, now=now)


def reprioritise(task: Task, priority: int, by: By, *, now: datetime) -> Intervention:
    """Move a waiting task in the queue; raises Impossible."""
    return _intervene(task, Action.PRIORITY, by, lambda locked: steering.reprioritise(locked, priority), now=now)


def retry(
    task: Task,
    by: By,
    *,
    parameters: Mapping[str, Any] | None = None,
    retry_policy: str | None = None,
    now: datetime,
) -> Task:
    """Queue a task that has ended once more, as a new task, and return that.

    `parameters` are laid over the original ones, key by key; a `timeout_ms` among them is the new task's timeout too.
    A run of a schedule goes through the schedule's overlap policy. Raises InvalidRequest if such a task could not run,
    and Impossible when the task has not ended, an earlier retry has not, or the overlap policy leaves it out.
    """
    given = {**task.parameters, **(parameters or {})}
    policy = retry_policy or str(task.retry_policy_id)
    timeout_ms = _timeout(parameters or {}, task.timeout_ms)
    known = handlers.registered(task.handler)
    if known is not None and not known.takes(TIMEOUT):
        given.pop(TIMEOUT, None)  # meant for the task alone
    queue.check(task.handler, given, policy)

    def work() -> Task:
        schedule = _schedule(task)
        gate_of = gates.overlap_gates([schedule]) if schedule else {}
        found, root = _locked_with_root(task)
        if found.status not in FINISHED:
            raise Impossible(f"It has not ended: {found.status}. Only a task that has ended is retried")
        if living := Task.objects.filter(origin=root, status__in=ACTIVE).values_list("task_id", flat=True).first():
            raise Impossible(f"Its retry {living} has not ended")
        admission = gates.admit_overlap(schedule, gate_of.get(schedule.pk)) if schedule else None
        if admission is not None and admission.status is None:
            raise Impossible(f"Not retried, {admission.reason}")
        new = NewTask(
            task_id=_next_id(root),
            task_name=found.task_name,
            handler=found.handler,
            parameters=given,
            priority=found.priority,
            timeout_ms=timeout_ms,
            retry_policy=policy,
            circuit_breaker=found.circuit_breaker,
            schedule_id=schedule.pk if schedule else None,
            gate_id=admission.gate_id if admission else None,
            is_blocked=admission is not None and admission.status == TaskStatus.BLOCKED,
            due_at=now,
            created_by=by.name[:150],
            solo=found.solo,
            origin_id=root.pk,
        )
        gates.save_counts(gate_of.values())
        (made,) = queue.enqueue([new], now=now)
        if schedule and admission and admission.end_others and admission.gate_id:
            queue.end_earlier_runs(schedule, admission.gate_id, keep=made.task_id, now=now)
            made.refresh_from_db()
        records.record(Action.RETRY, by, {"status": found.status}, {"new_task_id": made.task_id}, task=found, now=now)
        return made

    return sql.in_transaction(work)


def prune(before: datetime) -> int:
    """Delete the interventions from before `before` whose tasks are gone; return how many, a batch at most."""
    gone = Intervention.objects.filter(created_at__lt=before).exclude(
        Exists(Task.objects.filter(pk=OuterRef("task_id")))
    )
    pks = list(gone.order_by("created_at").values_list("pk", flat=True)[:PRUNE_BATCH])
    Intervention.objects.filter(pk__in=pks)._raw_delete("default")
    return len(pks)


def _intervene(
    task: Task,
    action: Intervention.Action,
    by: By,
    change: Callable[[Locked], Sequence[str] | None],
    *,
    now: datetime,
) -> Intervention:
    """Lock, change, record, publish; `change` may return the ids of other tasks it has cancelled."""

    def work() -> Intervention:
        locked = steering.lock(task.pk)
        if locked is None:
            raise NotFound()
        before = _facts(locked.task)
        others = change(locked) or ()
        intervention = records.record(action, by, before, _facts(locked.task), task=locked.task, now=now)
        # A run that is to end says so itself, once it has.
        if action in EVENTS and not (
            locked.task.status == TaskStatus.EXECUTING and locked.task.control in (Control.CANCEL, Control.SKIP)
        ):
            fact = {"task_id": locked.task.task_id, "status": queries.shown_status(locked.task), "by": by.name}
            log.publish(EVENTS[action], fact, now=now)
        log.publish_many(
            [("task.cancelled", {"task_id": task_id, "status": "cancelled"}) for task_id in others], now=now
        )
        return intervention

    return sql.in_transaction(work)


def _end(task: Task, action: Intervention.Action, status: TaskStatus, by: By, *, now: datetime) -> Intervention:
    why = f"{status.label} by {by.name}" + (f": {by.reason}" if by.reason else "")
    return _intervene(task, action, by, lambda locked: steering.end(locked, status, why, now=now), now=now)


def _facts(task: Task) -> dict[str, Any]:
    """Return what of a task an intervention can change."""
    facts: dict[str, Any] = {"status": queries.shown_status(task), "priority": task.priority}
    if task.control:
        facts["asked"] = str(task.control)
    return facts


def _timeout(parameters: Mapping[str, Any], otherwise: int) -> int:
    given = parameters.get(TIMEOUT, otherwise)
    shortest, longest = tasks.TIMEOUTS_MS
    if not isinstance(given, int) or isinstance(given, bool) or not shortest <= given <= longest:
        raise FieldInvalid(
            f"parameters.{TIMEOUT}",
            "Must be a whole number of milliseconds: it sets the task's timeout too",
            f"Use {shortest} to {longest}",
        )
    return given


def _schedule(task: Task) -> Schedule | None:
    """Return the task's schedule, locked; None when it has none or that is gone."""
    if task.schedule_id is None:
        return None
    rows = Schedule.objects.filter(pk=task.schedule_id)
    return (rows.select_for_update() if sql.is_postgresql() else rows).first()


def _locked_with_root(task: Task) -> tuple[Task, Task]:
    """Return the task and the original it descends from (itself, if it is one), locked in the order of their ids."""
    rows = Task.objects.filter(pk__in={task.pk, task.origin_id or task.pk}).order_by("pk")
    found = {row.pk: row for row in (rows.select_for_update() if sql.is_postgresql() else rows)}
    if task.pk not in found:
        raise NotFound()
    return found[task.pk], found.get(task.origin_id or task.pk, found[task.pk])


def _next_id(root: Task) -> str:
    """Return the id of the next retry of the locked `root`, and count it."""
    numbers = range(root.retry_count + 1, root.retry_count + 1 + NUMBERS_TRIED)
    ids = {number: f"{root.task_id}-retry-{number}" for number in numbers}
    taken = set(Task.objects.filter(task_id__in=ids.values()).values_list("task_id", flat=True))
    free = next((number for number in numbers if ids[number] not in taken), None)
    if free is None:
        raise queue.TaskIdTaken(sorted(taken))
    root.retry_count = free
    root.save(update_fields=("retry_count",))
    return ids[free]
