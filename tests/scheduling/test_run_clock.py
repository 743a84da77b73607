import time
from datetime import datetime, timedelta

import pytest

from k1node.lib.errors import FieldInvalid
from scheduling.execution import run_clock
from scheduling.execution.control import Control
from scheduling.outcomes import OutcomeKind
from tests.scheduling.runs import COMPLETED, FAILED


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return what the monotonic clock shows, for the test to change."""
    shown = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: shown[0])
    return shown


def test_pauses_are_left_out_of_the_duration(clock: list[float], now: datetime) -> None:
    control = Control()
    control.pause()
    clock[0] = 101
    run = run_clock.RunClock(control, lambda: now)
    clock[0] = 103
    control.begin(None, timedelta())
    control.resume()
    clock[0] = 104.5
    control.pause()
    clock[0] = 110

    assert run.ended(COMPLETED, 0, "").duration_ms == 1500
    assert run.stopped("cancel").duration_ms == 1500


def test_a_stuck_handler_leaves_out_its_pauses_too(clock: list[float], now: datetime) -> None:
    control = Control()
    control.pause()
    clock[0] = 103
    control.stop("cancel")
    clock[0] = 105

    outcome = run_clock.stuck(control, started_at=now, now=lambda: now + timedelta(seconds=5))

    assert (outcome.kind, outcome.duration_ms) == (OutcomeKind.CANCELLED, 2000)
    assert outcome.error == "Cancelled; it did not stop and was killed"


def test_refused_tells_all_details() -> None:
    outcome = run_clock.refused(FieldInvalid("handler", "is bad", "do better"))

    assert (outcome.kind, outcome.exit_code, outcome.error) == (FAILED, 78, "handler is bad")
