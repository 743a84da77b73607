"""What is deleted when it is old, over all apps: by the clock in small pieces, and by `manage.py prune` to the end."""

from contextlib import suppress
from datetime import datetime, timedelta

from django.conf import settings

from batches import upkeep
from k1node.access import buckets, grants
from k1node.access.oauth import tokens
from k1node.api import idempotency
from k1node.audit import chain
from k1node.operations import jobs
from recovery import dead_letters, interventions
from scheduling import retention
from scheduling.retention import Pruned
from webhooks import fanout
from webhooks import retention as deliveries


def prune(*, now: datetime, after: int = 0) -> Pruned:
    """Delete a bounded number of old rows; `after` is where the call before has stopped."""
    keep_tasks = timedelta(days=settings.K1NODE_KEEP_TASK_DAYS)
    # Dead letters first: their tasks stay as long as they do.
    gone = dead_letters.prune(now - timedelta(days=settings.K1NODE_KEEP_DEAD_LETTER_DAYS))
    pruned = retention.prune(
        now=now,
        keep_tasks=keep_tasks,
        keep_events=timedelta(days=settings.K1NODE_KEEP_EVENT_DAYS),
        # What no sender has come to yet stays: it would reach no webhook.
        events_up_to=fanout.read_up_to(),
        after=after,
        spared=dead_letters.with_entries,
    )
    gone += upkeep.prune(before=now - keep_tasks)  # those whose tasks are gone
    gone += grants.prune(now=now)
    gone += tokens.prune(now=now)
    gone += jobs.prune(before=now - keep_tasks, now=now)
    with suppress(buckets.Unusable):
        buckets.forget()  # a handful of rows, which say nothing; not counted
    gone += chain.prune(now - timedelta(days=settings.K1NODE_KEEP_AUDIT_DAYS), now=now)
    gone += pruned.rows + interventions.prune(now - keep_tasks)
    gone += idempotency.prune(now=now)
    gone += deliveries.prune(now - timedelta(days=settings.K1NODE_KEEP_DELIVERY_DAYS), now=now)
    return Pruned(gone, pruned.after)
