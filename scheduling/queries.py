"""What pages and endpoints read: plain data, each in a bounded number of queries whatever the tables hold."""

import codecs
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypedDict

from django.db import DatabaseError, connection
from django.db.models import BooleanField, Max, QuerySet, Sum
from django.db.models.expressions import RawSQL

from k1node.lib import sql
from k1node.lib.clock_time import database_now, since
from scheduling import nodes
from scheduling.models import (
    Attempt,
    Gate,
    GateKind,
    MinuteCounter,
    OutputChunk,
    Schedule,
    ScheduleTally,
    Task,
    TaskStatus,
)
from scheduling.output import CHUNK_BYTES

logger = logging.getLogger(__name__)

COUNT_CAP = 100_000
PENDING_SHOWN = 50
SKEW = timedelta(minutes=5)  # by how much the order of ids and of creation may differ


# --- the queue --------------------------------------------------------------------------------------------------


class PendingTask(TypedDict):
    priority: int
    task_id: str
    enqueued_at: datetime
    wait_time_ms: int


class _Counts(TypedDict):
    queued: int
    executing: int
    completed: int


class Counts(_Counts, total=False):
    queued_capped: bool  # there are more than `queued`


class Usage(TypedDict):
    concurrent_tasks: int
    total_cpu_percent: float
    total_memory_percent: float


class Limits(TypedDict):
    max_concurrent_tasks: int
    max_cpu_percent: float
    max_memory_percent: float


class QueueStatus(TypedDict):
    timestamp: datetime
    queue_status: Counts
    resource_usage: Usage
    resource_limits: Limits
    pending_tasks: list[PendingTask]


def queue_status(now: datetime) -> QueueStatus:
    """Return what waits, what runs, what has completed since the beginning, and how busy the live nodes are.

    A task of a bundle that has not started counts as queued.
    """
    waiting, unstarted, executing = _live_counts()
    queued = min(waiting + unstarted, COUNT_CAP)
    counts = Counts(queued=queued, executing=executing, completed=completed_in_all())
    if waiting + unstarted > COUNT_CAP:
        counts["queued_capped"] = True
    live = nodes.live(now=now)
    return {
        "timestamp": now,
        "queue_status": counts,
        "resource_usage": {
            "concurrent_tasks": sum(node.running for node in live),
            "total_cpu_percent": _mean(node.cpu_percent for node in live),
            "total_memory_percent": _mean(node.memory_percent for node in live),
        },
        "resource_limits": {
            "max_concurrent_tasks": sum(node.max_concurrent for node in live),
            "max_cpu_percent": _mean(node.max_cpu_percent for node in live),
            "max_memory_percent": _mean(node.max_memory_percent for node in live),
        },
        "pending_tasks": pending(now),
    }


def _live_counts() -> tuple[int, int, int]:
    """Return how many tasks are queued (one more than COUNT_CAP at most), claimed but not started, and running."""
    # Literals, not parameters: only so can SQLite prove that the partial indexes cover the query.
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT (SELECT count(*) FROM (SELECT 1 FROM scheduling_task WHERE status = 'queued' LIMIT %s) AS waiting),"
            " count(*) - count(started_at), count(started_at) FROM scheduling_task WHERE status = 'executing'",
            [COUNT_CAP + 1],
        )
        waiting, unstarted, executing = cursor.fetchone()
    return waiting, unstarted, executing


def completed_in_all() -> int:
    return int(MinuteCounter.objects.aggregate(sum=Sum("completed"))["sum"] or 0)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return round(sum(listed) / len(listed), 1) if listed else 0


def pending(now: datetime) -> list[PendingTask]:
    """Return the tasks that run next, in the order of their claims; those already claimed come where they stood."""
    columns = "priority, task_id, created_at, due_at, id"
    order = f"ORDER BY priority DESC, due_at, id LIMIT {PENDING_SHOWN}"
    rows = []
    with connection.cursor() as cursor:
        for state in ("status = 'queued'", "status = 'executing' AND started_at IS NULL"):
            cursor.execute(f"SELECT {columns} FROM scheduling_task WHERE {state} {order}")
            rows += cursor.fetchall()
    rows.sort(key=lambda row: (-row[0], row[3], row[4]))
    return [
        _pending(priority, task_id, sql.moment(max(created_at, due_at)), now)
        for priority, task_id, created_at, due_at, _ in rows[:PENDING_SHOWN]
    ]


