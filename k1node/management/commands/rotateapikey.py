"""Put a new key in the place of an old one, and show it, this once."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from k1node.access import keys
from k1node.lib.errors import InvalidRequest, K1NodeError
from k1node.management.commands.createapikey import BY, in_lines, length_of
from k1node.management.commands.revokeapikey import named


class Command(BaseCommand):
    help = "Replace an API key: the new one is the last line of the output, the old one stays valid for the overlap."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("key", metavar="KEY", help="its id (key-…) or, if no other key has it, its name")
        parser.add_argument(
            "--overlap", default="24h", metavar="TIME", help="how long the old one stays valid: 0s to 7d (default: 24h)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        old = named(options["key"])
        try:
            new, text = keys.rotate(old, overlap=length_of(options["overlap"], "--overlap"), by=BY)
        except InvalidRequest as error:
            raise CommandError(in_lines(error)) from error
        except K1NodeError as error:
            raise CommandError(f"{error.message}.") from error
        ends = f"ends at {old.expires_at:%Y-%m-%d %H:%M} UTC" if old.revoked_at is None else "has ended"
        self.stderr.write(f"{new.public_id} replaces {old.public_id}, which {ends}. Keep it now, it is not stored.")
        self.stdout.write(text)
