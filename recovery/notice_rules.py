"""What a rule about notices may say, and what follows from it: values and sums, no rows.

A mail is due a short collecting time after the first of what it tells, and not before the rule's window since the mail
before it has passed. A mail that does not go is tried again after growing waits, for ever.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import models

COLLECT = timedelta(seconds=10)  # a failure rarely comes alone
DEFAULT_WINDOW = 300  # seconds
WINDOWS = (10, 86_400)
MOST_ADDRESSES = 20
FIRST_WAIT, LONGEST_WAIT = timedelta(seconds=30), timedelta(minutes=15)


class Kind(models.TextChoices):
    """What a rule can be about; the labels are those of the console and the mails."""

    ATTEMPT = "attempt", "failed attempt, to be tried again"
    FAILED = "failed", "task failed for good"
    DEAD_LETTER = "dead_letter", "dead letter"
    OPENED = "opened", "breaker opened"
    CLOSED = "closed", "breaker closed"
    RECOVERED = "recovered", "schedule recovered"


EVENTS = {
    Kind.ATTEMPT: "task.retrying",
    Kind.FAILED: "task.failed",
    Kind.DEAD_LETTER: "dlq.added",
    Kind.OPENED: "breaker.opened",
    Kind.CLOSED: "breaker.closed",
    # A failure is what begins it; its end is looked for among the schedule's runs.
    Kind.RECOVERED: "task.failed",
}


def usual_kinds() -> list[str]:
    return [kind.value for kind in Kind if kind is not Kind.ATTEMPT]


def check_addresses(addresses: object) -> None:
    """Raise ValidationError unless these are one to MOST_ADDRESSES e-mail addresses, each once."""
    if not isinstance(addresses, list) or not addresses:
        raise ValidationError("Name at least one address.", code="required")
    if len(addresses) > MOST_ADDRESSES:
        raise ValidationError(f"Must be at most {MOST_ADDRESSES} addresses.", code="many")
    for address in addresses:
        try:
            validate_email(address if isinstance(address, str) else None)
        except ValidationError:
            raise ValidationError(f"Is not an e-mail address: {address}", code="address") from None
    if len({address.lower() for address in addresses}) < len(addresses):
        raise ValidationError("Names an address twice.", code="twice")


def check_kinds(kinds: object) -> None:
    if not isinstance(kinds, list) or not kinds or not set(kinds) <= set(Kind.values):
        raise ValidationError(f"Must name at least one of {', '.join(Kind.values)}.", code="kinds")


def due(window_seconds: int, last_sent_at: datetime | None, *, now: datetime) -> datetime:
    """Return when a mail is to go whose first notice has come now."""
    soon = now + COLLECT
    return soon if last_sent_at is None else max(soon, last_sent_at + timedelta(seconds=window_seconds))


def wait_after(tries: int) -> timedelta:
    """Return the wait after so many tries in a row that have failed: 30 s, doubling to 15 min."""
    return min(LONGEST_WAIT, FIRST_WAIT * (1 << min(tries - 1, 10)))


def total_words(counts: dict[str, int]) -> str:
    """Return `300 × task failed for good, 1 × breaker opened`."""
    return ", ".join(f"{count:,} × {Kind(kind).label}" for kind, count in in_order(counts))


def in_order(counts: dict[str, int]) -> Sequence[tuple[str, int]]:
    """Return the counts in the order of Kind."""
    return [(kind.value, counts[kind.value]) for kind in Kind if counts.get(kind.value)]
