"""kill -9 of any one process: nothing is lost, no innocent run ends, the node heals within 30 s."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.node.running import RunningNode, lines, running_node, start_job, until

pytestmark = pytest.mark.node


@pytest.fixture(scope="module")
def one_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    with running_node(tmp_path_factory.mktemp("node"), K1NODE_MAX_CONCURRENT="4") as node:
        yield node


@pytest.fixture
def node(one_node: RunningNode) -> RunningNode:
    """Return the node once the test before has left no trace: a whole cluster, and nothing at work."""
    until(lambda: len(one_node.workers(busy=False)) == 4 and one_node.helpers(), within=60, what="a whole cluster")
    return one_node


VICTIMS: dict[str, Callable[[RunningNode], psutil.Process]] = {
    "web": lambda node: node.named("web"),
    "clock": lambda node: node.named("clock"),
    "sender": lambda node: node.named("sender"),
    "cluster parent": lambda node: node.named("cluster"),
    "sentinel": lambda node: node.sentinel(),
    "pusher": lambda node: node.helpers()[1],
    "monitor": lambda node: node.helpers()[0],
    "idle worker": lambda node: node.workers(busy=False)[0],
}


@pytest.mark.parametrize("victim", VICTIMS)
def test_an_innocent_job_goes_on_and_new_ones_run(node: RunningNode, tmp_path: Path, victim: str) -> None:
    innocent = start_job(node, tmp_path / "innocent", 6)
    waiting = node.submit("bash hello.sh")

    VICTIMS[victim](node).kill()
    killed_at = time.monotonic()

    until(node.is_ready, what="readiness")
    after = node.submit("bash hello.sh", parameters={"n": 1})
    node.wait_for(after, "completed")
    healed_after = time.monotonic() - killed_at
    node.wait_for(waiting, "completed")
    ended = node.wait_for(innocent, "completed", within=40)
    assert healed_after < 30
    assert lines(tmp_path / "innocent") == ["start", "end"]
    assert [attempt["outcome"] for attempt in ended["attempts"]] == ["completed"]


def test_a_busy_worker_s_job_is_ended_and_runs_again(node: RunningNode, tmp_path: Path) -> None:
    job = start_job(node, tmp_path / "job", 5)
    # Another may be at work for a moment, looking for a task in vain.
    worker = until(lambda: len(busy := node.workers(busy=True)) == 1 and busy[0], what="one worker at work")
    innocent = start_job(node, tmp_path / "innocent", 5)
    first_pid = int((tmp_path / "job").read_text().split()[1])

    worker.kill()

    ended = node.wait_for(job, "completed")
    assert not psutil.pid_exists(first_pid)
    assert lines(tmp_path / "job") == ["start", "start", "end"]
    assert sorted(attempt["outcome"] for attempt in ended["attempts"]) == ["completed", "lost"]
    assert len(node.wait_for(innocent, "completed")["attempts"]) == 1


def test_a_killed_handler_is_a_failed_attempt(node: RunningNode, tmp_path: Path) -> None:
    job = start_job(node, tmp_path / "job", 5)

    os.kill(int((tmp_path / "job").read_text().split()[1]), signal.SIGKILL)

    ended = node.wait_for(job, "completed")
    assert [(a["outcome"], a["exit_code"]) for a in sorted(ended["attempts"], key=lambda a: a["attempt"])] == [
        ("failed", 137),
        ("completed", 0),
    ]


def test_a_hung_sentinel_is_replaced(node: RunningNode) -> None:
    sentinel = node.sentinel()

    sentinel.suspend()

    until(lambda: not sentinel.is_running() or sentinel.status() == psutil.STATUS_ZOMBIE, what="its end")
    node.wait_for(node.submit("bash hello.sh"), "completed")
