"""Bulk jobs that outlive whoever asked for them: plan, start, progress, cancel.

The set is frozen when the job is planned, as rows in an order. The clock goes through them in steps, each one
transaction that locks the job, does the thing to the next few, writes down what became of each, and moves the job's
position: a step that is killed has not happened, and the next clock, on any node, goes on where the last step stood.

    planned   -> running     start()
    running   -> completed   the last item is dealt with
    running   -> stopped     stop(), or an obstacle is in the way, or the first few have not succeeded; start() goes on
    planned, running, stopped -> cancelled   cancel(); what is done stays done

`first` items are done before the rest, which follows when those have succeeded: the job waits in between. What is done
to an item, what is an obstacle and what success means is the Kind's, which the app above brings along.
"""

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.db import InterfaceError, OperationalError

from k1node.audit import trail
from k1node.events import log
from k1node.lib import sql
from k1node.lib.errors import Conflict, NotFound
from k1node.lib.ids import prefixed
from k1node.operations.models import Item, Operation

logger = logging.getLogger(__name__)

State = Operation.State

AT_ONCE = 250  # items in one step, which other writers wait for
MOST = 100_000  # items in one job
TRIED = 20  # jobs that rivals may have, or whose step fails, before a pass gives up
STEPS_A_SECOND = 4  # of a job with a rate
AFTER_FAILURE = timedelta(seconds=10)
LOOK_EVERY = timedelta(seconds=1)  # at the first few
KEEP_PLANS = timedelta(days=1)
PRUNE_BATCH = 1  # jobs, with up to MOST items each

ITEM_COLUMNS = {"operation_id": "bigint", "position": "int", "subject": "bigint", "state": "text", "note": "text"}
ANSWER_COLUMNS = {"state": "text", "note": "text", "made": "bigint", "id": "bigint"}


class JobRefuses(Conflict):
    """The job's present state does not allow this"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one item: `made` is what came of it, `note` why it was refused."""

    done: bool
    note: str = ""
    made: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the first few have succeeded; None while that is open. `why` says what is waited for, or what failed."""

    good: bool | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a job does. All three are called in the step's transaction."""

    name: str
    perform: Callable[[Operation, Sequence[int], datetime], Sequence[Answer]]  # subjects -> their answers, in order
    obstacle: Callable[[Operation, Sequence[int]], str]  # why it must not go on with these subjects; "" is nothing
    verdict: Callable[[Operation, Collection[int]], Verdict]  # about what was made of the first few


@dataclass(frozen=True, slots=True)
class Pace:
    """How a job goes about it: items a second (None: as fast as it goes), and how many are tried before the rest."""

    per_second: int | None = None
    first: int = 0


AT_FULL_SPEED = Pace()


def plan(
    kind: str,
    subjects: Sequence[int],
    *,
    arguments: Mapping[str, Any],
    selection: Mapping[str, Any],
    pace: Pace,
    by: str,
    reason: str = "",
    now: datetime,
) -> Operation:
    """Freeze the set, at most MOST of `subjects`; nothing is done to them yet."""
    subjects = subjects[:MOST]

    def work() -> Operation:
        row = Operation.objects.create(
            operation_id=prefixed(kind),
            kind=kind,
            arguments=dict(arguments),
            selection=dict(selection),
            per_second=pace.per_second,
            first=pace.first,
            total=len(subjects),
            created_by=by[:150],
            reason=reason,
            created_at=now,
        )
        for start in range(0, len(subjects), 10_000):
            sql.insert_many(
                "operations_item",
                ITEM_COLUMNS,
                [
                    (row.pk, place, subject, Item.State.WAITING.value, "")
                    for place, subject in enumerate(subjects[start : start + 10_000], start + 1)
                ],
            )
        trail.record(
            f"{kind}.planned",
            f"{kind}:{row.operation_id}",
            after={"selection": row.selection, "total": row.total},
            reason=reason,
            by=by,
            now=now,
        )
        return row

    return sql.in_transaction(work)


