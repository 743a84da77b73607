"""Taking queued tasks: claim, renew, give back, and what a rescue does with claims whose worker is gone.

A claim is one conditional update: `queued` -> `executing`, with a lease until a time and the fence raised by one.
Start, renewal and settlement must match (id, fence) and status `executing`; whoever matches no row has lost the task.

A worker may claim several short tasks at once (a bundle). The first of them is marked started, the rest still count
as queued; running them in order, the worker settles all in one transaction. Only tasks whose handler is known to be
short are bundled, never `solo` ones: those that were lost once, and those whose gate has a limit, an order or a
failure rule.

Who changes what: the worker claims, renews, settles (scheduling.settlement) and gives back; `clock` stages and
rescues; gates and interventions move tasks that are not executing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson
from django.db import connection, transaction

from k1node.lib import sql, wake
from scheduling import gates, parking

LEASE = timedelta(seconds=20)
RENEW_EVERY = timedelta(seconds=5)
BUNDLE_MOST = 200
PARK_ROUNDS = 5  # a claim parks so many windows of tasks whose breaker is open before it leaves the rest to the next

# Literals, not parameters: only so can SQLite prove that the partial index covers the query.
PEEK = (
    "SELECT id, handler, solo, circuit_breaker, permit FROM scheduling_task WHERE status = 'queued'"
    f" AND {parking.NOT_HELD} ORDER BY priority DESC, due_at, id LIMIT %s"
)
CLAIM = (
    "UPDATE scheduling_task SET status = 'executing', fence = fence + 1, lease_owner = %s, lease_expires_at = %s,"
    # A cancellation that came before the task was given back still stands.
    " control = CASE WHEN control IN ('cancel', 'skip') THEN control ELSE '' END,"
    " control_reason = CASE WHEN control IN ('cancel', 'skip') THEN control_reason ELSE '' END,"
    " started_at = CASE WHEN id = %s THEN {moment} ELSE NULL END"
    f" WHERE status = 'queued' AND id {{among}} AND {parking.NOT_HELD}"  # held since the peek, perhaps
    " RETURNING id, task_id, handler, parameters, fence, attempt, timeout_ms, retry_policy, schedule_id, gate_id,"
    " circuit_breaker, solo, due_at, control"
)


@dataclass(frozen=True, slots=True)
class Claim:
    """A task that this worker holds. `parameters_json` is unparsed: most handlers of most tasks have none."""

    id: int
    task_id: str
    handler: str
    parameters_json: str
    fence: int
    attempt: int  # spent before this run
    timeout_ms: int
    retry_policy: str
    schedule_id: int | None
    gate_id: int | None
    circuit_breaker: str
    solo: bool
    due_at: Any
    control: str = ""  # a cancel or skip that came during an earlier claim
    generation: int = 0  # of its breaker's door when it was claimed

    @property
    def parameters(self) -> dict[str, Any]:
        return {} if self.parameters_json == "{}" else orjson.loads(self.parameters_json)


# What `choose` gets for each task at the head of the queue: (handler, solo); it returns how many of them to take.
Choose = Callable[[Sequence[tuple[str, bool]]], int]


def is_waiting() -> bool:
    """Say whether any task is queued and nothing holds them all; a plain read that takes no lock."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT 1 FROM scheduling_task WHERE status = 'queued' AND {parking.NOT_HELD} LIMIT 1")
        return cursor.fetchone() is not None


def claim(*, owner: str, now: datetime, window: int, choose: Choose) -> list[Claim]:
    """Take the most urgent queued tasks, at most `window`, and as many of them as `choose` says.

    Needs a transaction. On PostgreSQL rows that a rival is claiming at this moment are passed over, on SQLite
    writers exclude each other, so no task is taken twice. Tasks whose breaker is open are parked on the way.
    """
    with connection.cursor() as cursor:
        for _ in range(PARK_ROUNDS):
            cursor.execute(PEEK + sql.skip_locked(), [window])
            head = cursor.fetchall()
            doors = parking.doors(row[3] for row in head)
            head = _past_doors(head, doors)
            if head or not doors:
                break
        if not head:
            return []
        ids = [row[0] for row in head[: max(1, choose([(row[1], bool(row[2])) for row in head]))]]
        breaker_of = {row[0]: row[3] for row in head if row[3] in doors}
        among, values = sql.among(ids)
        cursor.execute(
            CLAIM.format(moment=sql.moment_mark(), among=among),
            [owner, sql.stored(now + LEASE), ids[0], sql.stored(now), *values],
        )
        claims = {
            row[0]: Claim(*(*row, doors[breaker_of[row[0]]].generation if row[0] in breaker_of else 0))
            for row in cursor.fetchall()
        }
    return [claims[pk] for pk in ids if pk in claims]


