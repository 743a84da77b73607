"""The messages of deliveries and their attempts."""

from typing import Any

import orjson
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from k1node.api.serializers import QuerySerializer, StrictChoice, StrictString, Timestamp
from webhooks import delivery_log, rules
from webhooks.models import Attempt, Delivery

MOST_ATTEMPTS = 100
OUTCOMES = (Attempt.SENDING, Attempt.UNKNOWN, *(code.value for code in rules.Code))


class DeliveryFilters(QuerySerializer):
    state = StrictChoice(
        Delivery.State.choices,
        required=False,
        help_text="failed: its tries are used up; cancelled: its webhook was deleted",
    )
    event = StrictString(
        required=False,
        max_length=100,
        help_text=f"The whole name; looked for among the newest {delivery_log.SEARCHED:,} that fit the other filters",
    )
    since = Timestamp(required=False, help_text="Made at this moment or later")
    until = Timestamp(required=False, help_text="Made before this moment")


class DeliveryOutput(serializers.Serializer[Delivery]):
    """Needs the message of the row."""

    delivery_id = serializers.CharField()
    message_id = serializers.CharField(
        source="message.message_id", help_text="`id` of the body, the same in every attempt and for every webhook"
    )
    event = serializers.CharField()
    occurred_at = Timestamp(source="message.occurred_at")
    state = serializers.ChoiceField(Delivery.State.choices)
    is_test = serializers.BooleanField()
    attempt_count = serializers.IntegerField(source="attempts")
    next_attempt_at = serializers.SerializerMethodField(help_text="null: none is planned")
    last_status = serializers.IntegerField(allow_null=True, help_text="HTTP status of the last answer")
    last_error = serializers.CharField(help_text="What went wrong last; empty: nothing")
    redelivered_by = serializers.CharField(help_text="Who had it sent anew; empty: nobody")
    created_at = Timestamp()
    finished_at = Timestamp(allow_null=True)

    @extend_schema_field(Timestamp(allow_null=True))
    def get_next_attempt_at(self, row: Delivery) -> Any:
        return Timestamp().to_representation(row.due_at) if row.state == Delivery.State.PENDING else None


class DeliveryAttemptOutput(serializers.Serializer[Attempt]):
    """What was answered is only for those with the scope `admin`, by `shows_answers` of the context.

    Whoever may register webhooks must not read with them what answers inside the node's network.
    """

    number = serializers.IntegerField()
    started_at = Timestamp()
    finished_at = Timestamp(allow_null=True)
    outcome = serializers.ChoiceField(OUTCOMES, help_text="unknown: its sender died, and it may have arrived")
    status = serializers.IntegerField(allow_null=True, help_text="HTTP status of the answer")
    error = serializers.CharField()
    url = serializers.CharField()
    address = serializers.CharField(help_text="That was connected to; empty: none was")
    allowed_by = serializers.CharField(help_text="The setting that lets a private address pass")
    dns_ms = serializers.FloatField(allow_null=True)
    connect_ms = serializers.FloatField(allow_null=True, help_text="TCP and TLS")
    answer_ms = serializers.FloatField(allow_null=True, help_text="From the request's end to the answer's head")
    total_ms = serializers.FloatField(allow_null=True)
    request_headers = serializers.DictField(child=serializers.CharField(), help_text="Without values that are secrets")
    response_headers = serializers.SerializerMethodField(help_text="null: for the scope `admin` alone")
    response_body = serializers.SerializerMethodField(
        help_text="The beginning of the answer; null: for the scope `admin` alone"
    )

    @extend_schema_field(serializers.DictField(child=serializers.CharField(), allow_null=True))
    def get_response_headers(self, row: Attempt) -> Any:
        return row.response_headers if self.context["shows_answers"] else None

    def get_response_body(self, row: Attempt) -> str | None:
        return row.response_body if self.context["shows_answers"] else None


class DeliveryDetailOutput(DeliveryOutput):
    """Needs `attempts` and `shows_answers` in the context."""

    payload = serializers.SerializerMethodField(help_text="`data` of the body")
    attempts = serializers.SerializerMethodField(help_text=f"The last {MOST_ATTEMPTS}, the oldest of them first")

    @extend_schema_field(serializers.DictField())
    def get_payload(self, row: Delivery) -> Any:
        return orjson.loads(row.message.data)

    @extend_schema_field(DeliveryAttemptOutput(many=True))
    def get_attempts(self, row: Delivery) -> Any:
        return DeliveryAttemptOutput(self.context["attempts"], many=True, context=self.context).data