def start(operation_id: str, kind: str, by: str, *, now: datetime) -> Operation:
    """Let the clock begin, or go on after it has stopped. Raises JobRefuses."""

    def work() -> Operation:
        row = _found(operation_id, kind)
        if row.state not in (State.PLANNED, State.STOPPED):
            raise JobRefuses(f"It is {row.state}")
        row.state, row.started_at, row.next_at, row.said = State.RUNNING, row.started_at or now, now, ""
        row.save(update_fields=("state", "started_at", "next_at", "said"))
        _publish(row, "started", by, now=now)
        return row

    return sql.in_transaction(work)


def stop(operation_id: str, kind: str, by: str, *, now: datetime) -> Operation:
    """Let a running job rest where it stands, until somebody starts it again. Raises JobRefuses."""

    def work() -> Operation:
        row = _found(operation_id, kind)
        if row.state != State.RUNNING:
            raise JobRefuses(f"It is {row.state}")
        _stop(row, f"Stopped by {by}", by=by, now=now)
        return row

    return sql.in_transaction(work)


def cancel(operation_id: str, kind: str, by: str, *, now: datetime) -> Operation:
    """End a job where it stands. Raises JobRefuses."""

    def work() -> Operation:
        row = _found(operation_id, kind)
        if row.state in (State.COMPLETED, State.CANCELLED):
            raise JobRefuses(f"It is {row.state} already")
        _end(row, State.CANCELLED, f"Cancelled by {by}"[:500], now=now)
        _publish(row, "cancelled", by, now=now)
        return row

    return sql.in_transaction(work)


# --- the clock --------------------------------------------------------------------------------------------------


def tend(kinds: Mapping[str, Kind], *, now: datetime) -> int:
    """Do one step of the job that has waited longest; return 1, or 0 when nothing is due or rivals have it."""
    # Among those that wait for nothing, the one that has come least far: one large job must not keep small ones.
    due = Operation.objects.filter(next_at__lte=now).order_by("next_at", "position").values_list("pk", flat=True)
    trouble = None
    for pk in list(due[:TRIED]):
        try:
            if _step_safely(pk, kinds, now=now):
                return 1
        except (OperationalError, InterfaceError) as error:
            trouble = error  # of the database, or of this job alone: the others have their turn
    if trouble is not None:
        raise trouble
    return 0


def _step_safely(pk: int, kinds: Mapping[str, Kind], *, now: datetime) -> bool:
    """Do one step; one that fails is tried again later and stands in nobody's way."""
    try:
        return sql.in_transaction(partial(_step, pk, kinds, now=now))
    except (OperationalError, InterfaceError):
        raise  # the database's troubles: the next pass tries again
    except Exception as error:
        logger.exception("A step of a bulk job failed", extra={"job": pk})
        said = f"A step failed and is tried again: {type(error).__name__}: {error}"[:500]
        Operation.objects.filter(pk=pk, state=State.RUNNING).update(next_at=now + AFTER_FAILURE, said=said)
        return False


def _step(pk: int, kinds: Mapping[str, Kind], *, now: datetime) -> bool:
    rows = Operation.objects.filter(pk=pk, next_at__lte=now)
    row = (rows.select_for_update(skip_locked=True) if sql.is_postgresql() else rows).first()
    if row is None:
        return False  # a rival has it
    kind = kinds[row.kind]
    trying = bool(row.first) and not row.is_proven
    if trying and row.position >= row.first and row.position < row.total and not _prove(row, kind, now=now):
        return True
    items = _next(row)
    if items and (why := kind.obstacle(row, [item.subject for item in items])):
        _stop(row, why, now=now)
        return True
    if items:
        _perform(row, kind, items, now=now)
    if row.position >= row.total:
        _end(row, State.COMPLETED, "", now=now)
        _publish(row, "completed", "", now=now)
    return True


