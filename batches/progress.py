"""How far batches are, read in one statement and so true of one moment.

    total = waiting + in_progress + completed + failed + skipped + cancelled

`in_progress` are the tasks whose run has begun and not ended; what a worker has claimed in a bundle and not begun yet
waits, as what is queued, delayed, paused or parked does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import connection
from django.db.models import IntegerField, Q, QuerySet
from django.db.models.expressions import RawSQL

from batches.models import Batch
from k1node.lib import sql
from scheduling import gates, nodes

SUBMITTED, IN_PROGRESS, PAUSED = "submitted", "in_progress", "paused"
STATUSES = (SUBMITTED, IN_PROGRESS, PAUSED, *Batch.Ended.values)

SHORTEST_MS = 1.0  # what a task costs that takes no time
MEASURED = 1_000  # ended runs whose durations are believed
PACE_FROM = 20  # tasks that have ended before their pace is believed
LOOKED_AT = 1_000  # tasks of a batch that an estimate looks at

# Through the index of the executing ones, a handful: the + keeps SQLite from one of the gate's members.
RUNNING = (
    "(SELECT count(*) FROM scheduling_task AS run WHERE run.status = 'executing' AND run.started_at IS NOT NULL"
    " AND run.lease_expires_at IS NOT NULL AND run.gate_id + 0 = batches_batch.gate_id)"
)


# What workers have counted and nobody has added to the gate yet.
TALLIED = (
    "(SELECT COALESCE(sum(tally.{}), 0) FROM scheduling_gatetally AS tally WHERE tally.gate_id = batches_batch.gate_id)"
)


@dataclass(frozen=True, slots=True)
class Progress:
    """The counts of a batch, and what they make of it."""

    status: str
    total: int
    completed: int
    failed: int
    in_progress: int
    waiting: int
    skipped: int
    cancelled: int

    @property
    def ended(self) -> int:
        return self.completed + self.failed + self.skipped + self.cancelled

    @property
    def percent(self) -> int:
        """Return how much has ended; 100 only when everything has."""
        return 100 if self.ended >= self.total else self.ended * 100 // self.total


def with_progress(rows: QuerySet[Batch]) -> QuerySet[Batch]:
    """Return the rows with their gates and what progress_of() needs, in one statement."""
    more = {f"more_{name}": RawSQL(TALLIED.format(name), (), output_field=IntegerField()) for name in gates.FINALS}
    return rows.select_related("gate").annotate(running=RawSQL(RUNNING, (), output_field=IntegerField()), **more)


def progress_of(batch: Batch) -> Progress:
    """Return the progress of a row of with_progress()."""
    counts = {name: int(getattr(batch.gate, name) + getattr(batch, f"more_{name}")) for name in gates.FINALS}
    ended = sum(counts.values())
    running: int = batch.running  # type: ignore[attr-defined]
    return Progress(
        status=_status(batch, counts, running),
        total=batch.total,
        in_progress=running,
        waiting=max(0, batch.total - ended - running),
        **counts,
    )


def read(batch: Batch) -> tuple[Batch, Progress]:
    """Return the batch as it is now, and its progress."""
    row = with_progress(Batch.objects.filter(pk=batch.pk)).get()
    return row, progress_of(row)


def _status(batch: Batch, counts: Mapping[str, int], running: int) -> str:
    ended = sum(counts.values())
    if batch.ended_at is not None and not batch.gate.reopened:
        return batch.ended_as
    if batch.ended_at is None and not batch.open and not batch.retry_job and ended == batch.total:
        return ends_as(batch, counts)  # the clock is about to say so
    if batch.paused_at is not None:
        return PAUSED
    return IN_PROGRESS if ended or running or batch.started_at is not None else SUBMITTED


def ends_as(batch: Batch, counts: Mapping[str, int]) -> Batch.Ended:
    """Return how a batch ends all of whose tasks have ended; `counts` are those of gates.FINALS."""
    if batch.cancelled_at is not None:
        return Batch.Ended.CANCELLED
    if not counts["failed"] and not counts["cancelled"]:
        return Batch.Ended.COMPLETED
    if (batch.fail_fast and counts["failed"]) or not counts["completed"]:
        return Batch.Ended.FAILED
    return Batch.Ended.COMPLETED_WITH_FAILURES


def of_status(rows: QuerySet[Batch], status: str) -> QuerySet[Batch]:
    """Return those of the rows that the clock has seen in this status last: a moment ago."""
    going = Q(ended_at__isnull=True)
    match status:
        case "paused":
            return rows.filter(going, paused_at__isnull=False)
        case "submitted":
            return rows.filter(going, paused_at__isnull=True, started_at__isnull=True)
        case "in_progress":
            return rows.filter(going, paused_at__isnull=True, started_at__isnull=False)
    return rows.filter(ended_as=status, ended_as__gt="")


# --- when it will have ended ------------------------------------------------------------------------------------


def estimate(batch: Batch, progress: Progress, *, now: datetime) -> datetime | None:
    """Return when the last task of a row of with_progress() will have ended; None where nobody can know.

    By the pace since it started (or was resumed, or retried) once enough have ended. Before that by the latest runs of
    the same handlers, as many at once as may be. A task that is not due until later is waited for.
    """
    left = progress.total - progress.ended
    if batch.ended_at is not None or batch.open or batch.paused_at is not None or batch.cancelled_at or not left:
        return None
    handlers, last_due_at = _ahead(batch.gate_id)
    at_once = _at_once(batch, now)
    ran = progress.completed + progress.failed - batch.paced_from
    if batch.paced_at is not None and ran >= max(PACE_FROM, 2 * (at_once or 0)):
        needed: timedelta | None = (now - batch.paced_at) / ran * left
    else:
        needed = _by_durations(handlers, left, at_once)
    if needed is None:
        return None
    return max(filter(None, (now + needed, last_due_at, batch.last_due_at)))


def _ahead(gate_id: int) -> tuple[dict[str, int], datetime | None]:
    """Return how many tasks of a batch are left of each handler, of the first LOOKED_AT, and when the last is due."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT handler, count(*), max(due_at) FROM (SELECT handler, due_at FROM scheduling_task"
            f" WHERE gate_id = %s AND {gates.UNENDED} LIMIT %s) AS ahead GROUP BY handler",
            [gate_id, LOOKED_AT],
        )
        found = cursor.fetchall()
    dues = [at for at in (sql.moment(due_at) for *_, due_at in found) if at is not None]
    return {handler: int(count) for handler, count, _ in found}, max(dues, default=None)


