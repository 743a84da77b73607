"""Nodes that fall silent: said once, by one, and never of those that were stopped."""

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction

from k1node import clock as clock_module
from k1node.clock import Clock
from k1node.events.models import Event
from k1node.lib.board import Board
from k1node.lib.clock_time import database_now
from k1node.lib.node_id import node_id
from scheduling import nodes
from scheduling.models import Node
from tests.databases import Rival, only_postgresql
from tests.factories import NOW

pytestmark = pytest.mark.django_db

SECOND = timedelta(seconds=1)
SILENT = NOW - nodes.LOST_AFTER - SECOND


def make_node(**fields: Any) -> Node:
    """Return a node that has been silent for long enough to be lost."""
    defaults = {"node_id": uuid.uuid4(), "hostname": "worker-2", "started_at": SILENT, "beat_at": SILENT, "running": 3}
    return Node.objects.create(**defaults | fields)


def said() -> list[tuple[str, Any]]:
    return list(Event.objects.order_by("pk").values_list("name", "data"))


def test_a_node_that_falls_silent_is_lost_and_that_is_said_once() -> None:
    node = make_node()

    assert [nodes.note_lost(now=NOW), nodes.note_lost(now=NOW + SECOND)] == [1, 0]

    node.refresh_from_db()
    assert node.lost_at == NOW
    data = {
        "node_id": str(node.pk),
        "hostname": "worker-2",
        "last_seen_at": "2026-03-04T05:05:06.890+00:00",
        "running": 3,
    }
    assert said() == [("node.lost", data)]


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"beat_at": NOW - nodes.LOST_AFTER}, id="silent for not so long"),
        pytest.param({"stopped_at": SILENT}, id="stopped"),
        pytest.param({"lost_at": SILENT}, id="lost already"),
    ],
)
def test_other_nodes_are_not_lost(fields: dict[str, Any], django_assert_num_queries: Any) -> None:
    make_node(**fields)

    with django_assert_num_queries(1):
        assert nodes.note_lost(now=NOW) == 0


def test_a_node_that_beats_again_may_be_lost_again(board: Board) -> None:
    make_node(node_id=node_id())
    nodes.note_lost(now=NOW)

    nodes.report(board, started_at=NOW, now=NOW)
    assert Node.objects.get().lost_at is None
    nodes.note_lost(now=NOW + nodes.LOST_AFTER + SECOND)

    assert [name for name, _ in said()] == ["node.lost"] * 2


def test_a_node_that_was_stopped_and_came_back_may_be_lost(board: Board) -> None:
    nodes.report(board, started_at=NOW, now=NOW)
    nodes.note_stop(now=NOW)
    assert nodes.note_lost(now=NOW + timedelta(days=1)) == 0

    nodes.report(board, started_at=NOW, now=NOW + timedelta(days=1))

    assert nodes.note_lost(now=NOW + timedelta(days=2)) == 1


def test_a_clock_that_says_goodbye_marks_its_own_node(board: Board) -> None:
    other = make_node()
    clock = Clock(board)
    clock.tick(database_now())

    clock.say_goodbye()

    assert Node.objects.exclude(pk=other.pk).get().stopped_at is not None
    other.refresh_from_db()
    assert other.stopped_at is None


def test_a_clock_tells_of_losses_only_after_it_has_watched_for_as_long(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_node()
    clock = Clock(board)

    clock.note_lost(NOW)
    early = len(said())
    monkeypatch.setattr(clock, "_seen_since", clock_module._suspend_aware() - 60)
    clock.note_lost(NOW)

    assert (early, len(said())) == (0, 1)


@only_postgresql
@pytest.mark.django_db(transaction=True)
def test_of_two_that_notice_at_the_same_moment_one_says_so(rival: Rival) -> None:
    make_node()

    with transaction.atomic():
        mine = nodes.note_lost(now=NOW)
        theirs = rival.do(nodes.note_lost, now=NOW)

    assert (mine, theirs) == (1, 0)
    assert rival.do(nodes.note_lost, now=NOW) == 0
    assert len(said()) == 1
