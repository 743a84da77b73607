"""The node's board: rival processes, the life of a slot, clusters, and whose process a pid is."""

import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from k1node.lib.board import BUSY, FREE, GONE, IDLE, MAGIC, SLOTS, Board, boot_mark, process_birth

ANSWER = """
import os, sys, time
from pathlib import Path
from k1node.lib.board import Board
board = Board(Path(sys.argv[1]))
for line in sys.stdin:
    print(eval(line), flush=True)
"""
CONTEND = """
import sys
from pathlib import Path
from k1node.lib.board import Board
board = Board(Path(sys.argv[1]))
slot = board.take_slot(0)
most = begun = 0
while begun < 200:
    if slot.begin(max_running=2):
        with board.locked():  # or the count mixes moments: one seen at work may end before the next is looked at
            most, begun = max(most, board.running()), begun + 1
        slot.end()
print(most)
"""
FORK_WHILE_HOLDING = """
import os, sys, time
from pathlib import Path
from k1node.lib.board import Board
board = Board(Path(sys.argv[1]))
with board.locked():
    child = os.fork()
    if child == 0:
        with board.locked():
            print("child in", flush=True)
        os._exit(0)
    time.sleep(0.1)
    print("parent out", flush=True)
os.waitpid(child, 0)
"""


class Process:
    """Another process with the same board open, which evaluates what it is asked."""

    def __init__(self, board: Board) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", ANSWER, str(board.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, expression: str) -> str:
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        print(expression, file=self.popen.stdin, flush=True)
        return self.popen.stdout.readline().strip()

    def kill(self) -> None:
        self.popen.kill()
        self.popen.communicate()


@pytest.fixture
def other(board: Board) -> Iterator[Process]:
    process = Process(board)
    yield process
    process.kill()


def is_locked(board: Board) -> bool:
    file = os.open(board.path, os.O_RDWR)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


# --- the file ------------------------------------------------------------------------------------------------------


def test_a_new_board_is_empty_and_only_its_owners(board: Board) -> None:
    assert (board.slots(), board.clusters(), board.running(), board.load, board.drain_until) == ([], [], 0, None, 0.0)
    assert board.path.stat().st_mode & 0o777 == 0o600


def test_a_board_outlives_whoever_wrote_on_it(tmp_path: Path) -> None:
    number = Board(tmp_path / "board").open_cluster(workers=2)

    again = Board(tmp_path / "board")

    assert [entry.number for entry in again.clusters()] == [number]
    assert again.open_cluster(workers=2) == number + 1


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"short", id="cut short"),
        pytest.param((MAGIC - 1).to_bytes(4, "little") + b"\xff" * 100_000, id="of another version"),
    ],
)
def test_a_file_that_is_no_board_becomes_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "board").write_bytes(content)

    board = Board(tmp_path / "board")

    assert (board.slots(), board.clusters(), board.drain_until) == ([], [], 0.0)
    assert board.open_cluster(workers=1) == 1


def test_what_one_process_writes_the_others_see(board: Board, other: Process) -> None:
    board.record_load(12.5, 50.0)
    board.drain(123.0)

    assert other.ask("(board.load, board.drain_until)") == "((12.5, 50.0), 123.0)"


def test_a_load_that_nobody_measures_any_more_is_unknown(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    board.record_load(12.5, 50.0)
    late = time.monotonic() + 10.1

    monkeypatch.setattr(time, "monotonic", lambda: late)

    assert board.load is None


# --- the lock ------------------------------------------------------------------------------------------------------


def test_the_lock_excludes_other_processes_until_it_is_let_go(board: Board, other: Process) -> None:
    other.ask("(lock := board.locked()).__enter__()")
    assert is_locked(board)

    other.ask("lock.__exit__(None, None, None)")

    assert not is_locked(board)


def test_the_lock_goes_with_a_process_that_is_killed(board: Board, other: Process) -> None:
    other.ask("(lock := board.locked()).__enter__()")

    other.kill()

    assert not is_locked(board)


def test_the_lock_excludes_other_threads(board: Board) -> None:
    entered = threading.Event()

    def enter() -> None:
        with board.locked():
            entered.set()

    thread = threading.Thread(target=enter)
    with board.locked():
        thread.start()
        assert not entered.wait(0.05)

    thread.join(5)
    assert entered.is_set()


def test_the_lock_can_be_taken_again_inside(board: Board) -> None:
    with board.locked():
        with board.locked():
            pass
        assert is_locked(board)

    assert not is_locked(board)


def test_an_exception_lets_the_lock_go(board: Board) -> None:
    with pytest.raises(ZeroDivisionError), board.locked():
        raise ZeroDivisionError

    assert not is_locked(board)


def test_a_forked_child_waits_for_its_parents_lock(board: Board) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FORK_WHILE_HOLDING, str(board.path)], capture_output=True, text=True, timeout=10
    )

    assert (run.stdout.split("\n"), run.stderr) == (["parent out", "child in", ""], "")


