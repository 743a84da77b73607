"""The main job end to end: a cron schedule and an event schedule run real scripts on a real node."""

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from tests.node.running import PROJECT, RunningNode, running_node, until

pytestmark = pytest.mark.node


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    with running_node(tmp_path_factory.mktemp("node")) as node:
        yield node


def output(node: RunningNode, task_id: str) -> str:
    return "".join(chunk["text"] for chunk in node.call("GET", f"/tasks/{task_id}/output")["chunks"])


def test_an_event_runs_its_schedules(node: RunningNode) -> None:
    node.call(
        "POST",
        "/scheduler/schedules",
        {
            "task_id": "on-order",
            "handler": "bash hello.sh",
            "schedule_type": "event",
            "schedule_expr": "order.*",
            "event_filter": {"shop": "berlin"},
        },
    )

    answer = node.call("POST", "/scheduler/trigger", {"event": "order.paid", "metadata": {"shop": "berlin", "id": 7}})
    nobody = node.call("POST", "/scheduler/trigger", {"event": "order.paid", "metadata": {"shop": "paris"}})

    assert (answer["matching_schedules"], answer["queued_tasks"]) == (1, 1)
    assert (nobody["matching_schedules"], nobody["queued_tasks"]) == (0, 0)
    until(lambda: node.has_status("on-order", "completed"), what="the run")  # a schedule's id means its latest run
    task = node.task("on-order")
    text = output(node, task["task_id"])
    assert text.startswith(f"hello from {task['task_id']}")
    assert '"order.paid"' in text


def test_a_cron_schedule_fires_at_its_minute(node: RunningNode) -> None:
    node.call(
        "POST",
        "/scheduler/schedules",
        {
            "task_id": "minutely",
            "handler": "bash hello.sh",
            "schedule_type": "cron",
            "schedule_expr": "* * * * *",
            "priority": 8,
        },
    )

    slots = until(
        lambda: node.call("GET", "/scheduler/schedules/minutely/slots")["slots"], within=75, what="the first slot"
    )

    task = node.wait_for(slots[0]["task_id"], "completed")
    due = datetime.fromisoformat(slots[0]["due_at"]).astimezone(UTC)
    started = datetime.fromisoformat(task["started_at"]).astimezone(UTC)
    assert slots[0]["outcome"] == "fired"
    assert task["task_id"] == f"minutely-{due:%Y%m%dT%H%M%SZ}"
    assert due.second == 0
    assert 0 <= (started - due).total_seconds() < 10
    schedule = node.call("GET", "/scheduler/schedules/minutely")
    assert (schedule["execution_count"], schedule["failure_count"]) == (1, 0)
    assert schedule["last_executed"] is not None


def test_output_is_readable_while_the_run_goes_on(node: RunningNode) -> None:
    script = node.root / "slow.sh"
    script.write_text("#!/usr/bin/env bash\necho first\nsleep 4\necho last\n")
    script.chmod(0o755)
    task_id = node.submit("bash slow.sh")

    early = until(lambda: output(node, task_id), within=10, what="the first line")
    still_running = node.task(task_id)["status"]
    node.wait_for(task_id, "completed")

    assert (early, still_running) == ("first\n", "executing")
    assert output(node, task_id) == "first\nlast\n"


def test_a_flood_is_drained_and_counted_to_the_last_task(node: RunningNode) -> None:
    before = node.call("GET", "/scheduler/queue")["queue_status"]["completed"]

    tasks = [node.submit("python:noop") for _ in range(200)]

    for task_id in tasks:
        node.wait_for(task_id, "completed")
    after = until(lambda: node.call("GET", "/scheduler/queue")["queue_status"], what="the figures")
    assert after["completed"] - before >= 200
    assert after["queued"] == 0


def test_a_second_up_on_the_same_data_is_refused(node: RunningNode) -> None:
    second = subprocess.run(
        [sys.executable, str(PROJECT / "manage.py"), "up"],
        env=node.environment,
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert second.returncode != 0
    assert str(node.process.pid if node.process else "") in second.stderr + second.stdout
