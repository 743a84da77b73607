"""What the OpenAPI document says of every operation alike: tags, headers, media types, examples of errors."""

from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema_field
from rest_framework import serializers

from k1node.api.pagination import LIMIT_PARAMETER, PAGE_PARAMETER, PagePagination
from k1node.api.renderers import JSON, JSON_V2

Document = dict[str, Any]

DESCRIPTION = """Error Recovery & Dynamic Scheduling API

Schedules and events put tasks on a priority queue, workers run them, and what fails is retried, held back by circuit
breakers or kept as dead letters.

**Versions.** This document is of version 2: `Accept: application/vnd.k1node.v2+json`, `X-API-Version: 2`, the path
`/api/v2`, or nothing at all. `Accept: application/vnd.k1node.v1+json` asks for the deprecated version 1: the same
answers in an envelope, `{"status": "success", "data": …, "timestamp": …}` or
`{"status": "error", "error": …, "timestamp": …}`.

**Errors.** Every error has the body of `Error`, but for 429, which has that of `RateLimitError`. With
`Accept: application/problem+json` both are `Problem`, as in RFC 9457.

**Scopes.** `x-required-scopes` names the scopes of which any one opens an operation; a scope may bring others along."""

# For an action that answers a page with more beside it; plain lists have theirs from the paginator.
PAGED = tuple(
    OpenApiParameter(each["name"], each["schema"], OpenApiParameter.QUERY, description=each["description"])
    for each in (PAGE_PARAMETER, LIMIT_PARAMETER)
)


@extend_schema_field(PagePagination().facts_schema())
class PaginationField(serializers.DictField):
    """The `pagination` of such an answer."""


# In the order in which readers see them.
TAGS = {
    "Scheduling": "Schedules, events, the queue and its tasks",
    "Error Recovery": "Retries, circuit breakers, the dead letter queue and what operators do to tasks",
    "Batch Operations": "Groups of tasks and their progress",
    "Webhooks": "Where events are sent, and what became of each delivery",
    "Access": "API keys, tokens and the audit log",
    "Versions": "What this node speaks",
    "Events": "What is sent to webhooks",
}

HEADERS: dict[str, Document] = {
    "X-Request-Id": {
        "description": "Names the request in answers and logs; one that the caller sends is kept",
        "required": True,
        "schema": {"type": "string"},
        "example": "req-abc123xyz",
    },
    "X-RateLimit-Limit": {
        "description": "Requests an hour",
        "schema": {"type": "integer"},
        "example": 1000,
    },
    "X-RateLimit-Remaining": {
        "description": "What is left of them",
        "schema": {"type": "integer"},
        "example": 987,
    },
    "X-RateLimit-Reset": {
        "description": "When all of them are there again",
        "schema": {"type": "string", "format": "date-time"},
        "example": "2025-11-09T21:37:29.000+00:00",
    },
    "RateLimit-Policy": {
        "description": "The limits that hold: quota `q` in a window of `w` seconds, by name",
        "schema": {"type": "string"},
        "example": '"hour";q=1000;w=3600, "burst";q=100;w=60',
    },
    "RateLimit": {
        "description": "What remains, `r`, of the limit that is nearest to its end, and for how many seconds `t`",
        "schema": {"type": "string"},
        "example": '"hour";r=987;t=3',
    },
    "WWW-Authenticate": {
        "description": "The challenge of RFC 6750: what kind of credential is wanted, and what was wrong with this one",
        "schema": {"type": "string"},
        "example": 'Bearer realm="k1node", error="invalid_token"',
    },
    "X-RateLimit-RetryAfter": {
        "description": "Seconds until a request is let through again",
        "schema": {"type": "integer"},
        "example": 3,
    },
    "Retry-After": {
        "description": "Seconds to wait before asking again",
        "schema": {"type": "integer"},
        "example": 3,
    },
}
ON_EVERY_ANSWER = (
    "X-Request-Id",
    "X-RateLimit-Limit",
    "X-RateLimit-Remaining",
    "X-RateLimit-Reset",
    "RateLimit-Policy",
    "RateLimit",
)
ON_ANSWER: dict[str, tuple[str, ...]] = {
    "Unauthorized": ("WWW-Authenticate",),
    "Forbidden": ("WWW-Authenticate",),
    "TooManyRequests": ("X-RateLimit-RetryAfter", "Retry-After"),
    "ServiceUnavailable": ("Retry-After",),
}

AT = "2025-11-09T12:37:29.000+00:00"


def error_example(code: str, message: str, status: int, *details: Document) -> Document:
    return {
        "error": {
            "code": code,
            "message": message,
            "status": status,
            "timestamp": AT,
            "request_id": "req-abc123xyz",
            "details": list(details),
        }
    }


# By component; those that are not here are made from the status.
ERROR_EXAMPLES: dict[str, Document] = {
    "BadRequest": error_example(
        "INVALID_REQUEST",
        "Request validation failed",
        400,
        {
            "field": "schedule_expr",
            "message": "Invalid cron expression",
            "suggestion": "Use format: minute hour day month weekday",
        },
    ),
    "TooManyRequests": {
        "error": "rate_limit_exceeded",
        "message": "API rate limit exceeded",
        "limit": 1000,
        "remaining": 0,
        "reset_at": "2025-11-09T13:37:29.000+00:00",
        "retry_after": 3,
    },
}


def problem_example(code: str, message: str, status: int, details: list[Document]) -> Document:
    """Return the example of the same error for who accepts application/problem+json."""
    return {
        "type": f"/api/errors#{code}",
        "title": message,
        "status": status,
        "detail": message,
        "instance": "urn:k1node:request:req-abc123xyz",
        "code": code,
        "request_id": "req-abc123xyz",
        "timestamp": AT,
        "errors": details,
    }


def media_types(message: Document) -> None:
    """Declare the product's own media type beside application/json."""
    content = message.get("content", {})
    if JSON in content:
        message["content"] = {JSON: content[JSON], JSON_V2: dict(content[JSON])} | content


def headers(answer: Document, *more: str) -> None:
    """Declare the headers that every answer has, and those named."""
    shared = {name: {"$ref": f"#/components/headers/{name}"} for name in (*ON_EVERY_ANSWER, *more)}
    answer["headers"] = {**answer.get("headers", {}), **shared}
