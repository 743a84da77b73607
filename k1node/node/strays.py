"""Processes that nobody answers for any more, and the board's slots of workers that died.

`up` is a child subreaper, and so is every worker. A command and whatever it has started therefore stay below their
worker while that lives, and become children of `up` when it dies: an adopted child that belongs to none of the
sessions `up` knows was a dead worker's. That holds for what made a session of its own, too.

What a life before left behind hangs below the machine's init, so there the environment must tell: every command
carries K1NODE_DATA and K1_TASK_ID.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from k1node.lib import board as boards
from k1node.lib.board import Board
from k1node.node import process_table
from k1node.node.process_table import Table

logger = logging.getLogger(__name__)


def strays(table: Table, me: int, *, spared: set[int], sessions: set[int], crews: Mapping[int, set[int]]) -> set[int]:
    """Return the adopted children of `me`, and all below them, that nobody answers for.

    `spared` are pids to leave alone and `sessions` those whose members others deal with. `crews` gives for the session
    of a working cluster its registered workers: as long as its sentinel lives, only they may lose their parent.
    """
    roots: set[int] = set()
    for process in table.values():
        if process.parent != me or process.is_dead or process.pid in spared or process.session in sessions:
            continue
        crew = crews.get(process.session)
        if crew is not None and (process.pid in crew or not _has_child(table, process.session)):
            continue
        roots.add(process.pid)
    return roots | process_table.descendants(table, roots)


def _has_child(table: Table, pid: int) -> bool:
    return any(process.parent == pid and not process.is_dead for process in table.values())


def leftovers(table: Table, data: Path, workers: set[int]) -> set[int]:
    """Return the commands of the node with this data folder, and all below them, that have none of these `workers`."""
    at_work = process_table.descendants(table, workers)
    sessions: set[int] = set()
    found: set[int] = set()
    for process in table.values():
        if process.is_dead or process.pid in at_work or process.pid == os.getpid():
            continue
        variables = process_table.environment(process.pid)
        if b"K1_TASK_ID" in variables and variables.get(b"K1NODE_DATA") == os.fsencode(data):
            found.add(process.pid)
            sessions.add(process.session)
    # A command may have started a child with an empty environment; it gives itself away by its session or its parent.
    found |= {process.pid for process in table.values() if process.session in sessions and not process.is_dead}
    return (found | process_table.descendants(table, found)) - at_work


def end_leftovers(board: Board, data: Path) -> None:
    """Kill the commands of earlier lives whose worker is dead."""
    me = os.getpid()
    own_session = os.getsid(0)

    def pick(table: Table) -> set[int]:
        workers = {slot.pid for _index, slot in board.slots() if board.is_alive(slot)}
        ours = process_table.descendants(table, {me})
        return {
            pid for pid in leftovers(table, data, workers) - ours if pid != me and table[pid].session != own_session
        }

    if killed := process_table.kill_until_none(pick):
        logger.warning("Killed what earlier commands left behind", extra={"pids": sorted(killed)})


def dead_slots(board: Board) -> tuple[list[int], list[int]]:
    """Return the indexes of slots whose process is dead: (those that were idle, those that were at work)."""
    idle: list[int] = []
    busy: list[int] = []
    for index, slot in board.slots():
        if slot.state != boards.GONE and not board.is_alive(slot):
            (busy if slot.state == boards.BUSY else idle).append(index)
    return idle, busy


def release(board: Board, idle: list[int], busy: list[int]) -> None:
    """Free the dead idle slots, and give the tasks of the dead busy ones, whose commands have ended, to the clock."""
    for index in idle:
        board.free_slot(index)
    for index in busy:
        slot = board.slot(index)
        logger.warning("Worker died at work", extra={"pid": slot.pid, "cluster": slot.cluster, "task": slot.task})
        board.mark_gone(index)
        board.count_lost_token(int(slot.cluster))
