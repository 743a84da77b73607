"""The thread of the clock process that reads the event log for notices and sends their mails.

A thread with a database connection of its own, and not a duty of the clock: a mail server may hang, and neither slots
nor leases wait for it. Not a process of its own either: that would cost every node some 80 MB for a few statements a
minute, and nothing is lost with the process, for all that it knows is in the database. When the clock is killed or ends
in the middle of a mail, that mail is sent again (recovery.notice_mails).
"""

import logging
import signal
import threading

from django.db import connection

from k1node.lib.clock_time import database_now
from k1node.lib.node_id import node_id
from recovery import notice_mails, notices

logger = logging.getLogger(__name__)

TURN_SECONDS = 2.0
BUSY_SECONDS = 0.05  # between two turns while there is more to read: the clock has its turn too
TROUBLE_SECONDS = 5.0


def start(stopping: threading.Event) -> threading.Thread:
    """Start the thread; it ends soon after `stopping` is set, but nobody needs to wait for it."""
    thread = threading.Thread(target=run, args=(stopping,), name="notifier", daemon=True)
    thread.start()
    return thread


def run(stopping: threading.Event) -> None:
    # Signals are for the main thread: see k1node.lib.lifeline.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pause = TURN_SECONDS
    while not stopping.wait(pause):
        try:
            pause = turn(stopping)
        except Exception:
            logger.exception("Notices could not be read or sent")
            connection.close()
            pause = TROUBLE_SECONDS
    connection.close()


def turn(stopping: threading.Event) -> float:
    """Read a piece of the log, send what is due, and return the seconds until the next turn."""
    more = notices.read(node_id(), now=database_now())
    while not stopping.is_set() and notice_mails.send_next(now=database_now()):
        pass
    return BUSY_SECONDS if more else TURN_SECONDS
