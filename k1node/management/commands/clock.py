"""The time loop and, beside it, the notifier as a process, started by `up`."""

import signal
import threading
from typing import Any

from django.core.management.base import BaseCommand

from k1node import notifier
from k1node.clock import Clock
from k1node.lib import lifeline

NOTIFIER_SECONDS = 1.0  # to end what it does; a mail that is under way is sent again
STUCK_SECONDS = 15.0  # a duty that waits for the database does not hear of the stop


class Command(BaseCommand):
    help = "Run the time loop of this node (started by `up`)."

    def handle(self, *args: Any, **options: Any) -> None:
        stop = threading.Event()
        asked = threading.Event()  # to stop, before `up` was gone: the node is stopped in order

        def ask(*_: object) -> None:
            if not stop.is_set():
                asked.set()
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, ask)
        lifeline.watch(stop.set)
        lifeline.end_this_process_with_up(STUCK_SECONDS)
        thread = notifier.start(stop)
        clock = Clock()
        clock.run(stop.is_set)
        if asked.is_set():
            clock.say_goodbye()
        thread.join(NOTIFIER_SECONDS)
