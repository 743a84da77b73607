"""What operators do to tasks, each with its record: who, when, why, before and after.

One transaction each: lock (scheduling.steering), change, record, publish. The lock makes the answer true: two people
who press at the same moment are one after the other, and the second is told what the first has done.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from django.db.models import Exists, OuterRef

from k1node.events import log
from k1node.lib import sql
from k1node.lib.errors import K1NodeError, NotFound
from recovery import records, retries
from recovery.models import Intervention
from recovery.records import CLOCK, By
from recovery.retries import Changes
from scheduling import queries, steering
from scheduling.models import Control, Task, TaskStatus
from scheduling.steering import Locked

Action = Intervention.Action

PRUNE_BATCH = 500
RESUME_MOST = 100  # pauses that end in one pass of the clock
EVENTS = {
    Action.PAUSE: "task.paused",
    Action.RESUME: "task.resumed",
    Action.SKIP: "task.skipped",
    Action.CANCEL: "task.cancelled",
}


def pause(task: Task, by: By, *, until: datetime | None = None, now: datetime) -> Intervention:
    """Keep a task from starting, or stop its run where it is, until a moment or a resume; raises Impossible."""
    return _intervene(task, Action.PAUSE, by, lambda locked: steering.pause(locked, until=until, now=now), now=now)


def resume(task: Task, by: By, *, now: datetime) -> Intervention:
    """Undo a pause; raises Impossible."""
    return _intervene(task, Action.RESUME, by, lambda locked: steering.resume(locked, now=now), now=now)


def resume_overdue(*, now: datetime) -> int:
    """Resume the paused tasks whose time is over, RESUME_MOST at the most; return how many.

    Each in a transaction of its own, under its lock: of two clocks one does it, and a person who was faster stands.
    """
    resumed = 0
    for task in steering.overdue(now=now, limit=RESUME_MOST):
        with suppress(steering.Impossible, NotFound):
            _intervene(task, Action.RESUME, CLOCK, lambda locked: steering.resume_overdue(locked, now=now), now=now)
            resumed += 1
    return resumed


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
    """Queue a task that has ended once more, as a new task, and return that; see recovery.retries.

    Its dead letter, if it has one, is resubmitted by this. Raises InvalidRequest if such a task could not run, and
    Impossible when the task has not ended, an earlier retry has not, or the overlap policy leaves it out.
    """
    ready = retries.ready([task], Changes(parameters or {}, retry_policy))
    if error := ready[0].error:
        raise error

    def work() -> Task:
        (made,) = retries.make(ready, by, now=now)
        if isinstance(made, K1NodeError):
            raise made
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
            fact: dict[str, Any] = {
                "task_id": locked.task.task_id,
                "status": queries.shown_status(locked.task),
                "by": by.name,
            }
            if locked.task.paused_until is not None:
                fact["until"] = locked.task.paused_until
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
    if task.paused_until is not None:
        facts["until"] = task.paused_until.isoformat()
    return facts
