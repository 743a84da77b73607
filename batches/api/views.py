"""The endpoints of batches: validate, one call into the app, respond.

Who may read all tasks may read all batches; others see their own, and of those of somebody else not even that they are
there. Steering is for the owner, and for who manages all batches.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.exceptions import PermissionDenied
from rest_framework.request import Request
from rest_framework.response import Response

from batches import members, progress, steering, submission
from batches.api import problems
from batches.api.serializers import (
    MOST_SHOWN,
    BatchAcceptedOutput,
    BatchAdditionInput,
    BatchFilters,
    BatchOutput,
    BatchSubmission,
    BatchSummaryOutput,
    BatchTaskFilters,
    Seen,
    address,
)
from batches.models import Batch
from batches.submission import Options
from k1node.api.pagination import CursorPagination
from k1node.api.views import ApiViewSet, accepted
from k1node.audit import trail
from k1node.lib.clock_time import database_now
from k1node.lib.errors import InvalidRequest
from k1node.operations.models import Operation
from recovery.api.serializers import InterventionInput
from recovery.records import By
from scheduling.api.serializers import TaskSummaryOutput

READ = ("batch:write", "batch:admin", "scheduler:read")
WRITE = ("batch:write", "batch:admin")
TAGS = ("Batch Operations",)
LOCATION = OpenApiParameter("Location", str, OpenApiParameter.HEADER, description="URL of the batch", response=[202])
Result = TypeVar("Result")


class _BatchApi(ApiViewSet):
    tags = TAGS

    def visible(self) -> QuerySet[Batch]:
        """Return the batches that the caller may know of."""
        if self.principal.may("scheduler:read", "batch:admin"):
            return Batch.objects.all()
        return Batch.objects.filter(owner=self.principal.identity)

    def steered(self, batch_id: str) -> Batch:
        """Return a batch that the caller may steer. Raises NotFound, PermissionDenied."""
        row = self.found(self.visible(), batch_id=batch_id)
        if row.owner != self.principal.identity and not self.principal.may("batch:admin"):
            error = PermissionDenied("Insufficient permissions: the batch is somebody else's, which needs batch:admin")
            trail.refused("access.denied", str(error.detail), target=f"{self.request.method} {self.request.path_info}")
            raise error
        return row

    def told(self, batch: Batch, *, now: datetime, status: str | None = None) -> Response:
        """Return the 202 about tasks that were taken."""
        row, done = progress.read(batch)
        body = BatchAcceptedOutput(Seen(row, done, progress.estimate(row, done, now=now))).data
        return accepted({**body, "status": status or done.status}, location=address(batch))


class BatchViewSet(_BatchApi):
    required_scopes = {
        "list": READ,
        "retrieve": READ,
        "create": WRITE,
        "close": WRITE,
        "cancel": WRITE,
        "pause": WRITE,
        "resume": WRITE,
        "retry_failed": WRITE,
    }
    operation_ids = {
        "list": "listBatches",
        "retrieve": "getBatch",
        "create": "submitBatch",
        "close": "closeBatch",
        "cancel": "cancelBatch",
        "pause": "pauseBatch",
        "resume": "resumeBatch",
        "retry_failed": "retryFailedOfBatch",
    }
    list_key = "batches"
    list_name = "BatchList"
    pagination_class = CursorPagination
    conditional_actions = {"retrieve"}

    @extend_schema(
        parameters=[BatchFilters], responses={200: OpenApiResponse(BatchSummaryOutput(many=True), "The batches")}
    )
    def list(self, request: Request) -> Response:
        """List batches

        The newest first; the filters narrow each other. Without `scheduler:read` or `batch:admin` one's own.
        """
        filters = self.query(BatchFilters)
        rows = self.visible()
        if "status" in filters:
            rows = progress.of_status(rows, filters["status"])
        if "since" in filters:
            rows = rows.filter(created_at__gte=filters["since"])
        if "until" in filters:
            rows = rows.filter(created_at__lt=filters["until"])
        paginator = self.pagination_class()
        # Their progress only now: what counts the list would work it out for every batch there is.
        page = [row.pk for row in paginator.paginate_queryset(rows.only("pk"), request, self)]
        found = progress.with_progress(Batch.objects.filter(pk__in=page)).order_by("-pk")
        shown: Any = [Seen(row, progress.progress_of(row)) for row in found]
        return paginator.get_paginated_response(BatchSummaryOutput(shown, many=True).data)

    @extend_schema(
        parameters=[LOCATION],
        request=BatchSubmission,
        responses={202: OpenApiResponse(BatchAcceptedOutput, "Batch submitted for processing")},
    )
    def create(self, request: Request) -> Response:
        """Submit batch of tasks

        All of them, or none and every problem by its place: `tasks[17].handler`. A call takes at most 10,000 tasks in
        1 MB, for which `defaults` has what they share. More go to a batch that is `open`, until it is closed.
        """
        body = self.validated(BatchSubmission)
        now = database_now()
        batch = _folded(
            lambda: submission.submit(
                body["tasks"],
                batch_id=body.get("batch_id", ""),
                defaults=body.get("defaults"),
                options=Options(**body.get("options", {})),
                is_open=body.get("open", False),
                owner=self.principal.identity,
                by=self.principal.name,
                now=now,
            )
        )
        return self.told(batch, now=now, status=progress.SUBMITTED)

    @extend_schema(responses={200: OpenApiResponse(BatchOutput, "The batch, and how far it is")})
    def retrieve(self, request: Request, batch_id: str) -> Response:
        """Get a batch and its progress"""
        self.query()
        row = self.found(progress.with_progress(self.visible()), batch_id=batch_id)
        done, now = progress.progress_of(row), database_now()
        seen = Seen(
            row,
            done,
            progress.estimate(row, done, now=now),
            members.first(row, done.failed, MOST_SHOWN),
            Operation.objects.filter(operation_id=row.retry_job).first() if row.retry_job else None,
        )
        return self.tagged(row, Response(BatchOutput(seen).data))

    @extend_schema(
        parameters=[LOCATION], request=None, responses={202: OpenApiResponse(BatchSummaryOutput, "Batch closed")}
    )
    def close(self, request: Request, batch_id: str) -> Response:
        """Close an open batch

        It takes no more tasks, and ends once those it has have ended. 409 if it is closed already.
        """
        return self._done(submission.close(self.steered(batch_id), by=self.principal.name, now=database_now()))

    @extend_schema(
        parameters=[LOCATION],
        request=InterventionInput,
        responses={202: OpenApiResponse(BatchSummaryOutput, "Batch cancelled; what runs is being ended")},
    )
    def cancel(self, request: Request, batch_id: str) -> Response:
        """Cancel a batch

        What waits is cancelled at once, what runs is ended; an open batch is closed. 409 if it has ended.
        """
        return self._steer(steering.cancel, batch_id)

    @extend_schema(
        parameters=[LOCATION],
        request=InterventionInput,
        responses={202: OpenApiResponse(BatchSummaryOutput, "Batch paused; what runs finishes")},
    )
    def pause(self, request: Request, batch_id: str) -> Response:
        """Pause a batch

        Nothing of it starts until somebody resumes it; what runs finishes. 409 if it is paused or has ended.
        """
        return self._steer(steering.pause, batch_id)

    @extend_schema(
        parameters=[LOCATION],
        request=InterventionInput,
        responses={202: OpenApiResponse(BatchSummaryOutput, "Batch resumed")},
    )
    def resume(self, request: Request, batch_id: str) -> Response:
        """Resume a paused batch

        409 if it is not paused.
        """
        return self._steer(steering.resume, batch_id)

    @extend_schema(
        parameters=[LOCATION],
        request=InterventionInput,
        responses={202: OpenApiResponse(BatchSummaryOutput, "Begun; `retry` of the batch tells how far it is")},
    )
    def retry_failed(self, request: Request, batch_id: str) -> Response:
        """Retry the failed tasks of a batch

        Each new task takes the place of the one that failed, in a new round; of a batch that was to fail fast also
        those that were cancelled because one had failed. 409 if none has failed, or while they are being retried.
        """
        return self._steer(steering.retry_failed, batch_id)

    def _steer(self, verb: Callable[..., Any], batch_id: str) -> Response:
        batch = self.steered(batch_id)
        by = By(self.principal.name, self.validated(InterventionInput).get("reason") or "")
        verb(batch, by, now=database_now())
        return self._done(batch)

    def _done(self, batch: Batch) -> Response:
        return accepted(BatchSummaryOutput(Seen(*progress.read(batch))).data, location=address(batch))


class MembersPagination(CursorPagination):
    """In the order of submission; what a retry has made comes last."""

    def ordered(self, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.order_by("pk")

    def after(self, queryset: QuerySet[Any], position: int) -> QuerySet[Any]:
        return queryset.filter(pk__gt=position)


class BatchTaskViewSet(_BatchApi):
    required_scopes = {"list": READ, "add": WRITE}
    operation_ids = {"list": "listBatchTasks", "add": "addBatchTasks"}
    list_key = "tasks"
    list_name = "BatchTaskList"
    pagination_class = MembersPagination

    @extend_schema(
        parameters=[BatchTaskFilters], responses={200: OpenApiResponse(TaskSummaryOutput(many=True), "Its tasks")}
    )
    def list(self, request: Request, batch_id: str) -> Response:
        """List the tasks of a batch

        In their order. A failed task that was retried has left it; the new one is there instead, at the end.
        """
        filters = self.query(BatchTaskFilters)
        batch = self.found(self.visible(), batch_id=batch_id)
        rows = members.tasks(batch, filters.get("status")).defer("parameters", "origin__parameters")
        return self.listed(rows, TaskSummaryOutput)

    @extend_schema(
        parameters=[LOCATION],
        request=BatchAdditionInput,
        responses={202: OpenApiResponse(BatchAcceptedOutput, "Tasks added")},
    )
    def add(self, request: Request, batch_id: str) -> Response:
        """Add tasks to an open batch

        All of them or none, as on submission; the defaults of the batch hold for them. 409 if it is not open.
        """
        batch = self.steered(batch_id)
        body, now = self.validated(BatchAdditionInput), database_now()
        _folded(lambda: submission.add(batch, body["tasks"], by=self.principal.name, now=now))
        return self.told(batch, now=now)


def _folded(work: Callable[[], Result]) -> Result:
    """Return what `work` does; of thousands of bad items its error explains the first."""
    try:
        return work()
    except InvalidRequest as error:
        raise InvalidRequest(error.message, details=problems.folded(error.details)) from error
