"""How many retries something that fails may be given: one call in five, and one a second besides. Pure arithmetic.

Every call that names a breaker earns a fifth of a retry, at most MOST of them are saved up; a retry that is decided on
costs a whole one and is due when its policy says. Without one left it is due in its turn, one a second, behind those
already put off. So a failing thing gets its retries, but its retries are not what keeps it down. Nothing is lost and no
attempt is spent by waiting. A breaker whose window holds no failure has all its savings back.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

CALLS = 5  # earn one retry
MOST = 10  # retries saved up
FLOOR = timedelta(seconds=1)  # between two retries beyond the share


@dataclass(frozen=True, slots=True)
class Budget:
    """`credit` counts calls that have not been used for a retry; `free_at` is when the next one without credit may be.

    None is at once.
    """

    credit: int = CALLS * MOST
    free_at: datetime | None = None


def earned(budget: Budget, calls: int) -> Budget:
    """Return the budget after so many calls; those of one bundle may pay for its own retries before any is lost."""
    return Budget(budget.credit + calls, budget.free_at)


def saved(budget: Budget) -> Budget:
    """Return what of the budget is kept when a settlement is over."""
    return Budget(min(CALLS * MOST, budget.credit), budget.free_at)


def spent(budget: Budget, due_at: datetime) -> tuple[Budget, datetime]:
    """Return the budget after a retry that its policy would have at `due_at`, and when it is due."""
    if budget.credit >= CALLS:
        return Budget(budget.credit - CALLS, budget.free_at), due_at
    at = due_at if budget.free_at is None else max(due_at, budget.free_at)
    return Budget(budget.credit, at + FLOOR), at
