"""The row of a batch: a group of tasks that was asked for together.

Its tasks are those of its gate, in the order of their ids, and the gate counts them (scheduling.gates); there is no row
for each. What the batch adds is who it belongs to, what was asked of it, and its rounds: it ends when all of its tasks
have, and begins a new round when somebody retries one of them.

| State | Who changes it |
|---|---|
| made, added to, closed to additions | batches.submission |
| paused, cancelled, failed ones retried | batches.steering |
| started, ended, a new round | batches.upkeep, for the clock |
| the gate: counts, closed, spent | scheduling.gates, in the transaction that moves a task |
"""

from django.db import models
from django.db.models import Q

from scheduling.models import Gate


class Batch(models.Model):
    """Tasks that were submitted together, and what was asked of them. Made by people, ended by the clock."""

    class Ended(models.TextChoices):
        COMPLETED = "completed"
        COMPLETED_WITH_FAILURES = "completed_with_failures"
        FAILED = "failed"
        CANCELLED = "cancelled"

    class FailFastRunning(models.TextChoices):
        """What becomes of the tasks that run when one fails for good, if the batch is to fail fast."""

        FINISH = "finish"
        CANCEL = "cancel"

    batch_id = models.CharField(max_length=120, unique=True)
    gate = models.OneToOneField(Gate, models.PROTECT, related_name="batch")
    total = models.PositiveIntegerField(default=0)
    open = models.BooleanField(default=False)  # more tasks may be added
    fail_fast = models.BooleanField(default=False)
    fail_fast_running = models.CharField(max_length=6, choices=FailFastRunning.choices, default=FailFastRunning.FINISH)
    parallel = models.BooleanField(default=True)  # False: one by one, in the order of submission
    max_concurrent = models.PositiveIntegerField(null=True, blank=True)
    defaults = models.JSONField(default=dict, blank=True)  # of the tasks, those added later included
    owner = models.CharField(max_length=200, blank=True)  # the identity of who may steer it as their own
    created_by = models.CharField(max_length=150, blank=True)
    created_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True, blank=True)  # of its first task
    last_due_at = models.DateTimeField(null=True, blank=True)  # of its tasks, if one of them is delayed
    # Since when, and beyond which count of tasks that ran, its pace is measured: anew after a pause and in each round.
    paced_at = models.DateTimeField(null=True, blank=True)
    paced_from = models.PositiveIntegerField(default=0)
    paused_at = models.DateTimeField(null=True, blank=True)
    paused_by = models.CharField(max_length=150, blank=True)
    cancelled_at = models.DateTimeField(null=True, blank=True)
    cancelled_by = models.CharField(max_length=150, blank=True)
    cancel_reason = models.CharField(max_length=500, blank=True)
    round = models.PositiveIntegerField(default=1)
    retry_job = models.CharField(max_length=60, blank=True)  # the bulk job that retries its failed tasks
    ended_at = models.DateTimeField(null=True, blank=True)  # of its latest round
    ended_as = models.CharField(max_length=23, choices=Ended.choices, blank=True)

    class Meta:
        verbose_name_plural = "batches"
        constraints = (
            models.CheckConstraint(
                condition=Q(ended_at__isnull=True, ended_as="") | (Q(ended_at__isnull=False) & ~Q(ended_as="")),
                name="batch_ended",
            ),
        )
        indexes = (
            # for the clock: those that have not ended
            models.Index(fields=("-id",), condition=Q(ended_at__isnull=True), name="batch_going"),
            # for the pruner
            models.Index(fields=("ended_at",), condition=Q(ended_at__isnull=False), name="batch_age"),
            # for lists
            models.Index(fields=("owner", "-id"), name="batch_owner"),
            models.Index(fields=("ended_as", "-id"), condition=~Q(ended_as=""), name="batch_ends"),
        )

    def __str__(self) -> str:
        return self.batch_id
