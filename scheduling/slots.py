"""The slot ledger: every due time of every cron schedule is covered by exactly one row, and makes at most one task.

A pass of the clock has two halves. plan() is pure: it looks at one schedule and the time, walks the due slots since
`next_fire_at`, and says which run, which are left out and why, and when the schedule is due next. apply happens in
one transaction for many schedules: it locks those whose `next_fire_at` has not moved since (a rival clock or an edit
would have moved it), asks their overlap gates, and writes slots, tasks and the next fire time together. So a slot is
neither lost nor doubled over crashes and rival clocks, and the ledger says of each what became of it.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2s

from django.db import InterfaceError, OperationalError, connection
from django.db.models import OuterRef, Subquery

from k1node.events import log
from k1node.lib import sql
from k1node.lib.ids import random_part
from scheduling import cron, gates, queue
from scheduling.models import CatchUp, Schedule, ScheduleType, Slot, Task

logger = logging.getLogger(__name__)

ON_TIME = timedelta(seconds=60)  # a slot this late still counts as fired, whatever the catch-up policy
MOST_SLOTS = 5_000  # a pass looks at so many slots of one schedule, and of all (but one); the next goes on from there
ASKED = "asked: the next run was to be left out"
TOO_OLD = "older than the catch-up window"
REASONS = {
    CatchUp.NONE: "no clock ran, and catch-up is none",
    CatchUp.LAST: "no clock ran, and catch-up is the last slot only",
    CatchUp.ALL: "no clock ran, and the catch-up has a cap",
}


RUNS = (Slot.Outcome.FIRED, Slot.Outcome.LATE)


@dataclass(frozen=True, slots=True)
class Planned:
    """Consecutive slots of one fate. A run is always alone."""

    first: datetime
    last: datetime
    count: int
    outcome: Slot.Outcome
    reason: str = ""

    @property
    def is_run(self) -> bool:
        return self.outcome in RUNS


@dataclass(frozen=True, slots=True)
class Plan:
    slots: tuple[Planned, ...]
    next_fire_at: datetime | None
    uses_skip_next: bool = False


def first_fire_at(schedule: Schedule, now: datetime) -> datetime | None:
    """Return the first slot after `now` (and not before the schedule starts); None when there is none to come."""
    if schedule.schedule_type != ScheduleType.CRON or not schedule.enabled:
        return None
    after = now
    if schedule.starts_at and schedule.starts_at > now:
        after = schedule.starts_at - timedelta(microseconds=1)
    return _within(schedule, cron.next_fire(schedule.schedule_expr, schedule.timezone, after))


def _within(schedule: Schedule, slot: datetime) -> datetime | None:
    return None if schedule.ends_at and slot > schedule.ends_at else slot


def due_at(schedule: Schedule, slot: datetime) -> datetime:
    """Return when the run of `slot` is due: the slot plus a jitter that is the same every time it is asked."""
    if not schedule.jitter_ms:
        return slot
    digest = blake2s(f"{schedule.task_id} {slot.isoformat()}".encode(), digest_size=8).digest()
    return slot + timedelta(milliseconds=int.from_bytes(digest) % (schedule.jitter_ms + 1))


def plan(schedule: Schedule, now: datetime) -> Plan:
    """Say what becomes of every slot of a cron schedule from `next_fire_at` up to `now`."""
    start = schedule.next_fire_at
    if start is None or start > now:
        return Plan((), start)
    next_fire_at: datetime | None
    slots = [
        start,
        *cron.fires_between(schedule.schedule_expr, schedule.timezone, start, now, MOST_SLOTS),
    ]
    if schedule.ends_at:
        slots = [slot for slot in slots if slot <= schedule.ends_at]
    if len(slots) > MOST_SLOTS:
        # Keep back as many as may run, so that "the last ones" is decided in the pass that sees the end.
        keep_back = max(2, min(schedule.catch_up_cap, MOST_SLOTS // 2))
        slots, next_fire_at = slots[:-keep_back], slots[-keep_back]
        fates = [_left_out(schedule, slot, now) for slot in slots]
    else:
        after = max(slots[-1] if slots else start, now)
        next_fire_at = _within(schedule, cron.next_fire(schedule.schedule_expr, schedule.timezone, after))
        fates = _fates(schedule, slots, now)
    # A slot that would not have run anyway does not use the wish up.
    runs = [index for index, (outcome, _) in enumerate(fates) if outcome in RUNS]
    uses_skip_next = schedule.skip_next and bool(runs)
    if uses_skip_next:
        fates[runs[0]] = (Slot.Outcome.SKIPPED, ASKED)
    return Plan(_join(slots, fates), next_fire_at, uses_skip_next)


Fate = tuple[Slot.Outcome, str]


def _fates(schedule: Schedule, slots: Sequence[datetime], now: datetime) -> list[Fate]:
    late = [slot for slot in slots if now - slot > ON_TIME and not _is_paused(schedule, slot)]
    window = timedelta(milliseconds=schedule.catch_up_window_ms)
    in_window = [slot for slot in late if now - slot <= window]
    run: set[datetime] = set()
    if schedule.catch_up == CatchUp.ALL and schedule.catch_up_cap:
        run = set(in_window[-schedule.catch_up_cap :])
    elif schedule.catch_up == CatchUp.LAST and in_window and in_window[-1] == slots[-1]:
        run = {in_window[-1]}  # a later slot that is on time would make it needless
    fates: list[Fate] = []
    for slot in slots:
        if slot in run:
            fates.append((Slot.Outcome.LATE, ""))
        elif not _is_paused(schedule, slot) and now - slot <= ON_TIME:
            fates.append((Slot.Outcome.FIRED, ""))
        else:
            fates.append(_left_out(schedule, slot, now))
    return fates


def _left_out(schedule: Schedule, slot: datetime, now: datetime) -> Fate:
    if _is_paused(schedule, slot):
        return Slot.Outcome.SKIPPED, f"paused: {schedule.pause_reason}"[:200] if schedule.pause_reason else "paused"
    policy = CatchUp(schedule.catch_up)
    if policy != CatchUp.NONE and now - slot > timedelta(milliseconds=schedule.catch_up_window_ms):
        return Slot.Outcome.MISSED, TOO_OLD
    return Slot.Outcome.MISSED, REASONS[policy]


def _is_paused(schedule: Schedule, slot: datetime) -> bool:
    return schedule.paused_until is not None and slot < schedule.paused_until


def _join(slots: Sequence[datetime], fates: Sequence[Fate]) -> tuple[Planned, ...]:
    joined: list[Planned] = []
    for slot, (outcome, reason) in zip(slots, fates, strict=True):
        last = joined[-1] if joined else None
        if last and not last.is_run and (last.outcome, last.reason) == (outcome, reason):
            joined[-1] = Planned(last.first, slot, last.count + 1, outcome, reason)
        else:
            joined.append(Planned(slot, slot, 1, outcome, reason))
    return tuple(joined)


# --- the pass ---------------------------------------------------------------------------------------------------


def due_schedules(*, now: datetime, limit: int = 250) -> list[Schedule]:
    """Return cron schedules with a slot at or before `now`, the longest overdue first; a plain read."""
    return list(Schedule.objects.filter(next_fire_at__lte=now).order_by("next_fire_at", "pk")[:limit])


def next_slot_at() -> datetime | None:
    """Return the earliest fire time of all schedules; None when nothing is to come."""
    first = Schedule.objects.filter(next_fire_at__isnull=False).order_by("next_fire_at")
    return first.values_list("next_fire_at", flat=True).first()


def fire_due(*, now: datetime, limit: int = 250) -> int:
    """Plan and apply one pass over up to `limit` due schedules; return how many were due.

    After a long outage it ends earlier: a clock that only plans for half a minute is taken for hung, and would begin
    anew for ever.
    """
    plans: list[tuple[Schedule, Plan]] = []
    due = due_schedules(now=now, limit=limit)
    count = 0
    for schedule in due:
        if count >= MOST_SLOTS:
            break
        try:
            its_plan = plan(schedule, now)
        except Exception as error:
            _stop(schedule, error)
            continue
        plans.append((schedule, its_plan))
        count += sum(slot.count for slot in its_plan.slots)
    if plans:
        _apply_all(plans, now=now)
    return len(due)


def _stop(schedule: Schedule, error: Exception) -> None:
    """Take a schedule that cannot be fired out of the clock's way until it is edited: it must not stop the others."""
    logger.error("Schedule cannot be fired", exc_info=error, extra={"schedule": schedule.task_id})
    reason = f"{type(error).__name__}: {error}"
    unedited = Schedule.objects.filter(pk=schedule.pk, updated_at=schedule.updated_at)
    unedited.update(next_fire_at=None, last_error=reason[:1000])


