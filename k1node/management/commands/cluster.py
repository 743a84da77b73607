"""The parent of one cluster of worker processes, started by `up`: django-q2's Cluster with our lifeline and signals."""

import os
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand
from django_q.cluster import Cluster
from django_q.signals import post_spawn

from k1node import worker
from k1node.lib import lifeline

STOP_SLACK_SECONDS = 15  # beyond what running commands get, for settling and for django-q2's own goodbye


class Command(BaseCommand):
    help = "Run the worker processes of this node (started by `up`)."

    def handle(self, *args: Any, **options: Any) -> None:
        number = int(os.environ.get("K1NODE_CLUSTER", "0"))

        def prepare(**_: Any) -> None:
            worker.prepare(number)

        # django-q2's only hook in a new worker process.
        post_spawn.connect(prepare, weak=False)
        os.register_at_fork(after_in_child=end_with_up)
        end_with_up()
        cluster = Cluster()
        cluster.start()
        if cluster.stop_event is not None:  # not told to stop already
            # What SIGTERM does, without a signal: the main thread waits for the sentinel by now.
            lifeline.watch(cluster.stop_event.set)


def end_with_up() -> None:
    """Make sure that this process is gone soon after `up` is, whatever the rest of its cluster does."""
    lifeline.end_this_process_with_up(
        settings.K1NODE_DRAIN_SECONDS + settings.K1NODE_KILL_GRACE_SECONDS + STOP_SLACK_SECONDS
    )