def _at_once(batch: Batch, now: datetime) -> int | None:
    """Return how many of its tasks can run at the same time; None without a living node."""
    if not batch.parallel:
        return 1
    slots = sum(node.max_concurrent for node in nodes.live(now=now))
    if not slots:
        return None
    return slots if batch.max_concurrent is None else min(slots, batch.max_concurrent)


def _by_durations(handlers: dict[str, int], left: int, at_once: int | None) -> timedelta | None:
    means = _means()
    if at_once is None or not handlers or not handlers.keys() <= means.keys():
        return None
    looked_at = sum(handlers.values())
    work = sum(count * means[handler] for handler, count in handlers.items())
    return timedelta(milliseconds=work * left / looked_at / min(at_once, left))


def _means() -> dict[str, float]:
    """Return the mean duration, in milliseconds, of each handler that has a part in the latest completed runs."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT task.handler, avg(ran.duration_ms) FROM (SELECT task_id, duration_ms, decision"
            " FROM scheduling_attempt ORDER BY id DESC LIMIT %s) AS ran"
            " JOIN scheduling_task AS task ON task.id = ran.task_id WHERE ran.decision = 'complete'"
            " GROUP BY task.handler",
            [MEASURED],
        )
        return {handler: max(SHORTEST_MS, float(mean)) for handler, mean in cursor.fetchall()}
