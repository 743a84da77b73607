"""What time does to batches, by the clock of any node: started, ended, begun anew.

Everything here looks first and then acts under the locks of one batch and its gate, where it looks again: two clocks
do nothing twice.

    tend()   release what a limited gate has room for and whose time has come
             cancel what has come back behind a spent gate
             begin a new round of an ended batch one of whose tasks was retried
             write down when the first task started
             end what has nothing left to do, and say so: once a round
"""

from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

from django.db import connection

from batches.models import Batch
from batches.progress import ends_as
from batches.submission import lock
from k1node.events import log
from k1node.lib import sql
from k1node.lib.errors import NotFound
from k1node.operations.models import Operation
from scheduling import gates
from scheduling.models import Gate, GateKind

MOST = 100  # batches in one pass, of each kind

EVENTS = {
    Batch.Ended.COMPLETED: "batch.completed",
    Batch.Ended.COMPLETED_WITH_FAILURES: "batch.completed",
    Batch.Ended.FAILED: "batch.failed",
    Batch.Ended.CANCELLED: "batch.failed",
}
PRUNE_BATCH = 100

_OF_GATES = (
    "SELECT batch.id FROM batches_batch AS batch JOIN scheduling_gate AS gate ON gate.id = batch.gate_id"
    " WHERE batch.ended_at IS NULL AND "
)
# Priority by priority, so that each look is one seek into the index of who is next.
DUE = (
    f"{_OF_GATES} gate.waiting > 0 AND NOT gate.closed AND NOT gate.spent AND NOT gate.ordered"
    " AND (gate.limit IS NULL OR gate.in_flight < gate.limit) AND EXISTS (SELECT 1 FROM scheduling_task AS task"
    " WHERE task.status = 'blocked' AND task.blocked_on_id = gate.id AND task.priority IN (1,2,3,4,5,6,7,8,9,10)"
    " AND task.due_at <= %s) LIMIT %s"
).replace("gate.limit", 'gate."limit"')
CAME_BACK = (
    f"{_OF_GATES} gate.spent AND (gate.waiting > 0 OR EXISTS (SELECT 1 FROM scheduling_gatetally AS tally"
    " WHERE tally.gate_id = gate.id AND returned > 0)) LIMIT %s"
)
STARTED = (
    f"{_OF_GATES} batch.started_at IS NULL AND (gate.completed + gate.failed > 0"
    " OR EXISTS (SELECT 1 FROM scheduling_gatetally AS tally WHERE tally.gate_id = gate.id) OR gate.id IN"
    # A handful: nothing here may lead SQLite to the index of all tasks that have a gate.
    " (SELECT task.gate_id"
    " FROM scheduling_task AS task WHERE task.status = 'executing' AND task.lease_expires_at IS NOT NULL"
    " AND task.started_at IS NOT NULL)) LIMIT %s"
)
OVER = (
    f"{_OF_GATES} NOT batch.open AND gate.waiting = 0 AND NOT gate.reopened"
    " AND gate.in_flight = (SELECT COALESCE(sum(completed + failed + skipped + cancelled), 0)"
    " FROM scheduling_gatetally AS tally WHERE tally.gate_id = gate.id)"
    " AND NOT EXISTS (SELECT 1 FROM scheduling_gatetally AS tally WHERE tally.gate_id = gate.id AND returned > 0)"
    " AND NOT EXISTS (SELECT 1 FROM operations_operation AS job WHERE job.operation_id = batch.retry_job"
    " AND job.state = 'running') LIMIT %s"
)
REOPENED = (
    "SELECT batch.id FROM scheduling_gate AS gate JOIN batches_batch AS batch ON batch.gate_id = gate.id"
    " WHERE gate.reopened LIMIT %s"
)


def tend(*, now: datetime) -> int:
    """Do what is to be done now, to MOST batches of each kind; return how many were changed."""
    changed = 0
    steps: list[tuple[str, list[Any], Callable[..., bool]]] = [
        (REOPENED, [], _take_note),
        (DUE, [sql.stored(now)], _release),
        (CAME_BACK, [], _cancel),
        (STARTED, [], _start),
        (OVER, [], _end),
    ]
    for query, values, step in steps:
        for pk in _found(query, values):
            changed += sql.in_transaction(partial(_do, step, pk, now=now))
    return changed


def _found(query: str, values: list[Any]) -> list[int]:
    with connection.cursor() as cursor:
        cursor.execute(query, [*values, MOST])
        return [pk for (pk,) in cursor.fetchall()]


