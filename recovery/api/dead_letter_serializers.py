"""The messages of the dead letter queue."""

from datetime import datetime
from typing import Any

from drf_spectacular.utils import extend_schema_serializer
from rest_framework import serializers

from k1node.api.serializers import (
    QuerySerializer,
    StrictChoice,
    StrictInteger,
    StrictList,
    StrictObject,
    StrictSerializer,
    StrictString,
    Timestamp,
)
from k1node.lib.errors import FieldInvalid
from recovery import dead_letters
from recovery.api.serializers import InterventionInput
from recovery.dead_letters import Wanted
from recovery.models import DeadLetter
from recovery.retries import Changes
from scheduling import queries
from scheduling.api.serializers import HANDLER, NAME, POLICY, AttemptOutput
from scheduling.models import Task

MOST = dead_letters.MOST_AT_ONCE
STATUSES = (*DeadLetter.Status.values, "all")
INT32 = 2**31


class DeadLetterFilters(QuerySerializer):
    status = StrictChoice(choices=STATUSES, default="all", help_text="Entries in this state only")
    task_id = StrictString(required=False, max_length=200, help_text="Of a task, or of all runs of a schedule")
    handler = StrictString(required=False, max_length=500)
    circuit_breaker = StrictString(required=False, max_length=120)
    fingerprint = StrictString(required=False, max_length=16, help_text="Of a group")
    since = Timestamp(required=False, help_text="Failed at this moment or later")
    until = Timestamp(required=False, help_text="Failed before this moment")


def wanted(values: dict[str, Any]) -> Wanted:
    return Wanted(**{**values, "status": None if values.get("status") == "all" else values.get("status")})


@extend_schema_serializer(component_name="DLQEntryInput")
class DeadLetterInput(StrictSerializer):
    task_id = StrictString(max_length=120, shape=NAME, help_text="A task that has ended, or an id that nothing has")
    handler = StrictString(max_length=500, shape=HANDLER, trim_whitespace=True)
    parameters = StrictObject(required=False)
    error_code = StrictInteger(min_value=-INT32, max_value=INT32 - 1)
    error_message = StrictString(max_length=10_000, required=False, allow_blank=True, multiline=True)


class ResubmitInput(InterventionInput):
    parameters = StrictObject(
        required=False, help_text="Laid over the original ones, key by key; timeout_ms also sets the task's timeout"
    )
    retry_policy = StrictString(max_length=64, required=False, shape=POLICY, help_text="Instead of the original one")


def changes(values: dict[str, Any]) -> Changes:
    return Changes(values.get("parameters") or {}, values.get("retry_policy"))


class ManyInput(InterventionInput):
    dlq_ids = StrictList(
        child=StrictString(max_length=240, shape="[A-Za-z0-9._-]+"), min_length=1, max_length=MOST, unique=True
    )

    def validate_dlq_ids(self, given: list[str]) -> list[str]:
        seen: set[str] = set()
        for place, dlq_id in enumerate(given):
            if dlq_id in seen:
                raise FieldInvalid(f"dlq_ids[{place}]", f"'{dlq_id}' is named twice", "Name each entry once")
            seen.add(dlq_id)
        return given


class ResubmitOptions(StrictSerializer):
    modify_parameters = StrictObject(
        required=False, help_text="Laid over each task's own; timeout_ms also sets the tasks' timeout"
    )


class BatchResubmitInput(ManyInput):
    retry_policy = StrictString(max_length=64, required=False, shape=POLICY, help_text="Instead of each task's own")
    options = ResubmitOptions(required=False)


@extend_schema_serializer(component_name="DLQEntry")
class DeadLetterOutput(serializers.Serializer[DeadLetter]):
    dlq_id = serializers.CharField()
    task_id = serializers.CharField(source="task.task_id")
    timestamp = Timestamp(source="failed_at")
    error_code = serializers.IntegerField(
        help_text="Exit code, 128 + signal, 124 for a timeout, 137 when its worker was lost, 1 for an exception"
    )
    error_message = serializers.CharField()
    status = serializers.ChoiceField(DeadLetter.Status.choices)
    original_parameters = serializers.DictField(source="task.parameters")
    last_resubmit_attempt = serializers.SerializerMethodField()
    manual_intervention_required = serializers.SerializerMethodField(help_text="True while pending")
    handler = serializers.CharField()
    circuit_breaker = serializers.CharField(allow_blank=True)
    fingerprint = serializers.CharField(help_text="Entries that failed for the same reason share it")
    new_task_id = serializers.SerializerMethodField(help_text="The task that does it again")

    def get_last_resubmit_attempt(self, row: DeadLetter) -> datetime | None:
        return row.resolved_at if row.status == DeadLetter.Status.RESUBMITTED else None

    def get_manual_intervention_required(self, row: DeadLetter) -> bool:
        return row.status == DeadLetter.Status.PENDING

    def get_new_task_id(self, row: DeadLetter) -> str | None:
        return row.new_task_name or None


