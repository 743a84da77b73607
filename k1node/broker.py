"""The broker that django-q2's processes ask: it hands out wake tokens, one for each free worker, while work is queued.

The task table is the queue, and workers claim from it themselves (k1node.worker); nothing of a task travels through
django-q2. A token only says "look". It is sent by the pusher when a plain read sees a queued task and a worker is
free: workers - (tokens sent - tokens finished), read from the node's board. The same board carries the heartbeats by
which `up` sees whether this cluster still lives: the pusher's in dequeue(), the sentinel's in set_stat().

dequeue() must return now and then (django-q2 looks for its stop only between calls) and must not raise (an exception
is an outage of ten seconds).
"""

import logging
import os
import time
from typing import Any

from django.conf import settings
from django.db import DatabaseError, connection
from django_q.brokers import Broker
from django_q.signing import SignedPackage

from k1node.lib import lifeline
from k1node.lib.board import Board
from k1node.lib.wake import CHANNEL
from scheduling import claims

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.05
BETWEEN_TOKENS_SECONDS = 0.005  # a worker claims before the next token is thought of
IDLE_SECONDS = 1.0  # PostgreSQL wakes the pusher; this is how often it looks without being woken


def board() -> Board:
    """Return this node's board."""
    return Board(settings.K1NODE_DATA / "run" / "board")


def most_running(board: Board) -> int:
    """Return how many tasks may run on this node now: the limit, or one at a time while the machine is loaded."""
    load = board.load
    if load is None:
        return int(settings.K1NODE_MAX_CONCURRENT)
    cpu, memory = load
    busy = settings.K1NODE_MAX_CPU_PERCENT < 100 and cpu >= settings.K1NODE_MAX_CPU_PERCENT
    full = settings.K1NODE_MAX_MEMORY_PERCENT < 100 and memory >= settings.K1NODE_MAX_MEMORY_PERCENT
    return 1 if busy or full else int(settings.K1NODE_MAX_CONCURRENT)


class TaskBroker(Broker):
    def __init__(self, list_key: str | None = None) -> None:
        self.board = board()
        self.number = int(os.environ.get("K1NODE_CLUSTER", "0"))
        self._quick_until = 0.0
        self._listens = False
        self._lifeline = lifeline.descriptor()
        super().__init__(list_key)

    def dequeue(self) -> list[tuple[str, str]] | None:
        try:
            return self._token()
        except Exception:
            logger.exception("Cannot look at the queue")
            connection.close()
            self._listens = False
            time.sleep(1)
            return None

    def _token(self) -> list[tuple[str, str]] | None:
        cluster = self.board.cluster(self.number)
        if cluster is None or cluster.retired or self.board.drain_until or lifeline.is_cut(self._lifeline):
            time.sleep(0.2)
            return None
        cluster.pusher_at = time.monotonic()
        # A token that its worker may not use would come back at once, two hundred times a second.
        if cluster.workers <= cluster.sent - cluster.finished or self.board.is_full(most_running(self.board)):
            time.sleep(POLL_SECONDS / 2)
            return None
        if not claims.is_waiting():
            self._rest()
            return None
        self._quick_until = time.monotonic() + IDLE_SECONDS
        cluster.sent += 1
        message = {
            "id": "token",
            "name": "token",
            "func": "k1node.worker.work",
            "args": (),
            "kwargs": {},
            "started": time.time(),
            "timeout": -1,
            "ack_failure": True,
        }
        time.sleep(BETWEEN_TOKENS_SECONDS)
        return [("token", SignedPackage.dumps(message))]

    def _rest(self) -> None:
        """Wait for the next look: 50 ms, or on a quiet PostgreSQL until it tells of a new task."""
        if connection.vendor != "postgresql" or time.monotonic() < self._quick_until:
            time.sleep(POLL_SECONDS)
            return
        with connection.cursor() as cursor:
            if not self._listens:
                cursor.execute(f"LISTEN {CHANNEL}")
                self._listens = True
                return  # look once more: a task may have come before the LISTEN
            raw = cursor.connection
            for _ in raw.notifies(timeout=IDLE_SECONDS, stop_after=1):
                self._quick_until = time.monotonic() + IDLE_SECONDS

    def acknowledge(self, task_id: str) -> None:
        cluster = self.board.cluster(self.number)
        if cluster is not None:
            cluster.acknowledged += 1

    def set_stat(self, key: str, value: str, timeout: int) -> None:
        cluster = self.board.cluster(self.number)
        if cluster is not None:
            cluster.sentinel_at = time.monotonic()

    def get_stat(self, key: str) -> None:
        return None

    def get_stats(self, pattern: str) -> list[Any]:
        return []

    def ping(self) -> bool:
        """Say whether the database answers; the sentinel asks once, before it forks."""
        try:
            claims.is_waiting()
        except DatabaseError:
            logger.exception("The database does not answer")
            return False
        finally:
            connection.close()
        return True

    def enqueue(self, task: str) -> None:
        raise RuntimeError("Tasks are enqueued by scheduling.queue, not through django-q2")

    def queue_size(self) -> int:
        return 0

    @staticmethod
    def get_cache() -> None:
        return None
