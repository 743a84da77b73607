"""The loop of `manage.py up`: it keeps one node's processes running and, at the end, leaves none.

State: four services (clock, sender, cluster, web), the clusters on the board, and, once asked to stop, the progress of
the stop. All of it belongs to the one thread of this loop; only the web probe has a thread of its own. This process is
a child subreaper and every exit, of children and of adopted orphans, is taken by waitpid(-1) in `_reap`, nowhere else.

Each turn, at the latest after 250 ms: reap; clear the slots of dead workers (end their commands first); end strays;
measure the load; then either keep (replace what hangs, start what is due) or, when asked to stop, stop:

1. the drain mark goes on the board; clock, sender and the cluster's parent get SIGTERM; the web goes on answering;
2. when none of them and no worker is left, or their time is over and they are killed, the web gets SIGTERM;
3. when the web has gone, or its time is over, everything below this process is killed, normally nothing.

A second signal leaves three seconds for all of it.
"""

import ctypes
import logging
import os
import select
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from k1node.lib.board import Board
from k1node.node import process_table, strays
from k1node.node.clusters import Clusters
from k1node.node.load import LoadMeter
from k1node.node.probe import WebProbe
from k1node.node.process_table import Table
from k1node.node.services import Service

logger = logging.getLogger(__name__)

PR_SET_CHILD_SUBREAPER = 36
TURN_MS = 250
ROUND_SECONDS = 1.0  # between two measurements, and two looks for new orphans
GAP_SECONDS = 2.0  # a longer turn means that this process was stopped or starved, and then so were the others
FORGIVING_SECONDS = 10.0
SILENT_SECONDS = 20.0  # that a clock or a sender may be
START_SECONDS = 30.0  # until their first beat
IDLE_STOP_SECONDS = 10.0  # a cluster that has had no busy worker for so long and has not ended never will
LAST_SECONDS = 10.0  # beyond drain and kill grace
EARLIER_SECONDS = 10.0  # and beyond that for an earlier life's processes, which end themselves by then
WEB_STOP_SECONDS = 13.0
HURRY_SECONDS = 3.0
SAME_SIGNAL_SECONDS = 0.5  # a closing terminal sends its signal twice


@dataclass(frozen=True)
class Plan:
    """What to run, as command lines, and within which limits."""

    clock: Sequence[str]
    sender: Sequence[str]
    cluster: Sequence[str]
    web: Sequence[str]
    web_address: tuple[str, int]
    workers: int
    drain_seconds: float
    kill_grace_seconds: float
    data: Path

    @property
    def drain_limit(self) -> float:
        """Return how long workers may take to end, in seconds."""
        return self.drain_seconds + self.kill_grace_seconds + LAST_SECONDS


@dataclass
class Stop:
    """How far the stop has come."""

    workers_until: float
    idle_until: float  # no worker has been at work for a while then: a cluster that is still there hangs
    web_until: float | None = None
    hurry_until: float | None = None


