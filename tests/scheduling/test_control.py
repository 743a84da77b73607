import time
from datetime import timedelta

import pytest

from scheduling.execution.control import Control


def test_the_first_reason_wins() -> None:
    control = Control()

    assert [control.stop("cancel"), control.stop("lease")] == [True, False]
    assert control.reason == "cancel"


def test_a_stuck_handler_is_seen_after_its_grace() -> None:
    control = Control()
    control.begin(None, timedelta(seconds=2))
    assert not control.is_stuck(time.monotonic() + 60)

    control.stop("cancel")

    assert not control.is_stuck(time.monotonic() + 1)
    assert control.is_stuck(time.monotonic() + 2)


def test_a_pause_before_the_start_counts_and_does_not_move_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    control = Control()
    control.pause()
    clock[0] = 103

    control.begin(timedelta(seconds=10), timedelta())
    clock[0] = 105

    assert control.paused_seconds == 5
    control.resume()
    assert (control.paused_seconds, control.deadline) == (5, 115)
