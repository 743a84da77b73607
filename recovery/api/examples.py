"""Messages of the recovery API, as the OpenAPI document shows them."""

from typing import Any

from k1node.api.example import Example
from scheduling.api.examples import AT, ATTEMPT, PAGINATION

CURSORED = PAGINATION | {"next_cursor": None}
SAID = {"reason": "Debugging issue"}

BREAKER: dict[str, Any] = {
    "breaker_id": "api-service-1",
    "state": "CLOSED",
    "failure_rate": 0.02,
    "failure_count": 2,
    "success_count": 98,
    "last_state_change": "2025-11-09T10:00:00.000+00:00",
    "timeout_remaining_ms": 0,
    "waiting": 0,
    "held": None,
}
HALF_OPEN: dict[str, Any] = {
    **BREAKER,
    "breaker_id": "database-cluster-1",
    "state": "HALF-OPEN",
    "failure_rate": 0.45,
    "failure_count": 45,
    "success_count": 55,
    "last_state_change": "2025-11-09T12:30:00.000+00:00",
    "timeout_remaining_ms": 12000,
    "waiting": 7,
}
FIGURES: dict[str, Any] = {
    "window_size": 100,
    "min_calls": 5,
    "failure_percent": 50,
    "open_ms": 60000,
    "open_cap_ms": 900000,
    "probes": 3,
}
BREAKER_DETAIL: dict[str, Any] = {**BREAKER, **FIGURES}
NEW_BREAKER: dict[str, Any] = {
    "breaker_id": "api-service-1",
    "window_size": 100,
    "failure_percent": 50,
    "reason": "Before the first deployment",
}
HELD = {
    "state": "open",
    "by": "operator-user-1",
    "reason": "Database maintenance",
    "until": "2025-11-09T14:00:00.000+00:00",
}
UNTIL = {"reason": "Database maintenance", "until": "2125-11-09T14:00:00.000+00:00"}
HOLD: dict[str, Any] = {
    "held": True,
    "reason": "Database maintenance",
    "by": "operator-user-1",
    "since": AT,
    "until": "2025-11-09T14:00:00.000+00:00",
}

POLICY: dict[str, Any] = {
    "name": "patient",
    "max_attempts": 5,
    "first_wait_ms": 30000,
    "multiplier": 2.0,
    "cap_ms": 900000,
    "jitter": "full",
    "deadline_ms": None,
    "waits_ms": [30000, 60000, 120000, 240000],
    "built_in": False,
    "retired": False,
    "schedules": 0,
}

ENTRY: dict[str, Any] = {
    "dlq_id": "dlq-task-1-1667953049123",
    "task_id": "task-1",
    "timestamp": "2025-11-09T10:00:00.000+00:00",
    "error_code": 500,
    "error_message": "Service unavailable (max retries exceeded)",
    "status": "pending",
    "original_parameters": {"dataset": "users"},
    "last_resubmit_attempt": None,
    "manual_intervention_required": True,
    "handler": "bash ops/agents/export.sh",
    "circuit_breaker": "api-service-1",
    "fingerprint": "6f1c9d0a2b3e4f58",
    "new_task_id": None,
}
ENTRY_DETAIL: dict[str, Any] = {
    **ENTRY,
    "retry_policy": "standard",
    "timeout_ms": 3600000,
    "attempts": [
        ATTEMPT
        | {
            "attempt": 5,
            "fence": 5,
            "outcome": "failed",
            "decision": "fail",
            "exit_code": 1,
            "error": "Service unavailable",
            "output": "/api/v2/tasks/task-1/output?fence=5",
        }
    ],
    "modified_parameters": None,
    "modified_retry_policy": None,
    "new_task_status": None,
    "resolved_at": None,
    "resolved_by": None,
    "reason": None,
    "created_by": None,
    "chain": [],
}
ARCHIVED: dict[str, Any] = {
    **ENTRY_DETAIL,
    "status": "archived",
    "manual_intervention_required": False,
    "resolved_at": AT,
    "resolved_by": "operator-user-1",
    "reason": "Known issue",
}
MANY = {"dlq_ids": ["dlq-task-1-123", "dlq-task-2-124", "dlq-task-3-125"], "reason": "Known issue"}

