"""Durable bulk jobs: one thing done to each of a frozen set of rows, little by little (k1node.operations.jobs)."""

from django.db import models
from django.db.models import Q


class Operation(models.Model):
    """A bulk job and how far it has come. Planned and steered by people, carried on by the clock."""

    class State(models.TextChoices):
        PLANNED = "planned"  # its set is frozen, nothing has been done
        RUNNING = "running"
        STOPPED = "stopped"  # by itself, for the reason it says; it can be started again
        COMPLETED = "completed"
        CANCELLED = "cancelled"

    operation_id = models.CharField(max_length=60, unique=True)
    kind = models.CharField(max_length=20)
    state = models.CharField(max_length=9, choices=State.choices, default=State.PLANNED)
    arguments = models.JSONField(default=dict, blank=True)  # what is done to each
    selection = models.JSONField(default=dict, blank=True)  # what the set was chosen by
    created_by = models.CharField(max_length=150)
    reason = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    per_second = models.PositiveIntegerField(null=True, blank=True)  # null is as fast as it goes
    first = models.PositiveIntegerField(default=0)  # so many are tried before the rest; 0: all at once
    is_proven = models.BooleanField(default=False)  # the first have succeeded
    total = models.PositiveIntegerField(default=0)
    position = models.PositiveIntegerField(default=0)  # of the last item that was dealt with; they count from 1
    done = models.PositiveIntegerField(default=0)
    refused = models.PositiveIntegerField(default=0)
    said = models.CharField(max_length=500, blank=True)  # what it waits for, or why it has stopped
    next_at = models.DateTimeField(null=True, blank=True)  # when the clock goes on with it

    class Meta:
        constraints = (
            models.CheckConstraint(
                condition=Q(state="running", next_at__isnull=False) | (~Q(state="running") & Q(next_at__isnull=True)),
                name="operation_next",
            ),
        )
        indexes = (
            # for the clock
            models.Index(fields=("next_at",), condition=Q(next_at__isnull=False), name="operation_due"),
            # for lists
            models.Index(fields=("kind", "-id"), name="operation_kind"),
            # for the pruner
            models.Index(fields=("created_at",), name="operation_age"),
        )

    def __str__(self) -> str:
        return self.operation_id


class Item(models.Model):
    """One row that a job is about, and what became of it. `subject` and `made` are keys the job's kind understands."""

    class State(models.TextChoices):
        WAITING = "waiting"
        DONE = "done"
        REFUSED = "refused"

    operation = models.ForeignKey(Operation, models.CASCADE, db_index=False, related_name="items")
    position = models.PositiveIntegerField()
    subject = models.BigIntegerField()
    state = models.CharField(max_length=7, choices=State.choices, default=State.WAITING)
    note = models.CharField(max_length=500, blank=True)  # why it was refused
    made = models.BigIntegerField(null=True, blank=True)  # what came of it

    class Meta:
        constraints = (models.UniqueConstraint(fields=("operation", "position"), name="item_once"),)

    def __str__(self) -> str:
        return f"{self.operation_id}/{self.position}"
