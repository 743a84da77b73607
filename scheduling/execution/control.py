"""How another thread steers a run: the heartbeat stops, pauses and resumes it through its Control."""

import math
import os
import threading
import time
from datetime import timedelta

from scheduling.execution import stop_signal
from scheduling.registry import HandlerStopped, StopReason


class Control:
    """Steers one run from another thread. Made by the worker before the run; the first reason to stop wins."""

    __slots__ = (
        "_grace",
        "_lock",
        "_paused_at",
        "_paused_before",
        "_resumed",
        "_wake",
        "checkpoints",
        "deadline",
        "delivered",
        "reason",
        "stopped_at",
    )

    def __init__(self) -> None:
        self.reason: StopReason | None = None
        self.deadline: float | None = None  # on the monotonic clock; moved by pauses
        self.stopped_at: float | None = None
        self.delivered = False  # HandlerStopped was raised: the handler has heard of it
        self.checkpoints = False  # a Python handler has called checkpoint(), so it can be paused
        self._grace = 0.0
        self._lock = threading.Lock()
        self._wake = -1
        self._resumed: threading.Event | None = None
        self._paused_at: float | None = None
        self._paused_before = 0.0

    @property
    def is_paused(self) -> bool:
        return self._paused_at is not None

    @property
    def grace_ends_at(self) -> float:
        """Return when KILL is due on the monotonic clock, once asked to stop."""
        return math.inf if self.stopped_at is None else self.stopped_at + self._grace

    @property
    def paused_seconds(self) -> float:
        """Return for how long the run has been paused in all, a pause that goes on included. Takes the lock."""
        with self._lock:
            return self._paused_before + (0.0 if self._paused_at is None else time.monotonic() - self._paused_at)

    def stop(self, reason: StopReason) -> bool:
        """Ask the run to end; False if it was asked before. A pause ends with it."""
        with self._lock:
            if self.reason is not None:
                return False
            self.reason = reason
            self.stopped_at = time.monotonic()
            self._end_pause()
            self._wake_runner()
        stop_signal.send(self)
        return True

    def pause(self) -> None:
        with self._lock:
            if self.reason is None and self._paused_at is None:
                self._resumed = threading.Event()
                self._paused_at = time.monotonic()
                self._wake_runner()

    def resume(self) -> None:
        with self._lock:
            self._end_pause()
            self._wake_runner()

    def overdue(self, now: float) -> bool:
        """Say whether the timeout has passed on the monotonic clock; then stop("timeout") is due."""
        return self.deadline is not None and self._paused_at is None and self.reason is None and now >= self.deadline

    def is_stuck(self, now: float) -> bool:
        """Say whether the run was asked to stop longer than its grace ago."""
        return now >= self.grace_ends_at

    def checkpoint(self) -> None:
        """For the running handler: wait while paused, raise HandlerStopped once asked to stop. Takes no lock."""
        self.checkpoints = True
        self.wait_while_paused()
        if self.reason is not None:
            self.delivered = True
            raise HandlerStopped(self.reason)

    def wait_while_paused(self) -> None:
        while self._paused_at is not None and (resumed := self._resumed) is not None:
            resumed.wait()

    def begin(self, timeout: timedelta | None, grace: timedelta) -> None:
        """Start the timeout's clock; what a pause asked for earlier has lasted by now does not move the deadline."""
        now = time.monotonic()
        with self._lock:
            self._grace = grace.total_seconds()
            self.deadline = None if timeout is None else now + timeout.total_seconds()
            if self._paused_at is not None:
                self._paused_before += now - self._paused_at
                self._paused_at = now

    def open_wake(self) -> int:
        """Return a descriptor that becomes readable at every change; close_wake() closes it."""
        with self._lock:
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            return self._wake

    def close_wake(self) -> None:
        with self._lock:
            if self._wake >= 0:
                os.close(self._wake)
            self._wake = -1

    def _end_pause(self) -> None:
        if self._paused_at is None:
            return
        length = time.monotonic() - self._paused_at
        self._paused_at = None
        self._paused_before += length
        if self.deadline is not None:
            self.deadline += length
        if self._resumed is not None:
            self._resumed.set()

    def _wake_runner(self) -> None:
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)
