"""Retention by hand: what the clock does every minute in small pieces, now and to the end."""

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand
from django.utils import timezone

from scheduling import retention


class Command(BaseCommand):
    help = "Delete finished tasks, slots and events that are older than they are kept for."

    def handle(self, *args: Any, **options: Any) -> None:
        now = timezone.now()
        task_days, event_days = settings.K1NODE_KEEP_TASK_DAYS, settings.K1NODE_KEEP_EVENT_DAYS
        total = 0
        # Each call deletes a bounded number, so that the node's own writes get their turn in between.
        while gone := retention.prune(
            now=now, keep_tasks=timedelta(days=task_days), keep_events=timedelta(days=event_days)
        ):
            total += gone
        self.stdout.write(
            f"Deleted {total:,} rows: tasks and slots older than {task_days} days, events older than {event_days} days."
        )
