"""GET /scheduler/queue, as the design's example has it, and the names of the OpenAPI document."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from scheduling.models import MinuteCounter, Node, TaskStatus
from tests.factories import make_task
from tests.scheduling.query_counts import committed

NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
QUEUE = "/api/v2/scheduler/queue"


@pytest.fixture
def reader(api_client: Callable[..., APIClient], monkeypatch: pytest.MonkeyPatch) -> APIClient:
    monkeypatch.setattr("scheduling.api.views.database_now", lambda: NOW)
    return api_client("scheduler:read")


def test_the_queue_is_shown_as_the_design_says(reader: APIClient) -> None:
    due_at = NOW - timedelta(milliseconds=149_000)
    make_task(task_id="critical-task-1", priority=9, due_at=due_at, created_at=due_at)
    for _ in range(2):
        make_task(status=TaskStatus.EXECUTING)
    MinuteCounter.objects.create(minute=NOW, policy="standard", worker="w", completed=145)
    Node.objects.create(
        node_id=uuid4(),
        hostname="a",
        started_at=NOW,
        beat_at=NOW,
        running=2,
        cpu_percent=35,
        memory_percent=42,
        max_concurrent=4,
        max_cpu_percent=80,
        max_memory_percent=85,
    )

    response = reader.get(QUEUE)

    assert response.status_code == 200
    assert response.json() == {
        "timestamp": "2026-03-04T12:00:00.000+00:00",
        "queue_status": {"queued": 1, "executing": 2, "completed": 145},
        "resource_usage": {"concurrent_tasks": 2, "total_cpu_percent": 35, "total_memory_percent": 42},
        "resource_limits": {"max_concurrent_tasks": 4, "max_cpu_percent": 80, "max_memory_percent": 85},
        "pending_tasks": [
            {
                "priority": 9,
                "task_id": "critical-task-1",
                "enqueued_at": "2026-03-04T11:57:31.000+00:00",
                "wait_time_ms": 149_000,
            }
        ],
    }


def test_a_longer_queue_takes_no_more_queries(reader: APIClient) -> None:
    counts = []

    for extra in (1, 30):
        for _ in range(extra):
            make_task()
        reader.get(QUEUE)  # notes the key's use
        with CaptureQueriesContext(connection) as queries:
            reader.get(QUEUE)
        counts.append(len(queries))

    assert counts == [committed("GET /scheduler/queue")] * 2


def test_the_queue_has_no_filters(reader: APIClient) -> None:
    assert reader.get(f"{QUEUE}?status=queued").status_code == 400


OPERATIONS = {
    ("get", "/scheduler/schedules"): "listSchedules",
    ("post", "/scheduler/schedules"): "createSchedule",
    ("get", "/scheduler/schedules/{scheduleId}"): "getSchedule",
    ("patch", "/scheduler/schedules/{scheduleId}"): "updateSchedule",
    ("delete", "/scheduler/schedules/{scheduleId}"): "deleteSchedule",
    ("post", "/scheduler/trigger"): "triggerEvent",
    ("get", "/scheduler/queue"): "getQueueStatus",
    ("post", "/scheduler/schedules/{scheduleId}/run"): "runSchedule",
    ("get", "/scheduler/schedules/{scheduleId}/preview"): "previewSchedule",
    ("get", "/scheduler/schedules/{scheduleId}/slots"): "listSlots",
    ("get", "/scheduler/preview"): "previewExpression",
    ("get", "/tasks"): "listTasks",
    ("post", "/tasks"): "createTask",
    ("get", "/tasks/{taskId}"): "getTask",
    ("get", "/tasks/{taskId}/output"): "getTaskOutput",
}


def test_the_document_has_the_designs_names(client: Client) -> None:
    document: dict[str, Any] = client.get("/api/v2/openapi.json").json()

    for (method, path), name in OPERATIONS.items():
        operation = document["paths"][path][method]
        assert (operation["operationId"], operation["tags"]) == (name, ["Scheduling"])
        assert operation["summary"]
    assert {"Schedule", "ScheduleInput", "ScheduleUpdate", "ScheduleList", "QueueStatus"} <= set(
        document["components"]["schemas"]
    )
    created = document["paths"]["/scheduler/schedules"]["post"]["responses"]["201"]
    assert created["description"] == "Schedule created"
    assert created["headers"]["Location"]["description"] == "URL of created schedule"
