"""The messages of the scheduling API. A schedule's and a task's `task_id` is their name; primary keys stay inside."""

import re
from collections.abc import Mapping
from typing import Any

from django.urls import reverse
from drf_spectacular.utils import extend_schema_field
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
from scheduling import cron, handlers, queries, queue, registry, schedules, tasks
from scheduling.models import Attempt, CatchUp, GateKind, OverlapPolicy, Schedule, ScheduleType, Slot, Task

PREVIEW_MOST = 100
PREVIEW_DEFAULT = 10
OUTPUT_LIMIT = 65_536
OUTPUT_MOST = 262_144
OFFSET_MOST = 2**53

# What the checks of handlers, expressions, zones and names take, for the OpenAPI document.
NO_SHELL = r"[^;|&><$`(){}*?~]+"
HANDLER = rf"{re.escape(handlers.PYTHON_PREFIX)}{registry.NAME.pattern}|{NO_SHELL} {NO_SHELL}"
CRON_FIELD = "[0-9A-Za-z*,/#?-]+"
CRON = rf"@[A-Za-z]+|{CRON_FIELD}(?: +{CRON_FIELD}){{4}}"
EXPRESSION = rf"{CRON}|{schedules.EVENT_NAME.pattern}|{schedules.EVENT_PATTERN.pattern}"
ZONE = r"[A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+){0,2}"
NAME = tasks.NAME.pattern
POLICY = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

LOWEST, HIGHEST = tasks.PRIORITIES
SHORTEST_MS, LONGEST_MS = tasks.TIMEOUTS_MS


# --- schedules --------------------------------------------------------------------------------------------------


class ScheduleUpdate(StrictSerializer):
    """What can be changed of a schedule; what is left out stays as it is."""

    # Where blank is let through, a check of the domain's refuses it, with a better suggestion.

    task_id = serializers.CharField(read_only=True)
    task_name = StrictString(max_length=200, required=False, allow_blank=True)
    handler = StrictString(
        max_length=handlers.MAX_LENGTH,
        allow_blank=True,
        required=False,
        shape=HANDLER,
        trim_whitespace=True,
        help_text="`bash ops/agents/backup.sh` or `python:name`; parameters reach it on stdin and in K1_PARAM_*",
    )
    parameters = StrictObject(required=False)
    schedule_type = StrictChoice(ScheduleType.choices, required=False)
    schedule_expr = StrictString(
        max_length=schedules.MAX_EXPRESSION,
        required=False,
        allow_blank=True,
        shape=EXPRESSION,
        trim_whitespace=True,
        help_text="Five cron fields or @daily and its like; or an event's name, or its beginning and a star",
    )
    event_filter = StrictObject(
        required=False, help_text="What an event's metadata must equal; keys may be paths: repo.name"
    )
    timezone = StrictString(max_length=64, required=False, allow_blank=True, shape=ZONE, help_text="IANA name")
    priority = StrictInteger(min_value=LOWEST, max_value=HIGHEST, required=False, help_text="10 is the most urgent")
    timeout_ms = StrictInteger(min_value=SHORTEST_MS, max_value=LONGEST_MS, required=False)
    retry_policy = StrictString(max_length=64, required=False, allow_blank=True, shape=POLICY)
    circuit_breaker = StrictString(
        max_length=tasks.MAX_ID,
        required=False,
        allow_blank=True,
        shape=rf"(?:{NAME})?",
        help_text="Name of a breaker; `default` is one of the schedule's own, empty is none",
    )
    enabled = StrictBoolean(required=False)
    paused_until = Timestamp(required=False, allow_null=True)
    pause_reason = StrictString(max_length=500, required=False, allow_blank=True)
    overlap_policy = StrictChoice(OverlapPolicy.choices, required=False)
    catch_up = StrictChoice(CatchUp.choices, required=False)
    catch_up_window_ms = StrictInteger(min_value=0, max_value=schedules.MAX_WINDOW_MS, required=False)
    catch_up_cap = StrictInteger(min_value=0, max_value=schedules.MAX_CATCH_UP_CAP, required=False)
    jitter_ms = StrictInteger(min_value=0, max_value=schedules.MAX_JITTER_MS, required=False)
    starts_at = Timestamp(required=False, allow_null=True)
    ends_at = Timestamp(required=False, allow_null=True)
    skip_next = StrictBoolean(required=False)

    # The verb checks these too; here they join the problems of the other fields in one answer.
    def validate_handler(self, value: str) -> str:
        handlers.parse(value)
        return value

    def validate_schedule_expr(self, value: str) -> str:
        given = self.initial_data.get("schedule_type", self.context.get("schedule_type"))
        if given in ScheduleType.values:
            schedules.check_expression(given, value)
        return value

    def validate_timezone(self, value: str) -> str:
        cron.zone(value)
        return value

    def validate_retry_policy(self, value: str) -> str:
        queue.check_policy(value)
        return value

    def validate_circuit_breaker(self, value: str) -> str:
        tasks.check_breaker(value)
        return value


