"""When a run began, how long it has run, and the Outcome that it ends with."""

import functools
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from k1node.lib.errors import K1NodeError
from scheduling.execution import one_line
from scheduling.execution.control import Control
from scheduling.outcomes import EXIT_LOST, EXIT_TIMEOUT, Outcome, OutcomeKind
from scheduling.output import BoundedOutput
from scheduling.registry import StopReason

Now = Callable[[], datetime]

EXIT_REFUSED = 78  # EX_CONFIG

STOPPED: dict[StopReason, tuple[OutcomeKind, int | None, str]] = {
    "timeout": (OutcomeKind.TIMEOUT, EXIT_TIMEOUT, "Timed out"),
    "cancel": (OutcomeKind.CANCELLED, None, "Cancelled"),
    "skip": (OutcomeKind.SKIPPED, None, "Skipped"),
    "drain": (OutcomeKind.DRAINED, None, "Stopped because the node is shutting down"),
    "lease": (OutcomeKind.LOST, EXIT_LOST, "Ended because its lease was lost"),
}

utc_now: Now = functools.partial(datetime.now, UTC)


class RunClock:
    """Started with the run. Pauses do not count: the duration says how long the handler worked."""

    __slots__ = ("_began", "_control", "_now", "_paused_before", "started_at")

    def __init__(self, control: Control, now: Now) -> None:
        self.started_at = now()
        self._now = now
        self._control = control
        self._began = time.monotonic()
        self._paused_before = control.paused_seconds

    def ended(
        self,
        kind: OutcomeKind,
        exit_code: int | None,
        error: str,
        *,
        value: object = None,
        output: BoundedOutput | None = None,
    ) -> Outcome:
        """Return the outcome of a run that ends now."""
        paused = self._control.paused_seconds - self._paused_before
        duration_ms = _milliseconds(time.monotonic() - self._began - paused)
        return Outcome(kind, self.started_at, self._now(), duration_ms, exit_code, error, value, output)

    def stopped(self, reason: StopReason, *, note: str = "", output: BoundedOutput | None = None) -> Outcome:
        """Return the outcome of a run that ends now because it was asked to; `note` says more about how."""
        kind, code, text = STOPPED[reason]
        return self.ended(kind, code, f"{text}{note}", output=output)


def refused(error: K1NodeError, *, exit_code: int = EXIT_REFUSED, now: Now = utc_now) -> Outcome:
    """Return the outcome of a run that never started because its handler or its parameters are not acceptable."""
    at = now()
    details = [f"{each.field} {each.message}" for each in error.details]
    text = one_line.clean("; ".join(details) or error.message)
    return Outcome(OutcomeKind.FAILED, at, at, 0, exit_code, text)


def stuck(control: Control, *, started_at: datetime, now: Now = utc_now) -> Outcome:
    """Return the outcome of a Python handler that was asked to stop and did not; its process is about to be ended."""
    kind, code, text = STOPPED[control.reason or "timeout"]
    at = now()
    duration_ms = _milliseconds((at - started_at).total_seconds() - control.paused_seconds)
    return Outcome(kind, started_at, at, duration_ms, code, f"{text}; it did not stop and was killed")


def seconds(length: timedelta) -> str:
    return f"{length.total_seconds():g} s"


def _milliseconds(seconds: float) -> int:
    return max(0, round(seconds * 1000))
