"""The processes a command leaves behind: found among the children of this process, killed and reaped.

A worker is a child subreaper, so an orphan becomes its child: a child that was not there before the run belongs to it.
"""

import contextlib
import ctypes
import logging
import os
import signal
import time
from collections.abc import Iterable

import psutil

logger = logging.getLogger(__name__)

UNKILLABLE_SECONDS = 10.0  # a process in an uninterruptible read outlives KILL: the worker goes on without it

PR_SET_CHILD_SUBREAPER = 36

_stranded: set[int] = set()  # processes that outlived KILL, to be reaped when they do go


def become_subreaper() -> None:
    """Have orphans of our descendants become our children; the flag is not inherited by a fork."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(number)}")


def signal_group(pid: int, number: signal.Signals) -> None:
    # PermissionError: all that is left of the group changed its user.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def is_reaped(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def reap(pid: int) -> int | None:
    """Return the wait status of our child that has exited or was killed; None if it cannot be had."""
    give_up_at = time.monotonic() + UNKILLABLE_SECONDS
    try:
        while True:
            reaped, status = os.waitpid(pid, os.WNOHANG)
            if reaped == pid:
                return status
            if time.monotonic() >= give_up_at:
                break
            time.sleep(0.0005)
    except ChildProcessError:
        return None
    _strand({pid})
    return None


def children() -> frozenset[int]:
    """Return the process ids of our children, zombies included; one system call when there are none."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return frozenset()
    found: set[int] = set()
    try:
        for thread in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{thread}/children", "rb") as listing:
                found.update(map(int, listing.read().split()))
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN, or a thread that has just ended
        found.update(child.pid for child in psutil.Process().children())
    return frozenset(found)


def children_before() -> frozenset[int]:
    for pid in [each for each in _stranded if is_reaped(each)]:
        _stranded.discard(pid)
    return children()


def end_survivors(before: frozenset[int]) -> None:
    """Kill and reap the children that came during the run; their children come to us in turn, until none is left."""
    give_up_at = time.monotonic() + UNKILLABLE_SECONDS
    while left := children() - before - _stranded:
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)  # an unreaped child of ours: its number cannot be another's
        reaped = {pid for pid in left if is_reaped(pid)}
        if not reaped:
            if time.monotonic() >= give_up_at:
                _strand(left)
                return
            time.sleep(0.0005)


def _strand(pids: Iterable[int]) -> None:
    _stranded.update(pids)
    logger.error("Processes of a handler outlived KILL", extra={"pids": sorted(pids)})
