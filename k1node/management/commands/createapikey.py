"""Make an API key and show it, this once."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from k1node.access import keys
from k1node.access.scopes import DESCRIPTIONS


class Command(BaseCommand):
    help = "Make an API key; it is the last line of the output and cannot be shown again."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", help="whose key it is, as logs and histories will show it")
        parser.add_argument(
            "--scope",
            action="append",
            default=[],
            dest="scopes",
            metavar="SCOPE",
            help=f"what it may do; repeat for more. One of: {', '.join(DESCRIPTIONS)}",
        )
        parser.add_argument("--rate-limit", type=int, metavar="N", help="requests an hour (default: the node's)")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            key, text = keys.issue(options["name"], options["scopes"], requests_per_hour=options["rate_limit"])
        except keys.KeyInvalid as error:
            lines = [f"{detail.field}: {detail.message}. {detail.suggestion or ''}" for detail in error.details]
            raise CommandError("\n".join(lines)) from error
        self.stderr.write(f"Key {key.name!r} may: {', '.join(key.scopes)}. Keep it now, it is not stored anywhere.")
        self.stdout.write(text)
