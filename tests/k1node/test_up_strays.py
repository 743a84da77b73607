import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from k1node.lib.board import BUSY, FREE, GONE, Board, WorkerSlot
from k1node.node import process_table, strays
from k1node.node.process_table import Process, Table

UP = 10


def table(*rows: tuple[int, int, int]) -> Table:
    """Return a table of (pid, parent, session)."""
    return {pid: Process(pid, parent, session, session, born=pid, is_dead=False) for pid, parent, session in rows}


def picked(rows: Table, *, spared: set[int] | None = None, crew: set[int] | None = None) -> set[int]:
    """Return the strays where 20 is the web's session, 30 a retired cluster's and 40 the present one's."""
    return strays.strays(rows, UP, spared=spared or {20, 40}, sessions={20, 30}, crews={40: crew or set()})


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param([(20, UP, 20), (40, UP, 40), (41, 40, 40)], set(), id="services"),
        pytest.param([(51, UP, 51), (52, 51, 51), (53, 52, 53)], {51, 52, 53}, id="a-command-and-all-below"),
        pytest.param([(61, 60, 61)], set(), id="not-below-up"),
        pytest.param([(31, UP, 30), (71, 31, 71)], set(), id="retired-worker-and-its-command"),
        pytest.param([(21, UP, 20)], set(), id="orphan-of-the-web"),
        pytest.param([(40, UP, 40), (41, 40, 40), (45, UP, 40)], {45}, id="orphan-of-a-dead-worker"),
        pytest.param([(40, UP, 40), (42, UP, 40), (45, UP, 40)], set(), id="sentinel-is-dead-too"),
    ],
)
def test_only_what_nobody_answers_for_is_a_stray(rows: list[tuple[int, int, int]], expected: set[int]) -> None:
    assert picked(table(*rows), crew={42}) == expected


def test_a_registered_worker_is_never_a_stray() -> None:
    assert picked(table((40, UP, 40), (41, 40, 40), (42, UP, 40)), crew={42}) == set()


def test_the_dead_are_no_strays() -> None:
    assert picked({51: Process(51, UP, 51, 51, born=51, is_dead=True)}) == set()


def test_a_session_whose_leader_has_another_birth_is_somebody_elses() -> None:
    rows = table((30, 1, 30), (31, 30, 30))

    assert process_table.session_members(rows, 30, 30) == {30, 31}
    assert process_table.session_members(rows, 30, 29) == set()
    del rows[30]
    assert process_table.session_members(rows, 30, 29) == {31}


def test_the_table_shows_this_process() -> None:
    me = process_table.read()[os.getpid()]

    assert (me.parent, me.session, me.is_dead) == (os.getppid(), os.getsid(0), False)


@pytest.fixture
def command(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Return a running command as a worker of the node with data folder `tmp_path` would have started it."""
    process = subprocess.Popen(
        ["sleep", "60"], env={"K1NODE_DATA": str(tmp_path), "K1_TASK_ID": "task-1"}, start_new_session=True
    )
    yield process
    process.kill()
    process.wait()


def test_commands_of_this_folder_without_a_living_worker_are_leftovers(
    command: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    rows = process_table.read()

    assert strays.leftovers(rows, tmp_path, set()) == {command.pid}
    assert strays.leftovers(rows, tmp_path, {os.getpid()}) == set()
    assert strays.leftovers(rows, tmp_path / "other", set()) == set()


def test_a_dead_workers_slot_goes_free_or_to_the_clock(board: Board) -> None:
    number = board.open_cluster(2)
    busy, idle = _busy_slot(board, number), board.take_slot(number)
    for worker in (idle, busy):
        board.slot(worker.index).born = 1  # as if it had died and its pid were another's

    found = strays.dead_slots(board)
    strays.release(board, *found)

    assert found == ([idle.index], [busy.index])
    assert (board.slot(idle.index).state, board.slot(busy.index).state) == (FREE, GONE)
    assert strays.dead_slots(board) == ([], [])
    cluster = board.cluster(number)
    assert cluster is not None
    assert (cluster.finished, cluster.acknowledged) == (1, 1)  # the token it died with


def test_a_new_life_retires_the_clusters_of_the_last_one(board: Board) -> None:
    board.begin_life()
    number = board.open_cluster(1)
    worker = board.take_slot(number)
    board.drain(12345.0)

    board.begin_life()

    assert (board.drain_until, worker.is_retired, worker.begin(max_running=9)) == (0, True, False)


def test_after_a_restart_of_the_machine_every_process_on_the_board_is_dead(board: Board) -> None:
    number = board.open_cluster(2)
    busy = _busy_slot(board, number)
    idle = board.take_slot(number)
    board._data.boot = 1

    board.begin_life()

    assert (board.slot(idle.index).state, board.slot(busy.index).state, board.clusters()) == (FREE, GONE, [])


def test_a_worker_whose_cluster_was_closed_takes_no_more_work(board: Board) -> None:
    number = board.open_cluster(1)
    worker = board.take_slot(number)

    board.close_cluster(number)

    assert worker.begin(max_running=9) is False


def _busy_slot(board: Board, number: int) -> WorkerSlot:
    worker = board.take_slot(number)
    assert worker.begin(max_running=9)
    assert board.slot(worker.index).state == BUSY
    return worker
