import os
import signal
import time
from pathlib import Path

import pytest

from k1node.node.keeper import is_silent
from k1node.node.load import smoothed
from k1node.node.services import Backoff, Service, describe


def test_the_first_restart_is_immediate_and_the_waits_then_double_to_a_cap() -> None:
    backoff = Backoff()

    assert [backoff.after(lived=3) for _ in range(8)] == [0, 1, 2, 4, 8, 15, 15, 15]


def test_a_minute_of_health_makes_the_next_restart_immediate_again() -> None:
    backoff = Backoff(failures=5)

    assert [backoff.after(lived=60), backoff.after(lived=1)] == [0, 1]


@pytest.mark.parametrize(
    ("status", "words"), [(0, "exit code 0"), (3 << 8, "exit code 3"), (9, "SIGKILL"), (40, "signal 40")]
)
def test_a_wait_status_is_told_in_words(status: int, words: str) -> None:
    assert describe(status) == words


def test_a_service_leads_a_session_and_gets_its_role_and_the_lifeline(tmp_path: Path) -> None:
    note = tmp_path / "note"
    script = f'echo "$K1NODE_ROLE $K1NODE_LIFELINE_FD $K1NODE_CLUSTER $(ps -o sid= -p $$)" > {note}'
    service = Service("cluster", "worker", ["/bin/sh", "-c", script], now=5.0)

    service.start(5.0, 7, K1NODE_CLUSTER="3")
    os.waitpid(service.pid, 0)

    assert note.read_text().split() == ["worker", "7", "3", str(service.pid)]


def test_what_a_dead_service_leaves_in_its_session_is_killed(tmp_path: Path) -> None:
    note = tmp_path / "note"
    service = Service("web", "web", ["/bin/sh", "-c", f"sleep 60 & echo $! > {note}"], now=0.0)
    service.start(0.0, 7)
    _pid, status = os.waitpid(service.pid, 0)
    left = int(note.read_text())
    os.kill(left, 0)

    service.exited(status, 1.0, expected=True)

    for _ in range(200):
        if not Path(f"/proc/{left}").exists() or ") Z" in Path(f"/proc/{left}/stat").read_text():
            break
        time.sleep(0.01)
    else:
        os.kill(left, signal.SIGKILL)
        pytest.fail("It still runs")
    assert (service.pid, service.is_due(1.0)) == (0, True)


def test_a_service_that_cannot_be_started_is_tried_again_later() -> None:
    service = Service("web", "web", ["/nowhere/python"], now=0.0)

    service.start(10.0, 7)
    service.start(10.0, 7)

    assert (service.pid, service.due_at, service.is_due(10.5)) == (0, 11.0, False)


@pytest.mark.parametrize(
    ("beat_at", "now", "hung"),
    [
        pytest.param(0.0, 129.0, False, id="starting"),
        pytest.param(0.0, 131.0, True, id="never-started"),
        pytest.param(90.0, 129.0, False, id="beat-of-an-earlier-one"),
        pytest.param(200.0, 219.0, False, id="late"),
        pytest.param(200.0, 221.0, True, id="hung"),
    ],
)
def test_a_clock_is_hung_when_its_beat_is_old(beat_at: float, now: float, hung: bool) -> None:
    assert is_silent(100.0, beat_at, now) is hung


def test_one_spike_of_load_is_smoothed_away_and_a_lasting_one_is_not() -> None:
    spike = smoothed(10.0, 100.0, 1.0)
    lasting = 10.0
    for _ in range(30):
        lasting = smoothed(lasting, 100.0, 1.0)

    assert (spike < 20, lasting > 90) == (True, True)
