"""The scheduling endpoints: validate, one call into the app, respond."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db.models import QuerySet
from django.urls import reverse
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from k1node.api.pagination import CursorPagination, PagePagination, decode_cursor, encode_cursor
from k1node.api.views import ApiViewSet, accepted, created, gone
from k1node.lib.clock_time import database_now
from k1node.lib.errors import FieldInvalid, NotFound
from scheduling import cron, queries, schedules, tasks, triggers
from scheduling.api.serializers import (
    ExpressionFilters,
    OutputFilters,
    PreviewFilters,
    PreviewOutput,
    QueueStatusOutput,
    RunInput,
    ScheduleFilters,
    ScheduleInput,
    ScheduleOutput,
    ScheduleUpdate,
    SlotOutput,
    TaskFilters,
    TaskInput,
    TaskOutput,
    TaskOutputOutput,
    TaskSummaryOutput,
    TriggerInput,
    TriggerOutput,
)
from scheduling.models import Schedule, Slot, Task

READ = ("scheduler:read",)
WRITE = ("scheduler:write",)
TRIGGER = ("scheduler:trigger",)
TAGS = ("Scheduling",)
WARN_AHEAD = timedelta(days=366)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _location(description: str, status: int) -> OpenApiParameter:
    """Return what the OpenAPI document says of an answer's Location."""
    return OpenApiParameter("Location", str, OpenApiParameter.HEADER, description=description, response=[status])


class ScheduleViewSet(ApiViewSet):
    required_scopes = {
        "list": READ,
        "retrieve": READ,
        "preview": READ,
        "create": WRITE,
        "partial_update": WRITE,
        "destroy": WRITE,
        "run": TRIGGER,
    }
    operation_ids = {
        "list": "listSchedules",
        "retrieve": "getSchedule",
        "preview": "previewSchedule",
        "create": "createSchedule",
        "partial_update": "updateSchedule",
        "destroy": "deleteSchedule",
        "run": "runSchedule",
    }
    tags = TAGS
    list_key = "schedules"
    list_name = "ScheduleList"
    conditional_actions = {"retrieve", "create", "partial_update", "destroy"}
    settings_fields = schedules.EDITABLE

    @extend_schema(
        parameters=[ScheduleFilters], responses={200: OpenApiResponse(ScheduleOutput(many=True), "List of schedules")}
    )
    def list(self, request: Request) -> Response:
        """List all schedules"""
        filters = self.query(ScheduleFilters)
        rows = Schedule.objects.order_by("task_id")
        if "type" in filters:
            rows = rows.filter(schedule_type=filters["type"])
        if "enabled" in filters:
            rows = rows.filter(enabled=filters["enabled"])
        paginator = self.pagination_class()
        page = paginator.paginate_queryset(rows, request, self)
        return paginator.get_paginated_response(_shown(page))

    @extend_schema(
        parameters=[_location("URL of created schedule", 201)],
        request=ScheduleInput,
        responses={201: OpenApiResponse(ScheduleOutput, "Schedule created")},
    )
    def create(self, request: Request) -> Response:
        """Create new schedule

        It is due from now on; `Location` is its address.
        """
        values = self.validated(ScheduleInput)
        schedule = schedules.create(values, self.principal.name, now=database_now())
        return self.tagged(schedule, created(_shown([schedule])[0], location=_schedule_address(schedule)))

    @extend_schema(responses={200: OpenApiResponse(ScheduleOutput, "Schedule details")})
    def retrieve(self, request: Request, schedule_id: str) -> Response:
        """Get schedule details"""
        self.query()
        schedule = _schedule(schedule_id)
        return self.tagged(schedule, Response(_shown([schedule])[0]))

    @extend_schema(request=ScheduleUpdate, responses={200: OpenApiResponse(ScheduleOutput, "Schedule updated")})
    def partial_update(self, request: Request, schedule_id: str) -> Response:
        """Update schedule

        Only what is given changes. Slots that have passed are not made up for.
        """
        schedule = _schedule(schedule_id)
        changes = self.validated(ScheduleUpdate, partial=True, schedule_type=schedule.schedule_type)
        now, by = database_now(), self.principal.name
        changed = self.guarded(
            Schedule.objects.filter(pk=schedule.pk), lambda: schedules.update(schedule, changes, by, now=now)
        )
        return self.tagged(changed, Response(_shown([changed])[0]))

    @extend_schema(responses={204: OpenApiResponse(description="Schedule deleted")})
    def destroy(self, request: Request, schedule_id: str) -> Response:
        """Delete schedule

        What it has queued or runs goes on, and its tasks stay readable.
        """
        schedule = _schedule(schedule_id)
        now, by = database_now(), self.principal.name
        self.guarded(Schedule.objects.filter(pk=schedule.pk), lambda: schedules.delete(schedule, by, now=now))
        return gone()

    @extend_schema(
        parameters=[_location("URL of the run", 202)],
        request=RunInput,
        responses={202: OpenApiResponse(TaskSummaryOutput, "Run queued")},
    )
    def run(self, request: Request, schedule_id: str) -> Response:
        """Run a schedule now

        Also a disabled or paused one. 409 if an earlier run has not ended and the overlap policy leaves this one out.
        """
        schedule = _schedule(schedule_id)
        body = self.validated(RunInput)
        task = schedules.run_now(schedule, self.principal.name, body.get("parameters"), now=database_now())
        return accepted(TaskSummaryOutput(task).data, location=_address(task))

    @extend_schema(parameters=[PreviewFilters], responses={200: OpenApiResponse(PreviewOutput, "The next runs")})
    def preview(self, request: Request, schedule_id: str) -> Response:
        """Preview the next runs of a schedule

        As they stand: after a pause, without a run to be left out, within its period. A disabled one is shown as if
        it were enabled; an event schedule has none.
        """
        schedule = _schedule(schedule_id)
        count = self.query(PreviewFilters)["count"]
        now = database_now()
        body = _preview(schedule.schedule_expr, schedule.timezone, schedules.upcoming(schedule, count, now=now))
        body["description"] = schedules.in_words(schedule)
        if schedule.schedule_type == "cron":
            body["warnings"] = cron.dst_warnings(schedule.schedule_expr, schedule.timezone, now, WARN_AHEAD)
        return Response(PreviewOutput(body).data)


