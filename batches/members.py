"""The tasks of a batch as its readers see them: the first of them, and page by page. They are those of its gate."""

from django.db.models import BooleanField, QuerySet
from django.db.models.expressions import RawSQL

from batches.models import Batch
from scheduling.models import Task, TaskStatus

# Members are looked for through the gate's own indexes, whose conditions these lists are: `||` keeps the planners from
# the indexes of all failed or all running tasks of the node.
UNENDED = "scheduling_task.status IN ('queued', 'scheduled', 'executing', 'paused', 'blocked')"
CONDITIONS = {
    "scheduled": f"{UNENDED} AND scheduling_task.status || '' = 'scheduled'",
    "queued": (
        f"{UNENDED} AND (scheduling_task.status || '' = 'queued'"
        " OR (scheduling_task.status || '' = 'executing' AND scheduling_task.started_at IS NULL))"
    ),
    "executing": (
        f"{UNENDED} AND scheduling_task.status || '' = 'executing' AND scheduling_task.started_at IS NOT NULL"
        " AND scheduling_task.paused_at IS NULL"
    ),
    "blocked": f"{UNENDED} AND scheduling_task.status || '' = 'blocked'",
    "paused": (
        f"{UNENDED} AND (scheduling_task.status || '' = 'paused' OR (scheduling_task.status || '' = 'executing'"
        " AND scheduling_task.started_at IS NOT NULL AND scheduling_task.paused_at IS NOT NULL))"
    ),
    **{ended: f"scheduling_task.status || '' = '{ended}'" for ended in ("completed", "failed", "skipped", "cancelled")},
}


def first(batch: Batch, failed: int, most: int) -> list[Task]:
    """Return the first `most` tasks in their order, but those that have failed before the others.

    `failed` is how many have; without any, nobody looks for them.
    """
    members = Task.objects.filter(gate_id=batch.gate_id).order_by("pk")
    shown = members.only("task_id", "status", "started_at", "paused_at", "exit_code", "duration_ms", "last_error")
    found = list(shown.filter(status=TaskStatus.FAILED)[:most]) if failed else []
    if len(found) < most:
        others = shown.exclude(status=TaskStatus.FAILED) if failed else shown
        found += others[: most - len(found)]
    return found


def tasks(batch: Batch, status: str | None = None) -> QuerySet[Task]:
    """Return the tasks, with what a list shows of them; `status` is one that queries.shown_status() gives."""
    rows = Task.objects.filter(gate_id=batch.gate_id).select_related("schedule", "origin", "gate")
    if status is not None:
        rows = rows.filter(RawSQL(CONDITIONS[status], [], output_field=BooleanField()))
    return rows
