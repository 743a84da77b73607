from typing import Any

import uvicorn
from django.conf import settings
from django.core.management.base import BaseCommand

from k1node.api.connections import BoundedConnection
from k1node.lib import lifeline

STUCK_SECONDS = 5  # beyond that: a request that waits for the database keeps its thread
GRACE_SECONDS = 10  # requests and sockets that are open at a stop get this long


class Command(BaseCommand):
    help = "Serve HTTP and WebSockets; `up` runs this as one of its children."
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        server = uvicorn.Server(
            uvicorn.Config(
                "k1node.asgi:application",
                host=settings.K1NODE_BIND,
                port=settings.PORT,
                http=BoundedConnection,
                lifespan="off",
                access_log=False,
                log_config=None,
                # Which proxies are believed is K1NODE_TRUSTED_PROXIES' to say, not a list of addresses here.
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )

        def leave() -> None:
            server.should_exit = True

        lifeline.watch(leave)
        lifeline.end_this_process_with_up(GRACE_SECONDS + STUCK_SECONDS)
        server.run()
