"""Follow one started command to its end: steer its group, then end what is left of it."""

import contextlib
import math
import os
import select
import signal
import time
from collections.abc import Callable

from scheduling.execution import survivors
from scheduling.execution.command_output import Pipes
from scheduling.execution.control import Control
from scheduling.execution.start import Process
from scheduling.execution.survivors import UNKILLABLE_SECONDS
from scheduling.output import Chunk
from scheduling.registry import StopReason

GROUP_POLL_MS = 20


class Watch:
    """Follows one started command to its end, and ends what is left of it."""

    __slots__ = (
        "before",
        "control",
        "exited",
        "give_up_at",
        "killed",
        "pipes",
        "poller",
        "process",
        "reason",
        "suspended",
    )

    def __init__(
        self,
        process: Process,
        control: Control,
        *,
        on_flush: Callable[[list[Chunk]], None] | None,
        before: frozenset[int],
    ) -> None:
        self.process = process
        self.control = control
        self.before = before
        self.exited = False
        self.suspended = False  # by STOP
        self.reason: StopReason | None = None  # set when the end has begun
        self.killed = False
        self.give_up_at = math.inf
        self.poller = select.poll()
        for descriptor in (process.pidfd, process.wake):
            self.poller.register(descriptor, select.POLLIN)
        self.pipes = Pipes(process, self.poller, on_flush=on_flush)

    def until_over(self) -> None:
        """Read and steer until the process has exited (or outlived KILL); then read what is in the pipes."""
        process = self.process
        while not self.exited:
            now = time.monotonic()
            self._steer(now)
            self.pipes.flush(now)
            if now >= self.give_up_at:
                break
            for descriptor, _events in self.poller.poll(self._patience(now)):
                if descriptor == process.pidfd:
                    self.exited = True
                elif descriptor == process.wake:
                    os.eventfd_read(descriptor)
                else:
                    self.pipes.read(descriptor)
        self.pipes.drain()
        if self.reason is not None and not self.killed:
            self._wait_for_group()

    def end(self) -> int | None:
        """Kill and reap everything that is left, close what was opened; return the wait status, None if unknown."""
        process = self.process
        try:
            # Before the reaping: as long as its leader is a zombie, nobody else can have the group's number.
            survivors.signal_group(process.pid, signal.SIGKILL)
            status = survivors.reap(process.pid)
            survivors.end_survivors(self.before)
            return status
        finally:
            self.control.close_wake()
            os.close(process.pidfd)
            self.pipes.close()

    def _steer(self, now: float) -> None:
        control, pid = self.control, self.process.pid
        if control.overdue(now):
            control.stop("timeout")
        if self.reason is None and control.reason is not None:
            self.reason = control.reason
            if self.reason != "lease":
                survivors.signal_group(pid, signal.SIGTERM)
                survivors.signal_group(pid, signal.SIGCONT)  # a stopped process cannot hear TERM
        elif self.reason is None and control.is_paused != self.suspended:
            self.suspended = not self.suspended
            survivors.signal_group(pid, signal.SIGSTOP if self.suspended else signal.SIGCONT)
        if self.reason is not None and not self.killed and (self.reason == "lease" or now >= control.grace_ends_at):
            self.killed = True
            self.give_up_at = now + UNKILLABLE_SECONDS
            survivors.signal_group(pid, signal.SIGKILL)

    def _patience(self, now: float) -> int | None:
        """Return for how many milliseconds nothing but an event needs doing."""
        control = self.control
        if self.killed:
            soonest = self.give_up_at
        elif self.reason is not None:
            soonest = control.grace_ends_at
        else:
            soonest = math.inf if control.deadline is None or control.is_paused else control.deadline
        soonest = min(soonest, self.pipes.flush_due_at)
        # An hour: poll() takes its milliseconds as an int, and a timeout may be longer than 24 days.
        return None if soonest == math.inf else max(0, min(3_600_000, math.ceil((soonest - now) * 1000)))

    def _wait_for_group(self) -> None:
        """Give the rest of a group that was told to end its grace; only orphans that came to us can be seen."""
        for descriptor in (self.process.pidfd, self.process.wake):
            self.poller.unregister(descriptor)
        while self._group_lives():
            if time.monotonic() >= self.control.grace_ends_at:
                self.killed = True
                break
            for descriptor, _events in self.poller.poll(GROUP_POLL_MS):
                self.pipes.read(descriptor)
        self.pipes.drain()

    def _group_lives(self) -> bool:
        for pid in survivors.children() - self.before - {self.process.pid}:
            with contextlib.suppress(ProcessLookupError):
                if not survivors.is_reaped(pid) and os.getpgid(pid) == self.process.pid:
                    return True
        return False
