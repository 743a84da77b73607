"""The nodes of one database, as their clocks report them.

A node that is stopped says so in its row. One that falls silent without is lost: whoever notices it first notes it and
publishes it, in one transaction, once until it beats again.
"""

import logging
import socket
import time
from datetime import datetime, timedelta

from django.conf import settings

from k1node.events import log
from k1node.lib import sql
from k1node.lib.board import Board
from k1node.lib.node_id import node_id
from scheduling.models import Node

logger = logging.getLogger(__name__)

LIVE_FOR = timedelta(seconds=15)  # a node is live this long after its last beat
LOST_AFTER = timedelta(minutes=1)  # of silence; a restart takes less
LOST_MOST = 100  # noted at once
WORKERS_BEAT_SECONDS = 5.0


def report(board: Board, *, started_at: datetime, now: datetime) -> None:
    """Write this node's row: one statement."""
    cpu, memory = board.load or (0.0, 0.0)
    fresh = time.monotonic() - WORKERS_BEAT_SECONDS
    clusters = [cluster for cluster in board.clusters() if not cluster.retired]
    workers_beat = any(cluster.sentinel_at > fresh and cluster.pusher_at > fresh for cluster in clusters)
    row = {
        "hostname": socket.gethostname(),
        "started_at": started_at,
        "beat_at": now,
        "stopped_at": None,
        "lost_at": None,
        "workers": sum(cluster.workers for cluster in clusters),
        "running": sum(1 for _, slot in board.slots() if slot.task),
        "cpu_percent": round(cpu, 1),
        "memory_percent": round(memory, 1),
        "max_concurrent": settings.K1NODE_MAX_CONCURRENT,
        "max_cpu_percent": settings.K1NODE_MAX_CPU_PERCENT,
        "max_memory_percent": settings.K1NODE_MAX_MEMORY_PERCENT,
    }
    if workers_beat:
        row["workers_beat_at"] = now
    if not Node.objects.filter(pk=node_id()).update(**row):
        Node.objects.update_or_create(node_id=node_id(), defaults=row)


def note_stop(*, now: datetime) -> None:
    """Write that this node is being stopped, so that nobody takes its silence for a loss."""
    Node.objects.filter(pk=node_id()).update(stopped_at=now)


def note_lost(*, now: datetime) -> int:
    """Note the nodes that have fallen silent, and publish it; return how many."""
    silent = Node.objects.filter(beat_at__lt=now - LOST_AFTER, stopped_at=None, lost_at=None)
    if not silent.exists():
        return 0

    def work() -> list[Node]:
        rows = silent.order_by("pk")
        if sql.is_postgresql():
            # One that a rival notes, or that beats at this moment, is passed over.
            rows = rows.select_for_update(skip_locked=True)
        lost = list(rows[:LOST_MOST])
        Node.objects.filter(pk__in=[node.pk for node in lost]).update(lost_at=now)
        facts = [
            {
                "node_id": str(node.pk),
                "hostname": node.hostname,
                "last_seen_at": node.beat_at.isoformat(timespec="milliseconds"),
                "running": node.running,
            }
            for node in lost
        ]
        log.publish_many([("node.lost", fact) for fact in facts], now=now)
        return lost

    lost = sql.in_transaction(work)
    for node in lost:
        logger.warning("A node is lost", extra={"node": str(node.pk), "hostname": node.hostname})
    return len(lost)


def live(*, now: datetime) -> list[Node]:
    """Return the nodes that have beaten lately."""
    return list(Node.objects.filter(beat_at__gt=now - LIVE_FOR)[:1000])


def own_beats(*, now: datetime) -> tuple[bool, bool]:
    """Return whether this node's clock and its workers beat."""
    node = Node.objects.filter(pk=node_id()).first()
    if node is None:
        return False, False
    workers_at = node.workers_beat_at
    return node.beat_at > now - LIVE_FOR, workers_at is not None and workers_at > now - LIVE_FOR
