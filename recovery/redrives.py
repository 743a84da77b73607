"""Redrives: dead letters resubmitted by filter, as a bulk job (k1node.operations.jobs).

plan() freezes which entries, the oldest first, and says what would be done; start() lets the clock do it. Each step
resubmits the next few as recovery.dead_letters does; an entry that cannot be is refused by itself and named, the others
go on. The job stops by itself when the breaker of the next entries opens, and after the first few unless all of the
tasks made of them have completed.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connection

from k1node.lib.errors import Conflict, FieldInvalid
from k1node.operations import jobs
from k1node.operations.jobs import AT_FULL_SPEED, Answer, Kind, Pace, Verdict
from k1node.operations.models import Item, Operation
from recovery import dead_letters, retries
from recovery.breaker_rules import State
from recovery.dead_letters import Wanted
from recovery.models import Breaker, DeadLetter
from recovery.records import By
from recovery.retries import Changes
from scheduling.models import FINISHED, Task, TaskStatus

KIND = "redrive"
SAMPLE = 5
OUTCOMES_MOST = 10_000


class NothingToRedrive(Conflict):
    """No pending dead letter fits"""


def plan(
    wanted: Wanted,
    changes: Changes,
    by: By,
    *,
    pace: Pace = AT_FULL_SPEED,
    stop_when_open: bool = True,
    now: datetime,
) -> tuple[Operation, bool]:
    """Freeze which pending entries fit, the oldest first; return the job and whether there were more than it may have.

    Raises FieldInvalid where the changes cannot fit any task, and NothingToRedrive.
    """
    if wanted.status not in (None, DeadLetter.Status.PENDING):
        raise FieldInvalid("filter.status", "Only pending entries are resubmitted", "Leave it out")
    changes.check()
    rows = dead_letters.listed(wanted).filter(status=DeadLetter.Status.PENDING)
    pks = list(rows.order_by("pk").values_list("pk", flat=True)[: jobs.MOST + 1])
    if not pks:
        raise NothingToRedrive()
    job = jobs.plan(
        KIND,
        pks,
        arguments={**changes.as_json(), "stop_when_breaker_opens": stop_when_open},
        selection=wanted.as_json(),
        pace=pace,
        by=by.name,
        reason=by.reason,
        now=now,
    )
    return job, len(pks) > jobs.MOST


def start(operation_id: str, by: By, *, now: datetime) -> Operation:
    """Let it begin, or go on after it has stopped. Raises JobRefuses."""
    return jobs.start(operation_id, KIND, by.name, now=now)


def stop(operation_id: str, by: By, *, now: datetime) -> Operation:
    """Let it rest until somebody starts it again. Raises JobRefuses."""
    return jobs.stop(operation_id, KIND, by.name, now=now)


def cancel(operation_id: str, by: By, *, now: datetime) -> Operation:
    """End it where it stands; the tasks it has made stay. Raises JobRefuses."""
    return jobs.cancel(operation_id, KIND, by.name, now=now)


# --- the kind of job --------------------------------------------------------------------------------------------


def _perform(job: Operation, subjects: Sequence[int], now: datetime) -> list[Answer]:
    found = {row.pk: row for row in DeadLetter.objects.filter(pk__in=subjects).select_related("task")}
    letters = [found[pk] for pk in subjects if pk in found]
    ready = retries.ready([letter.task for letter in letters], _changes(job))
    by = By(job.created_by, job.reason or f"Redrive {job.operation_id}")
    made = dict(
        zip((letter.pk for letter in letters), retries.make(ready, by, only_pending=True, now=now), strict=True)
    )
    answers = []
    for pk in subjects:
        answer = made.get(pk)
        if isinstance(answer, Task):
            answers.append(Answer(True, made=answer.pk))
        elif answer is None:
            answers.append(Answer(False, "It is gone"))
        else:
            answers.append(Answer(False, "; ".join(each.message for each in answer.details) or answer.message))
    return answers


def _obstacle(job: Operation, subjects: Sequence[int]) -> str:
    try:
        _changes(job).check()
    except FieldInvalid as error:  # the policy is gone by now
        return _told(error)
    if not job.arguments.get("stop_when_breaker_opens"):
        return ""
    named = DeadLetter.objects.filter(pk__in=subjects).exclude(circuit_breaker="").values("circuit_breaker")
    is_open = Breaker.objects.filter(state=State.OPEN, breaker_id__in=named).values_list("breaker_id", flat=True)
    name = is_open.first()
    return "" if name is None else f"The breaker '{name}' is open"


def _verdict(job: Operation, made: Collection[int]) -> Verdict:
    if not made:
        return Verdict(False, f"None of the first {job.first} could be resubmitted")
    states = list(Task.objects.filter(pk__in=made).values_list("status", flat=True))
    bad = [status for status in states if status in FINISHED and status != TaskStatus.COMPLETED]
    if bad:
        return Verdict(False, f"{len(bad)} of the first {job.first} did not succeed")
    going = len([status for status in states if status not in FINISHED])
    return Verdict(None, f"Waiting for {going} of the first {job.first}") if going else Verdict(True)


REDRIVE = Kind(KIND, _perform, _obstacle, _verdict)


def _changes(job: Operation) -> Changes:
    return Changes(job.arguments.get("parameters") or {}, job.arguments.get("retry_policy"))


# --- what is read -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """One of the first entries, what its task would be given, and why it could not run ("" if it can)."""

    letter: DeadLetter
    parameters: dict[str, Any]
    timeout_ms: int
    problem: str


def sample(job: Operation) -> list[Sample]:
    """Return what would become of the next entries."""
    subjects = list(
        job.items.filter(position__gt=job.position).order_by("position").values_list("subject", flat=True)[:SAMPLE]
    )
    letters = {row.pk: row for row in DeadLetter.objects.filter(pk__in=subjects).select_related("task")}
    found = [letters[pk] for pk in subjects if pk in letters]
    return [
        Sample(letter, each.parameters, each.timeout_ms, "" if each.error is None else _told(each.error))
        for letter, each in zip(found, [retries.as_changed(each.task, _changes(job)) for each in found], strict=True)
    ]


def _told(error: Exception) -> str:
    details = getattr(error, "details", ())
    return "; ".join(each.message for each in details) or str(error)


def outcomes(job: Operation) -> dict[str, int]:
    """Return how many of the tasks it has made are in each state: of the newest OUTCOMES_MOST."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT task.status, count(*) FROM (SELECT made FROM operations_item WHERE operation_id = %s"
            " AND position <= %s AND made IS NOT NULL ORDER BY position DESC LIMIT %s) AS item"
            " JOIN scheduling_task AS task ON task.id = item.made GROUP BY task.status",
            [job.pk, job.position, OUTCOMES_MOST],
        )
        return dict(cursor.fetchall())


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one entry."""

    item: Item
    letter: DeadLetter | None
    task: Task | None


def results(items: Sequence[Item]) -> list[Result]:
    """Return the entries and the new tasks of a page of items: two queries."""
    letters = {
        row.pk: row for row in DeadLetter.objects.filter(pk__in=[item.subject for item in items]).select_related("task")
    }
    tasks = {row.pk: row for row in Task.objects.filter(pk__in=[item.made for item in items if item.made])}
    return [Result(item, letters.get(item.subject), tasks.get(item.made or 0)) for item in items]
