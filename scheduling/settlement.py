"""Settling: writing what runs gave, and its consequences, in one transaction with everything that follows from them.

settle() is called inside a transaction, with the outcomes of a whole bundle or of one task. It changes, in the one
lock order of the project: gates, then tasks by id, then inserts (attempts, output, events), then counters. A task whose
fence has moved on (rescued, cancelled by force) is left as it is: the late result is logged and dropped.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import quote

import orjson
from django.conf import settings
from django.db import connection

from k1node.events import log
from k1node.lib import sql
from scheduling import claims, gates
from scheduling.claims import Claim, Held
from scheduling.models import Control, Gate, Task, TaskStatus
from scheduling.outcomes import Action, Decision, Outcome, OutcomeKind
from scheduling.output import HEAD_BYTES, TAIL_BYTES, Chunk

logger = logging.getLogger(__name__)

SHARDS = 8  # of a schedule's totals
OUTPUT_PATH = "/api/v2/tasks/{}/output"

# Plain strings: an enum's own `value` costs a call for each of four columns of each task.
STATUS_AFTER = {
    Action.COMPLETE: TaskStatus.COMPLETED.value,
    Action.RETRY: TaskStatus.SCHEDULED.value,
    Action.FAIL: TaskStatus.FAILED.value,
    Action.AGAIN: TaskStatus.QUEUED.value,
    Action.CANCEL: TaskStatus.CANCELLED.value,
    Action.SKIP: TaskStatus.SKIPPED.value,
}
AT_ONCE = TaskStatus.QUEUED.value
ACTIONS = {action: action.value for action in Action}
KINDS = {kind: kind.value for kind in OutcomeKind}
EVENT_AFTER = {
    Action.COMPLETE: "task.completed",
    Action.RETRY: "task.retrying",
    Action.FAIL: "task.failed",
    Action.CANCEL: "task.cancelled",
    Action.SKIP: "task.skipped",
}
FINAL = {Action.COMPLETE, Action.FAIL, Action.CANCEL, Action.SKIP}
LEASE_ENDS = (
    "lease_owner = '', lease_expires_at = NULL, control = '', paused_at = NULL, paused_until = NULL, permit = 0"
)
ASKED = {"cancel": Action.CANCEL, "skip": Action.SKIP}  # what Task.control makes of a run that would begin again

TASK_COLUMNS = {
    "status": "text",
    "attempt": "int",
    "due_at": "timestamptz",
    "started_at": "timestamptz",
    "finished_at": "timestamptz",
    "exit_code": "int",
    "duration_ms": "bigint",
    "last_error": "text",
    "solo": "bool",
    "id": "bigint",
}
ATTEMPT_COLUMNS = {
    "task_id": "bigint",
    "fence": "bigint",
    "number": "int",
    "outcome": "text",
    "decision": "text",
    "retry_at": "timestamptz",
    "started_at": "timestamptz",
    "finished_at": "timestamptz",
    "duration_ms": "bigint",
    "exit_code": "int",
    "error": "text",
    "value": "jsonb",
    "output_bytes": "bigint",
    "worker": "text",
}
CHUNK_COLUMNS = {"task_id": "bigint", "fence": "bigint", "position": "bigint", "stream": "text", "data": "bytea"}


@dataclass(frozen=True, slots=True)
class Settlement:
    """One run's end: what was claimed, what it gave, what follows; and the rows that say so, made before any lock."""

    claim: Claim
    outcome: Outcome
    decision: Decision
    chunks: tuple[Chunk, ...] = ()  # output not stored yet
    rows: "Rows" = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", _rows(self.claim, self.outcome, self.decision))

    @property
    def attempt(self) -> int:
        return self.claim.attempt + (1 if self.decision.spent else 0)


class Rows(NamedTuple):
    """What a settlement writes, in the order of TASK_COLUMNS and ATTEMPT_COLUMNS, and its event as name and JSON."""

    task: tuple[Any, ...]
    attempt: tuple[Any, ...]
    event: tuple[str, str] | None