# --- slots ---------------------------------------------------------------------------------------------------------


def test_a_slot_lives_from_idle_through_busy_to_free(board: Board) -> None:
    slot = board.take_slot(0)
    ((index, row),) = board.slots()
    assert (row.state, row.pid, row.born) == (IDLE, os.getpid(), process_birth(os.getpid()))

    assert slot.begin(max_running=1)
    slot.running(task=7, fence=3)
    slot.group(99)
    assert (row.state, row.task, row.fence, row.group, board.running()) == (BUSY, 7, 3, 99, 1)

    slot.end()
    assert (row.state, row.task, row.group, board.running()) == (IDLE, 0, 0, 0)

    slot.leave()
    assert (board.slots(), board.slot(index).state) == ([], FREE)


def test_processes_have_slots_of_their_own(board: Board, other: Process) -> None:
    mine = board.take_slot(1)

    theirs = int(other.ask("board.take_slot(2).index"))

    assert mine.index != theirs
    assert [(index, row.pid, row.cluster) for index, row in board.slots()] == [
        (mine.index, os.getpid(), 1),
        (theirs, other.popen.pid, 2),
    ]


def test_a_process_that_asks_again_gets_its_idle_slot_back(board: Board) -> None:
    first = board.take_slot(1)

    second = board.take_slot(1)

    assert (second.index, len(board.slots())) == (first.index, 1)


def test_a_process_that_asks_again_gets_its_idle_slot_even_behind_a_free_one(board: Board, other: Process) -> None:
    theirs = int(other.ask("(slot := board.take_slot(1)).index"))
    mine = board.take_slot(1)
    other.ask("slot.leave()")

    again = board.take_slot(1)

    assert theirs < mine.index
    assert [index for index, _row in board.slots()] == [again.index]


def test_a_full_board_says_so(board: Board) -> None:
    for index in range(SLOTS):
        board.slot(index).state = BUSY

    with pytest.raises(RuntimeError, match="no free worker slot"):
        board.take_slot(0)


def test_no_more_begin_than_may_run(board: Board, other: Process) -> None:
    other.ask("(slot := board.take_slot(0))")
    mine = board.take_slot(0)
    assert other.ask("slot.begin(max_running=1)") == "True"

    assert not mine.begin(max_running=1)

    other.ask("slot.end()")
    assert mine.begin(max_running=1)


def test_a_dead_workers_run_counts_until_it_is_cleared(board: Board, other: Process) -> None:
    index = int(other.ask("(slot := board.take_slot(0)).index"))
    other.ask("slot.begin(max_running=1)")
    mine = board.take_slot(0)
    other.kill()
    board.mark_gone(index)
    assert (board.slot(index).state, mine.begin(max_running=1)) == (GONE, False)

    board.free_slot(index)

    assert mine.begin(max_running=1)


