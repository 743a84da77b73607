"""What people do to a whole batch: pause, resume, cancel, and have its failed tasks retried.

Locked in one order, before any task: the bulk job of a retry, the batch, its gate. A cancellation and a step of that
job exclude each other by the batch: what the step has made is cancelled too, and it makes no more.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from batches import upkeep
from batches.models import Batch
from batches.submission import lock
from k1node.audit import trail
from k1node.events import log
from k1node.lib import sql, wake
from k1node.lib.errors import Conflict
from k1node.operations import jobs
from k1node.operations.jobs import AT_FULL_SPEED, Answer, Kind, Verdict
from k1node.operations.models import Operation
from recovery import retries
from recovery.records import By
from recovery.retries import Changes
from scheduling import gates
from scheduling.models import Gate, Task, TaskStatus

KIND = "retry-failed"


class BatchRefuses(Conflict):
    """The batch's present state does not allow this"""


class NothingToRetry(Conflict):
    """None of its tasks has failed"""


def pause(batch: Batch, by: By, *, now: datetime) -> Batch:
    """Let no further task start; those that run end. Raises BatchRefuses."""

    def work() -> Batch:
        row, gate = lock(batch.pk)
        _refuse_ended(row, gate, now=now)
        if row.paused_at is not None:
            raise BatchRefuses("It is paused already")
        gate.closed = True
        gates.pull_back(gate)
        gates.save(gate)
        row.paused_at, row.paused_by = now, by.name[:150]
        row.save(update_fields=("paused_at", "paused_by"))
        _record("paused", row, by, now=now)
        return row

    return sql.in_transaction(work)


def resume(batch: Batch, by: By, *, now: datetime) -> Batch:
    """Undo a pause. Raises BatchRefuses."""

    def work() -> Batch:
        row, gate = lock(batch.pk)
        if row.paused_at is None:
            raise BatchRefuses("It is not paused")
        gate.closed = False
        gates.release(gate, now=now)
        gates.save(gate)
        row.paused_at, row.paused_by = None, ""
        if row.started_at is not None:
            row.paced_at, row.paced_from = now, gate.completed + gate.failed
        row.save(update_fields=("paused_at", "paused_by", "paced_at", "paced_from"))
        _record("resumed", row, by, now=now)
        wake.tell()
        return row

    return sql.in_transaction(work)


def cancel(batch: Batch, by: By, *, now: datetime) -> Batch:
    """End every task of it that has not ended, those that run too; it takes no more. Raises BatchRefuses."""
    why = f"Cancelled with its batch by {by.said()}"

    def work() -> Batch:
        row, gate = lock(batch.pk)
        _refuse_ended(row, gate, now=now)
        gate.closed, gate.spent = False, True
        cancelled = gates.end_idle(gate, why, now=now)
        gates.end_running(gate, why)
        gates.save(gate)
        row.open, row.paused_at, row.paused_by = False, None, ""
        row.cancelled_at, row.cancelled_by, row.cancel_reason = now, by.name[:150], by.reason[:500]
        row.save(update_fields=("open", "paused_at", "paused_by", "cancelled_at", "cancelled_by", "cancel_reason"))
        log.publish_many(
            [("task.cancelled", {"task_id": each, "status": "cancelled", "by": by.name}) for each in cancelled],
            now=now,
        )
        _record("cancelled", row, by, after={"cancelled": len(cancelled)}, now=now)
        return row

    return sql.in_transaction(work)


def _refuse_ended(batch: Batch, gate: Gate, *, now: datetime) -> None:
    if gate.reopened:
        upkeep.begin_round(batch, gate, now=now)  # the clock has not seen it yet
    if batch.ended_at is not None:
        raise BatchRefuses(f"It has ended: {batch.ended_as}")
    if batch.cancelled_at is not None:
        raise BatchRefuses("It is cancelled already")


def _record(word: str, batch: Batch, by: By, *, after: dict[str, Any] | None = None, now: datetime) -> None:
    trail.record(f"batch.{word}", f"batch:{batch.batch_id}", after=after, reason=by.reason, by=by.name, now=now)


# --- failed tasks once more -------------------------------------------------------------------------------------


def retry_failed(batch: Batch, by: By, *, now: datetime) -> Operation:
    """Begin to retry the tasks that have failed, and those that were cancelled because one had, in their order.

    Each new task takes the place of the old one. The batch does not end before the job has. Raises BatchRefuses,
    NothingToRetry.
    """

    def work() -> Operation:
        row, gate = lock(batch.pk)
        if row.retry_job and not upkeep.is_over(row.retry_job):
            raise BatchRefuses(f"Its failed tasks are being retried already, by {row.retry_job}")
        if row.cancelled_at is not None and gate.waiting + gate.in_flight:
            raise BatchRefuses("It is being cancelled")
        subjects = _failed(gate)
        if not subjects:
            raise NothingToRetry()
        job = jobs.plan(
            KIND,
            subjects,
            arguments={"batch": row.pk},
            selection={"batch_id": row.batch_id},
            pace=AT_FULL_SPEED,
            by=by.name,
            reason=by.reason,
            now=now,
        )
        job = jobs.start(job.operation_id, KIND, by.name, now=now)
        row.retry_job = job.operation_id
        row.save(update_fields=("retry_job",))
        gate.spent = False
        upkeep.begin_round(row, gate, now=now)  # which saves the gate
        _record("retried", row, by, after={"tasks": job.total, "job": job.operation_id}, now=now)
        return job

    return sql.in_transaction(work)


def _failed(gate: Gate) -> list[int]:
    members = Task.objects.filter(gate=gate).order_by("pk").values_list("pk", flat=True)
    failed = members.filter(status=TaskStatus.FAILED)
    by_rule = members.filter(status=TaskStatus.CANCELLED, last_error=gates.CANCELLED_BY_RULE)
    return sorted([*failed[: jobs.MOST], *by_rule[: jobs.MOST]])[: jobs.MOST]


def _perform(job: Operation, subjects: Sequence[int], now: datetime) -> list[Answer]:
    rows = {row.pk: row for row in Task.objects.filter(pk__in=subjects)}
    found = [rows[pk] for pk in subjects if pk in rows]
    by = By(job.created_by, job.reason or f"Retry {job.operation_id} of what has failed in its batch")
    made = dict(
        zip(
            (task.pk for task in found),
            # One that fails while the job goes on ends the others of a batch that fails fast, those to come too.
            retries.make(retries.ready(found, Changes()), by, unless_spent=True, now=now),
            strict=True,
        )
    )
    answers = []
    for pk in subjects:
        answer = made.get(pk)
        if isinstance(answer, Task):
            answers.append(Answer(True, made=answer.pk))
        elif answer is None:
            answers.append(Answer(False, "It is gone"))
        else:
            answers.append(Answer(False, "; ".join(each.message for each in answer.details) or answer.message))
    return answers


def _obstacle(job: Operation, subjects: Sequence[int]) -> str:
    """Stop when the batch is gone, or has been cancelled since; it cannot be before this step is through."""
    rows = Batch.objects.filter(pk=job.arguments["batch"])
    row = (rows.select_for_update() if sql.is_postgresql() else rows).first()
    if row is None:
        return "The batch is gone"
    return "The batch was cancelled" if row.cancelled_at is not None else ""


def _verdict(job: Operation, made: Collection[int]) -> Verdict:
    return Verdict(True)  # none are tried before the others


RETRY_FAILED = Kind(KIND, _perform, _obstacle, _verdict)
