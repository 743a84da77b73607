"""The event log: one row for each fact that happened, written in the transaction that made it a fact."""

from django.db import models


class Event(models.Model):
    """A fact. Rows are only ever added (k1node.events.log.publish) and pruned.

    On PostgreSQL the table has one more column, `xid`, the transaction that wrote the row: ids are given out before
    commits happen, so a reader that only remembers an id would step over a late commit. See k1node.events.log.
    """

    name = models.CharField(max_length=100)
    occurred_at = models.DateTimeField()
    data = models.JSONField()

    def __str__(self) -> str:
        return f"{self.name} {self.occurred_at:%Y-%m-%d %H:%M:%S}"
