"""SIGUSR1, by which Control.stop() interrupts the Python handler that runs in the main thread.

Its handler raises HandlerStopped, but only between arm() and disarm(), and once an arming: nothing is raised into the
code that follows.
"""

import signal
import threading
from types import FrameType
from typing import Protocol

from scheduling.registry import HandlerStopped, StopReason


class Stoppable(Protocol):
    """The part of control.Control that is needed here."""

    reason: StopReason | None
    delivered: bool


_installed = False
_armed: Stoppable | None = None


def install() -> None:
    """Let Control.stop() interrupt Python handlers: once, in the main thread of a worker (forks inherit it)."""
    global _installed
    signal.signal(signal.SIGUSR1, _raise_if_stopped)
    _installed = True


def arm(control: Stoppable) -> None:
    """From here on HandlerStopped may arrive, if this is the main thread."""
    global _armed
    if threading.get_ident() == threading.main_thread().ident:
        _armed = control


def disarm() -> None:
    """Let HandlerStopped arrive no more. It may still arrive in here."""
    global _armed
    _armed = None


def send(control: Stoppable) -> None:
    """Interrupt the handler that runs if it is the one that `control` steers. From any thread."""
    if _armed is control and _installed:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)


def _raise_if_stopped(_number: int, _frame: FrameType | None) -> None:
    global _armed
    control = _armed
    if control is None or control.reason is None:
        return
    _armed = None
    control.delivered = True
    raise HandlerStopped(control.reason)