def _past_doors(head: list[Any], doors: dict[str, parking.Door]) -> list[Any]:
    """Return the rows of `head` that no door stops; the others are parked."""
    stopped = [row for row in head if row[3] in doors and doors[row[3]].stops(row[4])]
    if not stopped:
        return head
    names = {row[3] for row in stopped}
    closed = parking.closed_doors(names)
    stopped = [row for row in stopped if row[3] in closed and closed[row[3]].stops(row[4])]
    parking.park([(row[0], row[3]) for row in stopped], of=closed)
    passed_by = {row[0] for row in stopped}
    # One whose door has moved since it was first read is left to the next claim, which sees one moment.
    moved = {name for name in names if closed.get(name) != doors[name]}
    return [row for row in head if row[0] not in passed_by and row[3] not in moved]


def renew(claims: Sequence[Claim], *, now: datetime) -> dict[int, tuple[str, str]]:
    """Extend the leases still held; return {id: (control, reason)} of those. Missing ids are lost."""
    if not claims:
        return {}
    fences = {claim.id: claim.fence for claim in claims}
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE scheduling_task SET lease_expires_at = %s WHERE status = 'executing'"
            f" AND (id, fence) IN (VALUES {', '.join(['(%s, %s)'] * len(fences))})"
            " RETURNING id, control, control_reason",
            [sql.stored(now + LEASE), *(value for pair in fences.items() for value in pair)],
        )
        return {pk: (control, reason) for pk, control, reason in cursor.fetchall()}


def controls(claim: Claim) -> tuple[str, str] | None:
    """Return (control, reason) an operator has set on the running task; None when the claim is lost. A plain read."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT control, control_reason FROM scheduling_task WHERE id = %s AND fence = %s AND status = 'executing'",
            [claim.id, claim.fence],
        )
        row = cursor.fetchone()
    return (row[0], row[1]) if row else None


def give_back(claims: Sequence[Claim], *, solo: bool = False) -> int:
    """Return unstarted claims to the queue, nothing spent; return how many were still held.

    With `solo` they will never be bundled again.
    """
    if not claims:
        return 0
    alone = ", solo = true" if solo else ""
    gate_ids = {claim.gate_id for claim in claims if claim.gate_id is not None}
    with transaction.atomic(), connection.cursor() as cursor:
        locked = gates.lock(gate_ids) if gate_ids else {}  # before the tasks
        cursor.execute(
            # A pause that was asked for before the run began is kept by not beginning.
            "UPDATE scheduling_task SET status = CASE WHEN control = 'pause' THEN 'paused' ELSE 'queued' END,"
            " control = CASE WHEN control = 'pause' THEN '' ELSE control END,"
            " permit = CASE WHEN control = 'pause' THEN 0 ELSE permit END,"
            f" lease_owner = '', lease_expires_at = NULL, started_at = NULL{alone}"
            f" WHERE status = 'executing' AND (id, fence) IN (VALUES {', '.join(['(%s, %s)'] * len(claims))})",
            [value for claim in claims for value in (claim.id, claim.fence)],
        )
        count: int = cursor.rowcount
        gates.given_back(locked.values())
    wake.tell()
    return count


def mark_started(claim: Claim, *, now: datetime) -> None:
    """Note that a task of a bundle is the one that runs now, so that it counts as executing."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE scheduling_task SET started_at = %s WHERE id = %s AND fence = %s AND status = 'executing'",
            [sql.stored(now), claim.id, claim.fence],
        )