class ExpressionViewSet(ApiViewSet):
    required_scopes = {"preview": READ}
    operation_ids = {"preview": "previewExpression"}
    tags = TAGS

    @extend_schema(parameters=[ExpressionFilters], responses={200: OpenApiResponse(PreviewOutput, "The next runs")})
    def preview(self, request: Request) -> Response:
        """Preview a cron expression before it is saved"""
        asked = self.query(ExpressionFilters)
        expression, zone, now = asked["schedule_expr"], asked["timezone"], database_now()
        body = _preview(expression, zone, cron.preview(expression, zone, now, asked["count"]))
        body["description"] = cron.describe(expression, zone)
        body["warnings"] = cron.dst_warnings(expression, zone, now, WARN_AHEAD)
        return Response(PreviewOutput(body).data)


class LedgerPagination(CursorPagination):
    """By due time, which the ledger has an index for; the cursor is that of the last row, in microseconds."""

    def paginate_queryset(
        self, queryset: QuerySet[Any] | Sequence[Any], request: Request, view: APIView | None = None
    ) -> list[Any]:
        assert isinstance(queryset, QuerySet)
        self.address = request.build_absolute_uri()
        self.by_cursor = "cursor" in request.query_params
        if self.by_cursor:
            if "page" in request.query_params:
                raise FieldInvalid("cursor", "Must not come together with page", "Leave page out")
            last = decode_cursor(request.query_params["cursor"])
            queryset = queryset.filter(due_at__lt=_moment(last))
        rows = PagePagination.paginate_queryset(self, queryset.order_by("-due_at"), request, view)
        reached = (self.page - 1) * self.limit + len(rows)
        more = bool(rows) and (self.capped or reached < self.total)
        self.next_cursor = encode_cursor((rows[-1].due_at - EPOCH) // timedelta(microseconds=1)) if more else None
        return rows


class SlotViewSet(ApiViewSet):
    required_scopes = {"list": READ}
    operation_ids = {"list": "listSlots"}
    tags = TAGS
    list_key = "slots"
    list_name = "SlotList"
    pagination_class = LedgerPagination

    @extend_schema(responses={200: OpenApiResponse(SlotOutput(many=True), "The ledger")})
    def list(self, request: Request, schedule_id: str) -> Response:
        """List a schedule's slots

        The ledger, newest first: what became of every due time.
        """
        self.query()
        schedule = _schedule(schedule_id)
        rows = (
            Slot.objects.filter(schedule=schedule)
            .select_related("task")
            .only("due_at", "last_due_at", "count", "outcome", "reason", "recorded_at", "task__task_id")
        )
        return self.listed(rows, SlotOutput)


class TriggerViewSet(ApiViewSet):
    required_scopes = {"trigger": TRIGGER}
    operation_ids = {"trigger": "triggerEvent"}
    tags = TAGS

    @extend_schema(
        request=TriggerInput, responses={202: OpenApiResponse(TriggerOutput, "Event triggered, schedules queued")}
    )
    def trigger(self, request: Request) -> Response:
        """Trigger event-based schedules

        Each gets the event among its parameters, as `event: {name, metadata}`.
        """
        body, now = self.validated(TriggerInput), database_now()
        done = triggers.trigger(body["event"], body.get("metadata", {}), self.principal.name, now=now)
        said = {
            "message": "Event triggered",
            "event": body["event"],
            "matching_schedules": done.matched,
            "queued_tasks": len(done.tasks),
            "timestamp": now,
        }
        return accepted(TriggerOutput(said).data)


class QueueViewSet(ApiViewSet):
    required_scopes = {"status": READ}
    operation_ids = {"status": "getQueueStatus"}
    tags = TAGS

    @extend_schema(responses={200: OpenApiResponse(QueueStatusOutput, "Queue status")})
    def status(self, request: Request) -> Response:
        """Get priority queue status"""
        self.query()
        return Response(queries.queue_status(database_now()))


class TaskViewSet(ApiViewSet):
    required_scopes = {"list": READ, "retrieve": READ, "output": READ, "create": WRITE}
    operation_ids = {"list": "listTasks", "retrieve": "getTask", "output": "getTaskOutput", "create": "createTask"}
    tags = TAGS
    list_key = "tasks"
    list_name = "TaskList"
    pagination_class = CursorPagination
    conditional_actions = {"retrieve"}

    @extend_schema(
        parameters=[TaskFilters], responses={200: OpenApiResponse(TaskSummaryOutput(many=True), "List of tasks")}
    )
    def list(self, request: Request) -> Response:
        """List tasks

        Newest first. The filters narrow each other.
        """
        filters = self.query(TaskFilters)
        created_since = filters.pop("since", None)
        rows = queries.tasks(created_since=created_since, **filters).defer("parameters", "origin__parameters")
        return self.listed(rows, TaskSummaryOutput)

    @extend_schema(
        parameters=[_location("URL of the task", 202)],
        request=TaskInput,
        responses={202: OpenApiResponse(TaskSummaryOutput, "Task queued")},
    )
    def create(self, request: Request) -> Response:
        """Submit one task

        `Location` is where to follow it.
        """
        task = tasks.submit(self.validated(TaskInput), self.principal.name, now=database_now())
        return accepted(TaskSummaryOutput(task).data, location=_address(task))

    @extend_schema(responses={200: OpenApiResponse(TaskOutput, "Task details")})
    def retrieve(self, request: Request, task_id: str) -> Response:
        """Get a task with its attempts

        A schedule's task_id means its most recent run.
        """
        self.query()
        task = _task(task_id)
        shown = TaskOutput(task, context={"attempts": queries.latest_attempts(task)}).data
        return self.tagged(task, Response(shown))

    @extend_schema(
        parameters=[OutputFilters], responses={200: OpenApiResponse(TaskOutputOutput, "A page of the output")}
    )
    def output(self, request: Request, task_id: str) -> Response:
        """Get what a task wrote

        Also while it runs: ask again from `next_offset` until `complete`.
        """
        asked = self.query(OutputFilters)
        task = _task(task_id)
        chosen = {name: asked[name] for name in ("attempt", "fence") if name in asked}
        run = queries.run_of(task, **chosen)
        if run is None and chosen:
            raise NotFound("The task has no such attempt")
        page = queries.output_from(task, run, asked["offset"], asked["limit"])
        return Response({"task_id": task.task_id, **page})


def _schedule(schedule_id: str) -> Schedule:
    schedule = Schedule.objects.filter(task_id=schedule_id).first()
    if schedule is None:
        raise NotFound()
    return schedule


def _task(task_id: str) -> Task:
    task = queries.task_by_id(task_id)
    if task is None:
        raise NotFound()
    return task


def _schedule_address(schedule: Schedule) -> str:
    return reverse("schedule", kwargs={"schedule_id": schedule.task_id})


def _address(task: Task) -> str:
    return reverse("task", kwargs={"task_id": task.task_id})


def _shown(rows: Any) -> Any:
    return ScheduleOutput(rows, many=True, context={"statistics": queries.statistics(rows)}).data


def _moment(microseconds: int) -> datetime:
    try:
        return EPOCH + timedelta(microseconds=microseconds)
    except OverflowError:
        raise FieldInvalid(
            "cursor", "Is not a cursor of this list", "Use pagination.next_cursor of an earlier page"
        ) from None


def _preview(expression: str, zone: str, times: Sequence[datetime]) -> dict[str, Any]:
    local = cron.zone(zone)
    return {
        "schedule_expr": expression,
        "timezone": zone,
        "fire_times": [{"utc": at, "local": at.astimezone(local).isoformat()} for at in times],
        "warnings": [],
    }
