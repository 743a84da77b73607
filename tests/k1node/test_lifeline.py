"""The pipe to `up`: what its children do when it is cut."""

import os
import queue
import signal
import time
from collections.abc import Iterator

import pytest

from k1node.lib import lifeline


@pytest.fixture
def up(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Give the end of the pipe that `up` would hold."""
    read_end, write_end = os.pipe()
    monkeypatch.setenv(lifeline.VARIABLE, str(read_end))
    monkeypatch.setattr(lifeline, "_cut_at", None)
    yield write_end
    os.close(read_end)


def test_the_watcher_leaves_signals_to_the_main_thread(up: int) -> None:
    blocked: queue.Queue[set[int]] = queue.Queue()
    lifeline.watch(lambda: blocked.put({int(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, ())}))

    os.close(up)

    assert {signal.SIGTERM, signal.SIGINT} <= blocked.get(timeout=10)
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_process_forked_after_the_cut_has_what_is_left_of_the_time(up: int, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: queue.Queue[float] = queue.Queue()
    monkeypatch.setattr(lifeline, "end_this_process_after", limits.put)
    monkeypatch.setattr(lifeline, "_cut_at", time.monotonic() - 15)
    os.close(up)

    lifeline.end_this_process_with_up(20)

    assert limits.get(timeout=10) <= 5


def test_the_last_act_comes_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    done: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr(lifeline, "last_act", lambda: done.put("command killed"))
    monkeypatch.setattr(os, "kill", lambda *_: done.put("process killed"))

    lifeline.end_this_process_after(0)

    assert [done.get(timeout=10), done.get(timeout=10)] == ["command killed", "process killed"]


def test_is_cut_tells_a_living_up_from_a_gone_one(up: int) -> None:
    number = lifeline.descriptor()
    before = lifeline.is_cut(number)

    os.close(up)

    assert (before, lifeline.is_cut(number)) == (False, True)
    assert not lifeline.is_cut(None)
