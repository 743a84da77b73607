"""Gates: doors that tasks wait behind, so that what may not start yet costs the claims of others nothing.

Of batches and overlaps; what has neither members nor counts (breakers, the hold) is in scheduling.parking.

State of a gate: open or closed, a limit of tasks in flight, and exact counts. A task that belongs to a gate is
`waiting` (status blocked, `blocked_on` the gate), then `in flight` (queued, scheduled, executing, paused, or parked
behind the door of a breaker), then one of completed, failed, skipped, cancelled. The counts change in the transaction
that moves the task, under the gate's row lock, which every transaction takes before it locks tasks:

    enqueue          admit_overlap()    +waiting or +in flight
    final transition settled()          -in flight +final, then release(): -waiting +in flight for the next ones
    an operator ends a waiting task     withdrawn()   -waiting +final

`clock` calls sweep() for a release that was missed and for counts that do not match the tasks. A count that is too low
stays at zero until then: it must not keep a task from being settled.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from django.db import connection
from django.db.models import QuerySet

from k1node.lib import sql, wake
from scheduling import parking
from scheduling.models import ACTIVE, FailureRule, Gate, GateKind, OverlapPolicy, Schedule, Task, TaskStatus

logger = logging.getLogger(__name__)

# A literal, not parameters: only so can SQLite prove that the partial index covers the query.
IN_FLIGHT_SQL = (
    "scheduling_task.status IN ('queued', 'scheduled', 'executing', 'paused', 'blocked')"
    " AND (scheduling_task.blocked_on_id IS NULL OR scheduling_task.blocked_on_id <> scheduling_task.gate_id)"
)


@dataclass(frozen=True, slots=True)
class Admission:
    """Where a new task of a schedule goes: its first status, or None when it is left out, and why."""

    status: TaskStatus | None
    gate_id: int | None = None
    reason: str = ""
    end_others: bool = False  # the earlier runs are to be ended


def lock(ids: Iterable[int]) -> dict[int, Gate]:
    """Lock the gates in the order of their ids, before any task; needs a transaction."""
    rows = Gate.objects.filter(pk__in=set(ids)).order_by("pk")
    if connection.vendor == "postgresql":
        rows = rows.select_for_update()
    return {gate.pk: gate for gate in rows}


def in_flight(gate: Gate) -> QuerySet[Task]:
    """Return the gate's tasks in flight: an index seek, however many members have ended."""
    return Task.objects.filter(gate=gate).extra(where=[IN_FLIGHT_SQL])


def overlap_gates(schedules: Sequence[Schedule], *, adopt: bool = False) -> dict[int, Gate]:
    """Return the locked overlap gate of each schedule that needs one, by the schedule's primary key.

    A gate is made when a schedule first needs it; runs that are active at that moment become its members. With
    `adopt` they do so even if it exists: overlaps were allowed until now.
    """
    guarded = {str(schedule.pk): schedule for schedule in schedules if schedule.overlap_policy != OverlapPolicy.ALLOW}
    if not guarded:
        return {}
    # The doors that their runs would be parked behind, first: a settlement that moves a breaker takes them so too.
    parking.closed_doors(schedule.breaker_name for schedule in guarded.values())
    found = _overlap_ids(guarded)
    missing = [key for key in guarded if key not in found]
    if missing:
        Gate.objects.bulk_create(
            [Gate(kind=GateKind.OVERLAP, key=key, limit=1) for key in missing], ignore_conflicts=True
        )
        found = _overlap_ids(guarded)
    gates = lock(found.values())
    for pk in _with_loose_runs([guarded[key].pk for key in (guarded if adopt else missing)]):
        _adopt(gates[found[str(pk)]], guarded[str(pk)])
    return {guarded[key].pk: gates[pk] for key, pk in found.items()}


def _overlap_ids(keys: Iterable[str]) -> dict[str, int]:
    return dict(Gate.objects.filter(kind=GateKind.OVERLAP, key__in=list(keys)).values_list("key", "pk"))


def _with_loose_runs(schedule_ids: list[int]) -> list[int]:
    """Return those of the schedules that have runs in flight without a gate; nearly always none."""
    if not schedule_ids:
        return []
    loose = Task.objects.filter(schedule__in=schedule_ids, gate=None, status__in=ACTIVE)
    return [pk for pk in loose.values_list("schedule_id", flat=True).distinct() if pk is not None]


def _adopt(gate: Gate, schedule: Schedule) -> None:
    adopted = Task.objects.filter(schedule=schedule, gate=None, status__in=ACTIVE).update(gate=gate, solo=True)
    if adopted:
        gate.in_flight += adopted
        Gate.objects.filter(pk=gate.pk).update(in_flight=gate.in_flight)


