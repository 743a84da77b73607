"""Writes the OpenAPI document: the contract that clients are made from, kept beside the code and compared with it."""

from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser

from k1node.api import document

DOCUMENT = Path(settings.BASE_DIR, "docs", "openapi.json")


class Command(BaseCommand):
    help = "Write the OpenAPI document of this code."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", nargs="?", type=Path, default=DOCUMENT, help=f"default: {DOCUMENT}")

    def handle(self, *args: Any, file: Path, **options: Any) -> None:
        file.write_bytes(document.written())
        self.stdout.write(f"Wrote {file}")
