"""Gates: doors that tasks wait behind, so that what may not start yet costs the claims of others nothing.

Of batches and overlaps; what has neither members nor counts (breakers, the hold) is in scheduling.parking.

State of a gate: open or closed, a limit of tasks in flight, and exact counts. A task that belongs to a gate is
`waiting` (status blocked, `blocked_on` the gate), then `in flight` (queued, scheduled, executing, paused, or parked
behind the door of a breaker), then one of completed, failed, skipped, cancelled. The counts change in the transaction
that moves the task, under the gate's row lock, which every transaction takes before it locks tasks:

    enqueue          admit_overlap(), admit()    +waiting or +in flight
    final transition settled()          -in flight +final, then release(): -waiting +in flight for the next ones
    an operator ends a waiting task     withdrawn()   -waiting +final
    a run that will begin again         settled(), where its gate takes it back: -in flight +waiting
    an operator retries an ended task   replace()     -final, and the new task is admitted
    the gate is closed, or ended        pull_back(), end_idle()

A gate of a batch takes back what would begin again while it is closed, and while it has a limit and no order: a backoff
does not hold a place. An ordered one keeps the place: the next does not start before this one has ended. A gate is
spent after a failure that its rule does not forgive, and after end(): what would start is cancelled.

Where nothing hangs on how one task ends (may_bundle()), many workers settle tasks of one gate at the same time: they
share() it, which only lock() excludes, and each counts on a row of its own. lock() adds those to the gate. Whoever
reads the counts of such a gate without its lock adds them too.

`clock` calls sweep() for a release that was missed and for counts that do not match the tasks. A count that is too low
stays at zero until then: it must not keep a task from being settled.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from django.db import connection
from django.db.models import QuerySet

from k1node.lib import sql, wake
from scheduling import parking
from scheduling.models import ACTIVE, FailureRule, Gate, GateKind, GateTally, OverlapPolicy, Schedule, Task, TaskStatus

logger = logging.getLogger(__name__)

FINALS = ("completed", "failed", "skipped", "cancelled")  # the counts of those that have ended
# A literal, not parameters: only so can SQLite prove that the partial index covers the query.
IN_FLIGHT_SQL = (
    "scheduling_task.status IN ('queued', 'scheduled', 'executing', 'paused', 'blocked')"
    " AND (scheduling_task.blocked_on_id IS NULL OR scheduling_task.blocked_on_id <> scheduling_task.gate_id)"
)


# What failed before is said by the task that failed; whoever looks for what a rule has cancelled looks for this text.
CANCELLED_BY_RULE = "Cancelled: a task of its batch failed"
CANCELLED_WITH_ALL = "Cancelled with its batch"
# As IN_FLIGHT_SQL: the whole list is the index's condition.
UNENDED = "status IN ('queued', 'scheduled', 'executing', 'paused', 'blocked')"


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
    if sql.is_postgresql():
        rows = rows.select_for_update(no_key=True)  # rows that refer to them can be made meanwhile
    locked = {gate.pk: gate for gate in rows}
    if tallied := [pk for pk, gate in locked.items() if may_bundle(gate)]:
        _exclude_sharers(tallied)
        _take_tallies(locked, tallied)
    return locked


# Advisory locks, whose waiters stand in a queue: of a row that is always shared by somebody nobody gets hold alone.
SHARED_SPACE = 0x6B31


def share(ids: Iterable[int]) -> dict[int, Gate]:
    """Keep the gates as they stand until the transaction ends; after lock(), and only those that may be shared."""
    pks = sorted(set(ids))
    if not pks:
        return {}
    if sql.is_postgresql():
        with connection.cursor() as cursor:
            for pk in pks:
                cursor.execute("SELECT pg_advisory_xact_lock_shared(%s, %s)", [SHARED_SPACE, pk % 2**31])
    return {gate.pk: gate for gate in Gate.objects.filter(pk__in=pks) if may_bundle(gate)}


def _exclude_sharers(pks: Sequence[int]) -> None:
    if sql.is_postgresql():
        with connection.cursor() as cursor:
            for pk in pks:
                cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", [SHARED_SPACE, pk % 2**31])


def _take_tallies(gates: dict[int, Gate], pks: Sequence[int]) -> None:
    """Add what workers have counted to the locked gates."""
    among, values = sql.among(pks)
    with connection.cursor() as cursor:
        cursor.execute(
            f"DELETE FROM scheduling_gatetally WHERE gate_id {among} RETURNING gate_id, returned, {', '.join(FINALS)}",
            values,
        )
        found = cursor.fetchall()
    for gate_id, returned, *ended in found:
        _add(gates[gate_id], returned, ended)
    for gate_id in {row[0] for row in found}:
        save(gates[gate_id])


def with_tallies(gates: Iterable[Gate]) -> None:
    """Add what workers have counted to gates that were read without a lock, to be shown and not saved."""
    by_pk = {gate.pk: gate for gate in gates if may_bundle(gate)}
    if by_pk:
        for gate_id, returned, *ended in GateTally.objects.filter(gate__in=by_pk).values_list(
            "gate_id", "returned", *FINALS
        ):
            _add(by_pk[gate_id], returned, ended)


def _add(gate: Gate, returned: int, ended: Sequence[int]) -> None:
    gate.in_flight = max(0, gate.in_flight - returned - sum(ended))
    gate.waiting += returned
    for name, count in zip(FINALS, ended, strict=True):
        setattr(gate, name, getattr(gate, name) + count)


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


def admit(gate: Gate, count: int) -> bool:
    """Count `count` new tasks on the locked gate of a batch; say whether they wait behind it.

    They do where it has a limit or an order, and while it is closed: release() lets the first through once they are
    there.
    """
    waits = makes_wait(gate)
    if waits:
        gate.waiting += count
    else:
        gate.in_flight += count
    return waits


def makes_wait(gate: Gate) -> bool:
    return gate.closed or gate.limit is not None or gate.ordered


def may_bundle(gate: Gate) -> bool:
    """Say whether a worker may claim several tasks of the gate at once: nothing hangs on how one of them ends."""
    return (
        gate.kind == GateKind.BATCH
        and gate.limit is None
        and not gate.ordered
        and gate.on_failure == FailureRule.CONTINUE
    )


def save(gate: Gate) -> None:
    """Store everything that this module changes on a locked gate."""
    gate.save(update_fields=("closed", "spent", "reopened", "waiting", "in_flight", *FINALS))


def settled(
    gates: dict[int, Gate],
    finals: Iterable[tuple[int, TaskStatus]],
    *,
    again: Iterable[tuple[int, int]] = (),
    now: datetime,
) -> list[str]:
    """Count final transitions of tasks in flight and let the next ones through; `gates` are locked.

    `finals` are (gate id, final status), `again` (gate id, primary key) of tasks whose runs will begin again. Returns
    the ids of tasks that a failure rule has cancelled.
    """
    counts: dict[int, Counter[str]] = {}
    for gate_id, status in finals:
        counts.setdefault(gate_id, Counter())[status.value] += 1
    returned: dict[int, list[int]] = {}
    for gate_id, pk in again:
        if _takes_back(gates[gate_id]):
            returned.setdefault(gate_id, []).append(pk)
            counts.setdefault(gate_id, Counter())
    cancelled: list[str] = []
    for gate_id, ended in counts.items():
        gate = gates[gate_id]
        gate.in_flight = max(0, gate.in_flight - ended.total())
        for name, count in ended.items():
            setattr(gate, name, getattr(gate, name) + count)
        if gate.on_failure != FailureRule.CONTINUE and ended[TaskStatus.FAILED]:
            gate.spent = True
        if gate_id in returned:
            _put_back(gate, returned[gate_id])
        if gate.spent:
            cancelled += end_idle(gate, why_spent(gate), now=now)
        if gate.on_failure == FailureRule.CANCEL_RUNNING and ended[TaskStatus.FAILED]:
            end_running(gate, CANCELLED_BY_RULE)  # last: what a worker has claimed meanwhile runs too
        release(gate, now=now)
        gate.save(update_fields=("spent", "waiting", "in_flight", *FINALS))
    return cancelled


def why_spent(gate: Gate) -> str:
    return CANCELLED_WITH_ALL if gate.on_failure == FailureRule.CONTINUE else CANCELLED_BY_RULE


def settled_sharing(
    gates: dict[int, Gate],
    finals: Iterable[tuple[int, TaskStatus]],
    *,
    again: Iterable[tuple[int, int]] = (),
    worker: str,
) -> None:
    """Count as settled() on gates that are shared: they release nothing, and no failure cancels anything."""
    counts: dict[int, Counter[str]] = {}
    for gate_id, status in finals:
        counts.setdefault(gate_id, Counter())[status.value] += 1
    returned: dict[int, list[int]] = {}
    for gate_id, pk in again:
        if _takes_back(gates[gate_id]):
            returned.setdefault(gate_id, []).append(pk)
    for gate_id, pks in sorted(returned.items()):
        counts.setdefault(gate_id, Counter())["returned"] = _block(gates[gate_id], pks)
    if not counts:
        return
    names = ("returned", *FINALS)
    marks = ", ".join(["%s"] * (2 + len(names)))
    added = ", ".join(f"{name} = t.{name} + excluded.{name}" for name in names)
    values: list[Any] = [
        value
        for gate_id, count in sorted(counts.items())
        for value in (gate_id, worker[:80], *(count[name] for name in names))
    ]
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO scheduling_gatetally AS t (gate_id, worker, {', '.join(names)})"
            f" VALUES {', '.join([f'({marks})'] * len(counts))} ON CONFLICT (gate_id, worker) DO UPDATE SET {added}",
            values,
        )


def _takes_back(gate: Gate) -> bool:
    """Say whether a task that would begin again goes behind the gate."""
    is_limited = gate.limit is not None and not gate.ordered
    return gate.kind == GateKind.BATCH and (gate.closed or gate.spent or is_limited)


def _put_back(gate: Gate, pks: Sequence[int]) -> None:
    count = _block(gate, pks)
    gate.in_flight = max(0, gate.in_flight - count)
    gate.waiting += count


def _block(gate: Gate, pks: Sequence[int]) -> int:
    among, values = sql.among(sorted(pks))
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE scheduling_task SET status = 'blocked', blocked_on_id = %s, permit = 0"
            f" WHERE status IN ('queued', 'scheduled') AND id {among}",
            [gate.pk, *values],
        )
        count: int = cursor.rowcount
    return count


def pull_back(gate: Gate) -> int:
    """Put what is in flight and does not run behind the locked gate again, but what a person has paused.

    The caller saves the counts.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE scheduling_task SET status = 'blocked', blocked_on_id = %s, permit = 0"
            f" WHERE gate_id = %s AND {UNENDED} AND (status IN ('queued', 'scheduled')"
            " OR (status = 'blocked' AND blocked_on_id <> gate_id))",
            [gate.pk, gate.pk],
        )
        count: int = cursor.rowcount
    gate.in_flight = max(0, gate.in_flight - count)
    gate.waiting += count
    return count