def _rows(claim: Claim, outcome: Outcome, decision: Decision) -> Rows:
    action = decision.action
    spent = claim.attempt + (1 if decision.spent else 0)
    started_at, finished_at = sql.stored(outcome.started_at), sql.stored(outcome.finished_at)
    due_at = sql.stored(decision.due_at)
    ran = action is not Action.AGAIN
    status = STATUS_AFTER[action]
    if action is Action.RETRY and decision.due_at is not None and decision.due_at <= outcome.finished_at:
        status = AT_ONCE  # without a wait it has no need of the stager
    task = (
        status,
        spent,
        due_at or claim.due_at,
        started_at if ran else None,
        finished_at if action in FINAL else None,
        outcome.exit_code if ran else None,
        outcome.duration_ms if ran else None,
        outcome.error,
        claim.solo or outcome.kind is OutcomeKind.LOST,
        claim.id,
    )
    attempt = (
        claim.id,
        claim.fence,
        spent,
        KINDS[outcome.kind],
        ACTIONS[action],
        due_at,
        started_at,
        finished_at,
        outcome.duration_ms,
        outcome.exit_code,
        outcome.error,
        None if outcome.value is None else orjson.dumps(outcome.value).decode(),
        0 if outcome.output is None else outcome.output.total,
    )
    name = EVENT_AFTER.get(action)
    return Rows(task, attempt, None if name is None else (name, _event_data(claim, outcome, decision, status, spent)))


def _event_data(claim: Claim, outcome: Outcome, decision: Decision, status: str, spent: int) -> str:
    output, is_cut = ("", False) if outcome.output is None else outcome.output.beginning()
    result: dict[str, Any] = {
        "exit_code": outcome.exit_code,
        "duration_ms": outcome.duration_ms,
        "output": output,
    }
    if is_cut:
        result["output_truncated"] = True
        result["output_url"] = f"{settings.K1NODE_URL}{OUTPUT_PATH.format(quote(claim.task_id, safe=''))}"
    data: dict[str, Any] = {"task_id": claim.task_id, "status": status, "attempt": spent, "result": result}
    if outcome.error:
        data["error"] = outcome.error
    if decision.due_at is not None:
        data["retry_at"] = decision.due_at
    return orjson.dumps(data).decode()


def settle(settlements: Sequence[Settlement], *, worker: str, shard: int, now: datetime) -> list[Settlement]:
    """Write the ends of runs; return those that counted. Needs a transaction."""
    if not settlements:
        return []
    members = [s.claim for s in settlements if s.claim.gate_id is not None]
    # Whether a gate may be shared is mostly seen by its tasks: those of the others run alone.
    loose = {claim.gate_id for claim in members if claim.gate_id is not None and not claim.solo}
    gate_of = gates.lock(claim.gate_id for claim in members if claim.gate_id is not None and claim.gate_id not in loose)
    shared_of = gates.share(loose)
    if unshared := loose - shared_of.keys():
        gate_of |= gates.lock(unshared)
    held = claims.lock_held([s.claim for s in settlements])
    settled = sorted(
        (_as_it_stands(s, held[s.claim.id]) for s in settlements if s.claim.id in held), key=lambda s: s.claim.id
    )
    for late in settlements:
        if late.claim.id not in held:
            logger.warning(
                "Late result dropped",
                extra={"task": late.claim.task_id, "fence": late.claim.fence, "outcome": late.outcome.kind.value},
            )
    if not settled:
        return []
    joined = {s.claim.gate_id for s in settled if s.claim.gate_id is not None} - gate_of.keys() - shared_of.keys()
    if joined:
        # Gates that took these tasks in while they ran: after the tasks, against the order, so at worst this repeats.
        gate_of |= gates.lock(joined)
    sql.update_many("scheduling_task", TASK_COLUMNS, [s.rows.task for s in settled], also=LEASE_ENDS)
    _keep_paused(
        {s.claim.id: held[s.claim.id].paused_until for s in settled if _stays_paused(s, held[s.claim.id])}, now=now
    )
    finals = [
        (s.claim.gate_id, TaskStatus(STATUS_AFTER[s.decision.action]))
        for s in settled
        if s.claim.gate_id is not None and s.decision.action in FINAL
    ]
    again = [
        (s.claim.gate_id, s.claim.id) for s in settled if s.claim.gate_id is not None and s.decision.action not in FINAL
    ]
    cancelled = _count(gate_of, shared_of, finals, again, worker, now=now) if finals or again else []
    sql.insert_many("scheduling_attempt", ATTEMPT_COLUMNS, [(*s.rows.attempt, worker) for s in settled])
    _write_output(settled)
    log.publish_json([s.rows.event for s in settled if s.rows.event is not None], now=now)
    log.publish_many([("task.cancelled", {"task_id": each, "status": "cancelled"}) for each in cancelled], now=now)
    _write_tallies(settled, shard)
    _write_counters(settled, worker, now=now)
    return settled


