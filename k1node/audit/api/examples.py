"""Messages of the audit log's API, as the OpenAPI document shows them."""

from typing import Any

from k1node.api.example import Example

RECORD: dict[str, Any] = {
    "record_id": "1042",
    "timestamp": "2025-11-09T12:37:29.123+00:00",
    "action": "schedule.updated",
    "actor": "key:12",
    "actor_name": "deployment",
    "address": "192.0.2.7",
    "request_id": "req-abc123xyz",
    "target": "schedule:backup-daily",
    "before": {"schedule_expr": "0 2 * * *"},
    "after": {"schedule_expr": "0 3 * * *"},
    "reason": None,
    "count": 1,
    "last_at": None,
}
EXAMPLES = {
    "listAuditRecords": Example(
        response={"records": [RECORD], "pagination": {"page": 1, "limit": 20, "total": 1, "next_cursor": None}}
    ),
    "getAuditRecord": Example(response=RECORD),
}