def _apply_all(plans: Sequence[tuple[Schedule, Plan]], *, now: datetime) -> None:
    """Write the plans in one transaction; if that fails, each in one of its own, to find the one that is bad."""
    try:
        sql.in_transaction(lambda: _apply(plans, now=now))
    except (OperationalError, InterfaceError, queue.TaskIdTaken):
        raise  # the database's troubles, or a rival took an id this moment: the next pass tries again
    except Exception as error:
        if len(plans) == 1:
            _stop(plans[0][0], error)
            return
        for each in plans:
            _apply_all([each], now=now)


def _apply(plans: Sequence[tuple[Schedule, Plan]], *, now: datetime) -> None:
    """Write the plans whose schedule nobody has moved since. Order: schedules, gates, inserts."""
    mine = _advance(plans, now=now)
    gate_of = gates.overlap_gates([schedule for schedule, plan in mine if any(slot.is_run for slot in plan.slots)])
    rows: list[tuple[Schedule, Planned, queue.NewTask | None]] = []
    endings: dict[int, tuple[Schedule, str]] = {}  # by gate: the newest run is the one that stays
    names = {run_id(schedule, slot.first) for schedule, its_plan in mine for slot in its_plan.slots if slot.is_run}
    taken = set(Task.objects.filter(task_id__in=names).values_list("task_id", flat=True)) if names else set()
    for schedule, its_plan in mine:
        for slot in its_plan.slots:
            if not slot.is_run:
                rows.append((schedule, slot, None))
                continue
            admission = gates.admit_overlap(schedule, gate_of.get(schedule.pk))
            if admission.status is None:
                rows.append((schedule, Planned(slot.first, slot.last, 1, Slot.Outcome.SKIPPED, admission.reason), None))
                continue
            task_id = run_id(schedule, slot.first)
            new = new_run(
                schedule,
                f"{task_id}-{random_part(12)}" if task_id in taken else task_id,
                due_at=due_at(schedule, slot.first),
                admission=admission,
                created_by=f"schedule {schedule.task_id}",
            )
            rows.append((schedule, slot, new))
            if admission.end_others and admission.gate_id:
                endings[admission.gate_id] = (schedule, new.task_id)
    gates.save_counts(gate_of.values())
    tasks = queue.enqueue([new for _, _, new in rows if new], now=now)
    for gate_id, (schedule, keep) in endings.items():
        queue.end_earlier_runs(schedule, gate_id, keep=keep, now=now)
    _record(rows, {task.task_id: task for task in tasks}, now=now)


