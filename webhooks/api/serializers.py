"""The messages of webhooks."""

from typing import Any

from django.utils import timezone
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from k1node.api.serializers import (
    QuerySerializer,
    StrictBoolean,
    StrictChoice,
    StrictInteger,
    StrictList,
    StrictNumber,
    StrictObject,
    StrictSerializer,
    StrictString,
    Timestamp,
)
from webhooks import endpoints
from webhooks.endpoints import State
from webhooks.models import Webhook

URL = r"https?://[!-~]+"
SECRET = "whsec_[A-Za-z0-9+/]{32,86}={0,2}"
EVENT = r"\*|[a-z_]+\.[a-z_]+"


class WebhookFilters(QuerySerializer):
    state = StrictChoice(
        State.choices,
        required=False,
        help_text="failing: nothing arrives; paused: by a person; disabled: by the node",
    )
    name = StrictString(required=False, max_length=endpoints.LONGEST_NAME, help_text="The whole name")


class RetryPolicyInput(StrictSerializer):
    max_retries = StrictInteger(
        required=False,
        min_value=endpoints.RETRIES[0],
        max_value=endpoints.RETRIES[1],
        help_text="After the first try; left out of a new webhook: WEBHOOK_MAX_RETRIES of the node",
    )
    backoff_multiplier = StrictNumber(
        required=False,
        min_value=endpoints.MULTIPLIERS[0],
        max_value=endpoints.MULTIPLIERS[1],
        help_text="The first wait is 5 s; each is this many times the one before, 15 minutes at most, ±20 %",
    )


class _WebhookFields(StrictSerializer):
    """Each field is checked by endpoints, too, which has the better words."""

    active = StrictBoolean(required=False, help_text="false: what waits goes on waiting, and no new event is sent")
    retry_policy = RetryPolicyInput(required=False)
    headers = StrictObject(
        required=False,
        child=serializers.CharField(max_length=endpoints.MOST_HEADER_BYTES),
        help_text=(
            f"At most {endpoints.MOST_HEADERS} headers of your own, sent with each request, in place of all there "
            "were. Kept encrypted and never shown again"
        ),
    )
    max_in_flight = StrictInteger(
        required=False,
        min_value=endpoints.IN_FLIGHT[0],
        max_value=endpoints.IN_FLIGHT[1],
        help_text="Requests at the same time, over all nodes",
    )
    per_second = StrictInteger(
        required=False,
        allow_null=True,
        min_value=endpoints.RATES[0],
        max_value=endpoints.RATES[1],
        help_text="Requests a second; null: as fast as it goes",
    )

    def validate_name(self, value: str) -> str:
        endpoints.check({"name": value})
        return value

    def validate_url(self, value: str) -> str:
        endpoints.check({"url": value})
        return value

    def validate_events(self, value: list[str]) -> list[str]:
        endpoints.check({"events": value})
        return value

    def validate_headers(self, value: dict[str, Any]) -> dict[str, Any]:
        endpoints.check({"headers": value})
        return value

    def validate_secret(self, value: str) -> str:
        endpoints.check({"secret": value})
        return value


class WebhookInput(_WebhookFields):
    name = StrictString(max_length=endpoints.LONGEST_NAME, help_text="For people")
    url = StrictString(
        max_length=endpoints.LONGEST_URL,
        shape=URL,
        help_text="Where events are posted to: https, and no address inside a network, unless the node allows it",
    )
    events = StrictList(
        child=StrictString(max_length=100, shape=EVENT),
        min_length=1,
        max_length=100,
        unique=True,
        help_text='Names of event-types, or "*" alone for every event, those of later versions too',
    )
    secret = StrictString(
        required=False, max_length=100, shape=SECRET, help_text="Left out: the node makes one, which is the best choice"
    )


class WebhookUpdate(_WebhookFields):
    name = StrictString(required=False, max_length=endpoints.LONGEST_NAME)
    url = StrictString(required=False, max_length=endpoints.LONGEST_URL, shape=URL)
    events = StrictList(
        child=StrictString(max_length=100, shape=EVENT), min_length=1, max_length=100, unique=True, required=False
    )


def flat(values: dict[str, Any]) -> dict[str, Any]:
    """Return a message's values as endpoints takes them."""
    return {
        **{name: value for name, value in values.items() if name != "retry_policy"},
        **values.get("retry_policy", {}),
    }


