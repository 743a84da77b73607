"""The design's example of a batch, on a real node with the real sample handler."""

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from batches.api.examples import SUBMISSION
from tests.node.running import PROJECT, RunningNode, running_node, until

pytestmark = pytest.mark.node

BATCH = "/tasks/batch/batch-export-20251109"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    with running_node(tmp_path_factory.mktemp("node")) as node:
        shutil.copytree(PROJECT / "ops" / "agents", node.root / "ops" / "agents")
        yield node


def test_the_design_s_example_runs(node: RunningNode) -> None:
    accepted = node.call("POST", "/tasks/batch", SUBMISSION)

    ended = until(lambda: (seen := node.call("GET", BATCH))["ended_at"] and seen, what="the batch's end")

    assert (accepted["batch_id"], accepted["status"], accepted["task_count"]) == (
        "batch-export-20251109",
        "submitted",
        2,
    )
    assert (ended["status"], ended["progress"]["total"], ended["progress"]["completed"]) == ("completed", 2, 2)
    assert ended["tasks"] == [
        {"task_id": "export-1", "status": "completed", "result": {"exit_code": 0}, "error": None},
        {"task_id": "export-2", "status": "completed", "result": {"exit_code": 0}, "error": None},
    ]
    (users,) = (node.data / "exports").glob("users-*.csv")
    (orders,) = (node.data / "exports").glob("orders-*.json")
    assert users.read_text().startswith("task_id,")
    assert {"export-1", "export-2"} <= {task["task_id"] for task in json.loads(orders.read_text())}


def test_counts_of_ten_thousand_are_exact_though_cluster_and_clock_are_killed(
    node: RunningNode,
) -> None:
    count = 10_000
    tasks = [{"task_id": f"n-{number}"} for number in range(count)]
    node.call("POST", "/tasks/batch", {"batch_id": "many", "defaults": {"handler": "python:noop"}, "tasks": tasks})

    def progress() -> dict[str, Any]:
        return node.call("GET", "/tasks/batch/many")["progress"]  # type: ignore[no-any-return]

    until(lambda: progress()["completed"] > 500, what="the first few hundred")
    for victim in [node.named("cluster"), node.named("clock")]:
        victim.kill()
    middle = progress()

    ended = until(
        lambda: (seen := node.call("GET", "/tasks/batch/many"))["ended_at"] and seen, within=180, what="the end"
    )
    assert middle["completed"] < count
    assert (ended["status"], ended["progress"]) == (
        "completed",
        {"total": count, "completed": count}
        | dict.fromkeys(("failed", "skipped", "cancelled", "in_progress", "waiting"), 0),
    )
    told = node.command(
        "shell",
        "-v0",
        "-c",
        "from k1node.events.models import Event; print(*Event.objects.filter(name__startswith='batch.', "
        "data__batch_id='many').values_list('name', flat=True))",
    )
    assert told.split() == ["batch.completed"]
