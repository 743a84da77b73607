"""What a credential may do, as data: which scope brings which others with it."""

from collections.abc import Iterable
from functools import cache, lru_cache

ADMIN = "admin"

# Scope -> the scopes it brings along, each with its own following; `admin` brings all.
IMPLIES: dict[str, tuple[str, ...]] = {
    "scheduler:read": (),
    "scheduler:write": ("scheduler:read",),
    "scheduler:trigger": ("scheduler:read",),
    "scheduling:admin": ("scheduler:write", "scheduler:trigger"),
    "error-recovery:read": (),
    "error-recovery:write": ("error-recovery:read",),
    "error-recovery:admin": ("error-recovery:write",),
    "batch:write": (),
    "batch:admin": ("batch:write",),
    "webhooks:read": (),
    "webhooks:write": ("webhooks:read",),
    # What an operator's page shows, and what can be done from it.
    "dashboard:read": ("scheduler:read", "error-recovery:read", "webhooks:read"),
    "dashboard:write": ("dashboard:read", "error-recovery:write"),
    ADMIN: (),
}
ALL_SCOPES: frozenset[str] = frozenset(IMPLIES)

DESCRIPTIONS: dict[str, str] = {
    "scheduler:read": "List and read schedules, tasks and the queue",
    "scheduler:write": "Create, update and delete schedules; submit tasks",
    "scheduler:trigger": "Trigger events and run schedules now",
    "scheduling:admin": "All scheduler operations",
    "error-recovery:read": "View retry, circuit breaker and dead letter figures",
    "error-recovery:write": "Resubmit dead letters; pause, resume, skip and retry tasks",
    "error-recovery:admin": "All error recovery operations",
    "batch:write": "Submit batch operations",
    "batch:admin": "Manage batch processing",
    "webhooks:read": "List webhooks and their deliveries",
    "webhooks:write": "Create, change and delete webhooks",
    "dashboard:read": "Read what the operator pages show",
    "dashboard:write": "Intervene from the operator pages",
    ADMIN: "All operations",
}


@cache
def closure(scope: str) -> frozenset[str]:
    """Return `scope` and everything it brings along; an unknown scope brings nothing, not even itself."""
    if scope == ADMIN:
        return ALL_SCOPES
    if scope not in IMPLIES:
        return frozenset()
    return frozenset({scope}).union(*(closure(inner) for inner in IMPLIES[scope]))


def covered(scopes: Iterable[str]) -> frozenset[str]:
    """Return `scopes` and everything they bring along."""
    return frozenset().union(*(closure(scope) for scope in scopes))


def allows(granted: Iterable[str], required: Iterable[str]) -> bool:
    """Say whether `granted` covers at least one of `required`; nothing required means nobody may."""
    wanted = frozenset(required)
    return any(not wanted.isdisjoint(closure(scope)) for scope in granted)


@lru_cache(maxsize=4096)
def common(some: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    """Return the fewest scopes that bring what both bring; none that is known to neither."""
    both = _brought_by(some) & _brought_by(others)
    return tuple(sorted(scope for scope in both if not any(scope in closure(each) - {each} for each in both)))


def _brought_by(granted: Iterable[str]) -> frozenset[str]:
    return frozenset().union(*(closure(scope) for scope in granted))