def new_run(
    schedule: Schedule,
    task_id: str,
    *,
    due_at: datetime,
    admission: gates.Admission,
    created_by: str,
    parameters: dict[str, object] | None = None,
) -> queue.NewTask:
    """Return one run of `schedule` as a task to enqueue."""
    return queue.NewTask(
        task_id=task_id,
        task_name=schedule.task_name,
        handler=schedule.handler,
        parameters=schedule.parameters if parameters is None else parameters,
        priority=schedule.priority,
        timeout_ms=schedule.timeout_ms,
        retry_policy=str(schedule.retry_policy_id),
        circuit_breaker=schedule.breaker_name,
        schedule_id=schedule.pk,
        gate_id=admission.gate_id,
        is_blocked=admission.status == "blocked",
        due_at=due_at,
        created_by=created_by,
    )


def run_id(schedule: Schedule, slot: datetime) -> str:
    """Return the task id of a slot's run, unless somebody has given it to a task of their own."""
    return f"{schedule.task_id}-{slot.astimezone(UTC):%Y%m%dT%H%M%SZ}"


def _advance(plans: Sequence[tuple[Schedule, Plan]], *, now: datetime) -> list[tuple[Schedule, Plan]]:
    """Lock the schedules that still stand where they were planned, move them on, and return them with their plans."""
    by_pk = {schedule.pk: (schedule, plan) for schedule, plan in plans}
    current = Schedule.objects.filter(pk__in=by_pk).order_by("pk")
    if connection.vendor == "postgresql":
        current = current.select_for_update(skip_locked=True)
    mine = []
    for pk, next_fire_at, updated_at in current.values_list("pk", "next_fire_at", "updated_at"):
        schedule, its_plan = by_pk[pk]
        if (next_fire_at, updated_at) == (schedule.next_fire_at, schedule.updated_at):
            mine.append((schedule, its_plan))
    sql.update_many(
        "scheduling_schedule",
        {"next_fire_at": "timestamptz", "skip_next": "bool", "id": "bigint"},
        [
            (sql.stored(its_plan.next_fire_at), schedule.skip_next and not its_plan.uses_skip_next, schedule.pk)
            for schedule, its_plan in mine
        ],
    )
    return mine