def _pending(priority: int, task_id: str, enqueued_at: datetime | None, now: datetime) -> PendingTask:
    at = enqueued_at or now
    return {"priority": priority, "task_id": task_id, "enqueued_at": at, "wait_time_ms": since(at, now)}


# --- schedules --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a schedule's finished runs came to; the mean is over those that completed, None before the first."""

    execution_count: int = 0
    failure_count: int = 0
    average_duration_ms: int | None = None
    last_executed: datetime | None = None


NO_RUNS = Statistics()


def statistics(schedules: Sequence[Schedule]) -> dict[int, Statistics]:
    """Return the statistics of each schedule that has run, by primary key: one query for all."""
    rows = (
        ScheduleTally.objects.filter(schedule_id__in=[schedule.pk for schedule in schedules])
        .values("schedule_id")
        .annotate(
            all_completed=Sum("completed"),
            all_failed=Sum("failed"),
            all_ms=Sum("completed_ms"),
            last=Max("last_started_at"),
        )
    )
    return {
        row["schedule_id"]: Statistics(
            execution_count=int(row["all_completed"] + row["all_failed"]),
            failure_count=int(row["all_failed"]),
            average_duration_ms=round(row["all_ms"] / row["all_completed"]) if row["all_completed"] else None,
            last_executed=row["last"],
        )
        for row in rows
    }


# --- tasks ------------------------------------------------------------------------------------------------------

T = "scheduling_task"
RARE = f"{T}.status IN ('failed', 'skipped', 'cancelled', 'paused', 'blocked')"  # as its index has it
RUNNING = f"{T}.status = 'executing' AND {T}.started_at IS NOT NULL AND {T}.paused_at IS"
# Status as people see it -> conditions, any of which makes it so. Literals, and one index for each: only so can
# SQLite prove that a partial index covers the query.
CONDITIONS = {
    "scheduled": (f"{T}.status = 'scheduled'",),
    "queued": (f"{T}.status = 'queued'", f"{T}.status = 'executing' AND {T}.started_at IS NULL"),
    "executing": (f"{RUNNING} NULL",),
    "blocked": (f"{RARE} AND {T}.status = 'blocked'",),
    "paused": (f"{RARE} AND {T}.status = 'paused'", f"{RUNNING} NOT NULL"),
    "completed": (f"{T}.status = 'completed'",),
    "failed": (f"{RARE} AND {T}.status = 'failed'",),
    "skipped": (f"{RARE} AND {T}.status = 'skipped'",),
    "cancelled": (f"{RARE} AND {T}.status = 'cancelled'",),
}
SHOWN = tuple((status, status) for status in CONDITIONS)
# No index has these in the order of ids: few are found by their own index, many by going through the ids.
LIVE = ("scheduled", "queued", "executing", "paused")
FEW = 1_000


def _of_status(rows: QuerySet[Task], status: str) -> QuerySet[Task]:
    conditions = CONDITIONS[status]
    if status in LIVE:
        ids: list[int] = []
        with connection.cursor() as cursor:
            for condition in conditions:
                cursor.execute(f"SELECT id FROM scheduling_task WHERE {condition} LIMIT %s", [FEW + 1])
                ids += [pk for (pk,) in cursor.fetchall()]
        if len(ids) <= FEW:
            rows = rows.filter(pk__in=ids)
    either = " OR ".join(f"({condition})" for condition in conditions)
    return rows.filter(RawSQL(either, [], output_field=BooleanField()))


