"""Telling the pushers of all nodes that a task was queued; SQLite needs none, it is looked at every 50 ms."""

import time

from django.db import connection, transaction

from k1node.lib import sql

CHANNEL = "k1node_wake"
AT_MOST_EVERY = 0.1  # seconds, for one process; a pusher that was woken looks often for a while

_told_at = 0.0


def tell() -> None:
    """Wake idle pushers when the present transaction commits; cheap enough for every enqueue."""
    if not sql.is_postgresql() or time.monotonic() - _told_at < AT_MOST_EVERY:
        return
    if any(hook[1] is _note for hook in connection.run_on_commit):
        return
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_notify(%s, '')", [CHANNEL])
    # Others may rely on the word only once it is out: this transaction may fail, or go on for long.
    transaction.on_commit(_note)


def _note() -> None:
    global _told_at
    _told_at = time.monotonic()
