"""The messages of redeliveries."""

from datetime import datetime
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from k1node.api.serializers import StrictChoice, StrictInteger, StrictList, StrictSerializer, StrictString, Timestamp
from k1node.operations import jobs
from k1node.operations.models import Operation
from webhooks import redelivery
from webhooks.redelivery import Mode

MOST_A_SECOND = 10_000


class RedeliveryInput(StrictSerializer):
    mode = StrictChoice(
        choices=tuple(Mode),
        help_text=(
            "failed: deliveries that were given up in this time; period: every event of this time that the webhook"
            " wants, also what it has had and what it never got because it was not active"
        ),
    )
    since = Timestamp(help_text="From this moment on")
    until = Timestamp(required=False, help_text="Before this moment; without it, until now")
    events = StrictList(
        child=StrictString(max_length=100),
        required=False,
        allow_empty=False,
        max_length=100,
        help_text="These events alone, of those that the webhook wants",
    )
    per_second = StrictInteger(
        min_value=1,
        max_value=MOST_A_SECOND,
        required=False,
        allow_null=True,
        help_text="At most so many; else as fast as the webhook takes them",
    )


class RedeliveryOutput(serializers.Serializer[Operation]):
    redelivery_id = serializers.CharField(source="operation_id")
    webhook_id = serializers.CharField(source="selection.webhook_id")
    mode = serializers.CharField(source="selection.mode", help_text="failed or period")
    since = serializers.SerializerMethodField()
    until = serializers.SerializerMethodField()
    events = serializers.SerializerMethodField(help_text="null: all that the webhook wants")
    state = serializers.CharField(help_text="running, stopped, completed or cancelled")
    said = serializers.SerializerMethodField(help_text="Why it has stopped")
    per_second = serializers.IntegerField(allow_null=True)
    total = serializers.IntegerField(help_text="Deliveries or events in its set, which does not change any more")
    redelivered = serializers.IntegerField(source="done", help_text="Put in the webhook's queue")
    refused = serializers.IntegerField(help_text="Left as they are")
    remaining = serializers.SerializerMethodField()
    created_by = serializers.CharField()
    created_at = Timestamp()
    started_at = Timestamp(allow_null=True)
    finished_at = Timestamp(allow_null=True)

    @extend_schema_field(Timestamp())
    def get_since(self, row: Operation) -> Any:
        return _moment(row.selection["since"])

    @extend_schema_field(Timestamp())
    def get_until(self, row: Operation) -> Any:
        return _moment(row.selection["until"])

    def get_events(self, row: Operation) -> list[str] | None:
        found: list[str] | None = row.selection.get("events")
        return found

    def get_said(self, row: Operation) -> str | None:
        return row.said or None

    def get_remaining(self, row: Operation) -> int:
        return row.total - row.position


class RedeliveryDetailOutput(RedeliveryOutput):
    deliveries = serializers.SerializerMethodField(
        help_text=f"How many of the redelivered are in each state; of the newest {redelivery.OUTCOMES_MOST:,}"
    )
    refusals = serializers.SerializerMethodField(help_text="Why so many were left as they are")

    def get_deliveries(self, row: Operation) -> dict[str, int]:
        return redelivery.outcomes(row)

    def get_refusals(self, row: Operation) -> dict[str, int]:
        return redelivery.refusals(row)


class RedeliveryBegunOutput(RedeliveryOutput):
    capped = serializers.BooleanField(
        help_text=f"True when more fits than the {jobs.MOST:,} a redelivery may have; it has the oldest", default=False
    )


def _moment(text: str) -> Any:
    return Timestamp().to_representation(datetime.fromisoformat(text))
