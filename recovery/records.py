"""Who intervenes, and the record of what was done."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from k1node.audit import trail
from k1node.lib import origin, sql
from recovery.models import Intervention
from scheduling.models import Task


@dataclass(frozen=True, slots=True)
class By:
    """Who intervenes, and why."""

    name: str
    reason: str = ""

    def said(self) -> str:
        """Return `ana: the disk is full`, or the name alone."""
        return f"{self.name}: {self.reason}" if self.reason else self.name


AUDITED_IDS = 1000
CLOCK = By("clock")  # of what ends because its time is over

COLUMNS = {
    "task_id": "bigint",
    "breaker_id": "text",
    "policy": "text",
    "action": "text",
    "reason": "text",
    "performed_by": "text",
    "before": "jsonb",
    "after": "jsonb",
    "created_at": "timestamptz",
}


@dataclass(frozen=True, slots=True)
class Done:
    """One of many interventions at once."""

    action: Intervention.Action
    before: dict[str, Any]
    after: dict[str, Any]
    task_id: int


def record_many(done: Sequence[Done], by: By, *, now: datetime) -> None:
    """Write down what one person did to many tasks."""
    stamp, name = sql.stored(now), by.name[:150]
    rows = [
        (
            each.task_id,
            "",
            "",
            each.action.value,
            by.reason,
            name,
            orjson.dumps(each.before).decode(),
            orjson.dumps(each.after).decode(),
            stamp,
        )
        for each in done
    ]
    sql.insert_many("recovery_intervention", COLUMNS, rows)
    if done and origin.current() is not None:
        ids = [each.task_id for each in done[:AUDITED_IDS]]
        trail.record(
            f"task.{done[0].action.value}",
            f"tasks:{len(done)}" if len(done) > 1 else _task_named(ids[0]),
            before=done[0].before if len(done) == 1 else None,
            after=done[0].after if len(done) == 1 else {"task_pks": ids},
            reason=by.reason,
            by=by.name,
            count=len(done),
            now=now,
        )


def _task_named(pk: int) -> str:
    return f"task:{Task.objects.filter(pk=pk).values_list('task_id', flat=True).get()}"


def record(
    action: Intervention.Action,
    by: By,
    before: dict[str, Any],
    after: dict[str, Any],
    *,
    task: Task | None = None,
    breaker_id: str = "",
    policy: str = "",
    now: datetime,
) -> Intervention:
    """Write down an intervention on a task, on a breaker, on a retry policy, or on everything.

    In the audit log too if somebody asks for it just now; what the clock does by itself is no act of consequence.
    """
    if origin.current() is not None:
        target = f"task:{task.task_id}" if task else f"breaker:{breaker_id}" if breaker_id else f"policy:{policy}"
        what = target.partition(":")[0] if task or breaker_id or policy else "hold"
        trail.record(
            f"{what}.{action.value}",
            target if what != "hold" else "",
            before=before,
            after=after,
            reason=by.reason,
            by=by.name,
            now=now,
        )
    return Intervention.objects.create(
        task=task,
        breaker_id=breaker_id,
        policy=policy,
        action=action,
        reason=by.reason,
        performed_by=by.name[:150],
        before=before,
        after=after,
        created_at=now,
    )
