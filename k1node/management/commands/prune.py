"""Retention by hand: what the clock does every minute in small pieces, now and to the end."""

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand
from django.utils import timezone

from k1node import tidying


class Command(BaseCommand):
    help = "Delete what is older than it is kept for: finished tasks, slots, events, resolved dead letters."

    def handle(self, *args: Any, **options: Any) -> None:
        now = timezone.now()
        total = 0
        # Each call deletes a bounded number, so that the node's own writes get their turn in between.
        pruned = tidying.prune(now=now)
        while pruned.rows or pruned.after:
            total += pruned.rows
            pruned = tidying.prune(now=now, after=pruned.after)
        self.stdout.write(
            f"Deleted {total:,} rows: tasks and slots older than {settings.K1NODE_KEEP_TASK_DAYS} days, resolved dead"
            f" letters older than {settings.K1NODE_KEEP_DEAD_LETTER_DAYS} days, events older than"
            f" {settings.K1NODE_KEEP_EVENT_DAYS} days."
        )