def test_rival_processes_never_run_more_than_allowed(board: Board) -> None:
    rivals = [
        subprocess.Popen([sys.executable, "-c", CONTEND, str(board.path)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]

    most = [int(rival.communicate(timeout=30)[0]) for rival in rivals]

    assert max(most) <= 2
    assert board.running() == 0


def test_nothing_begins_while_the_node_drains(board: Board) -> None:
    slot = board.take_slot(0)
    board.drain(time.monotonic() + 20)

    assert not slot.begin(max_running=4)


# --- clusters ------------------------------------------------------------------------------------------------------


def retire(board: Board, number: int) -> None:
    board.retire_cluster(number)


def retire_and_close(board: Board, number: int) -> None:
    board.retire_cluster(number)
    board.close_cluster(number)


@pytest.mark.parametrize("end", [retire, retire_and_close])
def test_a_worker_of_a_retired_cluster_takes_no_work(board: Board, end: Callable[[Board, int], None]) -> None:
    old, new = board.open_cluster(workers=1), board.open_cluster(workers=1)
    slot = board.take_slot(old)
    end(board, old)

    assert (slot.is_retired, slot.begin(max_running=4)) == (True, False)
    assert board.take_slot(new).begin(max_running=4)


def test_retiring_a_cluster_tells_who_is_at_work(board: Board, other: Process) -> None:
    number = board.open_cluster(workers=2)
    board.take_slot(number)  # idle
    other.ask(f"(slot := board.take_slot({number}))")
    other.ask("slot.begin(max_running=4)")

    assert board.retire_cluster(number) == {other.popen.pid}


def test_a_worker_at_work_finishes_in_a_retired_cluster(board: Board) -> None:
    number = board.open_cluster(workers=1)
    slot = board.take_slot(number)
    slot.begin(max_running=1)
    board.retire_cluster(number)

    slot.end()

    assert (board.running(), slot.begin(max_running=1)) == (0, False)


def test_cluster_numbers_are_never_given_twice(board: Board) -> None:
    first = board.open_cluster(workers=1)
    board.close_cluster(first)

    second = board.open_cluster(workers=1)

    assert second > first
    assert (board.cluster(first), board.cluster(0)) == (None, None)


def test_a_new_life_retires_the_clusters_of_the_last_and_ends_its_drain(board: Board) -> None:
    board.begin_life()
    number = board.open_cluster(workers=1)
    slot = board.take_slot(number)
    slot.begin(max_running=1)
    board.drain(time.monotonic())
    board.clock_beat()
    board.sender_beat()

    board.begin_life()

    assert (board.drain_until, slot.is_retired, board.running()) == (0.0, True, 1)
    assert (board.clock_at, board.sender_at) == (0.0, 0.0)


def test_after_a_restart_of_the_machine_no_run_of_before_is_alive(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    board.begin_life()
    number = board.open_cluster(workers=2)
    busy = board.take_slot(number)
    busy.begin(max_running=2)
    idle = board.take_slot(number)
    next_boot = boot_mark() + 1
    monkeypatch.setattr("k1node.lib.board.boot_mark", lambda: next_boot)

    board.begin_life()

    assert board.clusters() == []
    assert (board.slot(busy.index).state, board.slot(idle.index).state) == (GONE, FREE)


# --- whose process a pid is ------------------------------------------------------------------------------------------


def test_a_process_has_one_birth_and_a_later_one_another() -> None:
    first = process_birth(os.getpid())
    time.sleep(0.02)  # births are counted in ticks of 10 ms
    with subprocess.Popen(["sleep", "10"]) as later:
        birth = process_birth(later.pid)
        later.kill()

    assert 0 < first < birth
    assert process_birth(os.getpid()) == first


def test_a_process_that_is_gone_has_no_birth() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()

    assert process_birth(process.pid) == 0


def test_a_zombie_has_no_birth() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

        assert process_birth(process.pid) == 0


def test_a_name_with_blanks_and_brackets_does_not_disturb(tmp_path: Path) -> None:
    program = tmp_path / "a) R (b"
    program.symlink_to("/bin/sleep")

    with subprocess.Popen([program, "10"]) as process:
        birth = process_birth(process.pid)
        process.kill()

    assert birth >= process_birth(os.getpid())


def test_a_slot_is_alive_as_long_as_its_process(board: Board, other: Process) -> None:
    row = board.slot(int(other.ask("board.take_slot(0).index")))
    assert Board.is_alive(row)

    other.kill()

    assert not Board.is_alive(row)


def test_another_process_with_the_same_pid_is_not_taken_for_the_worker(board: Board) -> None:
    row = board.slot(board.take_slot(0).index)

    row.born -= 1

    assert not Board.is_alive(row)
