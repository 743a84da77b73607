"""Supervising attempts: what happens between a claim and its settlement, and to claims whose worker is gone.

For each run: execution gives an Outcome, decisions.decide says what follows, settlement writes both. The worker
(k1node.worker) owns the loop and its transactions; this module owns the rules.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from django.db.models import Min

from recovery import breakers, dead_letters, decisions
from recovery.decisions import Policy
from scheduling import claims, gates, settlement
from scheduling.claims import Claim, Orphan
from scheduling.models import Attempt, RetryPolicy
from scheduling.outcomes import EXIT_LOST, Action, Outcome, OutcomeKind
from scheduling.settlement import Settlement

POLICIES_FRESH_SECONDS = 5.0
FALLBACK = Policy("standard", 5, timedelta(seconds=30), 2.0, timedelta(minutes=15), "full")


class Policies:
    """The retry policies as values, read again every few seconds: operators edit them while tasks run."""

    def __init__(self) -> None:
        self._read_at = float("-inf")
        self._policies: dict[str, Policy] = {}

    def get(self, name: str) -> Policy:
        if time.monotonic() - self._read_at > POLICIES_FRESH_SECONDS:
            self.read()
        return self._policies.get(name, FALLBACK)

    def read(self) -> None:
        """Read the rows now; outside any write transaction."""
        self._policies = {row.name: as_value(row) for row in RetryPolicy.objects.all()}
        self._read_at = time.monotonic()


def as_value(row: RetryPolicy) -> Policy:
    return Policy(
        row.name,
        row.max_attempts,
        timedelta(milliseconds=row.first_wait_ms),
        row.multiplier,
        timedelta(milliseconds=row.cap_ms),
        row.jitter,
        None if row.deadline_ms is None else timedelta(milliseconds=row.deadline_ms),
    )


def conclude(claim: Claim, outcome: Outcome, policies: Policies) -> Settlement:
    """Decide what follows from one run; see conclude_all."""
    return conclude_all([(claim, outcome)], policies)[0]


def conclude_all(
    done: Sequence[tuple[Claim, Outcome]], policies: Policies, *, lost_before: Collection[int] = ()
) -> list[Settlement]:
    """Decide what follows from runs; the result is ready to be settled, more than once if a transaction repeats.

    `lost_before` has the tasks that were lost in an earlier attempt.
    """
    used = [policies.get(claim.retry_policy) for claim, _ in done]
    decided = [
        decisions.decide(outcome, claim.attempt, policy, first_loss=claim.id not in lost_before)
        for (claim, outcome), policy in zip(done, used, strict=True)
    ]
    limited = [
        claim.id
        for (claim, _), policy, decision in zip(done, used, decided, strict=True)
        if policy.deadline is not None and decision.action is Action.RETRY
    ]
    # Read before any output is taken: a database that fails here is asked again.
    started = _first_starts(limited) if limited else {}
    settlements = []
    for (claim, outcome), policy, each in zip(done, used, decided, strict=True):
        decision = decisions.within_deadline(each, policy, started.get(claim.id, outcome.started_at))
        told = replace(outcome, error=f"{decision.note}. {outcome.error}".rstrip()) if decision.note else outcome
        chunks = tuple(outcome.output.take()) if outcome.output is not None and outcome.output.total else ()
        settlements.append(Settlement(claim, told, decision, chunks))
    return settlements


def _first_starts(tasks: Sequence[int]) -> dict[int, datetime]:
    """Return when each task's first stored attempt began; tasks in their first have none."""
    rows = Attempt.objects.filter(task__in=tasks).order_by().values_list("task_id").annotate(Min("started_at"))
    return dict(rows)


def settle(settlements: Sequence[Settlement], *, worker: str, shard: int, now: datetime) -> list[Settlement]:
    """Write the ends of runs and what recovery makes of them; return those that counted. Needs a transaction.

    Everything that ends a run comes through here: workers, the rescue, a handler that does not stop.
    """
    settlements = breakers.record(settlements, now=now)
    settled = settlement.settle(settlements, worker=worker, shard=shard, now=now)
    dead_letters.add(settled, now=now)
    return settled


def lost(claim: Claim, started_at: datetime, *, now: datetime, why: str) -> Outcome:
    """Return the outcome of a run whose worker is gone."""
    milliseconds = max(0, int((now - started_at) / timedelta(milliseconds=1)))
    return Outcome(OutcomeKind.LOST, started_at, now, milliseconds, EXIT_LOST, why)


def rescue_worker(owner: str, running: tuple[int, int] | None, policies: Policies, *, now: datetime) -> int:
    """Settle what a dead worker of this node held; needs a transaction. Returns how many tasks it held.

    `running` is the (task, fence) it really ran, known from the board: only that one is lost.
    """
    orphans = claims.held_by(owner)
    gates.lock(orphan.claim.gate_id for orphan in orphans if orphan.claim.gate_id is not None)  # before the tasks
    _settle_orphans(orphans, lambda orphan: (orphan.claim.id, orphan.claim.fence) == running, policies, now=now)
    return len(orphans)


def rescue_expired(policies: Policies, *, now: datetime) -> int:
    """Settle claims whose lease ran out (their node is gone); needs a transaction. Returns how many there were.

    Which task of a bundle really ran is not known here. One claimed alone is lost; a bundle goes back unspent, each
    of its tasks to run alone from now on, so that a poisonous one cannot take the others along again.
    """
    gates.lock(claims.gates_of_expired(now=now))  # before the tasks: the one lock order
    orphans = claims.expired(now=now)
    sizes: dict[str, int] = {}
    for orphan in orphans:
        sizes[orphan.owner] = sizes.get(orphan.owner, 0) + 1
    bundled = [orphan for orphan in orphans if sizes[orphan.owner] > 1]
    _settle_orphans(
        [orphan for orphan in orphans if sizes[orphan.owner] == 1],
        lambda orphan: orphan.started_at is not None,
        policies,
        now=now,
    )
    claims.give_back([orphan.claim for orphan in bundled], solo=True)
    return len(orphans)


def _settle_orphans(
    orphans: Sequence[Orphan], was_running: Callable[[Orphan], bool], policies: Policies, *, now: datetime
) -> None:
    ran = [orphan for orphan in orphans if was_running(orphan)]
    pks = [orphan.claim.id for orphan in ran]
    lost_before = set(
        Attempt.objects.filter(task__in=pks, outcome=OutcomeKind.LOST).values_list("task_id", flat=True) if pks else ()
    )
    ends = [
        (orphan.claim, lost(orphan.claim, orphan.started_at or now, now=now, why="Its worker died while it ran"))
        for orphan in ran
    ]
    settlements = conclude_all(ends, policies, lost_before=lost_before)
    settle(settlements, worker="rescue", shard=0, now=now)
    claims.give_back([orphan.claim for orphan in orphans if not was_running(orphan)])
