"""Moving one task by hand: what an operator may do to it in each of its states.

lock() takes the task and the gates it counts on, in the one lock order; the verbs then change the locked row and the
gates' counts in the caller's transaction. What a verb cannot do in the task's present state is an Impossible, with the
reason. A run that goes on is only asked: its worker reads `control` every second and does it, on whichever node. A
parked task is `blocked` behind its breaker's door, which is no gate that it counts on.

    state                 pause            resume             cancel, skip            reprioritise
    scheduled, queued     paused           -                  ends here               yes
    blocked               -                -                  ends here               yes
    parked                paused           -                  ends here               yes
    paused                -                queued, scheduled  ends here               yes
    executing             asks its worker  asks its worker    asks its worker         -
    finished              -                -                  -                       -
"""

from dataclasses import dataclass
from datetime import datetime

from k1node.lib import sql, wake
from k1node.lib.errors import Conflict
from scheduling import gates, handlers
from scheduling.models import FINISHED, Control, Gate, Task, TaskStatus

ENDED = {TaskStatus.CANCELLED: Control.CANCEL, TaskStatus.SKIPPED: Control.SKIP}
IDLE = (TaskStatus.QUEUED, TaskStatus.SCHEDULED)


class Impossible(Conflict):
    """The task's present state does not allow this"""


@dataclass(slots=True)
class Locked:
    """A task and the gates it counts on, held until the transaction ends."""

    task: Task
    gates: dict[int, Gate]


def lock(pk: int) -> Locked | None:
    """Lock a task after its gates; None when it is gone. Needs a transaction."""
    known = Task.objects.filter(pk=pk).values_list("gate_id", flat=True)[:1]
    if not known:
        return None
    held = gates.lock(gate_id for gate_id in known if gate_id is not None)
    rows = Task.objects.filter(pk=pk)
    task = (rows.select_for_update() if sql.is_postgresql() else rows).first()
    if task is None:
        return None
    if task.gate_id is not None and task.gate_id not in held:
        # A gate that took the task in meanwhile: after the task, against the order, so at worst this repeats.
        held |= gates.lock([task.gate_id])
    return Locked(task, held)


def possible(task: Task) -> tuple[str, ...]:
    """Return the verbs that the task's present state allows, as names of interventions."""
    if task.status in FINISHED:
        return ("retry",)
    is_ending = task.control in (Control.CANCEL, Control.SKIP)
    if task.status != TaskStatus.EXECUTING:
        first: tuple[str, ...] = ()
        if task.status == TaskStatus.PAUSED:
            first = ("resume",)
        elif (task.status in IDLE or is_parked(task)) and not is_ending:
            first = ("pause",)
        return (*first, "skip", "cancel", "priority")
    if is_ending:
        return ()
    if task.control == Control.PAUSE:
        return ("resume", "skip", "cancel")
    return ("pause", "skip", "cancel") if _can_pause(task.handler) else ("skip", "cancel")


def is_parked(task: Task) -> bool:
    """Say whether the task waits behind the door of its breaker."""
    return task.status == TaskStatus.BLOCKED and task.blocked_on_id != task.gate_id


def pause(locked: Locked, *, until: datetime | None = None, now: datetime) -> None:
    """Take a waiting task out of the queue, or have a running one stopped; raises Impossible.

    After `until` the clock resumes it (overdue).
    """
    task = locked.task
    _refuse_finished(task)
    if task.status == TaskStatus.PAUSED or task.control == Control.PAUSE:
        raise Impossible("It is paused already")
    if task.status == TaskStatus.BLOCKED and not is_parked(task):
        raise Impossible("It waits for its turn and cannot be paused; cancel or skip it, or pause what it waits for")
    _refuse_ending(task)
    if task.status != TaskStatus.EXECUTING:
        task.status, task.blocked_on, task.permit = TaskStatus.PAUSED, None, 0
    else:
        if not _can_pause(task.handler):
            raise Impossible(f"{task.handler} cannot be paused while it runs: it never calls context.checkpoint()")
        task.control, task.permit = Control.PAUSE, 0
    task.paused_at, task.paused_until = now, until
    task.save(update_fields=("status", "blocked_on", "permit", "control", "paused_at", "paused_until"))