REDRIVE: dict[str, Any] = {
    "redrive_id": "redrive-7sh2k9",
    "state": "running",
    "reason": "The service is back",
    "said": None,
    "filter": {"circuit_breaker": "api-service-1"},
    "arguments": {"stop_when_open": True},
    "per_second": 10,
    "first": 5,
    "total": 150,
    "resubmitted": 40,
    "refused": 0,
    "remaining": 110,
    "created_by": "operator-user-1",
    "created_at": AT,
    "started_at": AT,
    "finished_at": None,
}
REDRIVE_DETAIL: dict[str, Any] = {
    **REDRIVE,
    "tasks": {"completed": 38, "executing": 2},
    "sample": [
        {
            "dlq_id": "dlq-task-1-1667953049123",
            "task_id": "task-1",
            "error_message": "Service unavailable (max retries exceeded)",
            "original_parameters": {"dataset": "users"},
            "parameters": {"dataset": "users"},
            "timeout_ms": 3600000,
            "problem": None,
        }
    ],
}
PLANNED = {
    "state": "planned",
    "resubmitted": 0,
    "remaining": 150,
    "started_at": None,
    "tasks": {},
    "capped": False,
}

EXAMPLES = {
    # --- metrics
    "getRetryStats": Example(
        response={
            "timestamp": AT,
            "interval": "24h",
            "metrics": {
                "total_tasks_retried": 1250,
                "successful_first_attempt": 11750,
                "successful_after_retry": 1200,
                "failed_permanently": 50,
                "success_rate": 0.974,
                "average_attempts": 1.08,
                "by_policy": {
                    "standard": {"count": 950, "success_rate": 0.979},
                    "aggressive": {"count": 200, "success_rate": 0.950},
                    "conservative": {"count": 100, "success_rate": 0.990},
                },
            },
            "timeseries": [
                {"hour": 0, "start": "2025-11-08T13:00:00.000+00:00", "attempts": 45, "successes": 44},
                {"hour": 1, "start": "2025-11-08T14:00:00.000+00:00", "attempts": 52, "successes": 50},
            ],
        }
    ),
    # --- circuit breakers and the hold
    "getCircuitBreakerStatus": Example(
        response={
            "timestamp": AT,
            "breakers": [BREAKER, HALF_OPEN],
            "pagination": {"page": 1, "limit": 20, "total": 2},
        }
    ),
    "getCircuitBreaker": Example(response=BREAKER_DETAIL),
    "createCircuitBreaker": Example(
        request=NEW_BREAKER,
        response=BREAKER_DETAIL | {"failure_rate": 0.0, "failure_count": 0, "success_count": 0},
    ),
    "updateCircuitBreaker": Example(
        request={"failure_percent": 60, "reason": "It opens too early"},
        response=BREAKER_DETAIL | {"failure_percent": 60},
    ),
    "openCircuitBreaker": Example(
        request=UNTIL, response=BREAKER_DETAIL | {"state": "OPEN", "held": HELD, "timeout_remaining_ms": 4951000}
    ),
    "closeCircuitBreaker": Example(request=UNTIL, response=BREAKER_DETAIL | {"held": HELD | {"state": "closed"}}),
    "resetCircuitBreaker": Example(
        request=SAID, response=BREAKER_DETAIL | {"failure_rate": 0.0, "failure_count": 0, "success_count": 0}
    ),
    "probeCircuitBreaker": Example(
        request=SAID, response={"breaker_id": "api-service-1", "state": "HALF-OPEN", "task_id": "task-1"}
    ),
    "getHold": Example(response=HOLD),
    "holdEverything": Example(request=UNTIL, response=HOLD),
    "releaseHold": Example(request={"reason": "Maintenance is over"}, response={"held": False}),
    # --- retry policies
    "listRetryPolicies": Example(response={"policies": [POLICY], "pagination": PAGINATION}),
    "getRetryPolicy": Example(response=POLICY),
    "createRetryPolicy": Example(
        request={"name": "patient", "max_attempts": 5, "first_wait_ms": 30000, "multiplier": 2, "jitter": "full"},
        response=POLICY,
    ),
    "updateRetryPolicy": Example(
        request={"max_attempts": 3, "reason": "Fail sooner"},
        response=POLICY | {"max_attempts": 3, "waits_ms": [30000, 60000]},
    ),
    # --- the dead letter queue
    "listDLQEntries": Example(response={"entries": [ENTRY], "pagination": CURSORED | {"total": 150}}),
    "getDLQEntry": Example(response=ENTRY_DETAIL),
    "createDLQEntry": Example(
        request={
            "task_id": "import-legacy-1",
            "handler": "bash ops/agents/export.sh",
            "parameters": {"dataset": "users"},
            "error_code": 500,
            "error_message": "Service unavailable (max retries exceeded)",
        },
        response=ENTRY_DETAIL
        | {
            "dlq_id": "dlq-import-legacy-1-1762691849000",
            "task_id": "import-legacy-1",
            "timestamp": AT,
            "circuit_breaker": "",
            "attempts": [],
            "created_by": "operator-user-1",
        },
    ),
    "resubmitDLQEntry": Example(
        request={"parameters": {"dataset": "users-small"}, "retry_policy": "standard"},
        response={
            "message": "Resubmission queued",
            "dlq_id": "dlq-task-1-1667953049123",
            "new_task_id": "task-1-retry-2",
            "status": "queued",
            "estimated_execution": "2025-11-09T12:40:00.000+00:00",
        },
    ),
    "batchResubmitDLQEntries": Example(
        request={
            "dlq_ids": ["dlq-task-1-123", "dlq-task-2-124", "dlq-task-3-125"],
            "retry_policy": "aggressive",
            "options": {"modify_parameters": {"timeout_ms": 5000}},
        },
        response={"resubmitted_count": 3, "new_task_ids": ["task-1-retry-2", "task-2-retry-2", "task-3-retry-2"]},
    ),
    "archiveDLQEntry": Example(request={"reason": "Known issue"}, response=ARCHIVED),
    "unarchiveDLQEntry": Example(request={"reason": "Not solved after all"}, response=ENTRY_DETAIL),
    "batchArchiveDLQEntries": Example(request=MANY, response={"count": 3, "status": "archived"}),
    "batchUnarchiveDLQEntries": Example(request=MANY, response={"count": 3, "status": "pending"}),
    "getDLQGroups": Example(
        response={
            "timestamp": AT,
            "groups": [
                {
                    "fingerprint": "6f1c9d0a2b3e4f58",
                    "error_code": 500,
                    "error_line": "Service unavailable (max retries exceeded)",
                    "count": 150,
                    "last_hour": 12,
                    "first_failed_at": "2025-11-09T10:00:00.000+00:00",
                    "last_failed_at": "2025-11-09T12:30:00.000+00:00",
                    "handler": "bash ops/agents/export.sh",
                    "schedules": ["export-hourly"],
                    "example": "dlq-task-1-1667953049123",
                }
            ],
            "capped": False,
        }
    ),
    # --- redrives
    "listRedrives": Example(response={"redrives": [REDRIVE], "pagination": CURSORED}),
    "getRedrive": Example(response=REDRIVE_DETAIL),
    "planRedrive": Example(
        request={
            "filter": {"circuit_breaker": "api-service-1"},
            "per_second": 10,
            "first": 5,
            "reason": "The service is back",
        },
        response=REDRIVE_DETAIL | PLANNED,
    ),
    "startRedrive": Example(request={"reason": "The service is back"}, response=REDRIVE),
    "stopRedrive": Example(request=SAID, response=REDRIVE | {"state": "stopped", "said": "Stopped by operator-user-1"}),
    "cancelRedrive": Example(request=SAID, response=REDRIVE | {"state": "cancelled", "finished_at": AT}),
    "listRedriveEntries": Example(
        response={
            "entries": [
                {
                    "dlq_id": "dlq-task-1-1667953049123",
                    "state": "done",
                    "note": None,
                    "new_task_id": "task-1-retry-2",
                    "new_task_status": "completed",
                }
            ],
            "pagination": CURSORED,
        }
    ),
    # --- what operators do to tasks
    "pauseTask": Example(request=SAID, response={"status": "paused", "paused_at": AT}),
    "resumeTask": Example(request={}, response={"status": "running", "resumed_at": AT}),
    "skipTask": Example(request={"reason": "Manual skip"}, response={"status": "skipped", "reason": "Manual skip"}),
    "cancelTask": Example(
        request={"reason": "Started by mistake"}, response={"status": "cancelled", "reason": "Started by mistake"}
    ),
    "retryTask": Example(
        request={"parameters": {"dataset": "users-small"}, "retry_policy": "aggressive"},
        response={"status": "queued", "new_task_id": "task-1-retry-1"},
    ),
    "changeTaskPriority": Example(
        request={"priority": 9, "reason": "The month's end"}, response={"status": "queued", "priority": 9}
    ),
    "getInterventionHistory": Example(
        response={
            "task_id": "task-1",
            "interventions": [
                {
                    "timestamp": "2025-11-09T12:30:00.000+00:00",
                    "action": "pause",
                    "reason": "Debugging issue",
                    "performed_by": "operator-user-1",
                    "before": {"status": "queued"},
                    "after": {"status": "paused"},
                },
                {
                    "timestamp": "2025-11-09T12:35:00.000+00:00",
                    "action": "resume",
                    "reason": None,
                    "performed_by": "operator-user-1",
                    "before": {"status": "paused"},
                    "after": {"status": "queued"},
                },
            ],
            "pagination": {"page": 1, "limit": 20, "total": 2},
        }
    ),
    "explainTask": Example(
        response={
            "task_id": "task-1",
            "status": "blocked",
            "reason": "breaker_open",
            "message": "It waits for the circuit breaker api-service-1, which is open.",
            "facts": {"breaker_id": "api-service-1", "until": "2025-11-09T12:38:29.000+00:00"},
            "timestamp": AT,
        }
    ),
}