class ScheduleInput(ScheduleUpdate):
    """A new schedule."""

    task_id = StrictString(max_length=tasks.MAX_ID, shape=NAME)
    handler = StrictString(
        max_length=handlers.MAX_LENGTH,
        allow_blank=True,
        shape=HANDLER,
        trim_whitespace=True,
        help_text="`bash ops/agents/backup.sh` or `python:name`; parameters reach it on stdin and in K1_PARAM_*",
    )
    schedule_type = StrictChoice(ScheduleType.choices)
    schedule_expr = StrictString(
        max_length=schedules.MAX_EXPRESSION,
        allow_blank=True,
        shape=EXPRESSION,
        trim_whitespace=True,
        help_text="Five cron fields or @daily and its like; or an event's name, or its beginning and a star",
    )

    def validate_task_id(self, value: str) -> str:
        tasks.check_id(value)
        return value


class ScheduleOutput(serializers.Serializer[Schedule]):
    task_id = serializers.CharField()
    task_name = serializers.CharField()
    schedule_type = serializers.ChoiceField(ScheduleType.choices)
    schedule_expr = serializers.CharField()
    timezone = serializers.CharField()
    description = serializers.SerializerMethodField(help_text="When it runs, in words")
    event_filter = serializers.DictField()
    handler = serializers.CharField()
    parameters = serializers.DictField()
    priority = serializers.IntegerField(min_value=LOWEST, max_value=HIGHEST)
    timeout_ms = serializers.IntegerField()
    retry_policy = serializers.CharField(source="retry_policy_id")
    circuit_breaker = serializers.CharField()
    enabled = serializers.BooleanField()
    paused_until = Timestamp(allow_null=True)
    pause_reason = serializers.CharField()
    overlap_policy = serializers.ChoiceField(OverlapPolicy.choices)
    catch_up = serializers.ChoiceField(CatchUp.choices)
    catch_up_window_ms = serializers.IntegerField()
    catch_up_cap = serializers.IntegerField()
    jitter_ms = serializers.IntegerField()
    starts_at = Timestamp(allow_null=True)
    ends_at = Timestamp(allow_null=True)
    skip_next = serializers.BooleanField()
    last_error = serializers.CharField(help_text="Why the clock could not fire it; an edit clears it")
    created_by = serializers.CharField()
    created_at = Timestamp()
    updated_at = Timestamp()
    last_executed = serializers.SerializerMethodField()
    next_execution = serializers.SerializerMethodField()
    execution_count = serializers.SerializerMethodField(help_text="Runs that completed or failed for good")
    failure_count = serializers.SerializerMethodField()
    average_duration_ms = serializers.SerializerMethodField(help_text="Of the runs that completed")

    def get_description(self, schedule: Schedule) -> str:
        return schedules.in_words(schedule)

    @extend_schema_field(Timestamp(allow_null=True))
    def get_last_executed(self, schedule: Schedule) -> Any:
        return self._statistics(schedule).last_executed

    @extend_schema_field(Timestamp(allow_null=True))
    def get_next_execution(self, schedule: Schedule) -> Any:
        return schedules.next_execution(schedule)

    def get_execution_count(self, schedule: Schedule) -> int:
        return self._statistics(schedule).execution_count

    def get_failure_count(self, schedule: Schedule) -> int:
        return self._statistics(schedule).failure_count

    def get_average_duration_ms(self, schedule: Schedule) -> int | None:
        return self._statistics(schedule).average_duration_ms

    def _statistics(self, schedule: Schedule) -> queries.Statistics:
        known: Mapping[int, queries.Statistics] = self.context.get("statistics", {})
        return known.get(schedule.pk, queries.NO_RUNS)


