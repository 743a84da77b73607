"""What has failed in a batch, by the reason: as dead letters are grouped, but of the tasks of one batch."""

from dataclasses import dataclass, field
from datetime import datetime

from django.db.models import F, QuerySet
from django.db.models.functions import Substr

from batches.models import Batch
from batches.progress import Progress
from k1node.operations import jobs
from recovery import fingerprints
from scheduling import gates
from scheduling.models import Task, TaskStatus
from scheduling.outcomes import EXIT_PYTHON_EXCEPTION

LOOKED_AT = 1_000  # failed tasks, the newest
READ = 5 * fingerprints.LINE_LENGTH  # characters of an error; its first line counts
GROUPS_MOST = 20
HANDLERS_NAMED = 3


@dataclass(slots=True)
class Group:
    """Tasks that failed for the same reason; `task` is the newest of them."""

    fingerprint: str
    line: str
    code: int
    task: Task
    count: int = 0
    last_at: datetime | None = None
    handlers: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Failures:
    """The largest groups of the newest failed tasks; `looked_at` of them were looked at."""

    groups: list[Group]
    looked_at: int
    more_groups: bool


def grouped(batch: Batch, progress: Progress) -> Failures:
    """Return what has failed, by the reason, the largest group first; one query, none where nothing has failed."""
    most = min(progress.failed, LOOKED_AT)  # no further: the walk ends where the last of them was found
    rows = list(_failed(batch)[:most]) if most else []
    found: dict[str, Group] = {}
    seen: dict[tuple[int, str], str] = {}  # what fails often often says the same
    for row in rows:
        code = EXIT_PYTHON_EXCEPTION if row.exit_code is None else row.exit_code
        error: str = row.error  # type: ignore[attr-defined]
        mark = seen.get((code, error))
        if mark is None:
            mark = seen[code, error] = fingerprints.fingerprint(code, error)
        group = found.get(mark)
        if group is None:
            group = found[mark] = Group(mark, fingerprints.line_of(error), code, row)
        group.count += 1
        if row.finished_at is not None and (group.last_at is None or row.finished_at > group.last_at):
            group.last_at = row.finished_at
        if row.handler not in group.handlers and len(group.handlers) < HANDLERS_NAMED:
            group.handlers.append(row.handler)
    groups = sorted(found.values(), key=lambda group: -group.count)
    return Failures(groups[:GROUPS_MOST], len(rows), len(groups) > GROUPS_MOST)


def _failed(batch: Batch) -> QuerySet[Task]:
    rows = Task.objects.filter(gate=batch.gate_id, status=TaskStatus.FAILED).order_by("-pk")
    return rows.only("task_id", "handler", "exit_code", "finished_at").annotate(error=Substr(F("last_error"), 1, READ))


def retryable(batch: Batch, progress: Progress) -> int:
    """Return how many tasks a retry of what has failed is about: those that were cancelled because of it, too."""
    if not batch.fail_fast or not progress.cancelled:
        return min(progress.failed, jobs.MOST)
    members = Task.objects.filter(gate=batch.gate_id, status=TaskStatus.CANCELLED)
    by_rule = members.filter(last_error=gates.CANCELLED_BY_RULE).order_by()[: jobs.MOST].count()
    return min(progress.failed + by_rule, jobs.MOST)
