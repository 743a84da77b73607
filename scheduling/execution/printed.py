"""What a Python handler prints: sys.stdout and sys.stderr during its run, into the run's output."""

import io
import threading

from scheduling.output import BoundedOutput


class Sink:
    """Where one Python run prints to; nothing is made until something is printed. Threads may share it."""

    __slots__ = ("_closed", "_lock", "_output")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._output: BoundedOutput | None = None
        self._closed = False

    def write(self, stream: str, data: bytes) -> None:
        with self._lock:
            if self._closed:
                return  # a thread that outlived its handler
            if self._output is None:
                self._output = BoundedOutput()
            self._output.write(stream, data)

    def close(self) -> BoundedOutput | None:
        with self._lock:
            self._closed = True
            return self._output


class Printed(io.TextIOBase):
    """sys.stdout or sys.stderr of a Python handler."""

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, sink: Sink, stream: str) -> None:
        self._sink = sink
        self._stream = stream

    def write(self, text: str) -> int:
        self._sink.write(self._stream, text.encode("utf-8", "replace"))
        return len(text)

    def writable(self) -> bool:
        return True
