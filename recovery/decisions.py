"""What follows from an outcome: pure functions over plain values."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from scheduling.outcomes import Action, Decision, Outcome, OutcomeKind

# sysexits.h EX_USAGE and EX_CONFIG, and the shell's "cannot execute" and "not found": trying again cannot help.
FINAL_EXIT_CODES = frozenset({64, 78, 126, 127})
FIRST_LOST_WAIT = timedelta(seconds=2)


@dataclass(frozen=True, slots=True)
class Policy:
    """A retry policy's figures, as a value."""

    name: str
    max_attempts: int
    first_wait: timedelta
    multiplier: float
    cap: timedelta
    jitter: str  # none, full, equal
    deadline: timedelta | None = None  # from the start of the first attempt to the last moment a retry may be due


def wait_before(attempt: int, policy: Policy, chance: Callable[[], float] = random.random) -> timedelta:
    """Return the wait before `attempt` (2 is the first retry).

    min(cap, first_wait * multiplier ** (attempt - 2)); full jitter takes from [0, that], equal from [half, that].
    Raises ValueError if attempt < 2. Source: AWS Architecture Blog, "Exponential Backoff And Jitter".
    """
    if attempt < 2:
        raise ValueError("the first attempt has no wait before it")
    cap, first = policy.cap.total_seconds(), policy.first_wait.total_seconds()
    try:
        full = min(cap, first * policy.multiplier ** (attempt - 2))
    except OverflowError:
        full = cap
    if policy.jitter == "full":
        full *= chance()
    elif policy.jitter == "equal":
        full = full / 2 + full / 2 * chance()
    return timedelta(seconds=full)


def decide(
    outcome: Outcome,
    attempt: int,
    policy: Policy,
    *,
    first_loss: bool = True,
    first_started_at: datetime | None = None,
    chance: Callable[[], float] = random.random,
) -> Decision:
    """Say what follows from an outcome after `attempt` spent attempts before it.

    `first_loss` is whether the task has never been lost before. The due time of a retry counts from the run's end.
    With `first_started_at` given, the policy's deadline is kept too; see within_deadline.
    """
    match outcome.kind:
        case OutcomeKind.COMPLETED:
            return Decision(Action.COMPLETE, spent=True)
        case OutcomeKind.DRAINED:
            return Decision(Action.AGAIN, spent=False)
        case OutcomeKind.CANCELLED:
            return Decision(Action.CANCEL, spent=False)
        case OutcomeKind.SKIPPED:
            return Decision(Action.SKIP, spent=False)
    if outcome.kind is OutcomeKind.FAILED and outcome.exit_code in FINAL_EXIT_CODES:
        return Decision(Action.FAIL, spent=True)
    spent = attempt + 1
    if spent >= policy.max_attempts:
        return Decision(Action.FAIL, spent=True)
    if outcome.kind is OutcomeKind.LOST and first_loss:
        wait = FIRST_LOST_WAIT
    else:
        wait = wait_before(spent + 1, policy, chance)
    again = Decision(Action.RETRY, spent=True, due_at=_later(outcome.finished_at, wait))
    return again if first_started_at is None else within_deadline(again, policy, first_started_at)


def within_deadline(decision: Decision, policy: Policy, first_started_at: datetime) -> Decision:
    """Return `decision`, or the end of the task if its retry would be due past the policy's deadline.

    The deadline is a time on the clock, counted from the start of the first run, a drained one too: waits, pauses and
    stops of the node use it up. It ends retries alone: a run that has begun may last longer, and a task that goes back
    unspent (a drain) runs again.
    """
    if policy.deadline is None or decision.due_at is None or decision.due_at - first_started_at <= policy.deadline:
        return decision
    return Decision(
        Action.FAIL, spent=decision.spent, note=f"Not tried again: deadline of {_told(policy.deadline)} reached"
    )


def _told(length: timedelta) -> str:
    seconds = length.total_seconds()
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:g} s"


def _later(moment: datetime, wait: timedelta) -> datetime:
    try:
        return moment + wait
    except OverflowError:
        return moment + timedelta(days=365)