class ScheduleFilters(QuerySerializer):
    type = StrictChoice(ScheduleType.choices, required=False)
    enabled = StrictBoolean(required=False)


class RunInput(StrictSerializer):
    parameters = StrictObject(required=False, help_text="Laid over the schedule's own, key by key")


class PreviewFilters(QuerySerializer):
    count = StrictInteger(min_value=1, max_value=PREVIEW_MOST, default=PREVIEW_DEFAULT)


class ExpressionFilters(PreviewFilters):
    schedule_expr = StrictString(
        max_length=schedules.MAX_EXPRESSION, allow_blank=True, shape=CRON, trim_whitespace=True
    )
    timezone = StrictString(max_length=64, default="UTC", allow_blank=True, shape=ZONE)

    def validate_schedule_expr(self, value: str) -> str:
        cron.parse(value)
        return value

    def validate_timezone(self, value: str) -> str:
        cron.zone(value)
        return value


class FireTime(serializers.Serializer[Any]):
    utc = Timestamp()
    local = serializers.DateTimeField(help_text="The same moment by the clocks of the time zone")


class PreviewOutput(serializers.Serializer[Any]):
    schedule_expr = serializers.CharField()
    timezone = serializers.CharField()
    description = serializers.CharField(help_text="The expression in words")
    fire_times = FireTime(many=True)
    warnings = serializers.ListField(
        child=serializers.CharField(), help_text="Clock changes of the next year that touch a run"
    )


class SlotOutput(serializers.Serializer[Slot]):
    """Consecutive slots that were missed or skipped for one reason share a row: first, last and count."""

    due_at = Timestamp(help_text="The slot, or the first of the row")
    last_due_at = Timestamp()
    count = serializers.IntegerField()
    outcome = serializers.ChoiceField(Slot.Outcome.choices)
    reason = serializers.CharField()
    task_id = serializers.SerializerMethodField(help_text="The run it made; null if none, or no longer kept")
    recorded_at = Timestamp()

    def get_task_id(self, slot: Slot) -> str | None:
        return slot.task.task_id if slot.task else None


# --- events and the queue ---------------------------------------------------------------------------------------


class TriggerInput(StrictSerializer):
    event = StrictString(max_length=200, shape=schedules.EVENT_NAME.pattern)
    metadata = StrictObject(required=False)


class TriggerOutput(serializers.Serializer[Any]):
    message = serializers.CharField()
    event = serializers.CharField()
    matching_schedules = serializers.IntegerField()
    queued_tasks = serializers.IntegerField()
    timestamp = Timestamp()


class QueueCountsOutput(serializers.Serializer[Any]):
    queued = serializers.IntegerField(max_value=queries.COUNT_CAP)
    queued_capped = serializers.BooleanField(required=False, help_text="True when there are more than `queued`")
    executing = serializers.IntegerField()
    completed = serializers.IntegerField(help_text="Since the beginning")


class ResourceUsageOutput(serializers.Serializer[Any]):
    concurrent_tasks = serializers.IntegerField()
    total_cpu_percent = serializers.FloatField()
    total_memory_percent = serializers.FloatField()


class ResourceLimitsOutput(serializers.Serializer[Any]):
    max_concurrent_tasks = serializers.IntegerField()
    max_cpu_percent = serializers.FloatField()
    max_memory_percent = serializers.FloatField()


class PendingTaskOutput(serializers.Serializer[Any]):
    priority = serializers.IntegerField(min_value=LOWEST, max_value=HIGHEST)
    task_id = serializers.CharField()
    enqueued_at = Timestamp()
    wait_time_ms = serializers.IntegerField()


