"""What one command writes: out of its two pipes into the run's output, and handed over while it runs."""

import logging
import math
import os
import select
import time
from collections.abc import Callable

from scheduling.execution.start import Process
from scheduling.output import STDERR, STDOUT, BoundedOutput, Chunk

logger = logging.getLogger(__name__)

READ_BYTES = 64 * 1024
DRAIN_BYTES = 1024 * 1024  # the largest pipe an ordinary process may have
LAST_BYTES = 2048  # of each stream, kept for the error line
FLUSH_SECONDS = 1.0


class Pipes:
    """Our ends of a command's pipes. They are registered with `poller`, which is the watch's, until they end."""

    __slots__ = ("_flush_at", "_flushed", "_on_flush", "_open", "_poller", "last", "output")

    def __init__(
        self, process: Process, poller: select.poll, *, on_flush: Callable[[list[Chunk]], None] | None
    ) -> None:
        self.output = BoundedOutput()
        self.last = {STDOUT: b"", STDERR: b""}
        self._open = {process.stdout: STDOUT, process.stderr: STDERR}
        self._on_flush = on_flush
        self._flush_at = time.monotonic() + FLUSH_SECONDS
        self._flushed = 0
        self._poller = poller
        for descriptor in self._open:
            poller.register(descriptor, select.POLLIN)

    @property
    def flush_due_at(self) -> float:
        """Return when flush() has something to do, on the monotonic clock; inf if nothing is new."""
        has_news = self._on_flush is not None and self.output.total > self._flushed
        return self._flush_at if has_news else math.inf

    def flush(self, now: float) -> None:
        """Hand over what is new, if it is time."""
        if self._on_flush is None or now < self.flush_due_at:
            return
        total = self.output.total
        chunks = self.output.take()
        try:
            self._on_flush(chunks)
        except Exception:
            logger.warning("Output of a running command could not be stored; kept for later", exc_info=True)
            self.output.restore(chunks)
        else:
            self._flushed = total
        self._flush_at = time.monotonic() + FLUSH_SECONDS

    def read(self, descriptor: int) -> int:
        """Store what one read gives; return its length, 0 at the end or when the pipe is empty."""
        try:
            data = os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            return 0
        stream = self._open[descriptor]
        if not data:
            self._poller.unregister(descriptor)
            del self._open[descriptor]
            os.close(descriptor)
            return 0
        self.output.write(stream, data)
        self.last[stream] = data[-LAST_BYTES:] if len(data) >= LAST_BYTES else (self.last[stream] + data)[-LAST_BYTES:]
        return len(data)

    def drain(self) -> None:
        """Store what is in the pipes now, up to a bound: a survivor may go on filling them for ever."""
        for descriptor in list(self._open):
            left = DRAIN_BYTES
            while left > 0 and (length := self.read(descriptor)):
                left -= length

    def close(self) -> None:
        for descriptor in self._open:
            os.close(descriptor)
