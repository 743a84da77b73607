"""The broker: when it sends a wake token and when it would be sent in vain."""

import os
import time

import pytest
from django.db import connection
from pytest_django import Settings

from k1node import broker as broker_module
from k1node.broker import TaskBroker
from k1node.lib import lifeline
from k1node.lib.board import BUSY, Board
from scheduling import claims
from tests.factories import make_task

pytestmark = pytest.mark.django_db


@pytest.fixture
def broker(board: Board, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> TaskBroker:
    settings.K1NODE_MAX_CONCURRENT = 4
    settings.K1NODE_MAX_CPU_PERCENT = 80
    monkeypatch.setattr(broker_module, "board", lambda: board)
    monkeypatch.setenv("K1NODE_CLUSTER", str(board.open_cluster(2)))
    monkeypatch.setattr(broker_module, "POLL_SECONDS", 0.001)
    return TaskBroker()


def test_each_free_worker_gets_a_token_while_work_waits(broker: TaskBroker) -> None:
    make_task()

    tokens = [broker.dequeue() is not None for _ in range(3)]

    assert tokens == [True, True, False]


def test_no_work_sends_no_token(broker: TaskBroker) -> None:
    assert broker.dequeue() is None


def test_a_loaded_machine_gets_a_token_only_while_nothing_runs(broker: TaskBroker, board: Board) -> None:
    # A worker that may not begin gives its token back at once: a loop that would load the machine further.
    make_task()
    board.record_load(99.0, 10.0)
    first = broker.dequeue()
    slot = board.take_slot(broker.number)
    board.slot(slot.index).state = BUSY

    assert first is not None
    assert broker.dequeue() is None


def test_no_token_is_sent_once_up_is_gone(broker: TaskBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    make_task()
    read_end, write_end = os.pipe()
    monkeypatch.setenv(lifeline.VARIABLE, str(read_end))
    orphaned = TaskBroker()
    before = orphaned.dequeue()

    os.close(write_end)

    assert (before is not None, orphaned.dequeue()) == (True, None)
    os.close(read_end)


def test_an_error_is_no_exception(broker: TaskBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> bool:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(claims, "is_waiting", broken)
    monkeypatch.setattr(connection, "close", lambda: None)
    monkeypatch.setattr(time, "sleep", lambda _: None)

    assert broker.dequeue() is None
