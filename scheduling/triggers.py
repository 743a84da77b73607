"""From an event to tasks: the event schedules whose name or pattern fits get one run each, in one transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from k1node.lib import sql
from k1node.lib.errors import Conflict, Detail, FieldInvalid, InvalidRequest
from k1node.lib.ids import random_part
from scheduling import gates, queue, schedules, slots
from scheduling.models import Schedule, ScheduleType, Task

MOST_SCHEDULES = 1_000  # of one event
MAX_METADATA_BYTES = 64 * 1024
ABSENT = object()


class EventInvalid(InvalidRequest):
    """The event cannot be used"""


class TooManySchedules(Conflict):
    """More schedules wait for this event than one trigger may start"""


@dataclass(frozen=True, slots=True)
class Triggered:
    """What an event set off: how many schedules it fits, and the tasks of those that may run now."""

    matched: int
    tasks: list[Task]


def trigger(event: str, metadata: Mapping[str, Any], by: str, *, now: datetime) -> Triggered:
    """Queue one run of every enabled event schedule that fits; raise EventInvalid or TooManySchedules.

    Schedules that are paused, outside their period, told to leave out the next run, or held back by their overlap
    policy are counted as matched but queue nothing.
    """
    _check(event, metadata)
    # Read before the transaction: matching writes nothing, and on SQLite a write transaction excludes all others.
    matched = [schedule for schedule in waiting_for(event) if fits(schedule.event_filter, metadata)]
    ready = [schedule for schedule in matched if _is_ready(schedule, now)]
    if not ready:
        return Triggered(len(matched), [])
    happened = {"event": {"name": event, "metadata": dict(metadata)}}
    return Triggered(len(matched), sql.in_transaction(lambda: _run(ready, happened, by, now=now)))


def waiting_for(event: str) -> list[Schedule]:
    """Return the enabled schedules for `event`, by its name or a beginning and a star: index seeks."""
    patterns = [event, *(f"{event[:length]}*" for length in range(len(event) + 1))]
    rows = Schedule.objects.filter(schedule_type=ScheduleType.EVENT, enabled=True, schedule_expr__in=patterns)
    found = list(rows.order_by("pk")[: MOST_SCHEDULES + 1])
    if len(found) > MOST_SCHEDULES:
        raise TooManySchedules(f"More than {MOST_SCHEDULES:,} schedules wait for {event}; nothing was queued")
    return found


def fits(wanted: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    """Say whether `metadata` has every value of `wanted`, whose keys may be paths: {"repo.name": "k1"}."""
    return all(_same(_value_at(metadata, key), value) for key, value in wanted.items())


def _value_at(metadata: Mapping[str, Any], path: str) -> object:
    if path in metadata:
        return metadata[path]
    found: object = metadata
    for key in path.split("."):
        if not isinstance(found, Mapping) or key not in found:
            return ABSENT
        found = found[key]
    return found


def _same(found: object, wanted: object) -> bool:
    # In JSON 1 is not true, for Python they are equal.
    return found == wanted and isinstance(found, bool) == isinstance(wanted, bool)


def _check(event: str, metadata: Mapping[str, Any]) -> None:
    problems = []
    if not schedules.EVENT_NAME.fullmatch(event):
        rule = "Use letters, digits and . _ : / -, beginning with a letter or digit, at most 200"
        problems.append(Detail("event", "Is not an event name", rule))
    size = len(orjson.dumps(metadata))
    if size > MAX_METADATA_BYTES:
        problems += FieldInvalid(
            "metadata", f"Must be at most {MAX_METADATA_BYTES:,} bytes of JSON, not {size:,}", "Pass a reference"
        ).details
    if problems:
        raise EventInvalid(details=tuple(problems))


def _is_ready(schedule: Schedule, now: datetime) -> bool:
    if schedule.paused_until and now < schedule.paused_until:
        return False
    has_begun = schedule.starts_at is None or schedule.starts_at <= now
    return has_begun and (schedule.ends_at is None or now <= schedule.ends_at)


def _run(ready: Sequence[Schedule], happened: Mapping[str, Any], by: str, *, now: datetime) -> list[Task]:
    """Enqueue one run each, in the order of locks: schedules, gates, inserts, then the tasks that must end."""
    ready = [schedule for schedule in ready if not (schedule.skip_next and _use_skip(schedule))]
    gate_of = gates.overlap_gates(ready)
    runs: list[queue.NewTask] = []
    endings: list[tuple[Schedule, int, str]] = []
    for schedule in ready:
        admission = gates.admit_overlap(schedule, gate_of.get(schedule.pk))
        if admission.status is None:
            continue
        run = slots.new_run(
            schedule,
            f"{schedule.task_id}-{random_part(schedules.UNIQUE_LENGTH)}",
            due_at=slots.due_at(schedule, now),
            admission=admission,
            created_by=by[:150],
            parameters={**schedule.parameters, **happened},
        )
        runs.append(run)
        if admission.end_others and admission.gate_id:
            endings.append((schedule, admission.gate_id, run.task_id))
    gates.save_counts(gate_of.values())
    tasks = queue.enqueue(runs, now=now)
    for schedule, gate_id, keep in endings:
        queue.end_earlier_runs(schedule, gate_id, keep=keep, now=now)
    return tasks


def _use_skip(schedule: Schedule) -> bool:
    """Take the schedule's wish to leave out one run; False when another event has had it."""
    return bool(Schedule.objects.filter(pk=schedule.pk, skip_next=True).update(skip_next=False))
