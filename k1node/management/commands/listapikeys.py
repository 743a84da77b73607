"""The API keys, one a line."""

from argparse import ArgumentParser
from datetime import datetime
from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone

from k1node.access.models import ApiKey, KeyState


class Command(BaseCommand):
    help = "List the API keys; the keys themselves are not stored and cannot be shown."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--state", choices=KeyState.values, help="only these (default: all)")

    def handle(self, *args: Any, **options: Any) -> None:
        now = timezone.now()
        rows = ApiKey.objects.select_related("replaced_by").order_by("name", "pk")
        if options["state"]:
            rows = rows.in_state(options["state"], now)
        for key in rows:
            self.stdout.write("\t".join(_cells(key, now)))


def _cells(key: ApiKey, now: datetime) -> list[str]:
    state = key.state(now).value
    if key.expires_at and not key.revoked_at:
        state += f" {'until' if key.expires_at > now else 'since'} {key.expires_at:%Y-%m-%d %H:%M}"
    used = f"last used {key.last_used_at:%Y-%m-%d %H:%M}" if key.last_used_at else "never used"
    cells = [key.public_id, key.name, f"…{key.hint}", state, used, " ".join(key.scopes)]
    if key.allowed_cidrs:
        cells.append(f"from {' '.join(key.allowed_cidrs)}")
    if key.replaced_by:
        cells.append(f"replaced by {key.replaced_by.public_id}")
    return cells
