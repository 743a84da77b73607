"""The base of every error this project raises on purpose; k1node.api.errors turns them into response bodies."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Detail:
    """What is wrong with one field, and what to write instead."""

    field: str
    message: str
    suggestion: str | None = None


class K1NodeError(Exception):
    """The request could not be carried out."""

    code = "INTERNAL_ERROR"
    status = 500

    def __init__(self, message: str | None = None, *, details: tuple[Detail, ...] = ()) -> None:
        doc = (type(self).__doc__ or "").strip().splitlines()[0]
        self.message = message or doc
        self.details = details
        super().__init__(self.message)


class InvalidRequest(K1NodeError):
    """Request validation failed"""

    code = "INVALID_REQUEST"
    status = 400


class FieldInvalid(InvalidRequest):
    """One field of the request is not usable."""

    def __init__(self, field: str, message: str, suggestion: str | None = None) -> None:
        super().__init__("Request validation failed", details=(Detail(field, message, suggestion),))


class NotFound(K1NodeError):
    """Resource not found"""

    code = "NOT_FOUND"
    status = 404


class Conflict(K1NodeError):
    """The request conflicts with the present state"""

    code = "CONFLICT"
    status = 409


class NotAcceptable(K1NodeError):
    """None of the answers this API can give is one that the client accepts"""

    code = "NOT_ACCEPTABLE"
    status = 406


class Gone(K1NodeError):
    """The resource was here and will not come back"""

    code = "GONE"
    status = 410


class PreconditionFailed(K1NodeError):
    """The resource has changed since it was read"""

    code = "PRECONDITION_FAILED"
    status = 412


class RateLimited(K1NodeError):
    """API rate limit exceeded"""

    code = "RATE_LIMIT_EXCEEDED"
    status = 429

    def __init__(self, *, limit: int, remaining: int, reset_at: datetime, retry_after: int) -> None:
        """`reset_at` is when the whole limit is there again, `retry_after` the seconds until one request is."""
        super().__init__()
        self.limit = limit
        self.remaining = remaining
        self.reset_at = reset_at
        self.retry_after = retry_after
