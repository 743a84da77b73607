"""The rows of recovery: what operators did to tasks."""

from django.db import models

from scheduling.models import Task


class Intervention(models.Model):
    """One thing a person did to a task: who, when, why, and what it changed; written with the change, never edited."""

    class Action(models.TextChoices):
        PAUSE = "pause"
        RESUME = "resume"
        SKIP = "skip"
        CANCEL = "cancel"
        RETRY = "retry"
        PRIORITY = "priority"

    # No constraint: tasks are pruned in bulk, and their interventions after them.
    task = models.ForeignKey(Task, models.DO_NOTHING, db_constraint=False, db_index=False, related_name="interventions")
    action = models.CharField(max_length=8, choices=Action.choices)
    reason = models.CharField(max_length=500, blank=True)
    performed_by = models.CharField(max_length=150)
    before = models.JSONField()
    after = models.JSONField()
    created_at = models.DateTimeField()

    class Meta:
        indexes = (
            models.Index(fields=("task", "id"), name="intervention_task"),  # for a task's history
            models.Index(fields=("created_at",), name="intervention_age"),  # for the pruner
        )

    def __str__(self) -> str:
        return f"{self.action} of task {self.task_id} by {self.performed_by}"