def admit_overlap(schedule: Schedule, gate: Gate | None) -> Admission:
    """Decide about one more run of `schedule` and count it on the locked `gate` (call save_counts() after)."""
    if gate is None:
        return Admission(TaskStatus.QUEUED)
    if not gate.in_flight and not gate.waiting:
        gate.in_flight += 1
        return Admission(TaskStatus.QUEUED, gate.pk)
    if schedule.overlap_policy == OverlapPolicy.SKIP:
        return Admission(None, gate.pk, "overlap: an earlier run has not ended")
    if schedule.overlap_policy == OverlapPolicy.QUEUE_ONE and gate.waiting:
        return Admission(None, gate.pk, "overlap: one run waits already")
    gate.waiting += 1
    cancels = schedule.overlap_policy == OverlapPolicy.CANCEL_RUNNING
    return Admission(TaskStatus.BLOCKED, gate.pk, end_others=cancels)


def save_counts(gates: Iterable[Gate]) -> None:
    """Store what admissions have counted on the locked gates."""
    rows = [(gate.waiting, gate.in_flight, gate.pk) for gate in gates]
    sql.update_many("scheduling_gate", {"waiting": "int", "in_flight": "int", "id": "bigint"}, rows)


def settled(gates: dict[int, Gate], finals: Iterable[tuple[int, TaskStatus]], *, now: datetime) -> list[str]:
    """Count final transitions of tasks in flight and let the next ones through; `gates` are locked.

    `finals` are (gate id, final status). Returns the ids of tasks that a failure rule has cancelled.
    """
    counts: dict[int, Counter[str]] = {}
    for gate_id, status in finals:
        counts.setdefault(gate_id, Counter())[status.value] += 1
    cancelled: list[str] = []
    for gate_id, ended in counts.items():
        gate = gates[gate_id]
        gate.in_flight = max(0, gate.in_flight - ended.total())
        for name, count in ended.items():
            setattr(gate, name, getattr(gate, name) + count)
        if gate.on_failure == FailureRule.CANCEL_WAITING and ended[TaskStatus.FAILED]:
            cancelled += _cancel_waiting(gate, now=now)
        _release(gate, now=now)
        gate.save(update_fields=("waiting", "in_flight", "completed", "failed", "skipped", "cancelled"))
    return cancelled


def withdrawn(gate: Gate, status: TaskStatus, count: int = 1) -> None:
    """Count tasks that ended while they still waited behind the locked `gate`."""
    gate.waiting = max(0, gate.waiting - count)
    setattr(gate, status, getattr(gate, status) + count)
    gate.save(update_fields=("waiting", status.value))


def _release(gate: Gate, *, now: datetime) -> int:
    """Let as many waiting tasks through as the limit allows; the caller saves the counts."""
    if gate.closed or not gate.waiting:
        return 0
    room = gate.waiting if gate.limit is None else min(gate.waiting, gate.limit - gate.in_flight)
    if room <= 0:
        return 0
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE scheduling_task SET blocked_on_id = NULL,"
            f" status = CASE WHEN due_at > {sql.moment_mark()} THEN 'scheduled' ELSE 'queued' END"
            " WHERE status = 'blocked' AND id IN (SELECT id FROM scheduling_task WHERE status = 'blocked'"
            f" AND blocked_on_id = %s ORDER BY {'id' if gate.ordered else 'priority DESC, due_at, id'} LIMIT %s)",
            [sql.stored(now), gate.pk, room],
        )
        released: int = cursor.rowcount
    gate.waiting -= released
    gate.in_flight += released
    wake.tell()
    return released


def _cancel_waiting(gate: Gate, *, now: datetime) -> list[str]:
    waiting = Task.objects.filter(status=TaskStatus.BLOCKED, blocked_on=gate)
    names = list(waiting.values_list("task_id", flat=True))
    waiting.update(
        status=TaskStatus.CANCELLED, blocked_on=None, finished_at=now, last_error="Cancelled: a task before it failed"
    )
    gate.waiting = max(0, gate.waiting - len(names))
    gate.cancelled += len(names)
    return names


def sweep(*, now: datetime, after: int = 0, limit: int = 200) -> int:
    """Check up to `limit` busy gates behind id `after`: release what waits for nothing, mend counts that do not match.

    Returns the id to go on from, 0 when the round is complete. A mended count is a bug of ours: it is logged as such.
    """
    busy = list(
        Gate.objects.filter(pk__gt=after)
        .exclude(waiting=0, in_flight=0)
        .order_by("pk")
        .values_list("pk", flat=True)[:limit]
    )
    for pk in busy:
        sql.in_transaction(partial(_mend, pk, now=now))
    return busy[-1] if len(busy) == limit else 0


def _mend(pk: int, *, now: datetime) -> None:
    gate = lock([pk]).get(pk)
    if gate is None:
        return
    running = in_flight(gate).count()
    waiting = Task.objects.filter(blocked_on=gate, status=TaskStatus.BLOCKED).count()
    if (running, waiting) != (gate.in_flight, gate.waiting):
        logger.error(
            "Gate counts mended",
            extra={"gate": str(gate), "in_flight": [gate.in_flight, running], "waiting": [gate.waiting, waiting]},
        )
        gate.in_flight, gate.waiting = running, waiting
        gate.save(update_fields=("in_flight", "waiting"))
    if _release(gate, now=now):
        gate.save(update_fields=("in_flight", "waiting"))
