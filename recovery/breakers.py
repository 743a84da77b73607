"""Circuit breakers: rows, their transitions, and the doors in front of the tasks that name them.

A breaker is made when the first result of a task that names it is settled, or by an operator. Who changes it:

    settlement   record()    results fill the window; an opening, a failed probe and the last good probe happen here
    clock        tend()      an opening's time is over; permits for probes; the backlog parked and let through again
    operators    open_, close, reset, probe, configure, delete

Each is one transaction that locks the breaker, then its gate, then tasks, and stores a new state only over the
generation it was computed from. The rules are in recovery.breaker_rules; what the door does to tasks is in
scheduling.parking. A success over a window of successes changes nothing and so writes nothing: a healthy breaker is no
shared hot row.

A probe is a task with a permit of the present generation. How many are out is counted from the tasks themselves, under
the breaker's lock: the lease of a probe is that of its task, and one that is lost, drained, paused or cancelled leaves
its place to another by itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.db import connection
from django.db.models import Q, QuerySet

from k1node.events import log
from k1node.lib import sql
from k1node.lib.errors import Conflict, NotFound
from recovery import breaker_rules as rules
from recovery import records, retry_budget
from recovery.breaker_rules import Call, Circuit, Figures, Pin, State
from recovery.decisions import FINAL_EXIT_CODES
from recovery.models import Breaker, Intervention
from recovery.records import By
from recovery.retry_budget import Budget
from scheduling import parking, queries, tasks
from scheduling.models import Schedule, Task
from scheduling.outcomes import Outcome, OutcomeKind
from scheduling.settlement import Settlement

Action = Intervention.Action

LOOK_EVERY = timedelta(seconds=1)  # at a breaker whose probes are out
PARK_AT_ONCE = 1_000
TEND_MOST = 200  # breakers in one pass of the clock
COUNT_MOST = 10_000  # tasks are counted so far
EVENTS = {State.CLOSED: "breaker.closed", State.OPEN: "breaker.opened", State.HALF_OPEN: "breaker.half_open"}
WAITS = "scheduling_task.status IN ('paused', 'blocked')"
FIGURES = ("window_size", "min_calls", "failure_percent", "open_ms", "open_cap_ms", "probes")


class BreakerRefuses(Conflict):
    """The breaker's present state does not allow this"""


# --- rows and values --------------------------------------------------------------------------------------------


def circuit_of(row: Breaker) -> Circuit:
    return Circuit(
        State(row.state),
        row.generation,
        row.window,
        row.open_until,
        row.openings,
        row.permits,
        row.successes,
        Pin(row.pin),
        row.pinned_until,
    )


def figures_of(row: Breaker) -> Figures:
    return Figures(
        row.window_size,
        row.min_calls,
        row.failure_percent,
        timedelta(milliseconds=row.open_ms),
        timedelta(milliseconds=row.open_cap_ms),
        row.probes,
    )


def _locked(rows: QuerySet[Breaker], *, skip: bool = False) -> list[Breaker]:
    """Lock breakers in the order of their keys, before any gate; needs a transaction."""
    rows = rows.order_by("pk")
    return list(rows.select_for_update(skip_locked=skip) if sql.is_postgresql() else rows)


def _store(
    row: Breaker,
    to: Circuit,
    why: str,
    *,
    by: By | None = None,
    also: Mapping[str, Any] | None = None,
    now: datetime,
) -> None:
    """Write the new state of a locked breaker, move its door and publish, if they change; `also` is more of the row."""
    before = circuit_of(row)
    also = {name: value for name, value in (also or {}).items() if value != getattr(row, name)}
    if to == before and not also:
        return
    moved = to.generation != before.generation
    fields: dict[str, Any] = {
        "state": to.state.value,
        "generation": to.generation,
        "window": to.window,
        "open_until": to.open_until,
        "openings": to.openings,
        "permits": to.permits,
        "successes": to.successes,
        "pin": to.pin.value,
        "pinned_until": to.pinned_until,
        **also,
    }
    if moved:
        fields |= {
            "changed_at": now,
            "ramp_step": 0,
            "pinned_by": by.name[:150] if by and to.pin else "",
            "pin_reason": by.reason if by and to.pin else "",
        }
    if moved or to.state is State.HALF_OPEN:
        fields["look_at"] = now
    if not Breaker.objects.filter(pk=row.pk, generation=before.generation).update(**fields):
        raise Conflict(f"The breaker '{row.breaker_id}' has just changed")
    for name, value in fields.items():
        setattr(row, name, value)
    if moved:
        parking.set_door(row.gate_id, closed=to.is_door_closed, generation=to.generation)
        if to.state is not before.state or to.pin is not before.pin:
            log.publish(EVENTS[to.state], _fact(row, to, why, by), now=now)


