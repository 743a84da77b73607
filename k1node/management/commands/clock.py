"""The time loop as a process, started by `up`."""

import signal
import threading
from typing import Any

from django.core.management.base import BaseCommand

from k1node.clock import Clock
from k1node.lib import lifeline


class Command(BaseCommand):
    help = "Run the time loop of this node (started by `up`)."

    def handle(self, *args: Any, **options: Any) -> None:
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        lifeline.watch(stop.set)
        Clock().run(stop.is_set)