def _record(
    rows: Sequence[tuple[Schedule, Planned, queue.NewTask | None]], tasks: dict[str, Task], *, now: datetime
) -> None:
    """Write the ledger: new rows, or a longer last row where the same fate goes on."""
    last = _last_rows({schedule.pk for schedule, slot, _ in rows if not slot.is_run})
    new_rows: dict[int, list[Slot]] = {}
    longer: dict[int, Slot] = {}
    for schedule, slot, new in rows:
        before = new_rows[schedule.pk][-1] if new_rows.get(schedule.pk) else last.get(schedule.pk)
        same = before is not None and (before.outcome, before.reason) == (slot.outcome, slot.reason)
        if before is not None and same and not slot.is_run:
            before.last_due_at, before.count = slot.last, before.count + slot.count
            if before.pk:
                longer[before.pk] = before
            continue
        new_rows.setdefault(schedule.pk, []).append(
            Slot(
                schedule_id=schedule.pk,
                due_at=slot.first,
                last_due_at=slot.last,
                count=slot.count,
                outcome=slot.outcome,
                reason=slot.reason,
                task=tasks[new.task_id] if new else None,
                recorded_at=now,
            )
        )
    sql.update_many(
        "scheduling_slot",
        {"last_due_at": "timestamptz", "count": "int", "recorded_at": "timestamptz", "id": "bigint"},
        # As old as its last slot: the pruner must not take a row that still grows.
        [(sql.stored(row.last_due_at), row.count, sql.stored(now), pk) for pk, row in longer.items()],
    )
    Slot.objects.bulk_create([row for rows_of_one in new_rows.values() for row in rows_of_one])
    missed = [
        ("schedule.missed", {"task_id": schedule.task_id, "first": slot.first, "last": slot.last, "count": slot.count})
        for schedule, slot, _ in rows
        if slot.outcome == Slot.Outcome.MISSED
    ]
    log.publish_many(missed, now=now)


def _last_rows(schedule_ids: set[int]) -> dict[int, Slot]:
    """Return the newest ledger row of each schedule: an index seek each, two queries in all."""
    newest = Slot.objects.filter(schedule_id=OuterRef("pk")).order_by("-due_at").values("pk")[:1]
    pks = (
        Schedule.objects.filter(pk__in=schedule_ids).annotate(newest=Subquery(newest)).values_list("newest", flat=True)
    )
    return {row.schedule_id: row for row in Slot.objects.filter(pk__in=[pk for pk in pks if pk])}