class LinkOutput(serializers.Serializer[DeadLetter]):
    dlq_id = serializers.CharField()
    task_id = serializers.CharField(source="task.task_id")
    timestamp = Timestamp(source="failed_at")
    new_task_id = serializers.CharField(source="new_task_name")


@extend_schema_serializer(component_name="DLQEntryDetail")
class DeadLetterDetailOutput(DeadLetterOutput):
    """With its story. `attempts`, `chain` and `new_task` come with the context."""

    retry_policy = serializers.CharField(source="task.retry_policy_id")
    timeout_ms = serializers.IntegerField(source="task.timeout_ms")
    attempts = serializers.SerializerMethodField(help_text="The runs, the last one first, 50 at most")
    modified_parameters = serializers.SerializerMethodField(help_text="What the resubmission laid over the original")
    modified_retry_policy = serializers.SerializerMethodField()
    new_task_status = serializers.SerializerMethodField(help_text="Of the task that does it again; null: none, or gone")
    resolved_at = Timestamp(allow_null=True, help_text="When it was resubmitted or archived")
    resolved_by = serializers.SerializerMethodField()
    reason = serializers.SerializerMethodField()
    created_by = serializers.SerializerMethodField(help_text="Who put it here by hand")
    chain = serializers.SerializerMethodField(
        help_text="The entries before it, each resubmitted as the task of the next"
    )

    def get_attempts(self, row: DeadLetter) -> list[dict[str, Any]]:
        return list(AttemptOutput(self.context["attempts"], many=True, context=self.context).data)

    def get_modified_parameters(self, row: DeadLetter) -> dict[str, Any] | None:
        found: dict[str, Any] | None = row.changes.get("parameters")
        return found

    def get_modified_retry_policy(self, row: DeadLetter) -> str | None:
        found: str | None = row.changes.get("retry_policy")
        return found

    def get_new_task_status(self, row: DeadLetter) -> str | None:
        task: Task | None = self.context["new_task"]
        return queries.shown_status(task) if task else None

    def get_resolved_by(self, row: DeadLetter) -> str | None:
        return row.resolved_by or None

    def get_reason(self, row: DeadLetter) -> str | None:
        return row.reason or None

    def get_created_by(self, row: DeadLetter) -> str | None:
        return row.created_by or None

    def get_chain(self, row: DeadLetter) -> list[dict[str, Any]]:
        return list(LinkOutput(self.context["chain"], many=True).data)


class ResubmittedOutput(serializers.Serializer[Any]):
    message = serializers.CharField()
    dlq_id = serializers.CharField()
    new_task_id = serializers.CharField()
    status = serializers.CharField(help_text="Of the new task: queued, or blocked while it waits for its turn")
    estimated_execution = Timestamp(allow_null=True, help_text="Not before then; null when that depends on other tasks")


class BatchResubmittedOutput(serializers.Serializer[Any]):
    resubmitted_count = serializers.IntegerField()
    new_task_ids = serializers.ListField(child=serializers.CharField())


class ManyOutput(serializers.Serializer[Any]):
    count = serializers.IntegerField()
    status = serializers.CharField(help_text="What they are now")


class GroupOutput(serializers.Serializer[Any]):
    fingerprint = serializers.CharField()
    error_code = serializers.IntegerField()
    error_line = serializers.CharField(help_text="First line of the error, without what differs each time")
    count = serializers.IntegerField()
    last_hour = serializers.IntegerField(help_text="Those of the last hour")
    first_failed_at = Timestamp()
    last_failed_at = Timestamp()
    handler = serializers.CharField(help_text="Of the newest entry")
    schedules = serializers.ListField(child=serializers.CharField(), help_text="Some of those whose runs are in it")
    example = serializers.CharField(help_text="dlq_id of the newest entry")


class GroupsOutput(serializers.Serializer[Any]):
    timestamp = Timestamp()
    groups = GroupOutput(many=True)
    capped = serializers.BooleanField(help_text="True when there are more pending entries than were counted")
