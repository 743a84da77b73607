"""The messages of the batches API.

The items of a batch, and what they share, have a schema here for the OpenAPI document; batches.items reads them.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.urls import reverse
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from batches import progress
from batches.models import Batch
from batches.progress import Progress
from batches.submission import MOST_CONCURRENT, MOST_TASKS
from k1node.api.serializers import (
    QuerySerializer,
    StrictBoolean,
    StrictChoice,
    StrictInteger,
    StrictList,
    StrictObject,
    StrictSerializer,
    StrictString,
    Timestamp,
    words_for,
)
from k1node.lib.errors import FieldInvalid
from k1node.operations.models import Operation
from scheduling import handlers, queries, tasks
from scheduling.api.serializers import HANDLER, NAME, TaskInput
from scheduling.models import Task

MOST_SHOWN = 100  # tasks beside a batch
MAX_BYTES = 1024 * 1024  # of defaults: those of the whole body


class BatchTaskInput(TaskInput):
    """One task of a batch. What it leaves out is taken from `defaults`; one of the two must name a handler."""

    handler = StrictString(
        max_length=handlers.MAX_LENGTH, allow_blank=True, required=False, shape=HANDLER, trim_whitespace=True
    )


class BatchDefaultsInput(BatchTaskInput):
    """What the tasks share. Each may say otherwise; its parameters are laid over these, key by key."""

    task_id = None  # type: ignore[assignment]


@extend_schema_field(BatchDefaultsInput)
class DefaultsField(StrictObject):
    """As it came."""


class ItemsField(StrictList):
    """As they came: thousands are read faster than one serializer each would (batches.items)."""

    def to_internal_value(self, data: Any) -> list[Any]:
        if not isinstance(data, list):
            self.refuse(f"Must be a list, not {words_for(data)}", "Use [value, …]")
        if len(data) > MOST_TASKS:
            self.refuse(
                f"Must have at most {MOST_TASKS:,} items, not {len(data):,}",
                'Submit the batch with "open": true and add the others by POST …/tasks',
            )
        return data


class BatchOptionsInput(StrictSerializer):
    fail_fast = StrictBoolean(
        required=False, help_text="After the first final failure nothing further starts; what waits is cancelled"
    )
    fail_fast_running = StrictChoice(
        Batch.FailFastRunning.choices,
        required=False,
        help_text="What becomes of the tasks that run then: they finish, or are cancelled too",
    )
    parallel = StrictBoolean(required=False, help_text="false: one by one, in the given order")
    max_concurrent = StrictInteger(
        min_value=1,
        max_value=MOST_CONCURRENT,
        required=False,
        allow_null=True,
        help_text="How many run at the same time, over all nodes; null is no limit",
    )


class BatchSubmission(StrictSerializer):
    batch_id = StrictString(
        max_length=tasks.MAX_ID, required=False, shape=NAME, help_text="Left out: a new one is made up"
    )
    tasks = ItemsField(
        child=BatchTaskInput(),
        max_length=MOST_TASKS,
        help_text="In their order. At least one, unless the batch is open",
    )
    defaults = DefaultsField(required=False, max_bytes=MAX_BYTES)
    options = BatchOptionsInput(required=False)
    open = StrictBoolean(required=False, help_text="More tasks will be added; the batch does not end before its close")

    # The verb checks it too; here it joins the problems of the other fields in one answer.
    def validate_batch_id(self, value: str) -> str:
        if not tasks.NAME.fullmatch(value):
            raise FieldInvalid("batch_id", "Is not a usable id", tasks.NAME_RULE)
        return value


class BatchAdditionInput(StrictSerializer):
    tasks = ItemsField(child=BatchTaskInput(), min_length=1, max_length=MOST_TASKS)


class BatchFilters(QuerySerializer):
    status = StrictChoice([(each, each) for each in progress.STATUSES], required=False)
    since = Timestamp(required=False, help_text="Submitted at this moment or later")
    until = Timestamp(required=False, help_text="Submitted before this moment")


class BatchTaskFilters(QuerySerializer):
    status = StrictChoice(
        queries.SHOWN,
        required=False,
        help_text="`paused` includes runs that are stopped, `queued` tasks that are claimed and have not started",
    )


# --- answers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seen:
    """A batch at one moment, with what else is to be shown of it."""

    batch: Batch
    progress: Progress
    estimated_completion: datetime | None = None
    tasks: list[Task] | None = None
    retry: Operation | None = None

    @property
    def status(self) -> str:
        return self.progress.status


class ProgressOutput(serializers.Serializer[Progress]):
    """True of one moment: total = completed + failed + in_progress + skipped + cancelled + waiting."""

    total = serializers.IntegerField()
    completed = serializers.IntegerField()
    failed = serializers.IntegerField(help_text="For good: their retries are used up")
    in_progress = serializers.IntegerField(help_text="Their run has begun and not ended")
    skipped = serializers.IntegerField()
    cancelled = serializers.IntegerField()
    waiting = serializers.IntegerField(help_text="All others: queued, delayed, behind the batch's limit or order …")


class BatchOptionsOutput(serializers.Serializer[Batch]):
    fail_fast = serializers.BooleanField()
    fail_fast_running = serializers.ChoiceField(Batch.FailFastRunning.choices)
    parallel = serializers.BooleanField()
    max_concurrent = serializers.IntegerField(allow_null=True)


class BatchAcceptedOutput(serializers.Serializer[Seen]):
    batch_id = serializers.CharField(source="batch.batch_id")
    status = serializers.ChoiceField(progress.STATUSES)
    task_count = serializers.IntegerField(source="progress.total", help_text="Of all its tasks")
    estimated_completion = Timestamp(
        allow_null=True, help_text="From measured durations; null while nobody can know, and of an open batch"
    )


class BatchSummaryOutput(serializers.Serializer[Seen]):
    batch_id = serializers.CharField(source="batch.batch_id")
    status = serializers.ChoiceField(progress.STATUSES)
    progress = ProgressOutput()
    options = BatchOptionsOutput(source="batch")
    open = serializers.BooleanField(source="batch.open", help_text="More tasks may be added, and it cannot end")
    round = serializers.IntegerField(source="batch.round", help_text="One more for each time it went on after its end")
    created_by = serializers.CharField(source="batch.created_by")
    created_at = Timestamp(source="batch.created_at")
    started_at = Timestamp(source="batch.started_at", allow_null=True)
    paused_at = Timestamp(source="batch.paused_at", allow_null=True)
    paused_by = serializers.CharField(source="batch.paused_by")
    cancelled_at = Timestamp(source="batch.cancelled_at", allow_null=True)
    cancelled_by = serializers.CharField(source="batch.cancelled_by")
    cancel_reason = serializers.CharField(source="batch.cancel_reason")
    ended_at = serializers.SerializerMethodField(help_text="Of its latest round; null while it goes on")
    tasks_url = serializers.SerializerMethodField(help_text="All of its tasks, page by page")

    @extend_schema_field(Timestamp(allow_null=True))
    def get_ended_at(self, row: Seen) -> Any:
        return None if row.batch.gate.reopened else Timestamp().to_representation(row.batch.ended_at)

    def get_tasks_url(self, row: Seen) -> str:
        return tasks_address(row.batch)


class ExitOutput(serializers.Serializer[Task]):
    exit_code = serializers.IntegerField(allow_null=True)


class BatchTaskOutput(serializers.Serializer[Task]):
    task_id = serializers.CharField()
    status = serializers.SerializerMethodField()
    result = serializers.SerializerMethodField(help_text="Of the latest attempt; null before the first")
    error = serializers.SerializerMethodField(help_text="What went wrong last; null: nothing")

    @extend_schema_field(serializers.ChoiceField(queries.SHOWN))
    def get_status(self, task: Task) -> str:
        return queries.shown_status(task)

    @extend_schema_field(ExitOutput(allow_null=True))
    def get_result(self, task: Task) -> dict[str, Any] | None:
        return None if task.duration_ms is None else {"exit_code": task.exit_code}

    def get_error(self, task: Task) -> str | None:
        return task.last_error or None


class BatchRetryOutput(serializers.Serializer[Operation]):
    """The bulk job that retries the failed tasks."""

    state = serializers.CharField(help_text="running, stopped, completed or cancelled")
    total = serializers.IntegerField()
    retried = serializers.IntegerField(source="done")
    refused = serializers.IntegerField(help_text="They could not be retried")
    remaining = serializers.SerializerMethodField()
    said = serializers.SerializerMethodField(help_text="What it waits for, or why it has stopped")

    def get_remaining(self, row: Operation) -> int:
        return row.total - row.position

    def get_said(self, row: Operation) -> str | None:
        return row.said or None


class BatchOutput(BatchSummaryOutput):
    estimated_completion = Timestamp(
        allow_null=True,
        help_text="From its own pace, and before that from durations of the same handlers; null while nobody can know",
    )
    defaults = serializers.DictField(source="batch.defaults")
    retry = BatchRetryOutput(allow_null=True, help_text="null: none goes on")
    tasks = BatchTaskOutput(
        many=True, help_text=f"The first {MOST_SHOWN} in their order, failed ones before the others"
    )


def address(batch: Batch) -> str:
    return reverse("batch", kwargs={"batch_id": batch.batch_id})


def tasks_address(batch: Batch) -> str:
    return reverse("batch-tasks", kwargs={"batch_id": batch.batch_id})
