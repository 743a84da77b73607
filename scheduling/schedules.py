"""What people do to schedules: make, change, delete, run now. The clock fires them (slots), events do (triggers).

An edit locks the row and writes `updated_at`, so that a clock that has planned the old version drops its plan. The
next fire time is computed from the present: an edit never fires what has passed.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

import orjson
from django.db import IntegrityError, transaction

from k1node.audit import trail
from k1node.audit.redaction import outline
from k1node.events import log
from k1node.lib import sql
from k1node.lib.errors import Conflict, Detail, FieldInvalid, InvalidRequest, NotFound
from k1node.lib.ids import random_part
from scheduling import cron, gates, queue, slots, tasks
from scheduling.models import OverlapPolicy, Schedule, ScheduleTally, ScheduleType, Slot, Task

UNIQUE_LENGTH = 12  # of the random end of a run's id
EVENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,199}")
EVENT_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,198}\*|\*")
PATTERN_RULE = "Use an event's name, as order.created, or its beginning and a star, as order.*"
MAX_EXPRESSION = 200
MAX_CATCH_UP_CAP = 1_000
MAX_JITTER_MS = 86_400_000
MAX_WINDOW_MS = 366 * 86_400_000
HORIZON = timedelta(days=366 * 100)  # cron expressions are not followed further than that

EDITABLE = (
    "task_name",
    "handler",
    "parameters",
    "schedule_type",
    "schedule_expr",
    "event_filter",
    "timezone",
    "priority",
    "timeout_ms",
    "retry_policy",
    "circuit_breaker",
    "enabled",
    "paused_until",
    "pause_reason",
    "overlap_policy",
    "catch_up",
    "catch_up_window_ms",
    "catch_up_cap",
    "jitter_ms",
    "starts_at",
    "ends_at",
    "skip_next",
)
MOVES_NEXT_FIRE = {"schedule_type", "schedule_expr", "timezone", "enabled", "starts_at", "ends_at"}


class ScheduleIdTaken(Conflict):
    """A schedule with this id exists already"""

    def __init__(self, task_id: str, what: str = "schedule") -> None:
        super().__init__(
            f"A {what} with this id exists already: {task_id}",
            details=(Detail("task_id", f"'{task_id}' is taken", "Choose another id, or update the existing one"),),
        )


class ScheduleNotFound(NotFound):
    """Resource not found"""


class RunLeftOut(Conflict):
    """The overlap policy of the schedule leaves this run out"""


class PeriodInvalid(FieldInvalid):
    """The times of the schedule contradict each other."""


# --- checks -----------------------------------------------------------------------------------------------------


def check_expression(schedule_type: str, expression: str) -> None:
    """Raise ScheduleExpressionInvalid unless a schedule can fire by this."""
    if schedule_type == ScheduleType.CRON:
        cron.parse(expression)
    elif not EVENT_NAME.fullmatch(expression) and not EVENT_PATTERN.fullmatch(expression):
        raise cron.ScheduleExpressionInvalid("Is not an event name or pattern", PATTERN_RULE)


def check_period(schedule: Schedule, now: datetime) -> None:
    """Raise PeriodInvalid for an end before the start, and for times that no clock will see."""
    for name in ("starts_at", "ends_at", "paused_until"):
        at = getattr(schedule, name)
        if at is not None and at > now + HORIZON:
            raise PeriodInvalid(name, "Lies more than 100 years ahead", "Leave it out, or disable the schedule")
    if schedule.starts_at and schedule.ends_at and schedule.starts_at >= schedule.ends_at:
        raise PeriodInvalid("ends_at", "Must be later than starts_at", "Choose a later end, or leave it out")


def _check(schedule: Schedule, changed: set[str], now: datetime, *, keep: bool = False) -> None:
    """Raise InvalidRequest with every problem of what has changed; the rest was accepted once and stays.

    With `keep`, in a transaction, its retry policy is not retired before the end of that.
    """
    checks: list[tuple[set[str], Callable[[], None]]] = [
        ({"task_id"}, lambda: tasks.check_id(schedule.task_id)),
        ({"handler", "parameters"}, lambda: tasks.check_handler(schedule.handler, schedule.parameters)),
        ({"retry_policy"}, lambda: queue.check_policy(str(schedule.retry_policy_id), keep=keep)),
        ({"circuit_breaker"}, lambda: tasks.check_breaker(schedule.circuit_breaker, schedule.task_id)),
        ({"schedule_type", "schedule_expr"}, lambda: check_expression(schedule.schedule_type, schedule.schedule_expr)),
        ({"timezone"}, lambda: _check_zone(schedule.timezone)),
        ({"event_filter", "schedule_type"}, lambda: _check_filter(schedule)),
        ({"starts_at", "ends_at", "paused_until"}, lambda: check_period(schedule, now)),
    ]
    tasks.check_all(*(check for names, check in checks if names & changed))


def _check_zone(name: str) -> None:
    cron.zone(name)


def _check_filter(schedule: Schedule) -> None:
    if schedule.event_filter and schedule.schedule_type != ScheduleType.EVENT:
        raise FieldInvalid("event_filter", "Only an event schedule can have a filter", "Leave it out")


# --- verbs ------------------------------------------------------------------------------------------------------


def create(values: Mapping[str, Any], by: str, *, now: datetime) -> Schedule:
    """Add a schedule, due from now on; raise InvalidRequest or ScheduleIdTaken.

    `values` are task_id, handler, schedule_type, schedule_expr and any of EDITABLE. Runs of an event schedule may
    overlap unless told otherwise; those of a cron schedule are left out while an earlier one has not ended.
    """
    is_event = values.get("schedule_type") == ScheduleType.EVENT
    fields = {"overlap_policy": OverlapPolicy.ALLOW if is_event else OverlapPolicy.SKIP, **values}
    checked = Schedule(**_columns(fields))
    _check(checked, {"task_id", *EDITABLE}, now)
    next_fire_at = slots.first_fire_at(checked, now)

    def work() -> Schedule:
        if Task.objects.filter(task_id=fields["task_id"]).exists():
            raise ScheduleIdTaken(fields["task_id"], "task")
        queue.check_policy(str(checked.retry_policy_id), keep=True)  # it may have been retired a moment ago
        schedule = Schedule(**_columns(fields), created_by=by[:150], next_fire_at=next_fire_at)
        try:
            with transaction.atomic():
                schedule.save(force_insert=True)
        except IntegrityError:
            if not Schedule.objects.filter(task_id=schedule.task_id).exists():
                raise
            raise ScheduleIdTaken(schedule.task_id) from None
        facts = {"schedule_type": schedule.schedule_type, "schedule_expr": schedule.schedule_expr}
        log.publish("schedule.created", {"task_id": schedule.task_id, **facts, "by": by}, now=now)
        trail.record("schedule.created", f"schedule:{schedule.task_id}", after=_audited(schedule), by=by, now=now)
        return schedule

    return sql.in_transaction(work)


def update(schedule: Schedule, changes: Mapping[str, Any], by: str, *, now: datetime) -> Schedule:
    """Change some of EDITABLE and return the new row; raise InvalidRequest or ScheduleNotFound.

    Only what differs is checked and written, so a schedule whose script is gone can still be paused.
    """
    changes = _columns({name: value for name, value in changes.items() if name in EDITABLE})

    def work() -> Schedule:
        row = _locked(schedule)
        changed = {name for name, value in changes.items() if _differs(getattr(row, name), value)}
        if not changed and not row.last_error:
            return row
        before = _audited(row, changed)
        for name in changed:
            setattr(row, name, changes[name])
        after = _audited(row, changed)
        changed = {name.removesuffix("_id") for name in changed}
        _check(row, changed, now, keep=True)
        if changed & MOVES_NEXT_FIRE or row.last_error:
            row.next_fire_at = slots.first_fire_at(row, _past_the_ledger(row, now))
        row.last_error = ""
        row.save(update_fields=[*changed, "next_fire_at", "last_error", "updated_at"])
        if "overlap_policy" in changed:
            gates.overlap_gates([row], adopt=True)
        log.publish("schedule.updated", {"task_id": row.task_id, "changed": sorted(changed), "by": by}, now=now)
        trail.record("schedule.updated", f"schedule:{row.task_id}", before=before, after=after, by=by, now=now)
        return row

    return sql.in_transaction(work)


def delete(schedule: Schedule, by: str, *, now: datetime) -> None:
    """Remove the rule. What it has queued or runs goes on, and its tasks stay readable; ScheduleNotFound if gone."""

    def work() -> None:
        row = _locked(schedule)
        ScheduleTally.objects.filter(schedule_id=row.pk)._raw_delete("default")
        Schedule.objects.filter(pk=row.pk)._raw_delete("default")
        log.publish("schedule.deleted", {"task_id": row.task_id, "by": by}, now=now)
        trail.record("schedule.deleted", f"schedule:{row.task_id}", before=_audited(row), by=by, now=now)

    sql.in_transaction(work)


def run_now(schedule: Schedule, by: str, parameters: Mapping[str, Any] | None = None, *, now: datetime) -> Task:
    """Queue one run at once, disabled and paused schedules included: an operator asks.

    `parameters` are laid over the schedule's own, key by key. Raises InvalidRequest, ScheduleNotFound if it is gone by
    now, and RunLeftOut when an earlier run has not ended and the overlap policy has no room for another.
    """
    given = {**schedule.parameters, **(parameters or {})}
    queue.check(schedule.handler, given, str(schedule.retry_policy_id))

    def work() -> Task:
        _locked(schedule)
        gate_of = gates.overlap_gates([schedule])
        admission = gates.admit_overlap(schedule, gate_of.get(schedule.pk))
        if admission.status is None:
            raise RunLeftOut(f"Not run, {admission.reason}")
        task_id = f"{schedule.task_id}-run-{random_part(UNIQUE_LENGTH)}"
        new = slots.new_run(schedule, task_id, due_at=now, admission=admission, created_by=by[:150], parameters=given)
        gates.save_counts(gate_of.values())
        task = queue.enqueue([new], now=now)[0]
        trail.record("schedule.run", f"schedule:{schedule.task_id}", after={"task_id": task_id}, by=by, now=now)
        if admission.end_others and admission.gate_id:
            queue.end_earlier_runs(schedule, admission.gate_id, keep=task_id, now=now)
            task.refresh_from_db()
        task.schedule = schedule  # who shows the run must not look for a row that may be gone by then
        return task

    return sql.in_transaction(work)


def _audited(row: Schedule, names: Iterable[str] = EDITABLE) -> dict[str, Any]:
    """Return what the audit log keeps of these columns; of parameters, which may be secret, only an outline."""
    values = {name: getattr(row, "retry_policy_id" if name == "retry_policy" else name) for name in names}
    return {name: outline(value) if name == "parameters" else value for name, value in values.items()}


def _columns(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return API values by the names of the model's attributes."""
    return {"retry_policy_id" if name == "retry_policy" else name: value for name, value in values.items()}