def _count(
    locked: dict[int, Gate],
    shared: dict[int, Gate],
    finals: Sequence[tuple[int, TaskStatus]],
    again: Sequence[tuple[int, int]],
    worker: str,
    *,
    now: datetime,
) -> list[str]:
    """Count the ends on their gates; return the ids of tasks that a failure rule has cancelled."""
    if shared:
        gates.settled_sharing(
            shared,
            [final for final in finals if final[0] in shared],
            again=[each for each in again if each[0] in shared],
            worker=worker,
        )
    if not locked:
        return []
    return gates.settled(
        locked,
        [final for final in finals if final[0] in locked],
        again=[each for each in again if each[0] in locked],
        now=now,
    )


def _as_it_stands(s: Settlement, held: Held) -> Settlement:
    """Return `s` with what has changed on the task since its claim: its gate, and what an operator asked for.

    The end that was asked for outlives a lost worker, a drain and a failure that would be tried again, and its reason
    is what the task says of itself.
    """
    if held.gate_id != s.claim.gate_id:
        s = replace(s, claim=replace(s.claim, gate_id=held.gate_id))
    if held.control in ASKED and s.decision.action not in FINAL:
        s = replace(s, decision=Decision(ASKED[held.control], spent=s.decision.spent))
    if held.reason and s.decision.action in ASKED.values():
        s = replace(s, outcome=replace(s.outcome, error=held.reason))
    return s


def _stays_paused(s: Settlement, held: Held) -> bool:
    """Say whether the run ended under an operator's pause (its node drained or died) and would begin again."""
    return held.control == Control.PAUSE and s.decision.action not in FINAL


def _keep_paused(untils: Mapping[int, datetime | None], *, now: datetime) -> None:
    """Pause the tasks of these ids, each until its own time if it has one."""
    if not untils:
        return
    Task.objects.filter(pk__in=list(untils)).update(status=TaskStatus.PAUSED, paused_at=now)
    for pk, until in untils.items():
        if until is not None:
            Task.objects.filter(pk=pk).update(paused_until=until)


def _write_output(settled: Sequence[Settlement]) -> None:
    """Store what is not stored yet of the outputs of a whole bundle: failed Python handlers all leave a traceback."""
    written = [s for s in settled if s.chunks and s.outcome.output is not None]
    _insert_chunks([(s.claim, s.chunks) for s in written])
    for s in written:
        if s.outcome.output is not None:
            _drop_middle(s.claim, s.outcome.output.total)


def store_output(claim: Claim, chunks: Sequence[Chunk], total: int) -> None:
    """Append chunks of a run that has written `total` bytes so far, and drop what has fallen out of its tail."""
    _insert_chunks([(claim, chunks)])
    _drop_middle(claim, total)


