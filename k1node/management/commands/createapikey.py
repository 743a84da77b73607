"""Make an API key and show it, this once."""

from argparse import ArgumentParser
from datetime import UTC, datetime, timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from k1node.access import keys
from k1node.access.scopes import DESCRIPTIONS
from k1node.lib.env import read_duration
from k1node.lib.errors import InvalidRequest

BY = "command line"


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
        parser.add_argument(
            "--cidr",
            action="append",
            default=[],
            dest="cidrs",
            metavar="NETWORK",
            help="where it may be used from, 10.0.0.0/8; repeat for more (default: everywhere)",
        )
        parser.add_argument(
            "--expires", metavar="WHEN", help="after a time (90d, 12h) or at 2027-01-31 (default: never)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        now = timezone.now()
        try:
            key, text = keys.issue(
                options["name"],
                options["scopes"],
                requests_per_hour=options["rate_limit"],
                allowed_cidrs=options.get("cidrs") or (),
                expires_at=_moment(options.get("expires"), now),
                by=BY,
                now=now,
            )
        except keys.KeyInvalid as error:
            raise CommandError(in_lines(error)) from error
        ends = f" until {key.expires_at:%Y-%m-%d %H:%M} UTC" if key.expires_at else ""
        places = f" from {', '.join(key.allowed_cidrs)}" if key.allowed_cidrs else ""
        self.stderr.write(
            f"Key {key.name!r} ({key.public_id}) may{places}{ends}: {', '.join(key.scopes)}."
            " Keep it now, it is not stored anywhere."
        )
        self.stdout.write(text)


def in_lines(error: InvalidRequest) -> str:
    return "\n".join(f"{detail.field}: {detail.message}. {detail.suggestion or ''}" for detail in error.details)


def _moment(text: str | None, now: datetime) -> datetime | None:
    """Return the moment that `text` names: a length of time from now on, or a date, with or without a time (UTC)."""
    if not text:
        return None
    length = read_duration(text)
    try:
        if length is not None:
            return now + length
        at = datetime.fromisoformat(text)
        return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise CommandError(f"--expires must be a time such as 90d or a date such as 2027-01-31, not {text!r}") from None


def length_of(text: str, option: str) -> timedelta:
    length = read_duration(text)
    if length is None:
        raise CommandError(f"{option} must be a time such as 24h, 30m, 90s or 0s, not {text!r}")
    return length