def _fact(row: Breaker, to: Circuit, why: str, by: By | None) -> dict[str, Any]:
    fact: dict[str, Any] = {
        "breaker_id": row.breaker_id,
        "state": to.state.value,
        "reason": why,
        "failure_rate": round(to.failure_rate, 4),
        "until": to.pinned_until if to.pin else to.open_until,
    }
    return fact | {"by": by.name} if by else fact


def door_of(row: Breaker) -> parking.Door:
    return parking.Door(row.gate_id, circuit_of(row).is_door_closed, row.generation)


# --- settlement -------------------------------------------------------------------------------------------------


def verdict(outcome: Outcome) -> bool | None:
    """Return whether a run speaks for (True) or against what it called; None for one that says nothing about it."""
    if outcome.kind is OutcomeKind.COMPLETED:
        return True
    if outcome.kind is OutcomeKind.TIMEOUT:
        return False
    if outcome.kind is OutcomeKind.FAILED and outcome.exit_code not in FINAL_EXIT_CODES:
        return False
    return None


def record(settlements: Sequence[Settlement], *, now: datetime) -> list[Settlement]:
    """Let the results of these runs move their breakers; before the runs are settled, in the same transaction.

    Returns the settlements, of which retries of what fails may be due later than their policy says: see retry_budget.
    A run that has lost its lease counts too: what it has seen of the thing it called is as true.
    """
    calls: dict[str, list[Call]] = {}
    retries: dict[str, list[int]] = {}  # their places
    for place, settled in enumerate(settlements):
        name = settled.claim.circuit_breaker
        if name and (ok := verdict(settled.outcome)) is not None:
            calls.setdefault(name, []).append(Call(settled.claim.generation, ok))
            if settled.decision.due_at is not None:
                retries.setdefault(name, []).append(place)
    told = list(settlements)
    if not calls:
        return told
    known = list(Breaker.objects.filter(breaker_id__in=calls))
    if len(known) < len(calls):
        known += _make(calls.keys() - {row.breaker_id for row in known}, now=now)
    moved = [row.pk for row in known if row.breaker_id in retries or _after(row, calls, now=now) != circuit_of(row)]
    for row in _locked(Breaker.objects.filter(pk__in=moved)) if moved else ():
        to = _after(row, calls, now=now)
        budget = retry_budget.earned(_budget_of(row), len(calls[row.breaker_id]))
        for place in retries.get(row.breaker_id, ()):
            budget = _put_off(told, place, budget)
        budget = retry_budget.saved(budget)
        spent = {"retry_credit": budget.credit, "retry_free_at": budget.free_at}
        _store(row, to, _why(circuit_of(row), to), now=now, also=spent)
    return told


def _budget_of(row: Breaker) -> Budget:
    return Budget(row.retry_credit, row.retry_free_at) if rules.FAILED in row.window else Budget()


def _put_off(told: list[Settlement], place: int, budget: Budget) -> Budget:
    """Have the retry at `place` when the budget has one for it; return what is left."""
    settled = told[place]
    assert settled.decision.due_at is not None
    budget, due_at = retry_budget.spent(budget, settled.decision.due_at)
    if due_at != settled.decision.due_at:
        told[place] = replace(settled, decision=replace(settled.decision, due_at=due_at))
    return budget


def _after(row: Breaker, calls: Mapping[str, Sequence[Call]], *, now: datetime) -> Circuit:
    return rules.record(circuit_of(row), calls[row.breaker_id], figures_of(row), now=now)


def _why(before: Circuit, to: Circuit) -> str:
    if to.state is State.OPEN and before.state is State.HALF_OPEN:
        return "A probe failed"
    if to.state is State.OPEN:
        return f"{to.failures} of the last {len(to.window)} calls failed"
    return "The probes succeeded"


