"""The messages of redrives."""

from typing import Any

from rest_framework import serializers

from k1node.api.serializers import (
    QuerySerializer,
    StrictBoolean,
    StrictChoice,
    StrictInteger,
    StrictObject,
    StrictSerializer,
    StrictString,
    Timestamp,
)
from k1node.operations import jobs
from k1node.operations.models import Item, Operation
from recovery import redrives
from recovery.api.serializers import InterventionInput
from recovery.redrives import Result, Sample
from scheduling import queries
from scheduling.api.serializers import POLICY


class RedriveFilterInput(StrictSerializer):
    task_id = StrictString(required=False, max_length=200, help_text="Of a task, or of all runs of a schedule")
    schedule = StrictString(required=False, max_length=120)
    handler = StrictString(required=False, max_length=500)
    circuit_breaker = StrictString(required=False, max_length=120)
    fingerprint = StrictString(required=False, max_length=16, help_text="Of a group")
    since = Timestamp(required=False, help_text="Failed at this moment or later")
    until = Timestamp(required=False, help_text="Failed before this moment")


class RedriveInput(InterventionInput):
    filter = RedriveFilterInput(help_text="Which pending entries: those that fit all of it; {} is every one")
    parameters = StrictObject(
        required=False, help_text="Laid over the original ones, key by key; timeout_ms also sets the tasks' timeout"
    )
    retry_policy = StrictString(max_length=64, required=False, shape=POLICY, help_text="Instead of each task's own")
    per_second = StrictInteger(
        min_value=1, max_value=10_000, required=False, allow_null=True, help_text="At most so many; else without limit"
    )
    first = StrictInteger(
        min_value=0,
        max_value=1_000,
        required=False,
        help_text="So many at first, the rest when their tasks have all completed; 0: all at once",
    )
    stop_when_breaker_opens = StrictBoolean(default=True)
    start = StrictBoolean(default=False, help_text="Begin at once, without looking at the plan")


class SampleOutput(serializers.Serializer[Any]):
    dlq_id = serializers.CharField(source="letter.dlq_id")
    task_id = serializers.CharField(source="letter.task.task_id")
    error_message = serializers.CharField(source="letter.error_message")
    original_parameters = serializers.DictField(source="letter.task.parameters")
    parameters = serializers.DictField(help_text="What the new task would be given")
    timeout_ms = serializers.IntegerField()
    problem = serializers.SerializerMethodField(help_text="Why it could not run; null: it could")

    def get_problem(self, row: Sample) -> str | None:
        return row.problem or None


class RedriveOutput(serializers.Serializer[Operation]):
    redrive_id = serializers.CharField(source="operation_id")
    state = serializers.CharField(help_text="planned, running, stopped, completed or cancelled")
    reason = serializers.SerializerMethodField(help_text="Why somebody wants it")
    said = serializers.SerializerMethodField(help_text="What it waits for, or why it has stopped")
    filter = serializers.DictField(source="selection")
    arguments = serializers.DictField(help_text="What is changed in the new tasks, and whether a breaker stops it")
    per_second = serializers.IntegerField(allow_null=True)
    first = serializers.IntegerField()
    total = serializers.IntegerField(help_text="Entries in its set, which does not change any more")
    resubmitted = serializers.IntegerField(source="done")
    refused = serializers.IntegerField(help_text="Entries that could not be resubmitted; see its entries")
    remaining = serializers.SerializerMethodField()
    created_by = serializers.CharField()
    created_at = Timestamp()
    started_at = Timestamp(allow_null=True)
    finished_at = Timestamp(allow_null=True)

    def get_reason(self, row: Operation) -> str | None:
        return row.reason or None

    def get_said(self, row: Operation) -> str | None:
        return row.said or None

    def get_remaining(self, row: Operation) -> int:
        return row.total - row.position


class RedriveDetailOutput(RedriveOutput):
    tasks = serializers.SerializerMethodField(help_text="How many of the new tasks are in each state")
    sample = serializers.SerializerMethodField(help_text="The next entries, and what would become of them")

    def get_tasks(self, row: Operation) -> dict[str, int]:
        return redrives.outcomes(row)

    def get_sample(self, row: Operation) -> list[dict[str, Any]]:
        return list(SampleOutput(redrives.sample(row), many=True).data)


class RedrivePlanOutput(RedriveDetailOutput):
    capped = serializers.BooleanField(
        help_text=f"True when more entries fit than the {jobs.MOST:,} a redrive may have", default=False
    )


class RedriveEntryFilters(QuerySerializer):
    state = StrictChoice(choices=tuple(Item.State.values), required=False, help_text="Entries in this state only")


class RedriveEntryOutput(serializers.Serializer[Any]):
    dlq_id = serializers.SerializerMethodField(help_text="null: pruned by now")
    state = serializers.CharField(source="item.state", help_text="waiting, done or refused")
    note = serializers.SerializerMethodField(help_text="Why it was refused")
    new_task_id = serializers.SerializerMethodField()
    new_task_status = serializers.SerializerMethodField()

    def get_dlq_id(self, row: Result) -> str | None:
        return row.letter.dlq_id if row.letter else None

    def get_note(self, row: Result) -> str | None:
        return row.item.note or None

    def get_new_task_id(self, row: Result) -> str | None:
        return row.task.task_id if row.task else None

    def get_new_task_status(self, row: Result) -> str | None:
        return queries.shown_status(row.task) if row.task else None
