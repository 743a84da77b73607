"""Messages of the batches API, as the OpenAPI document shows them."""

from typing import Any

from k1node.api.example import Example
from scheduling.api.examples import AT, PAGINATION, SUBMITTED

CURSORED = PAGINATION | {"next_cursor": None}
SAID = {"reason": "The target is down"}
DONE_AT = "2025-11-09T13:00:00.000+00:00"

OPTIONS: dict[str, Any] = {
    "fail_fast": False,
    "fail_fast_running": "finish",
    "parallel": True,
    "max_concurrent": 2,
}
SUBMISSION: dict[str, Any] = {
    "batch_id": "batch-export-20251109",
    "tasks": [
        {
            "task_id": "export-1",
            "handler": "bash ops/agents/export.sh",
            "parameters": {"format": "csv", "dataset": "users"},
            "priority": 5,
        },
        {
            "task_id": "export-2",
            "handler": "bash ops/agents/export.sh",
            "parameters": {"format": "json", "dataset": "orders"},
            "priority": 5,
        },
    ],
    "options": {"fail_fast": False, "parallel": True, "max_concurrent": 2},
}
ACCEPTED: dict[str, Any] = {
    "batch_id": "batch-export-20251109",
    "status": "submitted",
    "task_count": 2,
    "estimated_completion": DONE_AT,
}
PROGRESS: dict[str, Any] = {
    "total": 2,
    "completed": 1,
    "failed": 0,
    "in_progress": 1,
    "skipped": 0,
    "cancelled": 0,
    "waiting": 0,
}
SUMMARY: dict[str, Any] = {
    "batch_id": "batch-export-20251109",
    "status": "in_progress",
    "progress": PROGRESS,
    "options": OPTIONS,
    "open": False,
    "round": 1,
    "created_by": "operator-user-1",
    "created_at": AT,
    "started_at": "2025-11-09T12:37:29.050+00:00",
    "paused_at": None,
    "paused_by": "",
    "cancelled_at": None,
    "cancelled_by": "",
    "cancel_reason": "",
    "ended_at": None,
    "tasks_url": "/api/v2/tasks/batch/batch-export-20251109/tasks",
}
BATCH: dict[str, Any] = {
    **SUMMARY,
    "estimated_completion": DONE_AT,
    "defaults": {},
    "retry": None,
    "tasks": [
        {"task_id": "export-1", "status": "completed", "result": {"exit_code": 0}, "error": None},
        {"task_id": "export-2", "status": "executing", "result": None, "error": None},
    ],
}
CANCELLED = {"cancelled_at": AT, "cancelled_by": "operator-user-1", "cancel_reason": "The target is down"}
FAILED = {"progress": {**PROGRESS, "failed": 1, "in_progress": 0}, "round": 2}

EXAMPLES = {
    "submitBatch": Example(request=SUBMISSION, response=ACCEPTED),
    "listBatches": Example(response={"batches": [SUMMARY], "pagination": CURSORED}),
    "getBatch": Example(response=BATCH),
    "listBatchTasks": Example(
        response={"tasks": [SUBMITTED | {"batch": "batch-export-20251109"}], "pagination": CURSORED}
    ),
    "addBatchTasks": Example(
        request={"tasks": [{"task_id": "export-3", "handler": "bash ops/agents/export.sh"}]},
        response=ACCEPTED | {"task_count": 3, "estimated_completion": None},
    ),
    "closeBatch": Example(response=SUMMARY),
    "cancelBatch": Example(request=SAID, response=SUMMARY | CANCELLED),
    "pauseBatch": Example(
        request=SAID, response=SUMMARY | {"status": "paused", "paused_at": AT, "paused_by": "operator-user-1"}
    ),
    "resumeBatch": Example(request={"reason": "The target is up again"}, response=SUMMARY),
    "retryFailedOfBatch": Example(request={"reason": "The disk has room again"}, response=SUMMARY | FAILED),
}