class Keeper:
    def __init__(self, plan: Plan, board: Board) -> None:
        now = time.monotonic()
        self._plan = plan
        self._board = board
        self._me = os.getpid()
        self._inherited = process_table.children(self._me)  # of the program that became this one by exec
        self._lifeline, self._lifeline_end = os.pipe()
        os.set_inheritable(self._lifeline, True)
        self._wakeup, self._wakeup_end = os.pipe()
        self._clock = Service("clock", "clock", plan.clock, now)
        self._sender = Service("sender", "sender", plan.sender, now)
        self._web = Service("web", "web", plan.web, now)
        board.begin_life()
        self._clusters = Clusters(
            board,
            Service("cluster", "worker", plan.cluster, now),
            workers=plan.workers,
            earlier_until=now + plan.drain_limit + EARLIER_SECONDS,
        )
        self._services = (self._clock, self._sender, self._clusters.service, self._web)
        self._probe = WebProbe(*plan.web_address)
        self._load = LoadMeter(now)
        self._turned_at = now
        self._round_at = 0.0
        self._forgiving_until = 0.0
        self._asked_to_stop: list[float] = []
        self._stop: Stop | None = None
        self._is_clean = True

    def run(self) -> int:
        """Keep the node until a signal ends it; return 0 if everything ended by itself, else 1."""
        become_subreaper()
        wakeup = self._receive_signals()
        strays.end_leftovers(self._board, self._plan.data)
        self._probe.start()
        while not self._turn(time.monotonic()):
            wakeup.poll(TURN_MS)
            with suppress(BlockingIOError):
                os.read(self._wakeup, 4096)
        return self._finish()

    def _receive_signals(self) -> select.poll:
        """Have every signal end the wait between two turns."""
        os.set_blocking(self._wakeup, False)
        os.set_blocking(self._wakeup_end, False)
        signal.set_wakeup_fd(self._wakeup_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # Under nohup the hang-up is ignored, and stays so.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._ask_to_stop)
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        return poll

    def _ask_to_stop(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self._asked_to_stop or now - self._asked_to_stop[-1] > SAME_SIGNAL_SECONDS:
            self._asked_to_stop.append(now)

    # --- one turn -----------------------------------------------------------------------------------------------

    def _turn(self, now: float) -> bool:
        """Do what is due; return True once the node has stopped."""
        if now - self._turned_at > GAP_SECONDS:
            self._forgiving_until = now + FORGIVING_SECONDS
        self._turned_at = now
        changed = self._reap(now)
        changed = self._clear_dead_slots() or changed
        if now - self._round_at >= ROUND_SECONDS:
            self._round_at = now
            self._board.record_load(*self._load.measure(now))
            changed = self._has_new_children() or changed
        if changed:
            self._end_strays()
        if self._asked_to_stop:
            return self._go_on_stopping(now)
        self._clusters.sweep(now, changed=changed)
        self._keep(now)
        return False

    def _reap(self, now: float) -> bool:
        """Take every exit there is; say whether there was one."""
        reaped = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return reaped
            if not pid:
                return reaped
            reaped = True
            for service in self._services:
                if service.pid == pid:
                    self._exited(service, status, now)

    def _exited(self, service: Service, status: int, now: float) -> None:
        if service is self._clusters.service:
            self._clusters.exited(status, now, expected=self._stop is not None)
        else:
            service.exited(status, now, expected=self._stop is not None)
        if service is self._web:
            self._probe.watch(None)

    def _clear_dead_slots(self) -> bool:
        """Free the slots of dead workers, after the end of their commands; say whether there were any."""
        idle, busy = strays.dead_slots(self._board)
        if busy:
            self._end_strays()
            if any(self._clusters.is_earlier(int(self._board.slot(index).cluster)) for index in busy):
                strays.end_leftovers(self._board, self._plan.data)
        strays.release(self._board, idle, busy)
        return bool(idle or busy)

    def _has_new_children(self) -> bool:
        known = {service.pid for service in self._services} | self._inherited | self._clusters.registered()
        return not process_table.children(self._me) <= known

    def _end_strays(self) -> None:
        sessions = {
            service.pid for service in (self._clock, self._sender, self._web)
        } | self._clusters.retired_sessions()
        spared = {service.pid for service in self._services} | self._inherited
        crews = self._clusters.crews()

        def pick(table: Table) -> set[int]:
            return strays.strays(table, self._me, spared=spared, sessions=sessions, crews=crews)

        if killed := process_table.kill_until_none(pick):
            logger.warning("Killed processes whose worker is gone", extra={"pids": sorted(killed)})

    # --- keeping ------------------------------------------------------------------------------------------------

    def _keep(self, now: float) -> None:
        if now < self._forgiving_until:
            self._clusters.forgive()
            self._probe.watch(self._web.started_at if self._web.pid else None)
        else:
            self._check(now)
        for service in (self._clock, self._sender):
            if service.is_due(now):
                service.start(now, self._lifeline)
        if self._clusters.service.is_due(now):
            self._clusters.start(now, self._lifeline)
        if self._web.is_due(now):
            self._web.start(now, self._lifeline)
            self._probe.watch(now if self._web.pid else None)

    def _check(self, now: float) -> None:
        if self._clock.pid and is_silent(self._clock.started_at, self._board.clock_at, now):
            logger.warning("Clock hangs and is killed", extra={"pid": self._clock.pid})
            self._clock.kill_session()
        if self._sender.pid and is_silent(self._sender.started_at, self._board.sender_at, now):
            logger.warning("Sender hangs and is killed", extra={"pid": self._sender.pid})
            self._sender.kill_session()
        if self._web.pid and self._probe.is_hung(now):
            logger.warning("Web does not answer and is killed", extra={"pid": self._web.pid})
            self._probe.watch(None)
            self._web.kill_session()
        if self._clusters.service.pid:
            self._clusters.check(now)

    # --- stopping -----------------------------------------------------------------------------------------------

    def _go_on_stopping(self, now: float) -> bool:
        stop = self._stop
        if stop is None:
            stop = self._stop = self._begin_stop(now)
        if len(self._asked_to_stop) > 1 and stop.hurry_until is None:
            logger.warning("Stopping at once")
            self._board.drain(now)
            stop.hurry_until = now + HURRY_SECONDS
        if stop.hurry_until is not None and now > stop.hurry_until:
            return True
        working = self._working()
        if self._clusters.any_at_work():
            stop.idle_until = now + IDLE_STOP_SECONDS
        if working and now > stop.idle_until:
            self._kill_late(self._clusters.kill_idle())
        if working and now > stop.workers_until:
            self._kill_late(process_table.kill_until_none(lambda _table: self._working()))
        if not working and stop.web_until is None:
            stop.web_until = now + WEB_STOP_SECONDS
            self._web.stop()
        return stop.web_until is not None and (not self._web.pid or now > stop.web_until)

    def _begin_stop(self, now: float) -> Stop:
        logger.info("Stopping", extra={"drain_seconds": self._plan.drain_seconds})
        self._board.drain(now + self._plan.drain_seconds)
        self._clock.stop()
        self._sender.stop()
        self._clusters.service.stop()
        return Stop(workers_until=now + self._plan.drain_limit, idle_until=now + IDLE_STOP_SECONDS)

    def _working(self) -> set[int]:
        """Return what lives below this process, without the web."""
        table = process_table.read()
        return self._below(table) - process_table.session_members(table, self._web.pid, self._web.born)

    def _below(self, table: Table) -> set[int]:
        """Return what lives below this process, without the children it was born with."""
        children = {process.pid for process in table.values() if process.parent == self._me and not process.is_dead}
        ours = children - self._inherited
        return ours | process_table.descendants(table, ours)

    def _kill_late(self, killed: set[int]) -> None:
        if killed:
            self._is_clean = False
            logger.warning("Killed processes that did not end in time", extra={"pids": sorted(killed)})

    def _finish(self) -> int:
        """Leave no process behind and no slot that seems to be at work."""
        self._kill_late(process_table.kill_until_none(self._below))
        until = time.monotonic() + HURRY_SECONDS
        while process_table.children(self._me) - self._inherited and time.monotonic() < until:
            self._reap(time.monotonic())
            time.sleep(0.01)
        strays.release(self._board, *strays.dead_slots(self._board))
        self._clusters.close_dead()
        logger.info("Stopped", extra={"clean": self._is_clean})
        return 0 if self._is_clean else 1


def is_silent(started_at: float, beat_at: float, now: float) -> bool:
    """Say whether what was started at `started_at` has not beaten for too long; all times monotonic."""
    if beat_at < started_at:
        return now - started_at > START_SECONDS
    return now - beat_at > SILENT_SECONDS


def become_subreaper() -> None:
    """Have orphans below this process become its children."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(number)}")
