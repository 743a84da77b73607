"""Figures of the retry engine, read from the counters that settlement writes: right to the last task, never a scan.

A counter row holds one minute of one policy (and of one worker, until the clock folds them), so the dearest question,
seven days of all policies, reads a few ten thousand small rows through their index, however many attempts there were.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connection
from django.db.models import Sum

from k1node.lib import sql
from scheduling.models import MinuteCounter


@dataclass(frozen=True, slots=True)
class Interval:
    """A look back: how far, and in steps of what length its course is told."""

    name: str
    length: timedelta
    step: timedelta


INTERVALS = {
    "1h": Interval("1h", timedelta(hours=1), timedelta(minutes=5)),
    "24h": Interval("24h", timedelta(hours=24), timedelta(hours=1)),
    "7d": Interval("7d", timedelta(days=7), timedelta(hours=1)),
}
DEFAULT_INTERVAL = "24h"
# Always told, even where they did nothing.
KNOWN_POLICIES = ("standard", "aggressive", "conservative")
SUMMED = ("completed", "completed_after_retry", "failed", "failed_after_retry", "finished_attempts")


def retry_stats(interval: str, policy: str | None, *, now: datetime) -> dict[str, Any]:
    """Return the figures of the minutes of `interval` up to and with the present one, of one policy or of all.

    A task counts in the minute it finished in, an attempt in the minute it was settled in. success_rate is completed
    tasks over finished ones, None while none has finished; average_attempts is over the same tasks.
    """
    chosen = INTERVALS[interval]
    start = now.replace(second=0, microsecond=0) + timedelta(minutes=1) - chosen.length
    rows = MinuteCounter.objects.filter(minute__gte=start)
    if policy is not None:
        rows = rows.filter(policy=policy)
    by_policy: dict[str, dict[str, Any]] = {
        row["policy"]: {**row}
        for row in rows.values("policy").annotate(**{name: Sum(name) for name in SUMMED}).order_by("policy")
    }
    total = {name: sum(row[name] for row in by_policy.values()) for name in SUMMED}
    finished = total["completed"] + total["failed"]
    named = [policy] if policy is not None else [*KNOWN_POLICIES, *sorted(set(by_policy) - set(KNOWN_POLICIES))]
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
        "timeseries": _course(chosen, policy, start),
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


def _course(interval: Interval, policy: str | None, start: datetime) -> list[dict[str, Any]]:
    """Return attempts and successes step by step, oldest first; `hour` counts from the interval's start."""
    seconds = int(interval.step.total_seconds())
    epoch = "extract(epoch FROM minute)::bigint" if sql.is_postgresql() else "CAST(strftime('%%s', minute) AS INTEGER)"
    only = "" if policy is None else " AND policy = %s"
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT ({epoch} - %s) / %s AS step, sum(attempts), sum(successes) FROM scheduling_minutecounter"
            f" WHERE minute >= %s{only} GROUP BY step",
            [int(start.timestamp()), seconds, sql.stored(start), *([] if policy is None else [policy])],
        )
        counted = {int(step): (int(attempts), int(successes)) for step, attempts, successes in cursor.fetchall()}
    steps = interval.length // interval.step
    return [
        {
            "hour": step * seconds // 3600,
            "start": start + step * interval.step,
            "attempts": counted.get(step, (0, 0))[0],
            "successes": counted.get(step, (0, 0))[1],
        }
        for step in range(steps)
    ]
