"""The sender of webhooks as a process, started by `up`."""

import asyncio
import logging
import os
import signal
from contextlib import suppress
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError

from k1node import broker
from k1node.lib import lifeline
from webhooks.sender import Sender
from webhooks.sending import Network

STUCK_SECONDS = 15.0  # what waits for the database does not hear of the stop


class Command(BaseCommand):
    help = "Send events to webhooks (started by `up`)."

    def handle(self, *args: Any, **options: Any) -> None:
        lifeline.end_this_process_with_up(STUCK_SECONDS)
        try:
            network = Network.from_settings()
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from None
        asyncio.run(_run(network))
        logging.shutdown()
        # Threads that ask a dead name server would be waited for.
        os._exit(0)


async def _run(network: Network) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)

    def stop() -> None:
        with suppress(RuntimeError):  # it has ended already
            loop.call_soon_threadsafe(stopping.set)

    lifeline.watch(stop)
    await Sender(network, broker.board()).run(stopping)
