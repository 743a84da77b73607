"""Dead letters: what failed for good, until an operator has looked.

    settlement   add()            the task has failed: pending
    operators    add_by_hand()    pending, for something that this node has not run or has not seen fail
                 resubmit…()      pending -> resubmitted: a new task does it again, with changes (recovery.retries)
                 archive()        pending -> archived: nothing is to be done
                 unarchive()      archived -> pending
    clock        prune()          archived and resubmitted ones that are old go; pending ones stay for ever

An entry is resubmitted once. A resubmission that fails again makes an entry of its own, which names the one before.
Every change locks the entries first, then what retries lock; several at once are all or nothing.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypedDict

from django.db import connection
from django.db.models import QuerySet

from k1node.audit import trail
from k1node.events import log
from k1node.lib import sql
from k1node.lib.errors import Detail, FieldInvalid, InvalidRequest, K1NodeError, NotFound
from recovery import fingerprints, records, retries
from recovery.models import DeadLetter, Intervention
from recovery.records import By, Done
from recovery.retries import Changes, DeadLetterRefuses
from scheduling import queries, queue, tasks
from scheduling.models import FINISHED, Schedule, Task
from scheduling.outcomes import EXIT_PYTHON_EXCEPTION, Action
from scheduling.settlement import Settlement

Status = DeadLetter.Status

MOST_AT_ONCE = 1_000
COUNT_MOST = 10_000
GROUPED_MOST = 100_000  # of the newest pending entries
GROUPS_MOST = 100
NAMED_MOST = 50  # entries are named so far in a refusal
CHAIN_MOST = 50
PRUNE_BATCH = 500

COLUMNS = {
    "dlq_id": "text",
    "task_id": "bigint",
    "status": "text",
    "failed_at": "timestamptz",
    "error_code": "int",
    "error_message": "text",
    "fingerprint": "text",
    "handler": "text",
    "schedule_id": "bigint",
    "circuit_breaker": "text",
    "created_by": "text",
    "previous_dlq_id": "text",
    "resolved_by": "text",
    "reason": "text",
    "new_task_name": "text",
    "changes": "jsonb",
}


def add(settled: Sequence[Settlement], *, now: datetime) -> None:
    """Write the dead letters of the tasks that have failed for good, in the transaction that settles them."""
    failed = [each for each in settled if each.decision.action is Action.FAIL]
    if not failed:
        return
    before = dict(
        DeadLetter.objects.filter(new_task__in=[each.claim.id for each in failed]).values_list("new_task", "dlq_id")
    )
    rows = []
    facts = []
    for each in failed:
        claim, outcome = each.claim, each.outcome
        code = EXIT_PYTHON_EXCEPTION if outcome.exit_code is None else outcome.exit_code
        dlq_id = id_of(claim.task_id, outcome.finished_at)
        rows.append(
            (
                dlq_id,
                claim.id,
                Status.PENDING.value,
                sql.stored(outcome.finished_at),
                code,
                outcome.error,
                fingerprints.fingerprint(code, outcome.error),
                claim.handler,
                claim.schedule_id,
                claim.circuit_breaker,
                "",
                before.get(claim.id, ""),
                "",
                "",
                "",
                "{}",
            )
        )
        facts.append(("dlq.added", _fact(dlq_id, claim.task_id, code, outcome.error)))
    sql.insert_many("recovery_deadletter", COLUMNS, rows)
    log.publish_many(facts, now=now)


def id_of(task_id: str, failed_at: datetime) -> str:
    """Return `dlq-<task id>-<milliseconds since 1970>`."""
    return f"dlq-{task_id}-{int(failed_at.timestamp() * 1000)}"


def _fact(dlq_id: str, task_id: str, code: int, error: str) -> dict[str, Any]:
    return {"dlq_id": dlq_id, "task_id": task_id, "error_code": code, "error_message": error}


def add_by_hand(values: Mapping[str, Any], by: By, *, now: datetime) -> DeadLetter:
    """Put something on the queue that did not get there by itself; raises InvalidRequest, DeadLetterRefuses.

    `values` are task_id, handler, error_code, error_message and parameters. A task of that id is taken if it has ended
    and has no entry, otherwise a failed one is made.
    """
    handler, parameters = values["handler"], values.get("parameters")
    task_id, code, error = values["task_id"], values["error_code"], values.get("error_message", "")

    def work() -> DeadLetter:
        rows = Task.objects.filter(task_id=task_id)
        task = (rows.select_for_update() if sql.is_postgresql() else rows).first()
        if task is None:
            tasks.check_all(lambda: tasks.check_id(task_id), lambda: tasks.check_handler(handler, parameters or {}))
            if Schedule.objects.filter(task_id=task_id).exists():
                raise queue.TaskIdTaken([task_id])
            task = queue.add_failed(
                queue.NewTask(task_id, handler, now, parameters=parameters or {}, created_by=by.name[:150]),
                exit_code=code,
                error=error,
                now=now,
            )
        else:
            _check_can_be_added(task, handler, parameters)
        letter = DeadLetter.objects.create(
            dlq_id=id_of(task_id, now),
            task=task,
            failed_at=now,
            error_code=code,
            error_message=error,
            fingerprint=fingerprints.fingerprint(code, error),
            handler=task.handler,
            schedule_id=task.schedule_id,
            circuit_breaker=task.circuit_breaker,
            created_by=by.name[:150],
        )
        log.publish("dlq.added", _fact(letter.dlq_id, task_id, code, error) | {"by": by.name}, now=now)
        trail.record("dlq.added", f"dlq:{letter.dlq_id}", after={"task_id": task_id}, by=by.name, now=now)
        return letter

    return sql.in_transaction(work)


def _check_can_be_added(task: Task, handler: str, parameters: Mapping[str, Any] | None) -> None:
    if task.status not in FINISHED:
        raise DeadLetterRefuses(f"The task {task.task_id} has not ended: {queries.shown_status(task)}")
    if found := DeadLetter.objects.filter(task=task).values_list("dlq_id", flat=True).first():
        raise DeadLetterRefuses(f"The task {task.task_id} has an entry already: {found}")
    if handler != task.handler:
        raise FieldInvalid("handler", f"The task {task.task_id} runs something else", f"Use {task.handler!r}")
    if parameters is not None and parameters != task.parameters:
        raise FieldInvalid(
            "parameters",
            f"The task {task.task_id} has others",
            "Leave them out here, and change them when it is resubmitted",
        )


# --- what operators do ------------------------------------------------------------------------------------------


def resubmit(letter: DeadLetter, changes: Changes, by: By, *, now: datetime) -> Task:
    """Queue a new task that does again what failed. Raises InvalidRequest, DeadLetterRefuses, Impossible."""
    return resubmit_all([letter], changes, by, now=now)[0]


def resubmit_all(letters: Sequence[DeadLetter], changes: Changes, by: By, *, now: datetime) -> list[Task]:
    """Queue a new task for each entry (with its task), or for none: raises what stands in the way, all of it named."""
    ready = retries.ready([letter.task for letter in letters], changes)
    if broken := [(letter, each.error) for letter, each in zip(letters, ready, strict=True) if each.error]:
        raise _together(broken, InvalidRequest)

    def work() -> list[Task]:
        made: list[Task] = []
        refused: list[tuple[DeadLetter, K1NodeError]] = []
        for letter, answer in zip(letters, retries.make(ready, by, only_pending=True, now=now), strict=True):
            if isinstance(answer, Task):
                made.append(answer)
            else:
                refused.append((letter, answer))
        if refused:
            raise _together(refused, DeadLetterRefuses)
        return made

    return sql.in_transaction(work)


def _together(refused: Sequence[tuple[DeadLetter, K1NodeError | None]], kind: type[K1NodeError]) -> K1NodeError:
    """Return the error of the one, or one that names all."""
    first = refused[0][1]
    assert first is not None
    if len(refused) == 1:
        return first
    named = tuple(
        Detail(letter.dlq_id, "; ".join(detail.message for detail in error.details) or error.message)
        for letter, error in refused[:NAMED_MOST]
        if error is not None
    )
    return kind(f"{len(refused)} of the entries cannot be resubmitted, so none was", details=named)


def archive(letters: Sequence[DeadLetter], by: By, *, now: datetime) -> list[DeadLetter]:
    """Say of each entry that nothing is to be done, or of none; raises DeadLetterRefuses."""
    change = {"status": Status.ARCHIVED, "resolved_at": now, "resolved_by": by.name[:150], "reason": by.reason}
    return _move(letters, Status.PENDING, change, Intervention.Action.ARCHIVE, "dlq.archived", by, now=now)


def unarchive(letters: Sequence[DeadLetter], by: By, *, now: datetime) -> list[DeadLetter]:
    """Put each entry back among the pending ones, or none; raises DeadLetterRefuses."""
    change = {"status": Status.PENDING, "resolved_at": None, "resolved_by": "", "reason": ""}
    return _move(letters, Status.ARCHIVED, change, Intervention.Action.UNARCHIVE, "dlq.unarchived", by, now=now)


def _move(
    letters: Sequence[DeadLetter],
    before: DeadLetter.Status,
    change: dict[str, Any],
    action: Intervention.Action,
    event: str,
    by: By,
    *,
    now: datetime,
) -> list[DeadLetter]:
    def work() -> list[DeadLetter]:
        found = lock([letter.pk for letter in letters])
        wrong = [letter for letter in found if letter.status != before]
        if wrong or len(found) < len(letters):
            gone = [letter.dlq_id for letter in letters if letter.pk not in {each.pk for each in found}]
            named = [f"{letter.dlq_id} is {letter.status}" for letter in wrong] + [f"{each} is gone" for each in gone]
            raise DeadLetterRefuses(f"Only what is {before} can be {change['status']}: {', '.join(named[:NAMED_MOST])}")
        DeadLetter.objects.filter(pk__in=[letter.pk for letter in found]).update(**change)
        for letter in found:
            for name, value in change.items():
                setattr(letter, name, value)
        written_down(found, before, action, event, by, now=now)
        return found

    return sql.in_transaction(work)


def written_down(
    letters: Sequence[DeadLetter],
    before: DeadLetter.Status,
    action: Intervention.Action,
    event: str,
    by: By,
    *,
    now: datetime,
) -> None:
    """Record and publish what was done to entries (with their tasks)."""
    records.record_many(
        [
            Done(action, {"dead_letter": before.value}, {"dead_letter": str(letter.status)}, task_id=letter.task_id)
            for letter in letters
        ],
        by,
        now=now,
    )
    facts = [
        (event, {"dlq_id": letter.dlq_id, "task_id": letter.task.task_id, "by": by.name, "reason": by.reason})
        for letter in letters
    ]
    log.publish_many(facts, now=now)


def lock(pks: Collection[int]) -> list[DeadLetter]:
    """Return the entries with their tasks, locked in the order of their keys; needs a transaction."""
    rows = DeadLetter.objects.filter(pk__in=pks).select_related("task").order_by("pk")
    return list(rows.select_for_update(of=("self",)) if sql.is_postgresql() else rows)


# --- what is read -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which entries: all that fit everything given."""

    status: str | None = None
    task_id: str | None = None  # of a task, or of a schedule: all its runs
    schedule: str | None = None
    handler: str | None = None
    circuit_breaker: str | None = None
    fingerprint: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def as_json(self) -> dict[str, str]:
        return {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name in self.__slots__
            if (value := getattr(self, name)) is not None
        }