def given_back(gates: Iterable[Gate]) -> None:
    """Keep what has come back to the queue from starting where its locked gate is closed or spent.

    The clock cancels what waits behind a spent one.
    """
    for gate in gates:
        if gate.kind == GateKind.BATCH and (gate.closed or gate.spent) and pull_back(gate):
            gate.save(update_fields=("waiting", "in_flight"))


def end_idle(gate: Gate, why: str, *, now: datetime) -> list[str]:
    """Cancel every task of the locked gate that does not run; return their ids. The caller saves the counts."""
    ends = (
        "UPDATE scheduling_task SET status = 'cancelled', blocked_on_id = NULL, permit = 0, paused_at = NULL,"
        " paused_until = NULL, control = '', control_reason = '', finished_at = %s, last_error = %s WHERE "
    )
    with connection.cursor() as cursor:
        cursor.execute(
            f"{ends} status = 'blocked' AND blocked_on_id = %s RETURNING task_id", [sql.stored(now), why, gate.pk]
        )
        waiting = [task_id for (task_id,) in cursor.fetchall()]
        cursor.execute(
            f"{ends} gate_id = %s AND {UNENDED} AND status <> 'executing' RETURNING task_id",
            [sql.stored(now), why, gate.pk],
        )
        idle = [task_id for (task_id,) in cursor.fetchall()]
    gate.waiting = max(0, gate.waiting - len(waiting))
    gate.in_flight = max(0, gate.in_flight - len(idle))
    gate.cancelled += len(waiting) + len(idle)
    return waiting + idle


