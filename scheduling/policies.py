"""What a retry policy may be: its name, its bounds, its waits. Its verbs are in recovery.policies."""

from collections.abc import Mapping
from typing import Any

from k1node.lib.errors import FieldInvalid
from scheduling.models import RetryPolicy
from scheduling.tasks import NAME

BUILT_IN = ("standard", "aggressive", "conservative")  # what is new gets the first unless told otherwise
LONGEST_NAME = 64
NAME_RULE = f"Use 1 to {LONGEST_NAME} letters, digits, dots, dashes and underscores, beginning with a letter or digit"
ATTEMPTS = (1, 100)
WAITS_MS = (0, 30 * 86_400_000)
DEADLINES_MS = (1000, 30 * 86_400_000)
MULTIPLIERS = (1, 10)
FIGURES = ("max_attempts", "first_wait_ms", "multiplier", "cap_ms", "jitter", "deadline_ms")
SHOWN_WAITS = 6


def check_name(name: str) -> None:
    """Raise FieldInvalid unless a policy may be called so."""
    if len(name) > LONGEST_NAME or not NAME.fullmatch(name):
        raise FieldInvalid("name", "Is not a usable name", NAME_RULE)


def check_figures(figures: Mapping[str, Any]) -> None:
    """Raise FieldInvalid where figures, each within its bounds, contradict each other."""
    if figures["cap_ms"] < figures["first_wait_ms"]:
        raise FieldInvalid("cap_ms", "Must not be less than first_wait_ms", f"Use {figures['first_wait_ms']} or more")


def waits_ms(policy: RetryPolicy) -> list[int]:
    """Return the waits before the first retries, SHOWN_WAITS at the most, without their jitter."""
    count = min(policy.max_attempts - 1, SHOWN_WAITS)
    return [round(min(policy.cap_ms, policy.first_wait_ms * policy.multiplier**number)) for number in range(count)]