def listed(wanted: Wanted) -> QuerySet[DeadLetter]:
    """Return the entries that fit, in no order."""
    rows = DeadLetter.objects.all()
    if wanted.status is not None:
        rows = rows.filter(status=wanted.status)
    if wanted.task_id is not None:
        task = Task.objects.filter(task_id=wanted.task_id).values_list("pk", flat=True).first()
        rows = rows.filter(task=task) if task is not None else rows.filter(schedule=_schedule(wanted.task_id))
    if wanted.schedule is not None:
        rows = rows.filter(schedule=_schedule(wanted.schedule))
    for name in ("handler", "circuit_breaker", "fingerprint"):
        if (value := getattr(wanted, name)) is not None:
            rows = rows.filter(**{name: value})
    if wanted.circuit_breaker:
        rows = rows.filter(circuit_breaker__gt="")  # its index's condition: SQLite does not see that it holds
    if wanted.since is not None:
        rows = rows.filter(failed_at__gte=wanted.since)
    if wanted.until is not None:
        rows = rows.filter(failed_at__lt=wanted.until)
    return rows


def pending(wanted: Wanted) -> int:
    """Return how many pending entries fit, counted to one more than COUNT_MOST."""
    rows = listed(wanted).filter(status=Status.PENDING).order_by()
    return rows.values("pk")[: COUNT_MOST + 1].count()


