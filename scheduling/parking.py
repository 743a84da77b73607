"""Doors: gates that stop tasks on their way from the queue to a worker: one for each circuit breaker, and the hold.

A door's gate has no members and keeps no counts: a task passes it on every claim. Its state is `closed` and
`generation`, which whoever opens and closes it (recovery) raises with every change.

A breaker's door, named by the breaker, stands before the tasks that name this breaker. While it is closed they are
parked: `blocked` behind it, where no claim looks, without an attempt spent. Newcomers are parked at enqueue, others
when a claim meets them, and what was queued when the door closed in chunks by the clock. A task with a permit of the
door's present generation passes although it is closed: so probes get through. A permit lasts while its task is queued
or executing; a settlement, a pause and a cancellation end it.

The hold's door stands before all tasks. They stay queued: claims find the queue empty while it is closed.

Whoever parks holds the door's row shared until it commits, so no task is left behind a door that opens meanwhile.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from django.db import connection

from k1node.lib import sql, wake
from scheduling.models import Gate, GateKind

HOLD_KEY = "all"
# A literal, so that it costs a claim one look into an index.
NOT_HELD = f"NOT EXISTS (SELECT 1 FROM scheduling_gate WHERE kind = 'hold' AND key = '{HOLD_KEY}' AND closed)"


@dataclass(frozen=True, slots=True)
class Door:
    """The gate of a breaker, as it stands."""

    id: int
    closed: bool
    generation: int

    def stops(self, permit: int) -> bool:
        """Say whether a task with this permit (0: none) is stopped."""
        return self.closed and permit != self.generation


def doors(names: Iterable[str]) -> dict[str, Door]:
    """Return the doors of the breakers of these names that have one; a plain read, none without names."""
    return _doors(names, "")


def closed_doors(names: Iterable[str]) -> dict[str, Door]:
    """Return those of the doors that are closed, which stay so until the caller's transaction ends."""
    return _doors(names, " AND closed", " FOR SHARE" if sql.is_postgresql() else "")


def _doors(names: Iterable[str], also: str, lock: str = "") -> dict[str, Door]:
    wanted = sorted({name for name in names if name})
    if not wanted:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT key, id, closed, generation FROM scheduling_gate WHERE kind = 'breaker'"
            f" AND key IN ({', '.join(['%s'] * len(wanted))}){also} ORDER BY id{lock}",
            wanted,
        )
        return {key: Door(pk, bool(closed), generation) for key, pk, closed, generation in cursor.fetchall()}


def make_doors(names: Iterable[str]) -> dict[str, Gate]:
    """Return the gates of these breakers, open ones made where there is none."""
    wanted = sorted(set(names))
    Gate.objects.bulk_create([Gate(kind=GateKind.BREAKER, key=name) for name in wanted], ignore_conflicts=True)
    return {gate.key: gate for gate in Gate.objects.filter(kind=GateKind.BREAKER, key__in=wanted)}


def set_door(gate_id: int, *, closed: bool, generation: int) -> None:
    Gate.objects.filter(pk=gate_id).update(closed=closed, generation=generation)
    if not closed:
        wake.tell()


def set_hold(*, closed: bool) -> None:
    """Close or open the door before all tasks."""
    Gate.objects.update_or_create(kind=GateKind.HOLD, key=HOLD_KEY, defaults={"closed": closed})
    wake.tell()


def park(stopped: Collection[tuple[int, str]], *, of: dict[str, Door]) -> None:
    """Put queued tasks, (id, breaker) each, behind their doors; the caller has locked both."""
    by_door: dict[int, list[int]] = {}
    for pk, name in stopped:
        by_door.setdefault(of[name].id, []).append(pk)
    for gate_id, pks in sorted(by_door.items()):
        among, values = sql.among(sorted(pks))
        with connection.cursor() as cursor:
            cursor.execute(
                "UPDATE scheduling_task SET status = 'blocked', blocked_on_id = %s, permit = 0"
                f" WHERE status = 'queued' AND id {among}",
                [gate_id, *values],
            )


