"""Keeping the tables small: old counters are folded together, old rows deleted, a few hundred at a time."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from django.db import connection, transaction
from django.db.models import QuerySet

from k1node.events.models import Event
from k1node.lib import sql
from scheduling.models import FINISHED, Attempt, MinuteCounter, OutputChunk, Slot, Task
from scheduling.settlement import COUNTED

BATCH = 500
MOST_LOOKS = 20  # at batches of tasks in one call
MOST_BATCHES = 4  # of each kind in one call, which is a fraction of a second; the next call goes on
FOLD_AFTER = timedelta(minutes=10)  # the rows of all workers become one
HOURS_AFTER = timedelta(hours=26)  # nobody looks at single minutes for longer than a day
LOOK_BACK = timedelta(days=8)  # older minutes are folded into the epoch's
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FOLDED = ""  # the worker of a folded row


# Which of these tasks are to be kept, however old they are.
Spared = Callable[[Sequence[int]], Collection[int]]


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many rows went, and after which task the next call looks on (0: from the beginning)."""

    rows: int
    after: int


def prune(
    *,
    now: datetime,
    keep_tasks: timedelta,
    keep_events: timedelta,
    events_up_to: int | None = None,
    after: int = 0,
    spared: Spared = lambda pks: (),
) -> Pruned:
    """Delete tasks, slots and events that are older than they are kept for.

    Of events only those up to the key `events_up_to`, if one is given.
    """
    tasks, after = _prune_tasks(now - keep_tasks, after, spared)
    slots = _in_batches(Slot.objects.filter(recorded_at__lt=now - keep_tasks).order_by("recorded_at"), _delete_slots)
    events = _prune_events(now - keep_events, events_up_to)
    return Pruned(tasks + slots + events, after)


def _prune_tasks(before: datetime, last: int, spared: Spared) -> tuple[int, int]:
    """Delete tasks that ended before `before`, up to the first stretch made after it; return how many, and where on.

    Ids rise with time, so nobody has to keep an index of ends for this, and no call reads what is young. What is kept
    at the beginning of the table is not read by every call: the next goes on where this one stopped.
    """
    gone = 0
    for _ in range(MOST_LOOKS):
        rows = list(
            Task.objects.filter(pk__gt=last)
            .order_by("pk")
            .values_list("pk", "status", "finished_at", "created_at")[:BATCH]
        )
        old = [pk for pk, status, ended, _ in rows if status in FINISHED and ended is not None and ended < before]
        goes_on = bool(old) or any(created < before for *_, created in rows)
        if old:
            gone += sql.in_transaction(partial(_delete_unspared, old, spared))
        if len(rows) < BATCH or not goes_on:
            return gone, 0
        last = rows[-1][0]
        if gone >= BATCH * MOST_BATCHES:
            break
    return gone, last


def _delete_unspared(pks: Sequence[int], spared: Spared) -> int:
    if sql.is_postgresql():
        # Locked first: what makes one of them worth keeping locks it too, and finds it gone or is found here.
        pks = list(Task.objects.filter(pk__in=pks).order_by("pk").select_for_update().values_list("pk", flat=True))
    kept = spared(pks)
    old = [pk for pk in pks if pk not in kept]
    if old:
        _delete_tasks(old)
    return len(old)


def _prune_events(before: datetime, last: int | None) -> int:
    """Delete events from the beginning of the log up to the first young one: ids rise with time."""
    gone = 0
    for _ in range(MOST_BATCHES):
        rows = list(Event.objects.order_by("pk").values_list("pk", "occurred_at")[:BATCH])
        old = [pk for pk, occurred_at in rows if occurred_at < before and (last is None or pk <= last)]
        if old:
            _delete_events(old)
        gone += len(old)
        if len(old) < BATCH:
            break
    return gone


def _in_batches(rows: QuerySet[Any], delete: Callable[[list[int]], None]) -> int:
    gone = 0
    for _ in range(MOST_BATCHES):
        pks = list(rows.values_list("pk", flat=True)[:BATCH])
        if pks:
            with transaction.atomic():
                delete(pks)
        gone += len(pks)
        if len(pks) < BATCH:
            break
    return gone


def _delete_tasks(pks: Iterable[int]) -> None:
    # By hand and in this order: Django's cascade would load every attempt and chunk to delete it.
    OutputChunk.objects.filter(task__in=pks)._raw_delete("default")
    Attempt.objects.filter(task__in=pks)._raw_delete("default")
    Task.objects.filter(origin__in=pks).update(origin=None)
    Task.objects.filter(pk__in=pks)._raw_delete("default")


def _delete_slots(pks: Iterable[int]) -> None:
    Slot.objects.filter(pk__in=pks)._raw_delete("default")


def _delete_events(pks: Iterable[int]) -> None:
    Event.objects.filter(pk__in=pks)._raw_delete("default")


def fold_counters(*, now: datetime) -> None:
    """Fold the counters of finished minutes over workers, yesterday's by hours, and those nobody looks at into one."""
    known = MinuteCounter.objects.filter(minute__gt=EPOCH)
    _fold(known.filter(minute__lt=now - FOLD_AFTER).exclude(worker=FOLDED), lambda minute: minute)
    yesterdays = known.filter(minute__lt=_hour(now - HOURS_AFTER), worker=FOLDED)
    _fold(yesterdays.exclude(minute__minute=0), _hour)
    _fold(known.filter(minute__lt=now - LOOK_BACK, worker=FOLDED), lambda minute: EPOCH)


def _hour(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)


def _fold(rows: QuerySet[MinuteCounter], into: Callable[[datetime], datetime]) -> None:
    """Move the counts of `rows`, oldest first, into folded rows of the minute that `into` gives for theirs."""
    for _ in range(MOST_BATCHES):
        if not rows.exists():
            return
        with transaction.atomic():
            oldest = rows.order_by("minute", "policy", "pk")
            if connection.vendor == "postgresql":
                oldest = oldest.select_for_update()
            chosen = list(oldest[:BATCH])
            sums: dict[tuple[datetime, str], Counter[str]] = {}
            for row in chosen:
                counts = {name: getattr(row, name) for name in COUNTED}
                sums.setdefault((into(row.minute), row.policy), Counter()).update(counts)
            for (minute, policy), counts in sorted(sums.items(), key=lambda item: item[0]):
                target, _created = MinuteCounter.objects.select_for_update().get_or_create(
                    minute=minute, policy=policy, worker=FOLDED
                )
                for name, count in counts.items():
                    setattr(target, name, getattr(target, name) + count)
                target.save()
            # These and no others: one more of the same minute may have come since.
            MinuteCounter.objects.filter(pk__in=[row.pk for row in chosen]).delete()
