"""The messages of retry policies."""

from typing import Any

from rest_framework import serializers

from k1node.api.serializers import (
    QuerySerializer,
    StrictBoolean,
    StrictChoice,
    StrictInteger,
    StrictNumber,
    StrictString,
)
from k1node.lib.errors import FieldInvalid
from recovery.api.serializers import InterventionInput
from scheduling import policies
from scheduling.api.serializers import POLICY
from scheduling.models import Jitter, RetryPolicy

SHORTEST_MS, LONGEST_MS = policies.WAITS_MS


class PolicyFilters(QuerySerializer):
    include_retired = StrictBoolean(default=False, help_text="Those that nothing new may name, too")


class PolicyFiguresInput(InterventionInput):
    max_attempts = StrictInteger(
        min_value=policies.ATTEMPTS[0],
        max_value=policies.ATTEMPTS[1],
        required=False,
        help_text="The first try included; 1 means no retry",
    )
    first_wait_ms = StrictInteger(
        min_value=SHORTEST_MS, max_value=LONGEST_MS, required=False, help_text="Before the first retry"
    )
    multiplier = StrictNumber(
        min_value=policies.MULTIPLIERS[0],
        max_value=policies.MULTIPLIERS[1],
        required=False,
        help_text="Each wait is this many times the one before",
    )
    cap_ms = StrictInteger(
        min_value=SHORTEST_MS,
        max_value=LONGEST_MS,
        required=False,
        help_text="No wait is longer, before the jitter; not less than first_wait_ms",
    )
    jitter = StrictChoice(
        Jitter.choices,
        required=False,
        help_text="full: from nothing to the whole wait; equal: from half to the whole; none: the wait itself",
    )
    deadline_ms = StrictInteger(
        min_value=policies.DEADLINES_MS[0],
        max_value=policies.DEADLINES_MS[1],
        required=False,
        allow_null=True,
        help_text="No retry is due later than this after the first start; null: no deadline",
    )


class PolicyInput(PolicyFiguresInput):
    name = StrictString(
        max_length=policies.LONGEST_NAME, shape=POLICY, help_text="Schedules and tasks refer to it by this"
    )

    def validate_name(self, value: str) -> str:
        policies.check_name(value)
        return value


class PolicyChangesInput(PolicyFiguresInput):
    retired = StrictBoolean(required=False, help_text="false restores one that was retired")

    def validate_retired(self, value: bool) -> bool:
        if value:
            raise FieldInvalid("retired", "A change can only restore a policy", "Use DELETE to retire it")
        return value


class PolicyOutput(serializers.Serializer[RetryPolicy]):
    """`schedules`, by name, comes with the context."""

    name = serializers.CharField()
    max_attempts = serializers.IntegerField(help_text="The first try included")
    first_wait_ms = serializers.IntegerField()
    multiplier = serializers.FloatField()
    cap_ms = serializers.IntegerField()
    jitter = serializers.ChoiceField(Jitter.choices)
    deadline_ms = serializers.IntegerField(allow_null=True)
    waits_ms = serializers.SerializerMethodField(
        help_text=f"The waits before the first {policies.SHOWN_WAITS} retries, without the jitter"
    )
    built_in = serializers.SerializerMethodField(help_text="It comes with every node and cannot be retired")
    retired = serializers.BooleanField(help_text="Nothing new may name it; the tasks that do go on with it")
    schedules = serializers.SerializerMethodField(help_text="How many name it")

    def get_waits_ms(self, row: RetryPolicy) -> list[int]:
        return policies.waits_ms(row)

    def get_built_in(self, row: RetryPolicy) -> bool:
        return row.name in policies.BUILT_IN

    def get_schedules(self, row: RetryPolicy) -> int:
        return int(self.context["schedules"].get(row.name, 0))


def shown(row: RetryPolicy, schedules: dict[str, int]) -> Any:
    return PolicyOutput(row, context={"schedules": schedules}).data