def _do(step: Callable[..., bool], pk: int, *, now: datetime) -> bool:
    try:
        batch, gate = lock(pk)
    except NotFound:
        return False
    return step(batch, gate, now=now)


def _release(batch: Batch, gate: Gate, *, now: datetime) -> bool:
    if not gates.release(gate, now=now):
        return False
    gates.save(gate)
    return True


def _cancel(batch: Batch, gate: Gate, *, now: datetime) -> bool:
    if not gate.spent:
        return False
    cancelled = gates.end_idle(gate, gates.why_spent(gate), now=now)
    gates.save(gate)
    log.publish_many([("task.cancelled", {"task_id": each, "status": "cancelled"}) for each in cancelled], now=now)
    return bool(cancelled)


def _take_note(batch: Batch, gate: Gate, *, now: datetime) -> bool:
    """Begin a new round if somebody has retried a task of a batch that had ended."""
    if not gate.reopened:
        return False
    begin_round(batch, gate, now=now)
    return True


def begin_round(batch: Batch, gate: Gate, *, now: datetime) -> None:
    """Let a locked batch whose tasks are retried go on: in a new round if it had ended."""
    gate.reopened = False
    gates.save(gate)
    if batch.ended_at is not None:
        batch.round += 1
        batch.ended_at, batch.ended_as = None, ""
    if batch.cancelled_at is not None:
        batch.cancelled_at, batch.cancelled_by, batch.cancel_reason = None, "", ""
    batch.paced_at, batch.paced_from = now, gate.completed + gate.failed
    batch.save(
        update_fields=(
            "round",
            "ended_at",
            "ended_as",
            "cancelled_at",
            "cancelled_by",
            "cancel_reason",
            "paced_at",
            "paced_from",
        )
    )


def _start(batch: Batch, gate: Gate, *, now: datetime) -> bool:
    if batch.started_at is not None:
        return False
    batch.started_at = _first_start(gate) or now
    batch.paced_at, batch.paced_from = batch.started_at, 0
    batch.save(update_fields=("started_at", "paced_at", "paced_from"))
    return True


def _first_start(gate: Gate) -> datetime | None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT min(started_at) FROM scheduling_task WHERE gate_id = %s", [gate.pk])
        return sql.moment(cursor.fetchone()[0])


def _end(batch: Batch, gate: Gate, *, now: datetime) -> bool:
    """End the round: the event is written with it, in one transaction under the batch's lock."""
    if batch.ended_at is not None or batch.open or gate.waiting or gate.in_flight or gate.reopened:
        return False
    if batch.retry_job and not is_over(batch.retry_job):
        return False
    counts = {name: getattr(gate, name) for name in gates.FINALS}
    ended_as = ends_as(batch, counts)
    batch.started_at = batch.started_at or _first_start(gate)
    batch.ended_at, batch.ended_as, batch.retry_job = now, ended_as, ""
    batch.paused_at, batch.paused_by = None, ""
    batch.save(update_fields=("started_at", "ended_at", "ended_as", "retry_job", "paused_at", "paused_by"))
    if gate.closed:
        gate.closed = False  # it had nothing left to keep from starting
        gates.save(gate)
    fact: dict[str, Any] = {
        "batch_id": batch.batch_id,
        "status": ended_as.value,
        "round": batch.round,
        "progress": {"total": batch.total} | counts,
    }
    if batch.cancelled_by:
        fact["by"] = batch.cancelled_by
    log.publish(EVENTS[ended_as], fact, now=now)
    return True


def is_over(operation_id: str) -> bool:
    """Say whether the bulk job does nothing any more."""
    return not Operation.objects.filter(operation_id=operation_id, state=Operation.State.RUNNING).exists()


def prune(*, before: datetime) -> int:
    """Delete batches that ended before `before` and whose tasks are gone, with their gates; return how many."""
    old = Batch.objects.filter(ended_at__lt=before).order_by("ended_at")
    gone = old.extra(
        where=["NOT EXISTS (SELECT 1 FROM scheduling_task AS task WHERE task.gate_id = batches_batch.gate_id)"]
    )
    count = 0
    for pk in list(gone.values_list("pk", flat=True)[:PRUNE_BATCH]):
        count += sql.in_transaction(partial(_do, _forget, pk, now=before))
    return count


def _forget(batch: Batch, gate: Gate, *, now: datetime) -> bool:
    if batch.ended_at is None or batch.ended_at >= now or gate.tasks.exists() or gate.kind != GateKind.BATCH:
        return False
    Batch.objects.filter(pk=batch.pk)._raw_delete("default")
    Gate.objects.filter(pk=gate.pk)._raw_delete("default")
    return True
