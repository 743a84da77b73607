"""One kind of child that a node must always have: starting it, noticing its end, starting it again.

A service has no process (pid 0, and `due_at` says when the next one starts) or one, which leads a session of its own
that bears its pid. Exits are told to it by the reaper loop; nothing here waits.
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from k1node.lib import board, lifeline
from k1node.node import process_table

logger = logging.getLogger(__name__)

HEALTHY_SECONDS = 60.0
LONGEST_WAIT = 15.0


@dataclass
class Backoff:
    """How long to wait before the next start: not at all the first time, then 1, 2, 4, 8 and always 15 seconds."""

    failures: int = 0

    def after(self, lived: float) -> float:
        """Return the wait after a process that lived for `lived` seconds."""
        if lived >= HEALTHY_SECONDS:
            self.failures = 0
        wait = min(LONGEST_WAIT, 2.0 ** (self.failures - 1)) if self.failures else 0.0
        self.failures += 1
        return wait


class Service:
    def __init__(self, name: str, role: str, argv: Sequence[str], now: float) -> None:
        self.name = name
        self.pid = 0
        self.born = 0
        self.started_at = 0.0
        self.due_at = now
        self._role = role
        self._argv = list(argv)
        self._backoff = Backoff()

    def is_due(self, now: float) -> bool:
        return not self.pid and now >= self.due_at

    def start(self, now: float, lifeline_fd: int, **variables: str) -> None:
        """Start the process; `lifeline_fd` is the inheritable end of the pipe by which it sees this process die."""
        environment = {
            **os.environ,
            "K1NODE_ROLE": self._role,
            lifeline.VARIABLE: str(lifeline_fd),
            **variables,
        }
        self.started_at = now
        try:
            self.pid = os.posix_spawn(
                self._argv[0],
                self._argv,
                environment,
                setsid=True,
                setsigmask=[],
                setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE],
            )
        except OSError as error:
            self._plan_next(now)
            logger.error("Process not started", extra={"service": self.name, "error": str(error)})
            return
        self.born = board.process_birth(self.pid)
        logger.info("Process started", extra={"service": self.name, "pid": self.pid})

    def exited(self, status: int, now: float, *, expected: bool) -> None:
        """Take note that the process has been reaped, end what it left in its session, and plan the next one."""
        level = logging.INFO if expected else logging.WARNING
        logger.log(level, "Process ended", extra={"service": self.name, "pid": self.pid, "how": describe(status)})
        self.kill_session()
        self.part(now)

    def part(self, now: float) -> None:
        """Plan the next process without waiting for the end of the present one."""
        self.pid = self.born = 0
        self._plan_next(now)

    def _plan_next(self, now: float) -> None:
        self.due_at = now + self._backoff.after(now - self.started_at)

    def stop(self) -> None:
        """Ask the process, never its group, to end."""
        if self.pid:
            process_table.send([self.pid], signal.SIGTERM)

    def kill_session(self) -> None:
        process_table.kill_until_none(lambda table: process_table.session_members(table, self.pid, self.born))


def describe(status: int) -> str:
    """Return a wait status in words."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def manage(*arguments: str) -> list[str]:
    """Return the command line of one of this project's own commands."""
    return [sys.executable, os.path.abspath(sys.argv[0]), *arguments]