class RotateSecretInput(StrictSerializer):
    secret = StrictString(required=False, max_length=100, shape=SECRET, help_text="Left out: the node makes one")
    overlap_seconds = StrictInteger(
        required=False,
        min_value=0,
        max_value=int(endpoints.LONGEST_OVERLAP.total_seconds()),
        default=int(endpoints.OVERLAP.total_seconds()),
        help_text="How long both secrets sign; 0: the old one ends at once",
    )

    def validate_secret(self, value: str) -> str:
        endpoints.check({"secret": value})
        return value


class TestInput(StrictSerializer):
    __test__ = False  # no test of ours, for all its name

    event = StrictString(
        required=False,
        max_length=100,
        shape=r"[a-z_]+\.[a-z_]+",
        help_text="An example of this event is sent; left out: webhook.test",
    )


class RetryPolicyOutput(serializers.Serializer[Webhook]):
    max_retries = serializers.IntegerField(help_text="After the first try")
    backoff_multiplier = serializers.FloatField()


class RotationOutput(serializers.Serializer[Webhook]):
    rotates_at = Timestamp(help_text="When the new secret is the only one")
    next_secret_hint = serializers.CharField(help_text="The new secret's last four characters")


class WebhookOutput(serializers.Serializer[Webhook]):
    """Never a secret, nor the value of a header."""

    webhook_id = serializers.CharField()
    name = serializers.CharField()
    url = serializers.CharField()
    events = serializers.ListField(child=serializers.CharField())
    active = serializers.BooleanField()
    state = serializers.SerializerMethodField(
        help_text="failing: nothing arrives, so it is tried less often; paused: by a person; disabled: by the node"
    )
    retry_policy = RetryPolicyOutput(source="*")
    header_names = serializers.ListField(child=serializers.CharField(), help_text="Of its own headers")
    max_in_flight = serializers.IntegerField()
    per_second = serializers.IntegerField(allow_null=True)
    secret_hint = serializers.SerializerMethodField(help_text="The last four characters of the secret")
    rotation = serializers.SerializerMethodField(help_text="null: there is one secret only")
    failures = serializers.IntegerField(help_text="Attempts in a row that have failed")
    open_until = serializers.SerializerMethodField(help_text="Nothing is sent before, for nothing arrives")
    last_success_at = Timestamp(allow_null=True)
    last_failure_at = Timestamp(allow_null=True)
    last_error = serializers.CharField(help_text="Of the last failure; empty: there was none")
    disabled_at = Timestamp(allow_null=True, help_text="When the node has disabled it")
    disabled_reason = serializers.CharField()
    created_by = serializers.CharField()
    created_at = Timestamp()
    updated_at = Timestamp(help_text="When it was changed last")

    @extend_schema_field(serializers.ChoiceField(State.choices))
    def get_state(self, row: Webhook) -> str:
        return str(endpoints.state(row).value)

    def get_secret_hint(self, row: Webhook) -> str:
        return row.next_secret_hint if _is_rotated(row) else row.secret_hint

    @extend_schema_field(RotationOutput(allow_null=True))
    def get_rotation(self, row: Webhook) -> Any:
        return RotationOutput(row).data if row.next_secret and not _is_rotated(row) else None

    @extend_schema_field(Timestamp(allow_null=True))
    def get_open_until(self, row: Webhook) -> Any:
        failing = endpoints.state(row) is State.FAILING
        return Timestamp().to_representation(row.open_until) if failing else None


def _is_rotated(row: Webhook) -> bool:
    """Say whether the overlap is over, though the row may not say so yet."""
    return bool(row.next_secret) and row.rotates_at is not None and row.rotates_at <= timezone.now()


class NewWebhookOutput(WebhookOutput):
    """`secret` is shown in this answer and never again."""

    secret = serializers.SerializerMethodField(help_text="What the receiver verifies with; shown this once")

    def get_secret(self, row: Webhook) -> str:
        return str(self.context["secret"])


class EventTypeOutput(serializers.Serializer[Any]):
    name = serializers.CharField()
    summary = serializers.CharField()
    schema = serializers.DictField(help_text="The JSON Schema of the whole body")
    example = serializers.DictField(help_text="Such a body")


class EventTypesOutput(serializers.Serializer[Any]):
    event_types = EventTypeOutput(many=True)
