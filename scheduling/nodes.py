"""The nodes of one database, as their clocks report them."""

import socket
import time
from datetime import datetime, timedelta

from django.conf import settings

from k1node.lib.board import Board
from k1node.lib.node_id import node_id
from scheduling.models import Node

LIVE_FOR = timedelta(seconds=15)  # a node is live this long after its last beat
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