def _insert_chunks(written: Sequence[tuple[Claim, Sequence[Chunk]]]) -> None:
    sql.insert_many(
        "scheduling_outputchunk",
        CHUNK_COLUMNS,
        [
            (claim.id, claim.fence, chunk.position, chunk.stream, chunk.data)
            for claim, chunks in written
            for chunk in chunks
        ],
    )


def _drop_middle(claim: Claim, total: int) -> None:
    cut_before = total - TAIL_BYTES
    if cut_before > HEAD_BYTES:
        length = "octet_length(data)" if connection.vendor == "postgresql" else "length(data)"
        with connection.cursor() as cursor:
            cursor.execute(
                "DELETE FROM scheduling_outputchunk WHERE task_id = %s AND fence = %s AND position >= %s"
                f" AND position + {length} <= %s",
                [claim.id, claim.fence, HEAD_BYTES, cut_before],
            )


def _write_tallies(settled: Sequence[Settlement], shard: int) -> None:
    totals: dict[int, list[Any]] = {}
    for s in settled:
        if s.claim.schedule_id is None or not s.decision.spent:
            continue
        row = totals.setdefault(s.claim.schedule_id, [0, 0, 0, s.outcome.started_at])
        row[3] = max(row[3], s.outcome.started_at)
        if s.decision.action is Action.COMPLETE:
            row[0] += 1
            row[2] += s.outcome.duration_ms
        elif s.decision.action is Action.FAIL:
            row[1] += 1
    if not totals:
        return
    values = [
        value
        for schedule_id, (completed, failed, completed_ms, started_at) in sorted(totals.items())
        for value in (schedule_id, shard % SHARDS, completed, failed, completed_ms, sql.stored(started_at))
    ]
    marks = f"(%s, %s, %s, %s, %s, {sql.moment_mark()})"
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO scheduling_scheduletally AS t"
            " (schedule_id, shard, completed, failed, completed_ms, last_started_at)"
            f" VALUES {', '.join([marks] * len(totals))} ON CONFLICT (schedule_id, shard) DO UPDATE SET"
            " completed = t.completed + excluded.completed, failed = t.failed + excluded.failed,"
            " completed_ms = t.completed_ms + excluded.completed_ms,"
            " last_started_at = CASE WHEN t.last_started_at > excluded.last_started_at"
            " THEN t.last_started_at ELSE excluded.last_started_at END",
            values,
        )


COUNTED = (
    "attempts",
    "successes",
    "completed",
    "completed_after_retry",
    "finished_attempts",
    "failed",
    "failed_after_retry",
    "retries",
)


def _write_counters(settled: Sequence[Settlement], worker: str, *, now: datetime) -> None:
    counts: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(COUNTED, 0))
    for s in settled:
        if not s.decision.spent:
            continue
        row, action = counts[s.claim.retry_policy], s.decision.action
        row["attempts"] += 1
        if action is Action.COMPLETE:
            row["successes"] += 1
            row["completed"] += 1
            row["finished_attempts"] += s.attempt
            if s.attempt > 1:
                row["completed_after_retry"] += 1
        elif action is Action.FAIL:
            row["failed"] += 1
            row["finished_attempts"] += s.attempt
            if s.attempt > 1:
                row["failed_after_retry"] += 1
        elif action is Action.RETRY:
            row["retries"] += 1
    if not counts:
        return
    minute = sql.stored(now.replace(second=0, microsecond=0))
    values = [
        value
        for policy, row in sorted(counts.items())
        for value in (minute, policy, worker, *(row[name] for name in COUNTED))
    ]
    marks = f"({sql.moment_mark()}, {', '.join(['%s'] * (2 + len(COUNTED)))})"
    added = ", ".join(f"{name} = c.{name} + excluded.{name}" for name in COUNTED)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO scheduling_minutecounter AS c (minute, policy, worker, {', '.join(COUNTED)})"
            f" VALUES {', '.join([marks] * len(counts))} ON CONFLICT (minute, policy, worker) DO UPDATE SET {added}",
            values,
        )
