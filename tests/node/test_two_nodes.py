"""Two nodes on one database: no task is run twice, no gate is overrun, and one takes over when the other is gone."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import databases
from tests.node.running import RunningNode, running_node, template, until

# SQLite is for one node alone.
pytestmark = [pytest.mark.node, databases.only_postgresql]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningNode, RunningNode]]:
    with databases.fresh(template()) as database:
        folder = tmp_path_factory.mktemp("nodes")
        secret = {
            "SECRET_KEY": "the same on both nodes, as any cluster needs it to be",
            "JWT_SECRET": "and this one, so that each takes the tokens of the other",
            "K1NODE_AUDIT_KEY": "this one too, so that each can check what the other sealed",
            "K1NODE_KEYRING": "dHdvIG5vZGVzIHR3byBub2RlcyB0d28gbm9kZXMgdHc=",
        }
        with (
            running_node(folder / "a", **database, **secret) as first,
            running_node(folder / "b", **database, **secret) as second,
        ):
            yield first, second


def records(folder: Path) -> list[str]:
    return [line for file in folder.iterdir() for line in file.read_text().splitlines()]


def test_each_task_is_run_by_one_of_them(nodes: tuple[RunningNode, RunningNode], tmp_path: Path) -> None:
    first, second = nodes
    tasks = [
        node.submit("bash job.sh", parameters={"file": str(tmp_path / f"{n}-{node.port}"), "seconds": 0.2})
        for n in range(15)
        for node in nodes
    ]

    ended = [first.wait_for(task_id, "completed", within=60) for task_id in tasks]

    assert all(len(task["attempts"]) == 1 for task in ended)
    assert len(records(tmp_path)) == 2 * len(tasks)
    workers = {attempt["worker"].split("-")[0] for task in ended for attempt in task["attempts"]}
    assert len(workers) == 2
    usage = until(
        lambda: (q := second.call("GET", "/scheduler/queue"))["resource_limits"]["max_concurrent_tasks"] == 8 and q,
        what="both nodes in the figures",
    )
    assert usage["queue_status"]["executing"] == 0


def test_runs_of_a_schedule_never_overlap_on_two_nodes(nodes: tuple[RunningNode, RunningNode], tmp_path: Path) -> None:
    file = tmp_path / "runs"
    first, second = nodes
    first.call(
        "POST",
        "/scheduler/schedules",
        {
            "task_id": "one-at-a-time",
            "handler": "bash job.sh",
            "parameters": {"file": str(file), "seconds": 0.3},
            "schedule_type": "event",
            "schedule_expr": "go",
            "overlap_policy": "queue_one",
        },
    )

    queued = 0
    for _ in range(10):
        for node in nodes:
            queued += node.call("POST", "/scheduler/trigger", {"event": "go", "metadata": {}})["queued_tasks"]

    until(lambda: len(file.read_text().splitlines()) == 2 * queued, what="all the runs")
    words = [line.split()[0] for line in file.read_text().splitlines()]
    assert 2 <= queued < 20
    assert words == ["start", "end"] * queued
    assert second.has_status("one-at-a-time", "completed", "executing")


def jobs(file: Path, count: int, seconds: float = 0.1) -> list[dict[str, object]]:
    return [
        {"handler": "bash job.sh", "parameters": {"file": str(file), "seconds": seconds, "number": number}}
        for number in range(count)
    ]


def most_at_once(file: Path) -> int:
    """Return how many of the jobs that tell this file about their lives have run at the same time."""
    words = [line.split()[0] for line in file.read_text().splitlines()]
    return max(accumulate(1 if word == "start" else -1 for word in words))


def end_of(node: RunningNode, batch_id: str) -> dict[str, Any]:
    """Return the batch once it has ended."""
    found: dict[str, Any] = until(
        lambda: (seen := node.call("GET", f"/tasks/batch/{batch_id}"))["ended_at"] and seen,
        within=90,
        what=f"the end of {batch_id}",
    )
    return found


def test_a_batch_runs_one_by_one_in_its_order_on_two_nodes(
    nodes: tuple[RunningNode, RunningNode], tmp_path: Path
) -> None:
    first, second = nodes
    tasks = [
        {"task_id": f"step-{number}", "handler": "bash told.sh", "parameters": {"file": str(tmp_path / "told")}}
        for number in range(20)
    ]
    for node in nodes:
        (node.root / "told.sh").write_text('echo "$K1_TASK_ID" >> "$K1_PARAM_FILE"; sleep 0.05\n')

    first.call("POST", "/tasks/batch", {"batch_id": "in-order", "tasks": tasks, "options": {"parallel": False}})

    assert end_of(second, "in-order")["progress"]["completed"] == 20
    assert (tmp_path / "told").read_text().split() == [f"step-{number}" for number in range(20)]


def test_two_nodes_together_keep_to_the_limit_of_a_batch(
    nodes: tuple[RunningNode, RunningNode], tmp_path: Path
) -> None:
    first, second = nodes
    file = tmp_path / "runs"

    first.call(
        "POST", "/tasks/batch", {"batch_id": "limited", "tasks": jobs(file, 24), "options": {"max_concurrent": 3}}
    )

    assert end_of(second, "limited")["progress"]["completed"] == 24
    assert most_at_once(file) == 3


def test_after_a_failure_nothing_of_a_batch_starts_on_either_node(
    nodes: tuple[RunningNode, RunningNode], tmp_path: Path
) -> None:
    first, second = nodes
    file = tmp_path / "runs"
    for node in nodes:
        (node.root / "fail.sh").write_text("sleep 0.3; exit 78\n")  # which is final
    tasks = [*jobs(file, 4, 0.1), {"handler": "bash fail.sh"}, *jobs(file, 200, 0.1)]

    second.call(
        "POST",
        "/tasks/batch",
        {"batch_id": "fragile", "tasks": tasks, "options": {"fail_fast": True, "max_concurrent": 4}},
    )

    ended = end_of(first, "fragile")
    counts = ended["progress"]
    starts = [line for line in file.read_text().splitlines() if line.startswith("start")]
    assert (ended["status"], counts["total"], counts["failed"]) == ("failed", 205, 1)
    assert counts["cancelled"] > 100
    assert counts["completed"] + counts["failed"] + counts["cancelled"] == 205
    assert len(starts) == counts["completed"]


def test_when_one_node_is_gone_the_other_runs_its_tasks(nodes: tuple[RunningNode, RunningNode], tmp_path: Path) -> None:
    first, second = nodes
    end = first.data / "end"
    jobs = [
        first.submit(
            "bash held.sh",
            parameters={"file": str(tmp_path / f"{n}"), "until": str(end if n < 8 else tmp_path)},
            retry_policy="aggressive",
        )
        for n in range(12)
    ]
    until(lambda: len(list(tmp_path.iterdir())) >= 8, what="eight starts")
    victims = first.everything()

    for process in victims:
        with suppress(ProcessLookupError):  # it has ended with the one before
            os.kill(process.pid, signal.SIGKILL)

    psutil.wait_procs(victims, timeout=10)
    end.touch()
    # A lease of 20 s has to run out; long jobs that were the dead node's then start anew.
    until(lambda: all("start" in (tmp_path / f"{n}").read_text() for n in range(12)), within=60, what="all starts")
    for job in jobs[8:]:
        assert len(second.wait_for(job, "completed", within=60)["attempts"]) == 1
    taken_over = [
        job
        for job in jobs[:8]
        if any(a["outcome"] == "lost" for a in second.wait_for(job, "completed", within=120)["attempts"])
    ]
    assert 1 <= len(taken_over) <= 4
    assert all(len(second.task(job)["attempts"]) == 2 for job in taken_over)