def resume(locked: Locked, *, now: datetime) -> None:
    """Undo a pause; raises Impossible."""
    task = locked.task
    _refuse_finished(task)
    if task.status == TaskStatus.PAUSED:
        task.status = TaskStatus.SCHEDULED if task.due_at > now else TaskStatus.QUEUED
    elif task.control == Control.PAUSE:
        task.control = Control.NONE
    else:
        raise Impossible("It is not paused")
    task.paused_at = task.paused_until = None
    task.save(update_fields=("status", "control", "paused_at", "paused_until"))
    if task.status in IDLE and task.gate_id is not None:
        gates.given_back([locked.gates[task.gate_id]])  # which may have been closed meanwhile
        task.refresh_from_db(fields=("status", "blocked_on"))
    wake.tell()


def overdue(*, now: datetime, limit: int) -> list[Task]:
    """Return paused tasks whose pause is over, the longest first, with their keys alone; a plain read."""
    paused = Task.objects.filter(paused_until__lte=now, status__in=(TaskStatus.PAUSED, TaskStatus.EXECUTING))
    return list(paused.order_by("paused_until").only("pk")[:limit])


def resume_overdue(locked: Locked, *, now: datetime) -> None:
    """Undo a pause whose time is over; raises Impossible when it is not any more."""
    until = locked.task.paused_until
    if until is None or until > now:
        raise Impossible("Its pause has no end that has come")
    resume(locked, now=now)


def end(locked: Locked, status: TaskStatus, why: str, *, now: datetime) -> list[str]:
    """Cancel or skip a task, or have its run ended; raises Impossible.

    Returns the ids of other tasks that a gate's failure rule has cancelled with it.
    """
    task = locked.task
    _refuse_finished(task)
    if task.status == TaskStatus.EXECUTING:
        _refuse_ending(task)
        task.control, task.control_reason = ENDED[status], why[:500]
        task.paused_at = task.paused_until = None
        task.save(update_fields=("control", "control_reason", "paused_at", "paused_until"))
        return []
    gate_id, was_waiting = task.gate_id, task.status == TaskStatus.BLOCKED and not is_parked(task)
    task.status, task.blocked_on, task.permit = status, None, 0
    task.paused_at = task.paused_until = None
    task.control, task.control_reason = Control.NONE, ""
    task.finished_at, task.last_error = now, why
    task.save(
        update_fields=(
            "status",
            "blocked_on",
            "permit",
            "paused_at",
            "paused_until",
            "control",
            "control_reason",
            "finished_at",
            "last_error",
        )
    )
    if gate_id is None:
        return []
    if was_waiting:
        gates.withdrawn(locked.gates[gate_id], status)
        return []
    return gates.settled(locked.gates, [(gate_id, status)], now=now)


def reprioritise(locked: Locked, priority: int) -> None:
    """Move a waiting task in the queue; raises Impossible."""
    task = locked.task
    _refuse_finished(task)
    if task.status == TaskStatus.EXECUTING:
        raise Impossible("It runs already; its priority decides nothing any more")
    task.priority = priority
    task.save(update_fields=("priority",))


def _refuse_finished(task: Task) -> None:
    if task.status in FINISHED:
        raise Impossible(f"It has ended: {task.status}")


def _refuse_ending(task: Task) -> None:
    if task.control in (Control.CANCEL, Control.SKIP):
        raise Impossible("It is being ended already")


def _can_pause(handler: str) -> bool:
    """Say whether a run can be stopped and go on: commands by a signal, Python handlers only where they look."""
    if not handler.startswith(handlers.PYTHON_PREFIX):
        return True
    found = handlers.registered(handler)
    return found is not None and found.takes_context