class QueueStatusOutput(serializers.Serializer[Any]):
    timestamp = Timestamp()
    queue_status = QueueCountsOutput()
    resource_usage = ResourceUsageOutput()
    resource_limits = ResourceLimitsOutput()
    pending_tasks = PendingTaskOutput(many=True, help_text=f"The next {queries.PENDING_SHOWN}, in their order")


# --- tasks ------------------------------------------------------------------------------------------------------


class TaskInput(StrictSerializer):
    """One task; `handler` is all it needs."""

    task_id = StrictString(
        max_length=tasks.MAX_ID, required=False, shape=NAME, help_text="Left out: a new one is made up"
    )
    task_name = StrictString(max_length=200, required=False, allow_blank=True)
    handler = StrictString(max_length=handlers.MAX_LENGTH, allow_blank=True, shape=HANDLER, trim_whitespace=True)
    parameters = StrictObject(required=False)
    priority = StrictInteger(min_value=LOWEST, max_value=HIGHEST, required=False, help_text="10 is the most urgent")
    timeout_ms = StrictInteger(min_value=SHORTEST_MS, max_value=LONGEST_MS, required=False)
    retry_policy = StrictString(max_length=64, required=False, allow_blank=True, shape=POLICY)
    circuit_breaker = StrictString(
        max_length=tasks.MAX_ID,
        required=False,
        allow_blank=True,
        shape=rf"(?:{NAME})?",
        help_text="Name of a breaker; `default` is one of the handler's own, empty is none",
    )
    delay_until = Timestamp(required=False, allow_null=True)

    # The verb checks these too; here they join the problems of the other fields in one answer.
    def validate_task_id(self, value: str) -> str:
        tasks.check_id(value)
        return value

    def validate_handler(self, value: str) -> str:
        handlers.parse(value)
        return value

    def validate_retry_policy(self, value: str) -> str:
        queue.check_policy(value)
        return value

    def validate_circuit_breaker(self, value: str) -> str:
        tasks.check_breaker(value)
        return value


class TaskFilters(QuerySerializer):
    status = StrictChoice(
        queries.SHOWN,
        required=False,
        help_text="`paused` includes runs that are stopped, `queued` tasks that are claimed and have not started",
    )
    schedule = StrictString(max_length=tasks.MAX_ID, required=False, help_text="A schedule's task_id")
    batch = StrictString(max_length=200, required=False)
    handler = StrictString(max_length=handlers.MAX_LENGTH, required=False)
    since = Timestamp(required=False, help_text="Created at this time or later")


class ResultOutput(serializers.Serializer[Any]):
    exit_code = serializers.IntegerField(allow_null=True)
    duration_ms = serializers.IntegerField(allow_null=True)


class ValueOutput(ResultOutput):
    value = serializers.JSONField(allow_null=True, help_text="What a Python handler returned")


class AttemptOutput(serializers.Serializer[Attempt]):
    attempt = serializers.IntegerField(source="number", help_text="Attempts spent, this one included if it counts")
    fence = serializers.IntegerField(help_text="Tells two runs of one attempt apart")
    outcome = serializers.CharField()
    decision = serializers.CharField()
    retry_at = Timestamp(allow_null=True)
    worker = serializers.CharField()
    started_at = Timestamp()
    finished_at = Timestamp()
    duration_ms = serializers.IntegerField()
    exit_code = serializers.IntegerField(allow_null=True)
    error = serializers.CharField()
    output_bytes = serializers.IntegerField()
    output = serializers.SerializerMethodField(help_text="Where its output is")

    def get_output(self, attempt: Attempt) -> str:
        return f"{output_address(self.context['task_id'])}?fence={attempt.fence}"