def park_queued(name: str, door: Door, *, limit: int) -> int:
    """Put up to `limit` queued tasks of a breaker behind its closed door; return how many. Needs its lock."""
    queued = sql.among_selected(
        # As its index has it: circuit_breaker > ''.
        "SELECT id FROM scheduling_task WHERE status = 'queued' AND circuit_breaker > ''"
        f" AND circuit_breaker = %s AND permit <> %s LIMIT %s{sql.skip_locked()}"
    )
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE scheduling_task SET status = 'blocked', blocked_on_id = %s, permit = 0 WHERE status = 'queued'"
            f" AND id {queued}",
            [door.id, name, door.generation, limit],
        )
        count: int = cursor.rowcount
    return count


def let_through(gate_id: int, *, count: int, permit: int = 0) -> list[str]:
    """Put up to `count` tasks from behind a door back on the queue, the most urgent first; return their ids.

    Only what was due is ever parked, so they are due, whatever the clock says now.
    """
    if count <= 0:
        return []
    first = sql.among_selected(
        "SELECT id FROM scheduling_task WHERE status = 'blocked' AND blocked_on_id = %s"
        f" ORDER BY priority DESC, due_at, id LIMIT %s{sql.skip_locked()}"
    )
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE scheduling_task SET blocked_on_id = NULL, permit = %s, status = 'queued'"
            f" WHERE status = 'blocked' AND id {first} RETURNING task_id",
            [permit, gate_id, count],
        )
        released = [task_id for (task_id,) in cursor.fetchall()]
    if released:
        wake.tell()
    return released


def is_any_parked(gate_id: int) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT 1 FROM scheduling_task WHERE status = 'blocked' AND blocked_on_id = %s LIMIT 1", [gate_id]
        )
        return cursor.fetchone() is not None


def forgotten() -> list[int]:
    """Return the gates of open doors that tasks are parked behind."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id FROM scheduling_gate WHERE kind = 'breaker' AND NOT closed AND EXISTS (SELECT 1"
            " FROM scheduling_task WHERE status = 'blocked' AND blocked_on_id = scheduling_gate.id)"
        )
        return [pk for (pk,) in cursor.fetchall()]


def neglected(*, most: int) -> list[int]:
    """Return closed doors of breakers that queued tasks stand before: staged since the door was last looked at."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id FROM scheduling_gate WHERE kind = 'breaker' AND closed AND EXISTS (SELECT 1"
            # As its index has it: circuit_breaker > ''.
            " FROM scheduling_task WHERE status = 'queued' AND circuit_breaker > ''"
            " AND circuit_breaker = scheduling_gate.key AND permit <> scheduling_gate.generation) LIMIT %s",
            [most],
        )
        return [pk for (pk,) in cursor.fetchall()]


def parked(gate_ids: Sequence[int], *, most: int) -> dict[int, int]:
    """Return how many tasks are parked behind each door, `most` + 1 for any more: an index walk of that length each."""
    if not gate_ids:
        return {}
    each = (
        "SELECT {} AS gate, count(*) FROM (SELECT 1 FROM scheduling_task WHERE status = 'blocked'"
        " AND blocked_on_id = {} LIMIT {}) AS parked"
    )
    with connection.cursor() as cursor:
        cursor.execute(" UNION ALL ".join(each.format(int(pk), int(pk), most + 1) for pk in gate_ids))
        return dict(cursor.fetchall())


def permits_out(name: str, permit: int) -> int:
    """Return how many tasks of a breaker hold the permit, queued or executing."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM scheduling_task WHERE status IN ('queued', 'executing') AND permit > 0"
            " AND circuit_breaker = %s AND permit = %s",
            [name, permit],
        )
        return int(cursor.fetchone()[0])


def take_back(name: str, door: Door) -> None:
    """Put tasks with a permit that nobody has claimed behind their door again: more urgent ones may have come."""
    held = sql.among_selected(
        "SELECT id FROM scheduling_task WHERE status = 'queued' AND permit > 0 AND circuit_breaker = %s"
        f" AND permit = %s{sql.skip_locked()}"
    )
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE scheduling_task SET status = 'blocked', blocked_on_id = %s, permit = 0 WHERE status = 'queued'"
            f" AND id {held}",
            [door.id, name, door.generation],
        )
