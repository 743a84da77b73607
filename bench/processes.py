"""Processes started here, and their ends: by their own id and never by name."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil

STOP_SECONDS = 45.0


def tree(pid: int) -> list[psutil.Process]:
    """Return the process and everything below it."""
    try:
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of the process and everything below it, children that have ended included."""
    return sum(sum(process.cpu_times()[:4]) for process in tree(pid))


def end(process: subprocess.Popen[bytes], *, how: signal.Signals = signal.SIGTERM) -> None:
    """End the process and whatever is left of its tree, by force if it takes too long."""
    below = tree(process.pid)
    if process.poll() is None:
        process.send_signal(how)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    for each in below:
        # psutil compares the start time too, so a pid that was given again is spared.
        with suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()


@contextmanager
def running(
    process: subprocess.Popen[bytes], *, how: signal.Signals = signal.SIGTERM
) -> Iterator[subprocess.Popen[bytes]]:
    """End the process at exit."""
    try:
        yield process
    finally:
        end(process, how=how)


def wait_until(condition: Callable[[], object], seconds: float, what: str, *, every: float = 0.05) -> None:
    """Return once `condition` gives something true; raise TimeoutError naming `what` when it does not in time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"Waited {seconds:.0f} s in vain for {what}")
        time.sleep(every)