def _make(names: set[str], *, now: datetime) -> list[Breaker]:
    gates = parking.make_doors(names)
    Breaker.objects.bulk_create(
        # A deleted one has left its door, and with it the generations that have been.
        [
            Breaker(breaker_id=name, gate=gates[name], generation=gates[name].generation, changed_at=now)
            for name in sorted(names)
        ],
        ignore_conflicts=True,
    )
    return list(Breaker.objects.filter(breaker_id__in=names))


# --- the clock --------------------------------------------------------------------------------------------------


def tend(*, now: datetime) -> int:
    """Do once what is due for up to TEND_MOST breakers; return for how many: not for those that a rival has."""
    due = Breaker.objects.filter(look_at__lte=now).order_by("look_at").values_list("pk", flat=True)[:TEND_MOST]
    return sum(sql.in_transaction(partial(_tend, pk, now=now)) for pk in list(due))


def _tend(pk: int, *, now: datetime) -> bool:
    rows = _locked(Breaker.objects.filter(pk=pk, look_at__lte=now), skip=True)
    if not rows:
        return False  # a rival has it
    row = rows[0]
    before = circuit_of(row)
    to = rules.due(before, probes=row.probes, now=now)
    _store(row, to, "What an operator wanted is over" if before.pin else "Its time to be open is over", now=now)
    if to.state is State.CLOSED:
        look_at = _let_go(row, now=now)
    else:
        look_at = _park(row, to, now=now)
        if to.state is State.HALF_OPEN:
            look_at = _probe(row, to, now=now)
    Breaker.objects.filter(pk=row.pk).update(look_at=look_at, ramp_step=row.ramp_step)
    return True


def _let_go(row: Breaker, *, now: datetime) -> datetime | None:
    """Let the next of the tasks that waited go; return when to look again."""
    count = rules.ramp(row.ramp_step)
    if len(parking.let_through(row.gate_id, count=count)) < count and not parking.is_any_parked(row.gate_id):
        row.ramp_step = 0
        return row.pinned_until
    row.ramp_step += 1
    return now + rules.RAMP_EVERY


def _park(row: Breaker, circuit: Circuit, *, now: datetime) -> datetime | None:
    """Park what is queued, in chunks; return when to look again."""
    if parking.park_queued(row.breaker_id, door_of(row), limit=PARK_AT_ONCE) == PARK_AT_ONCE:
        return now
    return circuit.pinned_until if circuit.pin else circuit.open_until


def _probe(row: Breaker, circuit: Circuit, *, now: datetime) -> datetime | None:
    """Give the permits that are left to waiting tasks, or close when all there was to try has succeeded."""
    # A permit that nobody has claimed yet is given anew: something more urgent may have come.
    parking.take_back(row.breaker_id, door_of(row))
    out = parking.permits_out(row.breaker_id, circuit.generation)
    free = circuit.permits - circuit.successes - out
    given = parking.let_through(row.gate_id, count=free, permit=circuit.generation)
    if out or given:
        return now + LOOK_EVERY
    if circuit.successes and not parking.is_any_parked(row.gate_id):
        _store(row, rules.closed(circuit), "All there was to try has succeeded", now=now)
        return now
    return None  # until somebody comes who could try: see wake_idle()


def wake_idle(*, now: datetime) -> None:
    """Have the clock look at breakers at which a task has arrived: that could probe, or that must be parked."""
    with connection.cursor() as cursor:
        # Literals, as their indexes have them: this is asked twice a second.
        cursor.execute(
            "SELECT id FROM recovery_breaker WHERE state = 'HALF-OPEN' AND look_at IS NULL AND EXISTS (SELECT 1"
            " FROM scheduling_task WHERE status = 'blocked' AND blocked_on_id = recovery_breaker.gate_id) LIMIT %s",
            [TEND_MOST],
        )
        pks = [pk for (pk,) in cursor.fetchall()]
    if pks:
        Breaker.objects.filter(pk__in=pks, look_at=None).update(look_at=now)
    if gates := parking.neglected(most=TEND_MOST):
        # Left to the claims they would be parked a few at a time, and what is behind them would wait.
        Breaker.objects.filter(gate__in=gates).update(look_at=now)


