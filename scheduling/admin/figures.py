"""What the pages show of schedules beside their own rows: last runs, ledger, coming slots. Reads along indexes."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from django.db.models import F, OuterRef, Subquery

from k1node.lib.errors import InvalidRequest
from scheduling import cron
from scheduling.models import Schedule, ScheduleType, Slot, Task

SEEN = (
    "task_id",
    "paused_at",
    "schedule_id",
    "status",
    "due_at",
    "created_at",
    "started_at",
    "exit_code",
    "duration_ms",
    "attempt",
)
WARN_AHEAD = timedelta(days=40)  # of clock changes


@dataclass(frozen=True, slots=True)
class Fire:
    """A coming slot: in UTC, in the schedule's zone, and why it will be left out, if so."""

    at: datetime
    local: str
    left_out: str = ""


@dataclass(slots=True)
class Coming:
    """The next slots of a cron schedule. `problem` says why there are none; `zone` is empty for UTC."""

    fires: list[Fire] = field(default_factory=list)
    zone: str = ""
    warnings: list[str] = field(default_factory=list)
    problem: str = ""


def last_runs(schedules: Iterable[Schedule]) -> dict[int, Task]:
    """Return the newest task of each schedule that has one: a seek each, two queries in all."""
    newest = Task.objects.filter(schedule_id=OuterRef("pk")).order_by("-pk").values("pk")[:1]
    rows = Schedule.objects.filter(pk__in=[schedule.pk for schedule in schedules]).annotate(newest=Subquery(newest))
    pks = [pk for pk in rows.order_by().values_list("newest", flat=True) if pk]
    return {task.schedule_id: task for task in Task.objects.filter(pk__in=pks).only(*SEEN) if task.schedule_id}


def runs_of(schedule: Schedule, count: int = 10) -> list[Task]:
    """Return the newest runs."""
    return list(Task.objects.filter(schedule_id=schedule.pk).order_by("-pk").only(*SEEN, "last_error")[:count])


def ledger_of(schedule: Schedule, count: int = 15) -> list[Slot]:
    """Return the newest rows of the slot ledger, with their tasks."""
    return list(Slot.objects.filter(schedule_id=schedule.pk).order_by("-due_at").select_related("task")[:count])


def coming(schedule: Schedule, now: datetime, count: int = 10) -> Coming:
    """Return the next `count` slots as things stand, those that will be left out included."""
    if schedule.schedule_type != ScheduleType.CRON:
        return Coming(problem="Runs when its event happens.")
    start = max(now, schedule.starts_at - timedelta(microseconds=1)) if schedule.starts_at else now
    try:
        fires = cron.preview(schedule.schedule_expr, schedule.timezone, start, count)
        warnings = cron.dst_warnings(schedule.schedule_expr, schedule.timezone, start, WARN_AHEAD)
        zone: ZoneInfo = cron.zone(schedule.timezone)
    except InvalidRequest as error:
        return Coming(problem=" ".join(detail.message for detail in error.details))
    fires = [at for at in fires if not schedule.ends_at or at <= schedule.ends_at]
    found = Coming(zone="" if schedule.timezone == "UTC" else schedule.timezone, warnings=warnings)
    if not fires:
        found.problem = "None: the schedule has ended."
    skip = schedule.skip_next
    for at in fires:
        reason = ""
        if not schedule.enabled:
            reason = "disabled"
        elif schedule.paused_until and at < schedule.paused_until:
            reason = "paused"
        elif skip:
            reason, skip = "to be skipped", False
        found.fires.append(Fire(at, f"{at.astimezone(zone):%Y-%m-%d %H:%M:%S %Z}", reason))
    return found


def names_of(schedule_ids: Iterable[int]) -> dict[int, str]:
    """Return the ids that people gave to schedules, by primary key; deleted ones are missing."""
    return dict(Schedule.objects.filter(pk__in=set(schedule_ids)).values_list("pk", F("task_id")))