def end_running(gate: Gate, why: str) -> int:
    """Ask for the end of every run of the gate's tasks; return how many. What a person has asked for stands."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE scheduling_task SET control = 'cancel', control_reason = %s, paused_at = NULL, paused_until = NULL"
            f" WHERE gate_id = %s AND {UNENDED} AND status = 'executing' AND control NOT IN ('cancel', 'skip')",
            [why[:500], gate.pk],
        )
        count: int = cursor.rowcount
    return count


def replace(gate: Gate, statuses: Iterable[TaskStatus], count: int) -> bool:
    """Let `count` new tasks take the places of ended ones of these statuses; see admit().

    A spent gate lets tasks through again: somebody wants them to run.
    """
    for status, ended in Counter(statuses).items():
        setattr(gate, status.value, max(0, getattr(gate, status.value) - ended))
    gate.spent, gate.reopened = False, True
    return admit(gate, count)


def withdrawn(gate: Gate, status: TaskStatus, count: int = 1) -> None:
    """Count tasks that ended while they still waited behind the locked `gate`."""
    gate.waiting = max(0, gate.waiting - count)
    setattr(gate, status, getattr(gate, status) + count)
    gate.save(update_fields=("waiting", status.value))


def release(gate: Gate, *, now: datetime) -> int:
    """Let as many waiting tasks through as the limit allows; the caller saves the counts.

    A task that is not due would hold one of a batch's places for nothing: where there is a limit it waits on, unless
    the order wants it next.
    """
    if gate.closed or gate.spent or not gate.waiting:
        return 0
    room = gate.waiting if gate.limit is None else min(gate.waiting, gate.limit - gate.in_flight)
    if room <= 0:
        return 0
    only_due = gate.kind == GateKind.BATCH and gate.limit is not None and not gate.ordered
    due = (" AND due_at <= %s", [sql.stored(now)]) if only_due else ("", [])
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE scheduling_task SET blocked_on_id = NULL,"
            f" status = CASE WHEN due_at > {sql.moment_mark()} THEN 'scheduled' ELSE 'queued' END"
            " WHERE status = 'blocked' AND id IN (SELECT id FROM scheduling_task WHERE status = 'blocked'"
            f" AND blocked_on_id = %s{due[0]} ORDER BY {'id' if gate.ordered else 'priority DESC, due_at, id'}"
            " LIMIT %s)",
            [sql.stored(now), gate.pk, *due[1], room],
        )
        released: int = cursor.rowcount
    gate.waiting -= released
    gate.in_flight += released
    if released:
        wake.tell()
    return released


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
    if release(gate, now=now):
        gate.save(update_fields=("in_flight", "waiting"))
