"""What the tests of batches share: making them, working through them by hand, and looking at their counts."""

from datetime import datetime, timedelta
from typing import Any

from batches import submission, upkeep
from batches.models import Batch
from batches.steering import RETRY_FAILED
from batches.submission import Options
from k1node.events.models import Event
from k1node.lib import sql
from k1node.operations import jobs
from recovery import supervision
from recovery.records import By
from scheduling import claims, gates
from scheduling.claims import Claim
from scheduling.models import Task
from scheduling.outcomes import Outcome, OutcomeKind
from tests.factories import NOW

ANA = By("ana")
COMPLETED, FAILED, DRAINED = OutcomeKind.COMPLETED, OutcomeKind.FAILED, OutcomeKind.DRAINED
FINAL = 64  # the exit code of a failure that is not tried again
AGAIN = 1


def submit(count: int, *, now: datetime = NOW, **options: Any) -> Batch:
    """Return a batch of no-op tasks t0, t1, …"""
    is_open = options.pop("is_open", False)
    tasks = [{"task_id": f"t{number}", "handler": "python:noop"} for number in range(count)]
    return submission.submit(
        tasks, batch_id="b", options=Options(**options), is_open=is_open, owner="key:1", by="ana", now=now
    )


def claim(count: int = 1, *, now: datetime = NOW) -> list[Claim]:
    """Claim tasks, one by one as those of a gate mostly are."""
    return [
        each
        for _ in range(count)
        for each in sql.in_transaction(lambda: claims.claim(owner="w", now=now, window=1, choose=len))
    ]


def settle(held: list[Claim], kind: OutcomeKind = COMPLETED, code: int = FINAL, *, now: datetime = NOW) -> None:
    policies = supervision.Policies()
    done = []
    for each in held:
        control = Task.objects.values_list("control", flat=True).get(pk=each.id)
        asked = {"cancel": OutcomeKind.CANCELLED, "skip": OutcomeKind.SKIPPED}.get(control, kind)
        done.append((each, Outcome(asked, now, now, 1, code if asked is FAILED else 0, "")))
    settlements = supervision.conclude_all(done, policies)
    sql.in_transaction(lambda: supervision.settle(settlements, worker="w", shard=0, now=now))


def work(count: int, kind: OutcomeKind = COMPLETED, *, now: datetime = NOW) -> list[str]:
    """Claim and settle one after another; return the ids in the order in which they ran."""
    ran = []
    for _ in range(count):
        held = claim(now=now)
        settle(held, kind, now=now)
        ran += [each.task_id for each in held]
    return ran


def clock(*, now: datetime = NOW) -> None:
    """Do what the clock does to batches, until there is nothing to do."""
    claims.stage(now=now)
    while jobs.tend({RETRY_FAILED.name: RETRY_FAILED}, now=now) + upkeep.tend(now=now):
        pass


def after(**units: float) -> datetime:
    return NOW + timedelta(**units)


def counts(batch: Batch) -> dict[str, int]:
    """Return the counts of a batch that are not zero, with what its workers have counted."""
    gate = sql.in_transaction(lambda: gates.lock([batch.gate_id])[batch.gate_id])
    return {name: getattr(gate, name) for name in ("waiting", "in_flight", *gates.FINALS) if getattr(gate, name)}


def events(*names: str) -> list[dict[str, Any]]:
    return list(Event.objects.filter(name__in=names).order_by("pk").values_list("data", flat=True))


def ends() -> list[dict[str, Any]]:
    return events("batch.completed", "batch.failed")


def statuses() -> list[str]:
    return list(Task.objects.order_by("pk").values_list("status", flat=True))