def shown_status(task: Task) -> str:
    """Return the status as people see it: an unstarted claim is still queued, a stopped run is paused."""
    if task.status == TaskStatus.EXECUTING:
        if task.started_at is None:
            return TaskStatus.QUEUED.value
        if task.paused_at is not None:
            return TaskStatus.PAUSED.value
    return str(task.status)


def tasks(
    *,
    status: str | None = None,
    schedule: str | None = None,
    batch: str | None = None,
    handler: str | None = None,
    created_since: datetime | None = None,
) -> QuerySet[Task]:
    """Return the tasks that fit, with their schedule and origin. `status` is one that shown_status() gives."""
    rows = Task.objects.select_related("schedule", "origin", "gate")
    if status is not None:
        rows = _of_status(rows, status)
    if schedule is not None:
        rows = rows.filter(schedule_id=_only(Schedule.objects.filter(task_id=schedule)))
    if batch is not None:
        rows = rows.filter(gate_id=_only(Gate.objects.filter(kind=GateKind.BATCH, key=batch)))
    if handler is not None:
        rows = rows.filter(handler=handler)
    if created_since is not None:
        first = _first_since(created_since - SKEW) if created_since.year > 1 else 0
        rows = rows.filter(pk__gte=first, created_at__gte=created_since)
    return rows


def _only(rows: QuerySet[Schedule] | QuerySet[Gate]) -> int:
    """Return the primary key of the one row, or one that no row has: filters find nothing then."""
    return rows.values_list("pk", flat=True).first() or 0


def _first_since(moment: datetime) -> int:
    """Return the lowest id of the tasks created at `moment` or later.

    Ids grow with time, so some twenty index seeks replace an index on created_at, which every new task would pay for.
    """
    ends = Task.objects.aggregate(high=Max("pk"))
    low, high = 0, (ends["high"] or 0) + 1
    while low < high:
        middle = (low + high) // 2
        found = Task.objects.filter(pk__gte=middle).order_by("pk").values_list("pk", "created_at").first()
        if found is None or found[1] >= moment:
            high = middle
        else:
            low = found[0] + 1
    return low


def task_by_id(task_id: str) -> Task | None:
    """Return the task of that id; a schedule's id means its most recent run. None if there is neither."""
    rows = Task.objects.select_related("schedule", "origin", "gate")
    task = rows.filter(task_id=task_id).first()
    if task is None:
        schedule = Schedule.objects.filter(task_id=task_id).values_list("pk", flat=True).first()
        if schedule is not None:
            task = rows.filter(schedule_id=schedule).order_by("-pk").first()
    return task


def latest_attempts(task: Task, limit: int = 50) -> list[Attempt]:
    """Return the newest attempts of a task, the last one first."""
    return list(Attempt.objects.filter(task=task).order_by("-fence")[:limit])


def is_running(task_pk: int, fence: int) -> bool:
    """Say whether this very run of the task is going on."""
    return Task.objects.filter(pk=task_pk, fence=fence, status=TaskStatus.EXECUTING).exists()


# --- output -----------------------------------------------------------------------------------------------------


class OutputPiece(TypedDict):
    offset: int
    stream: str
    text: str


Cut = TypedDict("Cut", {"from": int, "to": int})