def wake_forgotten(*, now: datetime) -> None:
    """Have the clock look at breakers that are closed and behind whose door a task is parked nonetheless."""
    if gates := parking.forgotten():
        Breaker.objects.filter(gate__in=gates, look_at=None).update(look_at=now)


# --- operators --------------------------------------------------------------------------------------------------


def open_(breaker_id: str, by: By, *, until: datetime | None = None, now: datetime) -> Breaker:
    """Hold a breaker open, until a moment or until somebody resets it; nothing that names it starts."""
    why = f"Held open by {by.said()}"
    return _operate(breaker_id, Action.OPEN, by, lambda row, circuit: rules.pinned_open(circuit, until), why, now=now)


def close(breaker_id: str, by: By, *, until: datetime | None = None, now: datetime) -> Breaker:
    """Hold a breaker closed, until a moment or until somebody resets it; results are noted and do not open it."""
    why = f"Held closed by {by.said()}"
    return _operate(
        breaker_id, Action.CLOSE, by, lambda row, circuit: rules.pinned_closed(circuit, until), why, now=now
    )


def reset(breaker_id: str, by: By, *, now: datetime) -> Breaker:
    """Close a breaker as new: nothing held, nothing in its window."""
    why = f"Reset by {by.said()}"
    return _operate(breaker_id, Action.RESET, by, lambda row, circuit: rules.closed(circuit), why, now=now)


def probe(breaker_id: str, by: By, *, now: datetime) -> tuple[Breaker, str]:
    """Let one waiting task of an open breaker try now; return its task id too. Raises BreakerRefuses."""
    chosen: list[str] = []

    def change(row: Breaker, circuit: Circuit) -> Circuit:
        if circuit.pin:
            raise BreakerRefuses(f"It is held {circuit.pin} by {row.pinned_by}: reset it first")
        if circuit.state is State.CLOSED:
            raise BreakerRefuses("It is closed: every task goes through")
        if circuit.state is State.HALF_OPEN:
            raise BreakerRefuses("It is half-open and probes by itself")
        return rules.probing_one(circuit)

    def after(row: Breaker) -> None:
        chosen[:] = parking.let_through(row.gate_id, count=1, permit=row.generation)
        if not chosen:
            raise BreakerRefuses("No task waits behind it that could try")

    row = _operate(breaker_id, Action.PROBE, by, change, f"A probe was asked for by {by.name}", after=after, now=now)
    return row, chosen[0]


def _operate(
    breaker_id: str,
    action: Intervention.Action,
    by: By,
    change: Callable[[Breaker, Circuit], Circuit],
    why: str,
    *,
    after: Callable[[Breaker], None] | None = None,
    now: datetime,
) -> Breaker:
    def work() -> Breaker:
        row = _found(breaker_id)
        before = facts(row)
        _store(row, change(row, circuit_of(row)), why, by=by, now=now)
        if after is not None:
            after(row)
        records.record(action, by, before, facts(row), breaker_id=breaker_id, now=now)
        return row

    return sql.in_transaction(work)


def _found(breaker_id: str) -> Breaker:
    rows = _locked(Breaker.objects.filter(breaker_id=breaker_id))
    if not rows:
        raise NotFound()
    return rows[0]


def facts(row: Breaker) -> dict[str, Any]:
    """Return what of a breaker its operators see and change, for the record."""
    found: dict[str, Any] = {"state": row.state}
    if row.pin:
        found["held"] = row.pin
        found["until"] = row.pinned_until and row.pinned_until.isoformat()
    return found


def create(breaker_id: str, values: Mapping[str, int], by: By, *, now: datetime) -> Breaker:
    """Make a breaker before its first use. Raises BreakerInvalid, or BreakerRefuses when there is one."""
    try:
        tasks.check_breaker(breaker_id)
    except tasks.BreakerInvalid as error:
        detail = error.details[0]
        raise tasks.BreakerInvalid("breaker_id", detail.message, detail.suggestion) from None
    if breaker_id == tasks.OWN_BREAKER:
        raise tasks.BreakerInvalid(
            "breaker_id", "'default' stands for a breaker of one's own", "Name that: the schedule's id, as a rule"
        )

    def work() -> Breaker:
        if Breaker.objects.filter(breaker_id=breaker_id).exists():
            raise BreakerRefuses(f"There is a breaker '{breaker_id}' already")
        (row,) = _make({breaker_id}, now=now)
        _set(row, values)
        records.record(Action.CONFIGURE, by, {}, _figures(row), breaker_id=breaker_id, now=now)
        return row

    return sql.in_transaction(work)


