"""The messages of the recovery API."""

from datetime import datetime
from typing import Any

from rest_framework import serializers

from k1node.api.declared import PaginationField
from k1node.api.serializers import (
    QuerySerializer,
    StrictChoice,
    StrictInteger,
    StrictObject,
    StrictSerializer,
    StrictString,
    Timestamp,
)
from k1node.lib.errors import FieldInvalid
from recovery import explain, metrics
from recovery.models import Intervention
from scheduling import tasks
from scheduling.api.serializers import POLICY


class RetryStatsFilters(QuerySerializer):
    interval = StrictChoice(
        choices=tuple(metrics.INTERVALS), default=metrics.DEFAULT_INTERVAL, help_text="Time interval for metrics"
    )
    policy = StrictString(required=False, max_length=64, shape=POLICY, help_text="Figures of one retry policy only")


class PolicyStatsOutput(serializers.Serializer[Any]):
    count = serializers.IntegerField(help_text="Finished tasks that had been retried")
    success_rate = serializers.FloatField(allow_null=True, help_text="Completed ÷ finished tasks; null without any")


class RetryMetricsOutput(serializers.Serializer[Any]):
    total_tasks_retried = serializers.IntegerField()
    successful_first_attempt = serializers.IntegerField()
    successful_after_retry = serializers.IntegerField()
    failed_permanently = serializers.IntegerField()
    success_rate = serializers.FloatField(allow_null=True)
    average_attempts = serializers.FloatField(allow_null=True)
    by_policy = serializers.DictField(child=PolicyStatsOutput())


class RetryStepOutput(serializers.Serializer[Any]):
    hour = serializers.IntegerField(help_text="Whole hours since the interval's start")
    start = Timestamp()
    attempts = serializers.IntegerField()
    successes = serializers.IntegerField()


class RetryStatsOutput(serializers.Serializer[Any]):
    timestamp = Timestamp()
    interval = serializers.ChoiceField(choices=tuple(metrics.INTERVALS))
    metrics = RetryMetricsOutput()
    timeseries = RetryStepOutput(many=True)


LOWEST, HIGHEST = tasks.PRIORITIES


class InterventionInput(StrictSerializer):
    reason = StrictString(
        max_length=500, required=False, allow_null=True, allow_blank=True, help_text="Kept in the history"
    )


class UntilInput(InterventionInput):
    until = Timestamp(
        required=False,
        allow_null=True,
        help_text="When it ends by itself; left out: when somebody resets, releases or resumes it",
    )

    def validate_until(self, until: datetime | None) -> datetime | None:
        if until is not None and until <= self.context["now"]:
            raise FieldInvalid("until", "Must lie in the future", "Leave it out, or name a later moment")
        return until


class RetryInput(InterventionInput):
    parameters = StrictObject(
        required=False, help_text="Laid over the original ones, key by key; timeout_ms also sets the task's timeout"
    )
    retry_policy = StrictString(max_length=64, required=False, shape=POLICY, help_text="Instead of the original one")


class PriorityInput(InterventionInput):
    priority = StrictInteger(min_value=LOWEST, max_value=HIGHEST, help_text="10 is the most urgent")


class PausedOutput(serializers.Serializer[Any]):
    status = serializers.CharField()
    paused_at = Timestamp()
    paused_until = Timestamp(required=False, help_text="Left out when somebody must resume it")


class ResumedOutput(serializers.Serializer[Any]):
    status = serializers.CharField()
    resumed_at = Timestamp()


class EndedOutput(serializers.Serializer[Any]):
    status = serializers.CharField()
    reason = serializers.CharField(allow_null=True)


class PriorityOutput(serializers.Serializer[Any]):
    status = serializers.CharField()
    priority = serializers.IntegerField(min_value=LOWEST, max_value=HIGHEST)


class RetriedOutput(serializers.Serializer[Any]):
    status = serializers.CharField()
    new_task_id = serializers.CharField()


class InterventionOutput(serializers.Serializer[Intervention]):
    timestamp = Timestamp(source="created_at")
    action = serializers.ChoiceField(Intervention.Action.choices)
    reason = serializers.SerializerMethodField()
    performed_by = serializers.CharField()
    before = serializers.DictField(help_text="What the task was")
    after = serializers.DictField(help_text="What it was made; of a retry, the new task's id")

    def get_reason(self, row: Intervention) -> str | None:
        return row.reason or None


class ExplanationOutput(serializers.Serializer[Any]):
    task_id = serializers.CharField()
    status = serializers.CharField()
    reason = serializers.ChoiceField(explain.REASONS)
    message = serializers.CharField(help_text="The reason in a sentence")
    facts = serializers.DictField(help_text="What goes with the reason: since, until, by, behind, ahead …")
    timestamp = Timestamp()


class InterventionHistoryOutput(serializers.Serializer[Any]):
    task_id = serializers.CharField()
    interventions = InterventionOutput(many=True)
    pagination = PaginationField()