@dataclass(frozen=True, slots=True)
class Held:
    """What may have changed on a task since it was claimed."""

    gate_id: int | None
    control: str
    reason: str  # of the control
    paused_until: datetime | None = None


def lock_held(claims: Sequence[Claim]) -> dict[int, Held]:
    """Lock the tasks of `claims` in the order of their ids; return those still held under their fence, by id."""
    with connection.cursor() as cursor:
        among, values = sql.among([claim.id for claim in claims])
        cursor.execute(
            f"SELECT id, fence, gate_id, control, control_reason, paused_until FROM scheduling_task WHERE id {among}"
            f" AND status = 'executing' ORDER BY id{sql.for_update()}",
            values,
        )
        rows = cursor.fetchall()
    fences = {claim.id: claim.fence for claim in claims}
    return {
        pk: Held(gate_id, control, reason, until and sql.moment(until))
        for pk, fence, gate_id, control, reason, until in rows
        if fences[pk] == fence
    }


def stage(*, now: datetime, limit: int = 1000) -> int:
    """Move up to `limit` tasks whose time has come from `scheduled` to `queued`; return how many."""
    due = sql.among_selected(
        "SELECT id FROM scheduling_task WHERE status = 'scheduled' AND due_at <= %s ORDER BY due_at LIMIT %s"
        + sql.skip_locked()
    )
    with connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE scheduling_task SET status = 'queued' WHERE status = 'scheduled' AND id {due}",
            [sql.stored(now), limit],
        )
        count: int = cursor.rowcount
    wake.tell()
    return count


def is_staging_due(*, now: datetime) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT 1 FROM scheduling_task WHERE status = 'scheduled' AND due_at <= %s LIMIT 1", [sql.stored(now)]
        )
        return cursor.fetchone() is not None


def next_staging_at() -> datetime | None:
    """Return when the next scheduled task is due; None when there is none."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT min(due_at) FROM scheduling_task WHERE status = 'scheduled'")
        return sql.moment(cursor.fetchone()[0])


HELD = (
    "SELECT id, task_id, handler, parameters, fence, attempt, timeout_ms, retry_policy, schedule_id, gate_id,"
    " circuit_breaker, solo, due_at, lease_owner, started_at FROM scheduling_task"
    " WHERE status = 'executing'"
)


@dataclass(frozen=True, slots=True)
class Orphan:
    """A claim whose worker is dead or whose lease has run out, and what is known of its run."""

    claim: Claim
    owner: str
    started_at: datetime | None  # None: certainly not the one that ran


def expired(*, now: datetime, limit: int = 500) -> list[Orphan]:
    """Return (and lock) claims whose lease ended before `now`, oldest first; needs a transaction."""
    return _orphans(
        HELD + " AND lease_expires_at < %s ORDER BY lease_expires_at LIMIT %s" + sql.skip_locked(),
        [sql.stored(now), limit],
    )


def gates_of_expired(*, now: datetime, limit: int = 500) -> list[int]:
    """Return the gates of the claims that expired() will give, to be locked before; a plain read."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT gate_id FROM scheduling_task WHERE status = 'executing' AND lease_expires_at < %s"
            " ORDER BY lease_expires_at LIMIT %s",
            [sql.stored(now), limit],
        )
        return [gate_id for (gate_id,) in cursor.fetchall() if gate_id is not None]


def is_any_expired(*, now: datetime) -> bool:
    """Say whether a lease has run out; a plain read."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT 1 FROM scheduling_task WHERE status = 'executing' AND lease_expires_at < %s LIMIT 1",
            [sql.stored(now)],
        )
        return cursor.fetchone() is not None


def held_by(owner: str) -> list[Orphan]:
    """Return all claims of one worker."""
    # Sorted here: asked for an order, SQLite walks the whole table in it.
    return sorted(_orphans(HELD + " AND lease_owner = %s", [owner]), key=lambda orphan: orphan.claim.id)


def _orphans(query: str, parameters: list[Any]) -> list[Orphan]:
    with connection.cursor() as cursor:
        cursor.execute(query, parameters)
        return [Orphan(Claim(*row[:13]), row[13], sql.moment(row[14])) for row in cursor.fetchall()]
