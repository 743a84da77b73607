"""What follows from an attempt, as arithmetic: what an answer counts as, how long to wait, when a breaker opens, when a
webhook is given up. Touches no row.
"""

import random
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum

FIRST_WAIT = timedelta(seconds=5)
LONGEST_WAIT = timedelta(minutes=15)
JITTER = 0.2  # of the wait, both ways
LONGEST_RETRY_AFTER = timedelta(hours=1)

OPEN_AFTER = 5  # failures in a row: the breaker opens, and webhook.failing is published
OPEN_FOR = timedelta(seconds=30)  # doubled with each probe that fails
OPEN_CAP = timedelta(minutes=15)

SECOND = timedelta(seconds=1)
UNPACED = 1_000_000  # more than anybody asks for

DISABLE_AFTER = timedelta(days=5)  # of nothing but failures
DISABLE_AFTER_EXHAUSTED = 100  # deliveries in a row


class Code(StrEnum):
    """What came of an attempt."""

    DELIVERED = "delivered"  # 2xx
    GONE = "gone"  # 410: the receiver wants no more
    REDIRECT = "redirect"  # 3xx: never followed
    REFUSED = "refused"  # other 4xx
    THROTTLED = "throttled"  # 429
    UNAVAILABLE = "unavailable"  # 5xx
    TIMEOUT = "timeout"  # the whole of the request took too long
    DNS = "dns"
    BLOCKED = "blocked"  # an address that must not be connected to
    CONNECT = "connect"
    TLS = "tls"
    PROTOCOL = "protocol"  # not an answer in HTTP, or one without end of heads
    SECRET = "secret"  # the secret cannot be read with the node's keys: nothing was sent, and no try is spent


@dataclass(frozen=True, slots=True)
class Result:
    """What one attempt gave. Times in milliseconds, each phase from its beginning; None: not reached."""

    code: Code
    finished_at: datetime
    status: int | None = None
    error: str = ""  # for people, one sentence
    retry_after: timedelta | None = None
    address: str = ""
    allowed_by: str = ""
    dns_ms: float | None = None
    connect_ms: float | None = None
    answer_ms: float | None = None
    total_ms: float | None = None
    request_headers: dict[str, str] | None = None  # as they may be shown
    response_headers: dict[str, str] | None = None
    response_body: str = ""


def code_of(status: int) -> Code:
    """Return what an answer with `status` counts as."""
    if 200 <= status < 300:
        return Code.DELIVERED
    if 300 <= status < 400:
        return Code.REDIRECT
    if status == 410:
        return Code.GONE
    if status == 429:
        return Code.THROTTLED
    return Code.REFUSED if 400 <= status < 500 else Code.UNAVAILABLE


def wait_before(retry: int, multiplier: float, chance: random.Random) -> timedelta:
    """Return the wait before the `retry`th retry (from 1): 5 s, then grown by `multiplier`, at most 15 min, +-20 %."""
    try:
        wait = min(LONGEST_WAIT.total_seconds(), FIRST_WAIT.total_seconds() * multiplier ** (retry - 1))
    except OverflowError:
        wait = LONGEST_WAIT.total_seconds()
    return timedelta(seconds=wait * (1 + JITTER * (2 * chance.random() - 1)))


def retry_after(text: str | None, *, now: datetime) -> timedelta | None:
    """Return the wait that a Retry-After header asks for, at most an hour; None if it says nothing usable."""
    text = (text or "").strip()
    if text.isascii() and text.isdigit():
        wait = timedelta(seconds=int(text.lstrip("0")[:9] or 0))  # more digits are more than an hour too
    else:
        try:
            moment = parsedate_to_datetime(text)
        except (ValueError, TypeError, OverflowError):
            return None
        if moment.tzinfo is None:
            return None
        wait = timedelta(seconds=(moment - now).total_seconds())
    return min(max(wait, timedelta(0)), LONGEST_RETRY_AFTER)


def open_for(failures: int) -> timedelta:
    """Return how long the breaker opens after so many failures in a row; zero below OPEN_AFTER."""
    if failures < OPEN_AFTER:
        return timedelta(0)
    return min(OPEN_CAP, OPEN_FOR * (1 << min(failures - OPEN_AFTER, 10)))


def why_give_up(code: Code, *, exhausted: int, failing_since: datetime | None, now: datetime) -> str:
    """Return why a webhook is to be disabled, as a sentence; "" if it is not."""
    if code is Code.GONE:
        return "It answered 410 Gone: it wants no more"
    if exhausted >= DISABLE_AFTER_EXHAUSTED:
        return f"{exhausted} deliveries in a row were given up"
    if failing_since is not None and now - failing_since >= DISABLE_AFTER:
        return f"Nothing has arrived for {DISABLE_AFTER.days} days"
    return ""


def allowed(per_second: int | None, paced_until: datetime | None, *, now: datetime) -> int:
    """Return how many requests may be sent at `now`; at once never more than those of one second.

    `paced_until` is when the next one is due: past, so many have been saved up; in future, none may be sent.
    """
    if paced_until is not None and paced_until > now:
        return 0
    if per_second is None:
        return UNPACED
    gap = _gap(per_second)
    saved = SECOND - gap if paced_until is None else min(SECOND - gap, now - paced_until)
    return min(per_second, saved // gap + 1)


def paced(per_second: int | None, paced_until: datetime | None, sent: int, *, now: datetime) -> datetime | None:
    """Return when the next request is due after `sent` more have been sent at `now`."""
    if per_second is None or not sent:
        return paced_until
    gap = _gap(per_second)
    earliest = now - (SECOND - gap)
    return (earliest if paced_until is None else max(earliest, paced_until)) + sent * gap


def _gap(per_second: int) -> timedelta:
    # Rounded down: a second has room for all of them.
    return timedelta(microseconds=1_000_000 // per_second)
