"""The recovery endpoints: validate, one call into the app, respond."""

from typing import Any

from django.urls import reverse
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from k1node.api.declared import PAGED
from k1node.api.serializers import StrictSerializer
from k1node.api.views import ApiViewSet, accepted
from k1node.lib.clock_time import database_now
from k1node.lib.errors import FieldInvalid, NotFound
from recovery import explain, interventions, metrics
from recovery.api.serializers import (
    EndedOutput,
    ExplanationOutput,
    InterventionHistoryOutput,
    InterventionInput,
    InterventionOutput,
    PausedOutput,
    PriorityInput,
    PriorityOutput,
    ResumedOutput,
    RetriedOutput,
    RetryInput,
    RetryStatsFilters,
    RetryStatsOutput,
    UntilInput,
)
from recovery.models import Intervention
from recovery.records import By
from scheduling import queries
from scheduling.models import RetryPolicy, Task

READ = ("error-recovery:read",)
WRITE = ("error-recovery:write",)
TAGS = ("Error Recovery",)


class MetricsViewSet(ApiViewSet):
    required_scopes = {"retry_stats": READ}
    operation_ids = {"retry_stats": "getRetryStats"}
    tags = TAGS

    @extend_schema(
        parameters=[RetryStatsFilters], responses={200: OpenApiResponse(RetryStatsOutput, "Retry statistics")}
    )
    def retry_stats(self, request: Request) -> Response:
        """Get retry engine metrics"""
        asked = self.query(RetryStatsFilters)
        policy = asked.get("policy")
        if policy is not None and not RetryPolicy.objects.filter(pk=policy).exists():
            known = ", ".join(RetryPolicy.objects.values_list("name", flat=True)[:20])
            raise FieldInvalid("policy", f"There is no retry policy '{policy}'", f"Use one of: {known}")
        return Response(metrics.retry_stats(asked["interval"], policy, now=database_now()))


class ExplainViewSet(ApiViewSet):
    required_scopes = {"explain": ("scheduler:read", *READ)}
    operation_ids = {"explain": "explainTask"}
    tags = TAGS

    @extend_schema(responses={200: OpenApiResponse(ExplanationOutput, "The one reason")})
    def explain(self, request: Request, task_id: str) -> Response:
        """Explain why a task is not running

        The one reason that holds it at this moment, for programs and in a sentence.
        """
        self.query()
        task, now = _task(task_id), database_now()
        found = explain.explain(task, now=now)
        said = {
            "task_id": task.task_id,
            "status": queries.shown_status(task),
            "reason": found.reason,
            "message": found.message,
            "facts": found.facts,
            "timestamp": now,
        }
        return Response(ExplanationOutput(said).data)


class InterventionViewSet(ApiViewSet):
    """What an operator does to one task; a schedule's task_id means its most recent run."""

    required_scopes = {
        "pause": WRITE,
        "resume": WRITE,
        "skip": WRITE,
        "cancel": WRITE,
        "retry": WRITE,
        "priority": WRITE,
        "list_history": READ,
    }
    operation_ids = {
        "pause": "pauseTask",
        "resume": "resumeTask",
        "skip": "skipTask",
        "cancel": "cancelTask",
        "retry": "retryTask",
        "priority": "changeTaskPriority",
        "list_history": "getInterventionHistory",
    }
    tags = TAGS
    list_key = "interventions"
    list_name = "InterventionHistory"

    @extend_schema(request=UntilInput, responses={202: OpenApiResponse(PausedOutput, "Task paused")})
    def pause(self, request: Request, task_id: str) -> Response:
        """Pause a task

        One that waits does not start; a command that runs is stopped where it is within two seconds, keeps its place
        and its output, and its timeout stands still. It goes on when somebody resumes it, at `until` by itself. 409 if
        it has ended, waits for its turn, or cannot be paused.
        """
        now = database_now()
        task, by, body = self._asked(task_id, UntilInput, now=now)
        until = body.get("until")
        done = interventions.pause(task, by, until=until, now=now)
        said = {"status": "paused", "paused_at": done.created_at}
        return accepted(PausedOutput(said | ({"paused_until": until} if until else {})).data)

    @extend_schema(request=InterventionInput, responses={202: OpenApiResponse(ResumedOutput, "Task resumed")})
    def resume(self, request: Request, task_id: str) -> Response:
        """Resume a paused task"""
        task, by, _ = self._asked(task_id, InterventionInput)
        done = interventions.resume(task, by, now=database_now())
        return accepted(ResumedOutput({"status": "running", "resumed_at": done.created_at}).data)

    @extend_schema(request=InterventionInput, responses={202: OpenApiResponse(EndedOutput, "Task skipped")})
    def skip(self, request: Request, task_id: str) -> Response:
        """Skip a task

        It ends as skipped; a run that goes on is ended within three seconds, or after the kill grace if it resists.
        """
        task, by, _ = self._asked(task_id, InterventionInput)
        interventions.skip(task, by, now=database_now())
        return accepted(EndedOutput({"status": "skipped", "reason": by.reason or None}).data)

    @extend_schema(request=InterventionInput, responses={202: OpenApiResponse(EndedOutput, "Task cancelled")})
    def cancel(self, request: Request, task_id: str) -> Response:
        """Cancel a task

        As skipping it, but it ends as cancelled.
        """
        task, by, _ = self._asked(task_id, InterventionInput)
        interventions.cancel(task, by, now=database_now())
        return accepted(EndedOutput({"status": "cancelled", "reason": by.reason or None}).data)

    @extend_schema(
        parameters=[
            OpenApiParameter(
                "Location", str, OpenApiParameter.HEADER, description="URL of the new task", response=[202]
            )
        ],
        request=RetryInput,
        responses={202: OpenApiResponse(RetriedOutput, "Retry queued")},
    )
    def retry(self, request: Request, task_id: str) -> Response:
        """Run a task once more

        As a new task, once it has ended. 409 while an earlier retry of it has not.
        """
        task, by, body = self._asked(task_id, RetryInput)
        made = interventions.retry(task, by, **body, now=database_now())
        said = {"status": queries.shown_status(made), "new_task_id": made.task_id}
        return accepted(RetriedOutput(said).data, location=reverse("task", kwargs={"task_id": made.task_id}))

    @extend_schema(request=PriorityInput, responses={202: OpenApiResponse(PriorityOutput, "Priority changed")})
    def priority(self, request: Request, task_id: str) -> Response:
        """Change the priority of a task that waits"""
        task, by, body = self._asked(task_id, PriorityInput)
        done = interventions.reprioritise(task, body["priority"], by, now=database_now())
        return accepted(PriorityOutput(done.after).data)

    @extend_schema(
        parameters=[*PAGED], responses={200: OpenApiResponse(InterventionHistoryOutput, "What was done to the task")}
    )
    def list_history(self, request: Request, task_id: str) -> Response:
        """Get what operators did to a task

        Oldest first.
        """
        self.query()
        task = _task(task_id)
        answer = self.listed(Intervention.objects.filter(task=task).order_by("pk"), InterventionOutput)
        answer.data = {"task_id": task.task_id, **answer.data}
        return answer

    def _asked(self, task_id: str, message: type[StrictSerializer], **context: Any) -> tuple[Task, By, dict[str, Any]]:
        """Return the task, who asks and why, and what else the body says."""
        body = self.validated(message, **context)
        return _task(task_id), By(self.principal.name, body.pop("reason", None) or ""), body


def _task(task_id: str) -> Task:
    task = queries.task_by_id(task_id)
    if task is None:
        raise NotFound()
    return task