def configure(breaker_id: str, values: Mapping[str, int], by: By, *, now: datetime) -> Breaker:
    """Change settings of a breaker; they hold from the next result on."""

    def work() -> Breaker:
        row = _found(breaker_id)
        before = _figures(row)
        if all(before[name] == value for name, value in values.items()):
            return row
        _set(row, values)
        records.record(Action.CONFIGURE, by, before, _figures(row), breaker_id=breaker_id, now=now)
        return row

    return sql.in_transaction(work)


def _figures(row: Breaker) -> dict[str, Any]:
    return {name: getattr(row, name) for name in FIGURES}


def _set(row: Breaker, values: Mapping[str, int]) -> None:
    for name in FIGURES:
        if name in values:
            setattr(row, name, values[name])
    row.window = row.window[-row.window_size :]
    row.save(update_fields=(*FIGURES, "window"))


def delete(breaker_id: str, by: By, *, now: datetime) -> None:
    """Forget a breaker that nothing uses. Raises BreakerRefuses while a schedule or an unfinished task names it."""

    def work() -> None:
        row = _found(breaker_id)
        if row.state != State.CLOSED:
            raise BreakerRefuses(f"It is {row.state}: reset it first")
        naming = Q(circuit_breaker=breaker_id) | Q(circuit_breaker=tasks.OWN_BREAKER, task_id=breaker_id)
        named = Schedule.objects.filter(naming).values_list("task_id", flat=True).first()
        if named is not None:
            raise BreakerRefuses(f"The schedule '{named}' names it")
        if parking.is_any_parked(row.gate_id) or _is_in_use(breaker_id):
            raise BreakerRefuses("Tasks that have not ended name it")
        records.record(Action.DELETE, by, _figures(row), {}, breaker_id=breaker_id, now=now)
        row.delete()  # its door stays, open: to ask every finished task whether it was parked there takes seconds

    sql.in_transaction(work)


def _is_in_use(breaker_id: str) -> bool:
    """Say whether a task that waits or runs names the breaker."""
    # One query for each index that has live tasks.
    states = ("status = 'queued'", "status = 'scheduled'", "status = 'executing'", f"{queries.RARE} AND {WAITS}")
    live = " OR ".join(
        f"EXISTS (SELECT 1 FROM scheduling_task WHERE {state} AND circuit_breaker = %s)" for state in states
    )
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {live}", [breaker_id] * len(states))
        return bool(cursor.fetchone()[0])


# --- reading ----------------------------------------------------------------------------------------------------


def remaining_ms(rows: Sequence[Breaker], *, now: datetime) -> dict[int, int]:
    """Return for each breaker the milliseconds until it changes by itself, 0 where it does not.

    Of an open one until it probes, of a half-open one until the last of its running probes must have ended, of one
    that an operator holds until that ends.
    """
    probing = {row.breaker_id: row for row in rows if row.state == State.HALF_OPEN}
    ends: dict[int, datetime] = {}
    for row in rows:
        until = row.pinned_until if row.pin else row.open_until
        if until is not None:
            ends[row.pk] = until
    if probing:
        running = Task.objects.filter(circuit_breaker__in=probing, status="executing", permit__gt=0)
        for name, permit, started_at, timeout_ms in running.values_list(
            "circuit_breaker", "permit", "started_at", "timeout_ms"
        ):
            row = probing[name]
            if permit == row.generation and started_at is not None:
                end = started_at + timedelta(milliseconds=timeout_ms)
                ends[row.pk] = max(end, ends.get(row.pk, end))
    return {row.pk: max(0, int((ends.get(row.pk, now) - now) / timedelta(milliseconds=1))) for row in rows}


def waiting(rows: Sequence[Breaker]) -> dict[int, int]:
    """Return how many tasks wait behind each breaker, COUNT_MOST + 1 for any more."""
    shut = {row.gate_id: row.pk for row in rows if row.state != State.CLOSED or row.look_at is not None}
    return {shut[gate]: count for gate, count in parking.parked(list(shut), most=COUNT_MOST).items()}