def _schedule(task_id: str) -> int:
    """Return the schedule's key, or one that none has."""
    return Schedule.objects.filter(task_id=task_id).values_list("pk", flat=True).first() or 0


def by_ids(dlq_ids: Sequence[str]) -> list[DeadLetter]:
    """Return the entries of these ids in their order, with their tasks. Raises NotFound, naming what is unknown."""
    rows = {row.dlq_id: row for row in DeadLetter.objects.filter(dlq_id__in=dlq_ids).select_related("task")}
    if missing := [dlq_id for dlq_id in dlq_ids if dlq_id not in rows]:
        raise NotFound(
            f"There is no dead letter {', '.join(missing[:NAMED_MOST])}",
            details=tuple(Detail("dlq_ids", f"'{dlq_id}' is not known") for dlq_id in missing[:NAMED_MOST]),
        )
    return [rows[dlq_id] for dlq_id in dlq_ids]


class Group(TypedDict):
    """Pending entries that failed for the same reason."""

    fingerprint: str
    error_code: int
    error_line: str
    count: int
    last_hour: int
    first_failed_at: datetime
    last_failed_at: datetime
    example: str
    handler: str
    schedules: list[str]


def groups(*, now: datetime) -> tuple[list[Group], bool]:
    """Return the pending entries by fingerprint, the largest group first, and whether more were not counted."""
    hour_ago = sql.stored(now - timedelta(hours=1))
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT fingerprint, count(*), sum(CASE WHEN failed_at >= {sql.moment_mark()} THEN 1 ELSE 0 END),"
            " min(failed_at), max(failed_at), max(id), sum(count(*)) OVER ()"
            " FROM (SELECT id, fingerprint, failed_at FROM recovery_deadletter"
            " WHERE status = 'pending' ORDER BY id DESC LIMIT %s) AS newest"
            " GROUP BY fingerprint ORDER BY count(*) DESC, max(id) DESC LIMIT %s",
            [hour_ago, GROUPED_MOST + 1, GROUPS_MOST],
        )
        counted = cursor.fetchall()
    examples = {row.pk: row for row in DeadLetter.objects.filter(pk__in=[row[5] for row in counted])}
    names = _schedules_of([row[0] for row in counted])
    found: list[Group] = []
    for mark, count, recent, first, last, example, _ in counted:
        row = examples.get(example)
        if row is None:  # resubmitted or pruned between the two looks
            continue
        found.append(
            {
                "fingerprint": mark,
                "error_code": row.error_code,
                "error_line": fingerprints.line_of(row.error_message),
                "count": int(count),
                "last_hour": int(recent),
                "first_failed_at": sql.moment(first) or row.failed_at,
                "last_failed_at": sql.moment(last) or row.failed_at,
                "example": row.dlq_id,
                "handler": row.handler,
                "schedules": names.get(mark, []),
            }
        )
    return found, bool(counted) and counted[0][6] > GROUPED_MOST


