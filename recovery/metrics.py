"""Figures of the retry engine, read from the counters that settlement writes: right to the last task, never a scan.

A counter row holds one minute of one policy (and of one worker, until the clock folds them), and one clock hour when it
is older than a day. So the dearest question, seven days of all policies, reads a few thousand small rows through their
index, however many attempts there were; it is told by clock hours, the present one and the 167 before it.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connection

from k1node.lib import sql
from scheduling.policies import BUILT_IN


@dataclass(frozen=True, slots=True)
class Interval:
    """A look back: how far, and in steps of what length its course is told."""

    name: str
    length: timedelta
    step: timedelta
    by_hours: bool = False  # it begins with a clock hour

    def start(self, now: datetime) -> datetime:
        unit = timedelta(hours=1) if self.by_hours else timedelta(minutes=1)
        begun = now.replace(minute=0 if self.by_hours else now.minute, second=0, microsecond=0)
        return begun + unit - self.length


INTERVALS = {
    "1h": Interval("1h", timedelta(hours=1), timedelta(minutes=5)),
    "24h": Interval("24h", timedelta(hours=24), timedelta(hours=1)),
    "7d": Interval("7d", timedelta(days=7), timedelta(hours=1), by_hours=True),
}
DEFAULT_INTERVAL = "24h"
SUMMED = ("completed", "completed_after_retry", "failed", "failed_after_retry", "finished_attempts")
COURSE = ("attempts", "successes")


def retry_stats(interval: str, policy: str | None, *, now: datetime) -> dict[str, Any]:
    """Return the figures of the minutes of `interval` up to and with the present one, of one policy or of all.

    A task counts in the minute it finished in, an attempt in the minute it was settled in. success_rate is completed
    tasks over finished ones, None while none has finished; average_attempts is over the same tasks.
    """
    chosen = INTERVALS[interval]
    start = chosen.start(now)
    by_policy, course = _counted(chosen, policy, start)
    total = {name: sum(row[name] for row in by_policy.values()) for name in SUMMED}
    finished = total["completed"] + total["failed"]
    named = [policy] if policy is not None else [*BUILT_IN, *sorted(set(by_policy) - set(BUILT_IN))]
    return {
        "timestamp": now,
        "interval": interval,
        "metrics": {
            "total_tasks_retried": total["completed_after_retry"] + total["failed_after_retry"],
            "successful_first_attempt": total["completed"] - total["completed_after_retry"],
            "successful_after_retry": total["completed_after_retry"],
            "failed_permanently": total["failed"],
            "success_rate": _rate(total["completed"], finished),
            "average_attempts": _rate(total["finished_attempts"], finished),
            "by_policy": {name: _of_policy(by_policy.get(name)) for name in named},
        },
        "timeseries": course,
    }


def _rate(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _of_policy(row: dict[str, Any] | None) -> dict[str, Any]:
    if row is None:
        return {"count": 0, "success_rate": None}
    return {
        "count": row["completed_after_retry"] + row["failed_after_retry"],
        "success_rate": _rate(row["completed"], row["completed"] + row["failed"]),
    }


def _counted(
    interval: Interval, policy: str | None, start: datetime
) -> tuple[dict[str, dict[str, int]], list[dict[str, Any]]]:
    """Return the sums by policy, and attempts and successes step by step, oldest first: one pass over the counters.

    `hour` counts from the interval's start.
    """
    seconds = int(interval.step.total_seconds())
    epoch = "extract(epoch FROM minute)::bigint" if sql.is_postgresql() else "CAST(strftime('%%s', minute) AS INTEGER)"
    only = "" if policy is None else " AND policy = %s"
    names = (*COURSE, *SUMMED)
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT policy, ({epoch} - %s) / %s AS step, {', '.join(f'sum({name})' for name in names)}"
            f" FROM scheduling_minutecounter WHERE minute >= %s{only} GROUP BY policy, step",
            [int(start.timestamp()), seconds, sql.stored(start), *([] if policy is None else [policy])],
        )
        rows = cursor.fetchall()
    by_policy: dict[str, Counter[str]] = {}
    by_step: dict[int, Counter[str]] = {}
    for name, step, *sums in rows:
        counts = {column: int(value) for column, value in zip(names, sums, strict=True)}
        by_policy.setdefault(name, Counter()).update(counts)
        by_step.setdefault(int(step), Counter()).update(counts)
    nothing: Counter[str] = Counter()
    course = [
        {
            "hour": step * seconds // 3600,
            "start": start + step * interval.step,
            **{name: by_step.get(step, nothing)[name] for name in COURSE},
        }
        for step in range(interval.length // interval.step)
    ]
    return {name: dict(counts) for name, counts in by_policy.items()}, course
