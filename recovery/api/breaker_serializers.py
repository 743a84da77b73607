"""The messages of circuit breakers and of the hold."""

from typing import Any

from rest_framework import serializers

from k1node.api.declared import PaginationField
from k1node.api.serializers import QuerySerializer, StrictInteger, StrictString, Timestamp
from k1node.lib.errors import FieldInvalid
from recovery import breaker_rules as rules
from recovery import breakers
from recovery.api.serializers import InterventionInput
from recovery.models import Breaker, Hold
from scheduling.api.serializers import NAME

LONGEST_MS = 30 * 86_400_000


class BreakerFilters(QuerySerializer):
    breaker_id = StrictString(required=False, max_length=120, help_text="One breaker only")


class BreakerSettingsInput(InterventionInput):
    window_size = StrictInteger(min_value=1, max_value=1000, required=False, help_text="The calls that are judged")
    min_calls = StrictInteger(min_value=1, max_value=1000, required=False, help_text="Fewer than these never open it")
    failure_percent = StrictInteger(min_value=1, max_value=100, required=False, help_text="So many failed open it")
    open_ms = StrictInteger(min_value=100, max_value=LONGEST_MS, required=False, help_text="Open for so long, at first")
    open_cap_ms = StrictInteger(
        min_value=100, max_value=LONGEST_MS, required=False, help_text="Doubled so far while its probes fail"
    )
    probes = StrictInteger(min_value=1, max_value=100, required=False, help_text="Calls that try it when half-open")

    def validate(self, values: dict[str, Any]) -> dict[str, Any]:
        row = self.context.get("row") or Breaker()
        effective = {name: values.get(name, getattr(row, name)) for name in breakers.FIGURES}
        if effective["min_calls"] > effective["window_size"]:
            raise FieldInvalid("min_calls", "Must not be more than window_size", f"Use {effective['window_size']}")
        if effective["open_cap_ms"] < effective["open_ms"]:
            raise FieldInvalid("open_cap_ms", "Must not be less than open_ms", f"Use {effective['open_ms']}")
        return values


class BreakerInput(BreakerSettingsInput):
    breaker_id = StrictString(max_length=120, shape=NAME)


class PinOutput(serializers.Serializer[Breaker]):
    state = serializers.ChoiceField(("open", "closed"), source="pin")
    by = serializers.CharField(source="pinned_by")
    reason = serializers.SerializerMethodField()
    until = Timestamp(source="pinned_until", allow_null=True)

    def get_reason(self, row: Breaker) -> str | None:
        return row.pin_reason or None


class BreakerOutput(serializers.Serializer[Breaker]):
    """As the status has it. `remaining` and `waiting`, by primary key, come with the context."""

    breaker_id = serializers.CharField()
    state = serializers.ChoiceField(rules.State.choices)
    failure_rate = serializers.SerializerMethodField(help_text="Of the calls in the window, 0 to 1")
    failure_count = serializers.SerializerMethodField()
    success_count = serializers.SerializerMethodField()
    last_state_change = Timestamp(source="changed_at")
    timeout_remaining_ms = serializers.SerializerMethodField(help_text="Until it changes by itself; 0: it does not")
    waiting = serializers.SerializerMethodField(help_text="Tasks that wait behind it, 10,001 for any more")
    held = serializers.SerializerMethodField(help_text="Who holds it open or closed; null: nobody")

    def get_failure_rate(self, row: Breaker) -> float:
        return round(breakers.circuit_of(row).failure_rate, 4)

    def get_failure_count(self, row: Breaker) -> int:
        return row.window.count(rules.FAILED)

    def get_success_count(self, row: Breaker) -> int:
        return row.window.count(rules.OK)

    def get_timeout_remaining_ms(self, row: Breaker) -> int:
        return int(self.context["remaining"].get(row.pk, 0))

    def get_waiting(self, row: Breaker) -> int:
        return int(self.context["waiting"].get(row.pk, 0))

    def get_held(self, row: Breaker) -> dict[str, Any] | None:
        return dict(PinOutput(row).data) if row.pin else None


class BreakerDetailOutput(BreakerOutput):
    window_size = serializers.IntegerField()
    min_calls = serializers.IntegerField()
    failure_percent = serializers.IntegerField()
    open_ms = serializers.IntegerField()
    open_cap_ms = serializers.IntegerField()
    probes = serializers.IntegerField()


class BreakerStatusOutput(serializers.Serializer[Any]):
    timestamp = Timestamp()
    breakers = BreakerOutput(many=True)
    pagination = PaginationField()


class ProbeOutput(serializers.Serializer[Any]):
    breaker_id = serializers.CharField()
    state = serializers.CharField()
    task_id = serializers.CharField(help_text="The task that tries")


class HoldOutput(serializers.Serializer[Hold]):
    held = serializers.SerializerMethodField()
    reason = serializers.SerializerMethodField()
    by = serializers.CharField(source="created_by")
    since = Timestamp()
    until = Timestamp(allow_null=True)

    def get_held(self, row: Hold) -> bool:
        return row.ended_at is None

    def get_reason(self, row: Hold) -> str | None:
        return row.reason or None


class HoldStateOutput(serializers.Serializer[Any]):
    """For the OpenAPI document: a hold, or only that there is none."""

    held = serializers.BooleanField()
    reason = serializers.CharField(required=False, allow_null=True)
    by = serializers.CharField(required=False)
    since = Timestamp(required=False)
    until = Timestamp(required=False, allow_null=True)


class NoHoldOutput(serializers.Serializer[Any]):
    held = serializers.BooleanField()
