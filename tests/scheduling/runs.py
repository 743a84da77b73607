"""What the tests of runs share: the `run` fixture's type, waiting, and reading what a run left."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from scheduling.execution.control import Control
from scheduling.outcomes import Outcome, OutcomeKind

COMPLETED, FAILED, TIMEOUT = OutcomeKind.COMPLETED, OutcomeKind.FAILED, OutcomeKind.TIMEOUT
Run = Callable[..., Outcome]


def written(outcome: Outcome, stream: str | None = None) -> bytes:
    chunks = outcome.output.take() if outcome.output is not None else []
    return b"".join(chunk.data for chunk in chunks if stream in (None, chunk.stream))


def span_ms(outcome: Outcome) -> float:
    """Return how long the run took, its pauses included."""
    return (outcome.finished_at - outcome.started_at).total_seconds() * 1000


def is_dead(pid: int) -> bool:
    return not psutil.pid_exists(pid)


def wait_for(condition: Callable[[], object], *, seconds: float = 3.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def read_pid(path: Path) -> int:
    wait_for(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


def stop_when(ready: Callable[[], object], control: Control, reason: Any) -> threading.Thread:
    def stop() -> None:
        wait_for(ready)
        control.stop(reason)

    thread = threading.Thread(target=stop)
    thread.start()
    return thread
