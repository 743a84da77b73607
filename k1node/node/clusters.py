"""The clusters of worker processes of one node: at most one works, earlier ones are retired and end.

present: started by this `up`, on the board, watched. When it no longer works it is not razed: it is marked retired
(no worker of it can become busy after that), everything of its session but the busy workers is killed, and the next
one starts at once. retired: its busy workers finish, settle and go; a worker that hangs is left alone as long as it
holds a slot, for its lease is renewed. When nothing of it lives it is taken off the board.

Clusters of the life before are retired from the start. They end by their own lifeline, and are killed when they have
not done so in the time a drain may take.
"""

import logging

from k1node.lib import board as boards
from k1node.lib.board import Board
from k1node.node import process_table, watchdog
from k1node.node.process_table import Table
from k1node.node.services import Service, describe

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 2.0


class Clusters:
    def __init__(self, board: Board, service: Service, *, workers: int, earlier_until: float) -> None:
        self.service = service
        self._board = board
        self._workers = workers
        self._number = 0
        self._snapshot: watchdog.Snapshot | None = None
        self._own: set[int] = set()
        self._earlier_until = earlier_until
        self._swept_at = 0.0

    # --- the present one ----------------------------------------------------------------------------------------

    def start(self, now: float, lifeline_fd: int) -> None:
        try:
            self._number = self._board.open_cluster(self._workers)
        except RuntimeError as error:
            self.service.due_at = now + 1
            logger.error("No new cluster", extra={"error": str(error)})
            return
        self._snapshot = None
        self._own.add(self._number)
        self.service.start(now, lifeline_fd, K1NODE_CLUSTER=str(self._number))
        if self.service.pid:
            self._board.name_parent(self._number, self.service.pid)
        else:
            self._board.close_cluster(self._number)

    def check(self, now: float) -> None:
        """Replace the present cluster if it has stopped working."""
        self._snapshot = watchdog.observe(self._snapshot, self._look(), now)
        reason = watchdog.diagnose(self._snapshot, now)
        if reason is not None:
            self.replace(reason, now)

    def forgive(self) -> None:
        """Count waiting times anew: this process itself, and perhaps the machine, was not running."""
        self._snapshot = None

    def exited(self, status: int, now: float, *, expected: bool) -> None:
        """Take note that the present cluster's parent has been reaped; without it the rest is of no use."""
        if not expected:
            self.replace(f"its parent has ended: {describe(status)}", now)
            return
        self._board.retire_cluster(self._number)
        self._kill_idle(self._number)
        self.service.part(now)

    def replace(self, reason: str, now: float) -> None:
        busy = self._board.retire_cluster(self._number)
        logger.warning(
            "Cluster replaced", extra={"cluster": self._number, "reason": reason, "workers_at_work": len(busy)}
        )
        self._kill_idle(self._number)
        self.service.part(now)

    def _look(self) -> watchdog.Look:
        entry = self._board.cluster(self._number)
        if entry is None:
            raise RuntimeError("The present cluster is not on the board")
        alive = [slot.state for slot in self._board.slots_of(self._number) if self._board.is_alive(slot)]
        return watchdog.Look(
            started_at=entry.started_at,
            sentinel_at=entry.sentinel_at,
            pusher_at=entry.pusher_at,
            sent=entry.sent,
            picked=entry.picked,
            finished=entry.finished,
            acknowledged=entry.acknowledged,
            workers=entry.workers,
            idle_workers=alive.count(boards.IDLE),
            busy_workers=alive.count(boards.BUSY),
        )

    # --- the retired ones ---------------------------------------------------------------------------------------

    def sweep(self, now: float, *, changed: bool) -> None:
        """End what retired clusters do not need any more; close those of which nothing lives.

        Looks when a child has ended (`changed`), and every two seconds for those that are not this process's children.
        """
        retired = [int(entry.number) for entry in self._board.clusters() if entry.retired]
        if not retired or not (changed or now - self._swept_at >= SWEEP_SECONDS):
            return
        self._swept_at = now
        for number in retired:
            if self.is_earlier(number) and now < self._earlier_until and self._members(number, process_table.read()):
                continue
            self._kill_idle(number)
            self._close_if_dead(number)

    def close_dead(self) -> None:
        for entry in self._board.clusters():
            self._close_if_dead(int(entry.number))

    def _close_if_dead(self, number: int) -> None:
        at_work = any(slot.state == boards.BUSY for slot in self._board.slots_of(number))
        if not at_work and not self._members(number, process_table.read()):
            self._board.close_cluster(number)
            self._own.discard(number)

    def is_earlier(self, number: int) -> bool:
        """Say whether the cluster was not started by this process."""
        return number not in self._own

    def kill_idle(self) -> set[int]:
        """Kill all of this process's clusters but the busy workers and what is below them; return the pids."""
        return set().union(*map(self._kill_idle, self._own))

    def _kill_idle(self, number: int) -> set[int]:
        def pick(table: Table) -> set[int]:
            busy = self._busy(number)
            return self._members(number, table) - busy - process_table.descendants(table, busy)

        return process_table.kill_until_none(pick)

    def _members(self, number: int, table: Table) -> set[int]:
        entry = self._board.cluster(number)
        return set() if entry is None else process_table.session_members(table, entry.parent_pid, entry.parent_born)

    def _busy(self, number: int) -> set[int]:
        return {
            int(slot.pid)
            for slot in self._board.slots_of(number)
            if slot.state == boards.BUSY and self._board.is_alive(slot)
        }

    # --- for the search for strays ------------------------------------------------------------------------------

    def retired_sessions(self) -> set[int]:
        return {int(entry.parent_pid) for entry in self._board.clusters() if entry.retired}

    def crews(self) -> dict[int, set[int]]:
        """Return the registered workers of each cluster that is not retired, by its session."""
        return {
            int(entry.parent_pid): {int(slot.pid) for slot in self._board.slots_of(entry.number)}
            for entry in self._board.clusters()
            if not entry.retired
        }

    def registered(self) -> set[int]:
        """Return the pids of all workers that hold a slot."""
        return {int(slot.pid) for _index, slot in self._board.slots()}

    def any_at_work(self) -> bool:
        return any(self._busy(int(entry.number)) for entry in self._board.clusters())
