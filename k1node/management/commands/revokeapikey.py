"""End an API key at once and for good."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from k1node.access import keys
from k1node.access.models import ApiKey


class Command(BaseCommand):
    help = "Revoke an API key: it, and every token made from it, is refused from now on."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("key", metavar="KEY", help="its id (key-…) or, if no other key has it, its name")
        parser.add_argument("--reason", default="", metavar="TEXT", help="why, for whoever wonders later")

    def handle(self, *args: Any, **options: Any) -> None:
        key = named(options["key"])
        if not keys.revoke(key, reason=options["reason"][:500]):
            raise CommandError(f"{key.public_id} was revoked before.")
        self.stdout.write(f"Revoked {key} ({key.public_id})")


def named(text: str) -> ApiKey:
    """Return the key with this id, or the only one not revoked with this name. Raises CommandError."""
    if key := ApiKey.objects.filter(public_id=text).first():
        return key
    found = list(ApiKey.objects.filter(name=text, revoked_at__isnull=True)[:2])
    if len(found) == 1:
        return found[0]
    if found:
        raise CommandError(f"Several keys are called {text!r}: use the id of one, `listapikeys` has them.")
    raise CommandError(f"No key in use has the id or the name {text!r}.")
