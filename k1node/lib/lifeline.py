"""The pipe by which children of `up` notice that it is gone, even after kill -9: its write end lives in `up` alone.

Children get the read end's number in K1NODE_LIFELINE_FD. It is kept across forks (django-q2's workers) and closed
at every exec (handler commands must not hold it).
"""

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

VARIABLE = "K1NODE_LIFELINE_FD"

last_act: Callable[[], None] | None = None  # what a process does before it kills itself

_cut_at: float | None = None  # monotonic; set by the first watcher that wakes, and inherited by what is forked later


def descriptor() -> int | None:
    """Return the read end, now closed at exec; None when this process was not started by `up`."""
    text = os.environ.get(VARIABLE, "")
    if not text:
        return None
    number = int(text)
    os.set_inheritable(number, False)
    return number


def is_cut(number: int | None) -> bool:
    """Say whether `up` is gone; one system call."""
    if number is None:
        return False
    poll = select.poll()
    poll.register(number, select.POLLIN | select.POLLHUP)
    return bool(poll.poll(0))


def watch(then: Callable[[], None]) -> None:
    """Call `then` from a thread of its own once `up` is gone; do nothing when not started by `up`."""
    number = descriptor()
    if number is None:
        return

    def wait() -> None:
        global _cut_at
        os.read(number, 1)
        _cut_at = _cut_at or time.monotonic()
        then()

    _start(wait, "lifeline")


def end_this_process_after(seconds: float) -> None:
    """Kill the calling process when `seconds` have passed, whatever it is doing then."""

    def wait() -> None:
        time.sleep(max(0.0, seconds))
        if last_act is not None:
            with suppress(OSError):
                last_act()
        os.kill(os.getpid(), signal.SIGKILL)

    _start(wait, "last-resort")


def end_this_process_with_up(seconds: float) -> None:
    """Kill the calling process `seconds` after `up` has gone, though it be forked only after that."""
    watch(lambda: end_this_process_after((_cut_at or time.monotonic()) + seconds - time.monotonic()))


def _start(work: Callable[[], None], name: str) -> None:
    def run() -> None:
        # The kernel gives a signal sent to a process to any thread that takes it, but only in the main one does it end
        # a wait. A SIGTERM that came to this thread would be heard when the main one wakes by itself, or never.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        work()

    threading.Thread(target=run, name=name, daemon=True).start()