def _differs(before: object, after: object) -> bool:
    # In JSON 1 is not true, for Python they are equal.
    return before != after or (isinstance(after, dict) and _canonical(before) != _canonical(after))


def _canonical(value: object) -> bytes:
    # PostgreSQL keeps the keys of an object in an order of its own.
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def _locked(schedule: Schedule) -> Schedule:
    rows = Schedule.objects.filter(pk=schedule.pk)
    row = (rows.select_for_update() if sql.is_postgresql() else rows).first()
    if row is None:
        raise ScheduleNotFound()
    return row


def _past_the_ledger(schedule: Schedule, now: datetime) -> datetime:
    """Return `now`, or the last slot in the ledger if a clock that is ahead of ours has fired it already."""
    last = Slot.objects.filter(schedule=schedule).order_by("-due_at").values_list("last_due_at", flat=True).first()
    return max(now, last) if last else now


# --- for people -------------------------------------------------------------------------------------------------


def in_words(schedule: Schedule) -> str:
    """Return when the schedule runs, as a sentence; empty if a stored expression cannot be read any more."""
    return words_for(schedule.schedule_type, schedule.schedule_expr, schedule.timezone)


@lru_cache(maxsize=4096)
def words_for(schedule_type: str, expression: str, timezone: str) -> str:
    if schedule_type == ScheduleType.CRON:
        try:
            return cron.describe(expression, timezone)
        except InvalidRequest:
            return ""
    if expression == "*":
        return "On every event"
    if expression.endswith("*"):
        return f"On every event whose name begins with {expression[:-1]}"
    return f"On the event {expression}"


