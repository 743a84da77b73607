"""Messages of redeliveries, as the OpenAPI document shows them."""

from typing import Any

from k1node.api.example import Example

AT = "2025-11-09T12:37:29.000+00:00"
REDELIVERY: dict[str, Any] = {
    "redelivery_id": "redelivery-7sh2k9",
    "webhook_id": "wh-abc123xyz",
    "mode": "failed",
    "since": "2025-11-09T10:00:00.000+00:00",
    "until": AT,
    "events": None,
    "state": "running",
    "said": None,
    "per_second": 20,
    "total": 87,
    "redelivered": 40,
    "refused": 0,
    "remaining": 47,
    "created_by": "operator-user-1",
    "created_at": AT,
    "started_at": AT,
    "finished_at": None,
}
BEGUN = {**REDELIVERY, "redelivered": 0, "remaining": 87, "capped": False}


def examples(delivery: dict[str, Any]) -> dict[str, Example]:
    """Return them by operationId; `delivery` is one as the API shows it."""
    return {
        "listRedeliveries": Example(
            response={
                "redeliveries": [REDELIVERY],
                "pagination": {"page": 1, "limit": 20, "total": 1, "next_cursor": None},
            }
        ),
        "getRedelivery": Example(
            response={**REDELIVERY, "deliveries": {"delivered": 38, "pending": 2}, "refusals": {}}
        ),
        "startRedelivery": Example(
            request={"mode": "failed", "since": "2025-11-09T10:00:00.000+00:00", "per_second": 20}, response=BEGUN
        ),
        "resumeRedelivery": Example(response=REDELIVERY),
        "stopRedelivery": Example(response={**REDELIVERY, "state": "stopped", "said": "Stopped by operator-user-1"}),
        "cancelRedelivery": Example(
            response={
                **REDELIVERY,
                "state": "cancelled",
                "said": "Cancelled by operator-user-1",
                "finished_at": "2025-11-09T12:38:29.000+00:00",
            }
        ),
        "redeliverWebhookDelivery": Example(
            response={
                **delivery,
                "state": "pending",
                "next_attempt_at": AT,
                "redelivered_by": "operator-user-1",
                "finished_at": None,
            }
        ),
    }