def _prove(row: Operation, kind: Kind, *, now: datetime) -> bool:
    """Say whether the rest may follow the first few; if not yet, look again, if never, stop."""
    made = row.items.filter(position__lte=row.first, made__isnull=False).values_list("made", flat=True)
    verdict = kind.verdict(row, [pk for pk in made if pk is not None])
    if verdict.good is None:
        upcoming = row.items.filter(position=row.position + 1).values_list("subject", flat=True)
        if why := kind.obstacle(row, list(upcoming)):
            _stop(row, why, now=now)
            return False
        row.said, row.next_at = verdict.why[:500], now + LOOK_EVERY
        row.save(update_fields=("said", "next_at"))
        return False
    if not verdict.good:
        row.is_proven = True  # whoever starts it again has seen what became of them
        row.save(update_fields=("is_proven",))
        _stop(row, verdict.why, now=now)
        return False
    row.is_proven, row.said = True, ""
    row.save(update_fields=("is_proven", "said"))
    return True


def _next(row: Operation) -> list[Item]:
    """Return the items of this step."""
    count = AT_ONCE
    if row.per_second:
        count = min(count, math.ceil(row.per_second / STEPS_A_SECOND))
    if row.first and not row.is_proven and row.position < row.first:
        count = min(count, row.first - row.position)
    return list(row.items.filter(position__gt=row.position).order_by("position")[:count])


def _perform(row: Operation, kind: Kind, items: Sequence[Item], *, now: datetime) -> None:
    answers = kind.perform(row, [item.subject for item in items], now)
    sql.update_many(
        "operations_item",
        ANSWER_COLUMNS,
        [
            ((Item.State.DONE if answer.done else Item.State.REFUSED).value, answer.note[:500], answer.made, item.pk)
            for item, answer in zip(items, answers, strict=True)
        ],
    )
    done = sum(answer.done for answer in answers)
    row.done += done
    row.refused += len(answers) - done
    row.position, row.said = items[-1].position, ""
    row.next_at = now + timedelta(seconds=len(items) / row.per_second) if row.per_second else now
    row.save(update_fields=("done", "refused", "position", "next_at", "said"))


def _stop(row: Operation, why: str, *, by: str = "", now: datetime) -> None:
    row.state, row.next_at, row.said = State.STOPPED, None, why[:500]
    row.save(update_fields=("state", "next_at", "said"))
    _publish(row, "stopped", by, now=now)


def _end(row: Operation, state: Operation.State, why: str, *, now: datetime) -> None:
    row.state, row.next_at, row.finished_at, row.said = state, None, now, why
    row.save(update_fields=("state", "next_at", "finished_at", "said"))


# --- the rest ---------------------------------------------------------------------------------------------------


def _found(operation_id: str, kind: str) -> Operation:
    """Return the job, locked. Raises NotFound."""
    rows = Operation.objects.filter(operation_id=operation_id, kind=kind)
    row = (rows.select_for_update() if sql.is_postgresql() else rows).first()
    if row is None:
        raise NotFound()
    return row


def _publish(row: Operation, word: str, by: str, *, now: datetime) -> None:
    fact: dict[str, Any] = {
        "operation_id": row.operation_id,
        "state": str(row.state),
        "total": row.total,
        "done": row.done,
        "refused": row.refused,
    }
    if row.said:
        fact["reason"] = row.said
    if by:
        fact["by"] = by
    log.publish(f"{row.kind}.{word}", fact, now=now)
    if by:
        trail.record(f"{row.kind}.{word}", f"{row.kind}:{row.operation_id}", after=fact, by=by, now=now)


def prune(*, before: datetime, now: datetime) -> int:
    """Delete jobs of before `before` that do not run, and plans nobody has started for a day; return how many rows."""

    def work() -> int:
        rows = Operation.objects.order_by("created_at").values_list("pk", flat=True)
        if sql.is_postgresql():
            rows = rows.select_for_update(skip_locked=True)
        ended = rows.filter(created_at__lt=before, state__in=(State.COMPLETED, State.CANCELLED, State.STOPPED))
        left = rows.filter(created_at__lt=now - KEEP_PLANS, state=State.PLANNED)
        pks = [*ended[:PRUNE_BATCH], *left[:PRUNE_BATCH]]
        if not pks:
            return 0
        items = Item.objects.filter(operation__in=pks)._raw_delete("default")
        return items + Operation.objects.filter(pk__in=pks)._raw_delete("default")

    return sql.in_transaction(work)
