"""Messages of the scheduling API, as the OpenAPI document shows them."""

from typing import Any

from k1node.api.example import Example

AT = "2025-11-09T12:37:29.000+00:00"
PAGINATION: dict[str, Any] = {"page": 1, "limit": 20, "total": 1}

NEW_SCHEDULE: dict[str, Any] = {
    "task_id": "backup-daily",
    "task_name": "Daily Backup",
    "handler": "bash ops/agents/backup.sh",
    "schedule_type": "cron",
    "schedule_expr": "0 2 * * *",
    "priority": 8,
    "circuit_breaker": "default",
    "retry_policy": "standard",
}
SCHEDULE: dict[str, Any] = {
    **NEW_SCHEDULE,
    "circuit_breaker": "backup-daily",
    "timezone": "UTC",
    "description": "At 02:00",
    "event_filter": {},
    "parameters": {},
    "timeout_ms": 3600000,
    "enabled": True,
    "paused_until": None,
    "pause_reason": "",
    "overlap_policy": "skip",
    "catch_up": "last",
    "catch_up_window_ms": 86400000,
    "catch_up_cap": 100,
    "jitter_ms": 0,
    "starts_at": None,
    "ends_at": None,
    "skip_next": False,
    "last_error": "",
    "created_by": "operator-user-1",
    "created_at": "2025-11-08T02:00:00.000+00:00",
    "updated_at": "2025-11-08T02:00:00.000+00:00",
    "last_executed": "2025-11-09T02:00:15.000+00:00",
    "next_execution": "2025-11-10T02:00:00.000+00:00",
    "execution_count": 5,
    "failure_count": 0,
    "average_duration_ms": 1250,
}
JUST_MADE = {"last_executed": None, "execution_count": 0, "average_duration_ms": None}

PREVIEW: dict[str, Any] = {
    "schedule_expr": "0 2 * * *",
    "timezone": "Europe/Berlin",
    "description": "At 02:00",
    "fire_times": [
        {"utc": "2025-11-10T01:00:00.000+00:00", "local": "2025-11-10T02:00:00+01:00"},
        {"utc": "2025-11-11T01:00:00.000+00:00", "local": "2025-11-11T02:00:00+01:00"},
    ],
    "warnings": ["2026-03-29: 02:00 does not exist; it runs at 03:00"],
}

TASK: dict[str, Any] = {
    "task_id": "backup-daily-20251109T020000Z",
    "task_name": "Daily Backup",
    "status": "queued",
    "schedule": "backup-daily",
    "batch": None,
    "origin": None,
    "handler": "bash ops/agents/backup.sh",
    "priority": 8,
    "timeout_ms": 3600000,
    "retry_policy": "standard",
    "circuit_breaker": "backup-daily",
    "attempt": 0,
    "due_at": "2025-11-09T02:00:00.000+00:00",
    "created_by": "operator-user-1",
    "created_at": "2025-11-09T02:00:00.000+00:00",
    "started_at": None,
    "finished_at": None,
    "paused_at": None,
    "paused_until": None,
    "result": None,
    "last_error": "",
}
COMPLETED: dict[str, Any] = {
    **TASK,
    "status": "completed",
    "attempt": 1,
    "started_at": "2025-11-09T02:00:15.000+00:00",
    "finished_at": "2025-11-09T02:00:16.250+00:00",
    "result": {"exit_code": 0, "duration_ms": 1250},
}
OUTPUT_AT = "/api/v2/tasks/backup-daily-20251109T020000Z/output"
ATTEMPT: dict[str, Any] = {
    "attempt": 1,
    "fence": 1,
    "outcome": "completed",
    "decision": "complete",
    "retry_at": None,
    "worker": "node-1/2",
    "started_at": "2025-11-09T02:00:15.000+00:00",
    "finished_at": "2025-11-09T02:00:16.250+00:00",
    "duration_ms": 1250,
    "exit_code": 0,
    "error": "",
    "output_bytes": 26,
    "output": f"{OUTPUT_AT}?fence=1",
}
NEW_TASK: dict[str, Any] = {
    "task_id": "export-1",
    "handler": "bash ops/agents/export.sh",
    "parameters": {"format": "csv", "dataset": "users"},
    "priority": 5,
}
SUBMITTED: dict[str, Any] = {
    **TASK,
    **{name: NEW_TASK[name] for name in ("task_id", "handler", "priority")},
    "task_name": "",
    "schedule": None,
    "circuit_breaker": "",
    "due_at": AT,
    "created_at": AT,
}

EXAMPLES = {
    "listSchedules": Example(response={"schedules": [SCHEDULE], "pagination": PAGINATION}),
    "createSchedule": Example(request=NEW_SCHEDULE, response=SCHEDULE | JUST_MADE),
    "getSchedule": Example(response=SCHEDULE),
    "updateSchedule": Example(request={"enabled": False}, response=SCHEDULE | {"enabled": False}),
    "runSchedule": Example(request={"parameters": {"keep": 3}}, response=TASK),
    "previewSchedule": Example(response=PREVIEW),
    "previewExpression": Example(response=PREVIEW),
    "listSlots": Example(
        response={
            "slots": [
                {
                    "due_at": "2025-11-09T02:00:00.000+00:00",
                    "last_due_at": "2025-11-09T02:00:00.000+00:00",
                    "count": 1,
                    "outcome": "fired",
                    "reason": "",
                    "task_id": "backup-daily-20251109T020000Z",
                    "recorded_at": "2025-11-09T02:00:00.012+00:00",
                }
            ],
            "pagination": PAGINATION | {"next_cursor": None},
        }
    ),
    "triggerEvent": Example(
        request={
            "event": "webhook.received",
            "metadata": {"source": "external-service", "webhook_id": "wh-12345"},
        },
        response={
            "message": "Event triggered",
            "event": "webhook.received",
            "matching_schedules": 3,
            "queued_tasks": 3,
            "timestamp": AT,
        },
    ),
    "getQueueStatus": Example(
        response={
            "timestamp": AT,
            "queue_status": {"queued": 5, "executing": 2, "completed": 145},
            "resource_usage": {"concurrent_tasks": 2, "total_cpu_percent": 35, "total_memory_percent": 42},
            "resource_limits": {"max_concurrent_tasks": 4, "max_cpu_percent": 80, "max_memory_percent": 85},
            "pending_tasks": [
                {
                    "priority": 9,
                    "task_id": "critical-task-1",
                    "enqueued_at": "2025-11-09T12:35:00.000+00:00",
                    "wait_time_ms": 149000,
                }
            ],
        }
    ),
    "listTasks": Example(response={"tasks": [COMPLETED], "pagination": PAGINATION | {"next_cursor": None}}),
    "createTask": Example(request=NEW_TASK, response=SUBMITTED),
    "getTask": Example(
        response={
            **COMPLETED,
            "result": {"exit_code": 0, "duration_ms": 1250, "value": None},
            "parameters": {"keep": 3},
            "output": OUTPUT_AT,
            "attempts": [ATTEMPT],
        }
    ),
    "getTaskOutput": Example(
        response={
            "task_id": "backup-daily-20251109T020000Z",
            "attempt": 1,
            "fence": 1,
            "offset": 0,
            "next_offset": 26,
            "total": 26,
            "complete": True,
            "cut": [],
            "chunks": [{"offset": 0, "stream": "stdout", "text": "Backed up 3 files, kept 3\n"}],
        }
    ),
}
