"""The messages of the recovery API."""

from typing import Any

from rest_framework import serializers

from k1node.api.serializers import QuerySerializer, StrictChoice, StrictString, Timestamp
from recovery import metrics


class RetryStatsFilters(QuerySerializer):
    interval = StrictChoice(
        choices=tuple(metrics.INTERVALS), default=metrics.DEFAULT_INTERVAL, help_text="Time interval for metrics"
    )
    policy = StrictString(required=False, max_length=64, help_text="Figures of one retry policy only")


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
