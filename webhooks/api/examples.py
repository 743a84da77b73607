"""Messages of webhooks, as the OpenAPI document shows them."""

from typing import Any

from k1node.api.example import Example
from k1node.events.catalogue import EVENTS
from webhooks.api import redelivery_examples

WEBHOOK: dict[str, Any] = {
    "webhook_id": "wh-abc123xyz",
    "name": "task-completion-webhook",
    "url": "https://external-service.com/webhooks/k1node",
    "events": ["task.completed", "task.failed"],
    "active": True,
    "state": "active",
    "retry_policy": {"max_retries": 3, "backoff_multiplier": 2.0},
    "header_names": ["X-Tenant"],
    "max_in_flight": 4,
    "per_second": None,
    "secret_hint": "Hh8=",
    "rotation": None,
    "failures": 0,
    "open_until": None,
    "last_success_at": None,
    "last_failure_at": None,
    "last_error": "",
    "disabled_at": None,
    "disabled_reason": "",
    "created_by": "operator-user-1",
    "created_at": "2025-11-09T12:37:29.000+00:00",
    "updated_at": "2025-11-09T12:37:29.000+00:00",
}
NEW: dict[str, Any] = {**WEBHOOK, "secret": "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}
DELIVERY: dict[str, Any] = {
    "delivery_id": "wh-dlv-4w0k6yq1m8z2f7tc",
    "message_id": "wh-evt-123",
    "event": "task.completed",
    "occurred_at": "2025-11-09T12:37:29.000+00:00",
    "state": "delivered",
    "is_test": False,
    "attempt_count": 1,
    "next_attempt_at": None,
    "last_status": 200,
    "last_error": "",
    "redelivered_by": "",
    "created_at": "2025-11-09T12:37:29.100+00:00",
    "finished_at": "2025-11-09T12:37:29.380+00:00",
}
ATTEMPT: dict[str, Any] = {
    "number": 1,
    "started_at": "2025-11-09T12:37:29.200+00:00",
    "finished_at": "2025-11-09T12:37:29.380+00:00",
    "outcome": "delivered",
    "status": 200,
    "error": "",
    "url": "https://external-service.com/webhooks/k1node",
    "address": "203.0.113.7",
    "allowed_by": "",
    "dns_ms": 2.1,
    "connect_ms": 38.4,
    "answer_ms": 121.9,
    "total_ms": 180.0,
    "request_headers": {"Content-Type": "application/json", "webhook-id": "wh-evt-123"},
    "response_headers": None,
    "response_body": None,
}
TEST: dict[str, Any] = {
    **DELIVERY,
    "event": "webhook.test",
    "state": "pending",
    "is_test": True,
    "attempt_count": 0,
    "next_attempt_at": "2025-11-09T12:37:29.100+00:00",
    "last_status": None,
    "finished_at": None,
}
COMPLETED = EVENTS["task.completed"]
EXAMPLES = {
    **redelivery_examples.examples(DELIVERY),
    "listWebhooks": Example(response={"webhooks": [WEBHOOK], "pagination": {"page": 1, "limit": 20, "total": 1}}),
    "createWebhook": Example(
        request={
            "name": "task-completion-webhook",
            "url": "https://external-service.com/webhooks/k1node",
            "events": ["task.completed", "task.failed"],
            "active": True,
            "retry_policy": {"max_retries": 3, "backoff_multiplier": 2},
        },
        response=NEW,
    ),
    "getWebhook": Example(response=WEBHOOK),
    "updateWebhook": Example(
        request={"events": ["*"], "max_in_flight": 8}, response={**WEBHOOK, "events": ["*"], "max_in_flight": 8}
    ),
    "enableWebhook": Example(response=WEBHOOK),
    "rotateWebhookSecret": Example(
        request={"overlap_seconds": 86400},
        response={
            **NEW,
            "rotation": {"rotates_at": "2025-11-10T12:37:29.000+00:00", "next_secret_hint": "Hh8="},
            "secret_hint": "x7Q=",
        },
    ),
    "testWebhook": Example(request={"event": "webhook.test"}, response=TEST),
    "listEventTypes": Example(
        response={
            "event_types": [
                {
                    "name": "task.completed",
                    "summary": COMPLETED.summary,
                    "schema": COMPLETED.envelope(),
                    "example": COMPLETED.sample(),
                }
            ]
        }
    ),
    "listWebhookDeliveries": Example(
        response={
            "deliveries": [DELIVERY],
            "pagination": {"page": 1, "limit": 20, "total": 1, "next_cursor": None},
        }
    ),
    "getWebhookDelivery": Example(response={**DELIVERY, "payload": dict(COMPLETED.example), "attempts": [ATTEMPT]}),
}
