from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from k1node import broker
from k1node.node import start
from k1node.node.keeper import Keeper, Plan
from k1node.node.probe import address_to_ask
from k1node.node.services import manage


class Command(BaseCommand):
    help = "Run this node: migrate the database, then keep web, clock, sender and workers running until a signal."
    # The child that migrates runs them; here they would only load what this process never needs.
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            start.lock_data_folder(settings.K1NODE_DATA)
        except start.AlreadyRunning as error:
            raise CommandError(str(error)) from None
        if code := start.in_child(lambda: start.prepare_database(self._say)):
            raise CommandError(
                "The node does not start: it could not be prepared, for the reason above.", returncode=code
            )
        self._say(start.banner())
        plan = Plan(
            clock=manage("clock"),
            sender=manage("sender"),
            cluster=manage("cluster"),
            web=manage("web"),
            web_address=(address_to_ask(settings.K1NODE_BIND), settings.PORT),
            workers=settings.K1NODE_WORKERS,
            drain_seconds=settings.K1NODE_DRAIN_SECONDS,
            kill_grace_seconds=settings.K1NODE_KILL_GRACE_SECONDS,
            data=settings.K1NODE_DATA,
        )
        if code := Keeper(plan, broker.board()).run():
            raise SystemExit(code)

    def _say(self, text: str) -> None:
        self.stdout.write(text)
        self.stdout.flush()