def next_execution(schedule: Schedule) -> datetime | None:
    """Return when the next run is due as things stand: past a pause and a run to be left out; None if never."""
    if schedule.next_fire_at is None:
        return None
    try:
        if schedule.skip_next or (schedule.paused_until and schedule.next_fire_at < schedule.paused_until):
            return next(iter(_upcoming(schedule, 1, schedule.next_fire_at)), None)
    except InvalidRequest:
        return None
    return schedule.next_fire_at


def upcoming(schedule: Schedule, count: int, *, now: datetime) -> list[datetime]:
    """Return the next `count` runs as things stand, as if the schedule were enabled; an event schedule has none."""
    if schedule.schedule_type != ScheduleType.CRON:
        return []
    return _upcoming(schedule, count, schedule.next_fire_at or now + timedelta(microseconds=1))


def _upcoming(schedule: Schedule, count: int, earliest: datetime) -> list[datetime]:
    begin = max(filter(None, (earliest, schedule.starts_at, schedule.paused_until)))
    skipped = 1 if schedule.skip_next else 0
    just_before = begin - timedelta(microseconds=1)
    runs = cron.preview(schedule.schedule_expr, schedule.timezone, just_before, count + skipped)[skipped:]
    return [run for run in runs if schedule.ends_at is None or run <= schedule.ends_at]
