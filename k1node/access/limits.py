"""How many requests one caller may make: a token bucket by the hour and one by the minute, both at once.

Whose bucket a request takes from: its key's, its user's, its OAuth application's and user's; or its address's, while
nobody is recognised. A request that fails to sign in takes from its address, and a caller with a good key behind the
same one is not hindered: what keeps guessers out is the length of what they would have to guess. Requests of the
console itself are not counted.
"""

import logging
import math
from dataclasses import dataclass
from datetime import UTC, datetime

from django.conf import settings
from django.http import HttpRequest

from k1node.access import buckets
from k1node.access.principal import Principal
from k1node.lib import origin
from k1node.lib.errors import RateLimited

logger = logging.getLogger(__name__)

MICRO = 1_000_000
MINUTE = 60 * MICRO
BULK = ("batch-resubmit", "batch-archive", "batch-unarchive", "redrives")


@dataclass(frozen=True, slots=True)
class Limit:
    """`requests` in a window of `window_ms`, no more than `burst` of them in a minute."""

    requests: int
    window_ms: int
    burst: int

    @property
    def depth(self) -> buckets.Depth:
        # Rounded up: a token never comes back early.
        return buckets.Depth(
            self.requests, -(-self.window_ms * 1000 // self.requests), self.burst, -(-MINUTE // self.burst)
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one request. `reset_at` is when the bucket of the window is full again; the rest in seconds."""

    allowed: bool
    limit: Limit
    remaining: int
    burst_remaining: int
    reset_at: datetime
    burst_reset_at: datetime
    full_in: int
    burst_full_in: int
    retry_after: int  # 0 if allowed

    def headers(self) -> dict[str, str]:
        """Return the headers of an answer: the product's own, and the IETF's beside them."""
        window = max(1, self.limit.window_ms // 1000)
        headers = {
            "X-RateLimit-Limit": str(self.limit.requests),
            "X-RateLimit-Remaining": str(self.remaining),
            "X-RateLimit-Reset": self.reset_at.isoformat(timespec="milliseconds"),
            "RateLimit-Policy": f'"hour";q={self.limit.requests};w={window}, "burst";q={self.limit.burst};w=60',
            "RateLimit": (
                f'"hour";r={self.remaining};t={self.full_in}, "burst";r={self.burst_remaining};t={self.burst_full_in}'
            ),
        }
        if not self.allowed:
            headers["X-RateLimit-RetryAfter"] = headers["Retry-After"] = str(self.retry_after)
        return headers

    def error(self) -> RateLimited:
        """Return the error to raise, which speaks of the side that refused."""
        by_burst = self.burst_remaining < self.remaining
        return RateLimited(
            limit=self.limit.burst if by_burst else self.limit.requests,
            remaining=self.burst_remaining if by_burst else self.remaining,
            reset_at=self.burst_reset_at if by_burst else self.reset_at,
            retry_after=self.retry_after,
        )


def limit_for(requests_per_hour: int | None) -> Limit:
    """Return the limit of a caller with this allowance of its own; None is the node's."""
    if requests_per_hour is None:
        return Limit(settings.RATE_LIMIT_REQUESTS, settings.RATE_LIMIT_WINDOW_MS, settings.RATE_LIMIT_BURST)
    return Limit(requests_per_hour, 3_600_000, min(settings.RATE_LIMIT_BURST, requests_per_hour))


def cost_of(method: str, path: str) -> int:
    """Return the tokens that a request takes: 5 for work in bulk, 2 for webhooks, 1 for the rest.

    `path` is that of version 2. A bucket that never holds as many gives all it has (see take).
    """
    parts = path.split("/", 5)[3:]  # "", "api", "v2", then these
    if not parts:
        return 1
    if parts[0] == "webhooks":
        return 2
    if method != "POST" or len(parts) < 2:
        return 1
    if parts[0] == "tasks" and parts[1] == "batch":
        return 5
    return 5 if parts[:2] == ["queue", "dlq"] and len(parts) > 2 and parts[2] in BULK else 1


def take(bucket: str, cost: int, limit: Limit, *, now: int | None = None) -> Verdict:
    """Take `cost` tokens of `bucket`; the verdict says whether there were as many. `now` in microseconds, for tests."""
    depth = limit.depth
    cost = min(cost, depth.hour, depth.burst)
    level = buckets.take(bucket, cost, depth, now=now)
    hour_deep, burst_deep = depth.hour * depth.hour_interval, depth.burst * depth.burst_interval
    wait = 0
    if not level.taken:
        short_by = max(
            level.hour + cost * depth.hour_interval - hour_deep, level.burst + cost * depth.burst_interval - burst_deep
        )
        wait = max(1, math.ceil((short_by - level.now) / MICRO))
    return Verdict(
        level.taken,
        limit,
        remaining=_left(level.hour, level.now, hour_deep, depth.hour_interval),
        burst_remaining=_left(level.burst, level.now, burst_deep, depth.burst_interval),
        reset_at=_moment(max(level.hour, level.now)),
        burst_reset_at=_moment(max(level.burst, level.now)),
        full_in=max(0, math.ceil((level.hour - level.now) / MICRO)),
        burst_full_in=max(0, math.ceil((level.burst - level.now) / MICRO)),
        retry_after=wait,
    )


def charge(request: HttpRequest, principal: Principal | None) -> None:
    """Let the caller pay for this request, once. Raises RateLimited.

    Without a principal the address pays, in full even if somebody else has paid: a failed sign-in is its own.
    """
    if principal is None:
        bucket, limit = _address_bucket(), limit_for(None)
    else:
        bucket, limit = principal.identity, limit_for(principal.requests_per_hour)
    try:
        verdict = take(bucket, cost_of(request.method or "", request.path_info), limit)
    except buckets.Unusable as error:
        # What only counts requests must not take the node's API down with it.
        logger.error("Rate limits not enforced: requests cannot be counted", extra={"reason": str(error)})
        return
    request.rate_limit = verdict  # type: ignore[attr-defined]
    if not verdict.allowed:
        logger.warning("Rate limit exceeded", extra={"bucket": bucket, "retry_after": verdict.retry_after})
        raise verdict.error()


def verdict_on(request: HttpRequest) -> Verdict | None:
    """Return what this request was charged; None if nobody has paid yet."""
    return getattr(request, "rate_limit", None)


def _address_bucket() -> str:
    asked_from = origin.current()
    return f"ip:{origin.network_of(asked_from.address if asked_from else origin.UNKNOWN)}"


def _left(full_at: int, now: int, deep: int, interval: int) -> int:
    return max(0, (now + deep - max(full_at, now)) // interval)


def _moment(microseconds: int) -> datetime:
    return datetime.fromtimestamp(microseconds / MICRO, UTC)
