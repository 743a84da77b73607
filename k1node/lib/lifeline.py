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

VARIABLE = "K1NODE_LIFELINE_FD"


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
        os.read(number, 1)
        then()

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


def end_this_process_after(seconds: float) -> None:
    """Kill the calling process when `seconds` have passed, whatever it is doing then."""

    def wait() -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="last-resort", daemon=True).start()
