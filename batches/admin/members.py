"""The tasks of a batch in the order in which they were given, a page at a time, by state."""

from dataclasses import dataclass

from django.db.models import QuerySet

from batches.models import Batch
from k1node.lib.admin_base import key_in
from k1node.lib.admin_paging import WINDOW
from scheduling import gates
from scheduling.models import Task, TaskStatus

SIZE = 25
ALL, RUNNING, WAITING = "all", "running", "waiting"
ENDED = (TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.SKIPPED, TaskStatus.CANCELLED)
STATES = (ALL, *(status.value for status in ENDED), RUNNING, WAITING)
RUNS = "status = 'executing' AND started_at IS NOT NULL"
NOT_LISTED = ("parameters", "control_reason")


@dataclass(frozen=True, slots=True)
class Page:
    """`before` and `after` are the keys of its neighbours, None at an end; `searched`: the page is not full, for it
    has looked through so many tasks."""

    state: str
    rows: list[Task]
    before: int | None
    after: int | None
    searched: int = 0


def page(batch: Batch, *, state: str = "", after: str = "", before: str = "") -> Page:
    """Return the page that an address asks for; it looks at WINDOW tasks at the most."""
    state = state if state in STATES else ALL
    backwards, start = bool(before), key_in(before or after)
    members = Task.objects.filter(gate=batch.gate_id).order_by("-pk" if backwards else "pk")
    if start:
        members = members.filter(**{"pk__lt" if backwards else "pk__gt": start})
    rows = members
    if state != ALL:
        rows = _of_state(members.filter(pk__in=members.values("pk")[:WINDOW]), state)
    found = list(rows.defer(*NOT_LISTED)[: SIZE + 1])
    more: int | None = found[SIZE - 1].pk if len(found) > SIZE else None
    searched = 0
    if more is None and state != ALL:
        more = next(iter(members.values_list("pk", flat=True)[WINDOW - 1 : WINDOW]), None)
        searched = WINDOW if more is not None else 0
    shown = found[:SIZE]
    if backwards:
        shown.reverse()
        return Page(state, shown, more, shown[-1].pk if shown else start - 1, searched)
    first = (shown[0].pk if shown else start + 1) if start else None
    return Page(state, shown, first, more, searched)


def _of_state(rows: QuerySet[Task], state: str) -> QuerySet[Task]:
    match state:
        case "running":
            return rows.extra(where=[RUNS])
        case "waiting":
            return rows.extra(where=[gates.UNENDED, f"NOT ({RUNS})"])
    return rows.filter(status=state)
