"""What is left of a node that ends, on request or by kill -9 of `up`, and what its next start makes of that."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node.running import RunningNode, lines, running_node, start_job, until

pytestmark = pytest.mark.node


@pytest.fixture(scope="module")
def one_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    with running_node(tmp_path_factory.mktemp("node"), K1NODE_MAX_CONCURRENT="2") as node:
        yield node


@pytest.fixture
def node(one_node: RunningNode) -> RunningNode:
    if one_node.process is None or one_node.process.poll() is not None:
        one_node.start()
    return one_node


def was_stopped(node: RunningNode) -> bool:
    """Say whether the node's row says that it was stopped in order."""
    asked = "from scheduling.models import Node; print('stopped', Node.objects.get().stopped_at is not None)"
    return "stopped True" in node.command("shell", "-c", asked)


def test_a_stop_gives_running_commands_their_grace_and_leaves_nothing(node: RunningNode) -> None:
    file = node.data / "job"
    quick = node.submit("bash job.sh", parameters={"file": str(file), "seconds": 1.5})
    until(file.exists, what="its start")
    begun = time.monotonic()

    code = node.stop()

    assert code == 0
    assert time.monotonic() - begun < 15
    assert node.everything() == []
    assert was_stopped(node)
    node.start()
    assert node.task(quick)["status"] == "completed"


def test_killing_up_leaves_nothing_running_and_the_next_start_continues(node: RunningNode, tmp_path: Path) -> None:
    end = tmp_path / "end"
    held = {"file": str(tmp_path / "long"), "until": str(end)}
    long = node.submit("bash held.sh", parameters=held, retry_policy="aggressive")
    until((tmp_path / "long").exists, what="its start")
    short = start_job(node, tmp_path / "short", 1)
    waiting = [node.submit("bash hello.sh") for _ in range(3)]
    assert node.process is not None

    node.process.kill()

    node.process.wait()
    until(lambda: not node.everything(), what="the end of every process")
    assert not was_stopped(node)
    assert lines(tmp_path / "short") == ["start", "end"]
    assert lines(tmp_path / "long") == ["start"]
    node.start()
    for task_id in (*waiting, short):
        node.wait_for(task_id, "completed")
    end.touch()
    again = node.wait_for(long, "completed", within=60)
    assert sorted(attempt["outcome"] for attempt in again["attempts"]) == ["completed", "drained"]
    assert len(node.task(short)["attempts"]) == 1
    assert node.stop() == 0
    assert node.everything() == []