class TaskSummaryOutput(serializers.Serializer[Task]):
    task_id = serializers.CharField()
    task_name = serializers.CharField()
    status = serializers.SerializerMethodField()
    schedule = serializers.SerializerMethodField(help_text="The schedule's task_id; null if none, or deleted")
    batch = serializers.SerializerMethodField()
    origin = serializers.SerializerMethodField(help_text="The task this one repeats")
    handler = serializers.CharField()
    priority = serializers.IntegerField(min_value=LOWEST, max_value=HIGHEST)
    timeout_ms = serializers.IntegerField()
    retry_policy = serializers.CharField(source="retry_policy_id")
    circuit_breaker = serializers.CharField()
    attempt = serializers.IntegerField(help_text="Attempts spent")
    due_at = Timestamp()
    created_by = serializers.CharField()
    created_at = Timestamp()
    started_at = Timestamp(allow_null=True, help_text="Of the latest attempt")
    finished_at = Timestamp(allow_null=True)
    paused_at = Timestamp(allow_null=True)
    paused_until = Timestamp(allow_null=True, help_text="When it goes on by itself; null: when somebody resumes it")
    result = serializers.SerializerMethodField(help_text="Of the latest attempt; null before the first")
    last_error = serializers.CharField()

    @extend_schema_field(serializers.ChoiceField(queries.SHOWN))
    def get_status(self, task: Task) -> str:
        return queries.shown_status(task)

    def get_schedule(self, task: Task) -> str | None:
        return task.schedule.task_id if task.schedule else None

    def get_batch(self, task: Task) -> str | None:
        return task.gate.key if task.gate and task.gate.kind == GateKind.BATCH else None

    def get_origin(self, task: Task) -> str | None:
        return task.origin.task_id if task.origin else None

    @extend_schema_field(ResultOutput(allow_null=True))
    def get_result(self, task: Task) -> dict[str, Any] | None:
        if task.duration_ms is None:
            return None
        return {"exit_code": task.exit_code, "duration_ms": task.duration_ms}


class TaskOutput(TaskSummaryOutput):
    parameters = serializers.DictField()
    output = serializers.SerializerMethodField(help_text="Where the output of the latest attempt is")
    attempts = serializers.SerializerMethodField(help_text="The newest 50, the latest first")

    def get_output(self, task: Task) -> str:
        return output_address(task.task_id)

    @extend_schema_field(AttemptOutput(many=True))
    def get_attempts(self, task: Task) -> Any:
        return AttemptOutput(self.context["attempts"], many=True, context={"task_id": task.task_id}).data

    @extend_schema_field(ValueOutput(allow_null=True))
    def get_result(self, task: Task) -> dict[str, Any] | None:
        result, attempts = super().get_result(task), self.context["attempts"]
        return {**result, "value": attempts[0].value if attempts else None} if result else None


class OutputFilters(QuerySerializer):
    offset = StrictInteger(min_value=0, max_value=OFFSET_MOST, default=0)
    limit = StrictInteger(min_value=1024, max_value=OUTPUT_MOST, default=OUTPUT_LIMIT, help_text="Bytes, about")
    attempt = StrictInteger(min_value=0, max_value=32_767, required=False, help_text="Default: the latest run")
    fence = StrictInteger(min_value=0, max_value=OFFSET_MOST, required=False, help_text="One run exactly")


class CutOutput(serializers.Serializer[Any]):
    to = serializers.IntegerField()

    def get_fields(self) -> dict[str, Any]:
        # `from` cannot be an attribute's name.
        return {"from": serializers.IntegerField(), **super().get_fields()}


class ChunkOutput(serializers.Serializer[Any]):
    offset = serializers.IntegerField()
    stream = serializers.ChoiceField([("stdout", "stdout"), ("stderr", "stderr")])
    text = serializers.CharField(help_text="What is not UTF-8 is replaced by U+FFFD")


class TaskOutputOutput(serializers.Serializer[Any]):
    """A page of what a run wrote. Offsets count the bytes of both streams together, in the order of writing."""

    task_id = serializers.CharField()
    attempt = serializers.IntegerField(allow_null=True, help_text="Null before the first run")
    fence = serializers.IntegerField(allow_null=True)
    offset = serializers.IntegerField()
    next_offset = serializers.IntegerField(help_text="The `offset` to go on with")
    total = serializers.IntegerField(help_text="Bytes written so far, kept or not")
    complete = serializers.BooleanField(help_text="The run is over and this page reaches its end")
    cut = CutOutput(many=True, help_text="Stretches that were not kept")
    chunks = ChunkOutput(many=True)


def output_address(task_id: str) -> str:
    return reverse("task-output", kwargs={"task_id": task_id})