class Output(TypedDict):
    """A page of a run's output. Offsets are bytes; `cut` are stretches that were not kept."""

    attempt: int | None
    fence: int | None
    offset: int
    next_offset: int
    total: int
    complete: bool  # the run is over and nothing comes after next_offset
    cut: list[Cut]
    chunks: list[OutputPiece]


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a task: an attempt that is settled, or the one that goes on."""

    attempt: int
    fence: int
    total: int | None  # bytes written; None while it runs


def run_of(task: Task, *, attempt: int | None = None, fence: int | None = None) -> Run | None:
    """Return the run with that attempt number or fence (default: the latest); None if there was none."""
    is_live = task.status == TaskStatus.EXECUTING and task.started_at is not None
    live = Run(task.attempt + 1, task.fence, None) if is_live else None
    if live and attempt in (None, live.attempt) and fence in (None, live.fence):
        return live
    rows = Attempt.objects.filter(task=task)
    if attempt is not None:
        rows = rows.filter(number=attempt)
    if fence is not None:
        rows = rows.filter(fence=fence)
    row = rows.order_by("-fence").only("number", "fence", "output_bytes").first()
    return Run(row.number, row.fence, row.output_bytes) if row else None


def output_from(task: Task, run: Run | None, offset: int, limit: int) -> Output:
    """Return what `run` has written from byte `offset` on, about `limit` bytes of it, in the order it was written.

    Ask again from `next_offset` until `complete`. A character that a page would split is left for the next one.
    """
    if run is None:
        return _page(None, None, offset=offset, next_offset=offset, total=0, complete=False, cut=[], chunks=[])
    # A run keeps no more than 256 kB or so, so what follows the offset may be read as a whole.
    rows = OutputChunk.objects.filter(task=task, fence=run.fence, position__gt=offset - CHUNK_BYTES)
    at, size = offset, 0
    cut: list[Cut] = []
    pieces: list[tuple[int, str, bytes]] = []
    total = run.total or 0
    for position, stream, stored in rows.order_by("position").values_list("position", "stream", "data"):
        data = bytes(stored)
        end = position + len(data)
        total = max(total, end)
        if end <= at or size >= limit:
            continue
        if position > at:
            cut.append({"from": at, "to": position})
            at = position
        data = data[at - position :]
        pieces.append((at, stream, data))
        size += len(data)
        at = end
    is_over = run.total is not None
    if at < total and size < limit:  # what a rescue could not save
        cut.append({"from": at, "to": total})
        at = total
    if pieces and not (is_over and at >= total):
        at, pieces = _without_split_end(at, pieces)
    return _page(
        run.attempt,
        run.fence,
        offset=offset,
        next_offset=at,
        total=total,
        complete=is_over and at >= total,
        cut=cut,
        chunks=_decoded(pieces),
    )


def _page(
    attempt: int | None,
    fence: int | None,
    *,
    offset: int,
    next_offset: int,
    total: int,
    complete: bool,
    cut: list[Cut],
    chunks: list[OutputPiece],
) -> Output:
    return {
        "attempt": attempt,
        "fence": fence,
        "offset": offset,
        "next_offset": next_offset,
        "total": total,
        "complete": complete,
        "cut": cut,
        "chunks": chunks,
    }


def _without_split_end(end: int, pieces: list[tuple[int, str, bytes]]) -> tuple[int, list[tuple[int, str, bytes]]]:
    """Return where the page ends, and its pieces, without the beginning of a character at the very end."""
    at, stream, data = pieces[-1]
    if at + len(data) != end:
        return end, pieces
    rest = _unfinished(data)
    if not rest:
        return end, pieces
    kept = data[: len(data) - rest]
    return end - rest, [*pieces[:-1], *([(at, stream, kept)] if kept else [])]


def _unfinished(data: bytes) -> int:
    """Return how many bytes at the end of `data` are the beginning of a UTF-8 character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data[-4:])
    return len(decoder.getstate()[0])


def _decoded(pieces: Sequence[tuple[int, str, bytes]]) -> list[OutputPiece]:
    """Return the pieces as text; a character that two pieces of a stream share is whole in the second."""
    decoders = {stream: codecs.getincrementaldecoder("utf-8")("replace") for _, stream, _ in pieces}
    last = {stream: index for index, (_, stream, _) in enumerate(pieces)}
    return [
        {"offset": at, "stream": stream, "text": decoders[stream].decode(data, final=last[stream] == index)}
        for index, (at, stream, data) in enumerate(pieces)
    ]


# --- the node ---------------------------------------------------------------------------------------------------


def readiness() -> dict[str, bool]:
    """Return whether this node's database answers, and its clock and workers beat."""
    try:
        clock, workers = nodes.own_beats(now=database_now())
    except DatabaseError:
        logger.exception("The database does not answer")
        return {"database": False, "clock": False, "workers": False}
    return {"database": True, "clock": clock, "workers": workers}