SCHEDULES_NAMED = 5


def _schedules_of(marks: Sequence[str]) -> dict[str, list[str]]:
    """Return the ids of some schedules whose runs are in each group: those of its newest entries."""
    if not marks:
        return {}
    each = (
        "SELECT DISTINCT fingerprint, schedule_id FROM (SELECT fingerprint, schedule_id FROM recovery_deadletter"
        " WHERE fingerprint = %s AND status = 'pending' ORDER BY id DESC LIMIT 50) AS g{} WHERE schedule_id IS NOT NULL"
    )
    with connection.cursor() as cursor:
        cursor.execute(" UNION ALL ".join(each.format(place) for place in range(len(marks))), list(marks))
        pairs = cursor.fetchall()
    ids = dict(Schedule.objects.filter(pk__in={pk for _, pk in pairs}).values_list("pk", "task_id"))
    found: dict[str, list[str]] = {}
    for mark, pk in pairs:
        if pk in ids and len(found.setdefault(mark, [])) < SCHEDULES_NAMED:
            found[mark].append(ids[pk])
    return found


def chain_of(letter: DeadLetter) -> list[DeadLetter]:
    """Return the entries before this one, the first failure first: each was resubmitted as the task of the next."""
    chain: list[DeadLetter] = []
    name = letter.previous_dlq_id
    while name and len(chain) < CHAIN_MOST:
        before = DeadLetter.objects.select_related("task").filter(dlq_id=name).first()
        if before is None:
            break
        chain.append(before)
        name = before.previous_dlq_id
    return chain[::-1]


# --- retention --------------------------------------------------------------------------------------------------


def with_entries(task_pks: Sequence[int]) -> set[int]:
    """Return those of the tasks that have a dead letter, and so are kept."""
    return set(DeadLetter.objects.filter(task__in=task_pks).values_list("task_id", flat=True))


def prune(before: datetime) -> int:
    """Delete entries that were resolved before `before`; return how many, a batch at most."""
    old = DeadLetter.objects.filter(resolved_at__lt=before).exclude(status=Status.PENDING).order_by("resolved_at")
    pks = list(old.values_list("pk", flat=True)[:PRUNE_BATCH])
    # Looked at once more: one may have been unarchived since.
    return DeadLetter.objects.filter(pk__in=pks, resolved_at__lt=before)._raw_delete("default") if pks else 0
