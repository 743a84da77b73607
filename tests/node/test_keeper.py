"""The loop of `up` over light fakes (fake_node.py): what it starts again, whom it spares, and that nothing is left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from k1node.lib.board import BUSY, GONE, IDLE, Board
from k1node.node import process_table

# No database in it, so one run is enough.
pytestmark = [pytest.mark.node, pytest.mark.sqlite]

FAKE = Path(__file__).with_name("fake_node.py")


class Node:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: set[int] = set()
        self.start()

    def start(self) -> None:
        self.up = subprocess.Popen([sys.executable, str(FAKE), "keep", str(self.folder)], start_new_session=True)
        self.board = Board(self.folder / "board")
        self.until(lambda: len(self.children()) == 4 and self.slots(IDLE) == 2)

    def children(self) -> dict[str, int]:
        """Return the living services by name."""
        found: dict[str, int] = {}
        for pid in process_table.children(self.up.pid):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            name = words[2] if len(words) > 2 else ""
            if os.getsid(pid) == pid and name in ("clock", "sender", "cluster", "web"):
                found[name] = pid
        return found

    def slots(self, state: int) -> int:
        return sum(1 for _index, slot in self.board.slots() if slot.state == state and self.board.is_alive(slot))

    def begin_job(self) -> tuple[int, int]:
        """Have a worker start a command; return the pids of both."""
        (self.folder / "job").touch()
        self.until(lambda: (self.folder / "worker").exists() and len((self.folder / "worker").read_text().split()) == 2)
        worker, command = map(int, (self.folder / "worker").read_text().split())
        self.until(lambda: len(process_table.descendants(process_table.read(), {command})) > 0)
        return worker, command

    def below(self, pid: int) -> set[int]:
        return process_table.descendants(process_table.read(), {pid})

    def until(self, fact: Callable[[], bool], seconds: float = 15) -> None:
        end = time.monotonic() + seconds
        while True:
            self.seen |= self.below(self.up.pid)
            try:
                if fact():
                    return
            except (FileNotFoundError, ProcessLookupError):
                pass  # a process went while it was looked at
            if time.monotonic() > end:
                pytest.fail("It did not come true in time")
            time.sleep(0.05)

    def alive(self, pids: set[int]) -> set[int]:
        table = process_table.read()
        return {pid for pid in pids if pid in table and not table[pid].is_dead}

    def end(self) -> None:
        if self.up.poll() is None:
            self.seen |= self.below(self.up.pid)
            self.up.kill()
        self.up.wait()
        process_table.send(self.alive(self.seen), signal.SIGKILL)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.end()


@pytest.mark.parametrize("name", ["clock", "sender", "web", "cluster"])
def test_what_dies_is_started_again_at_once(node: Node, name: str) -> None:
    before = node.children()

    os.kill(before[name], signal.SIGKILL)

    node.until(lambda: node.children().get(name, before[name]) != before[name], seconds=3)
    others = {other: pid for other, pid in node.children().items() if other != name}
    assert others == {other: pid for other, pid in before.items() if other != name}


def test_one_signal_ends_everything_cleanly(node: Node) -> None:
    node.up.terminate()

    assert node.up.wait(timeout=10) == 0
    assert node.alive(node.seen) == set()


def test_a_second_signal_ends_what_will_not_end(node: Node) -> None:
    worker, command = node.begin_job()

    node.up.terminate()
    time.sleep(0.7)
    node.up.terminate()

    assert node.up.wait(timeout=6) == 1
    assert node.alive(node.seen | {worker, command}) == set()
    assert [slot.state for _index, slot in node.board.slots()] == [GONE]


def test_after_kill_9_of_up_nothing_runs_on_and_a_new_one_takes_over(node: Node) -> None:
    node.up.kill()
    node.up.wait()
    node.until(lambda: not node.alive(node.seen))

    node.start()

    assert [entry.retired for entry in node.board.clusters()] == [0]


def test_a_dead_workers_command_is_killed_with_all_below_it_before_the_task_is_released(node: Node) -> None:
    worker, command = node.begin_job()
    below = node.below(command)

    os.kill(worker, signal.SIGKILL)

    node.until(lambda: any(slot.state == GONE for _index, slot in node.board.slots()), seconds=3)
    assert node.alive({command} | below) == set()
    assert node.children()["cluster"] == next(entry.parent_pid for entry in node.board.clusters())


@pytest.mark.parametrize("victim", ["parent", "sentinel"])
def test_a_broken_cluster_is_replaced_and_its_busy_worker_finishes(node: Node, victim: str) -> None:
    worker, command = node.begin_job()
    below = node.below(command)
    parent = node.children()["cluster"]
    sentinel = process_table.children(parent).pop()
    idle = process_table.children(sentinel) - {worker}

    os.kill(parent if victim == "parent" else sentinel, signal.SIGKILL)

    node.until(lambda: node.children().get("cluster", parent) != parent and node.slots(IDLE) == 2)
    assert node.alive({parent, sentinel} | idle) == set()
    assert node.alive({worker, command} | below) == {worker, command} | below
    assert node.slots(BUSY) == 1
    time.sleep(2.5)  # longer than any look of the loop: it must go on sparing them
    assert node.alive({worker, command} | below) == {worker, command} | below

    (node.folder / "job-done").touch()

    node.until(lambda: not node.alive({worker}) and len(node.board.clusters()) == 1)
    assert (node.folder / "settled").exists()


def test_a_stopped_sentinel_is_noticed(node: Node) -> None:
    parent = node.children()["cluster"]

    os.kill(process_table.children(parent).pop(), signal.SIGSTOP)

    node.until(lambda: node.children().get("cluster", parent) != parent, seconds=12)


def test_a_machine_that_was_asleep_replaces_nothing(node: Node) -> None:
    before = node.children()
    frozen = [node.up.pid, *node.below(node.up.pid)]
    process_table.send(frozen, signal.SIGSTOP)
    time.sleep(9)  # longer than a sentinel may be silent

    process_table.send(frozen, signal.SIGCONT)

    time.sleep(1.5)
    assert node.children() == before
