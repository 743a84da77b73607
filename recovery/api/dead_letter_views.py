"""The endpoints of the dead letter queue: validate, one call into the app, respond."""

from datetime import datetime
from typing import Any

from django.urls import reverse
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from k1node.api.pagination import CursorPagination
from k1node.api.views import ApiViewSet, accepted, created
from k1node.lib.clock_time import database_now
from k1node.lib.errors import NotFound
from recovery import dead_letters
from recovery.api.dead_letter_serializers import (
    BatchResubmitInput,
    BatchResubmittedOutput,
    DeadLetterDetailOutput,
    DeadLetterFilters,
    DeadLetterInput,
    DeadLetterOutput,
    GroupsOutput,
    ManyInput,
    ManyOutput,
    ResubmitInput,
    ResubmittedOutput,
    changes,
    wanted,
)
from recovery.api.serializers import InterventionInput
from recovery.models import Breaker, DeadLetter
from recovery.records import By
from recovery.retries import Changes
from scheduling import queries
from scheduling.models import Task, TaskStatus

READ = ("error-recovery:read",)
WRITE = ("error-recovery:write",)
LOCATION = OpenApiParameter("Location", str, OpenApiParameter.HEADER, description="URL of the entry", response=[201])


class DeadLetterViewSet(ApiViewSet):
    required_scopes = {
        "list_entries": READ,
        "get": READ,
        "groups": READ,
        "create": WRITE,
        "resubmit": WRITE,
        "batch_resubmit": WRITE,
        "archive": WRITE,
        "unarchive": WRITE,
        "batch_archive": WRITE,
        "batch_unarchive": WRITE,
    }
    operation_ids = {
        "list_entries": "listDLQEntries",
        "get": "getDLQEntry",
        "groups": "getDLQGroups",
        "create": "createDLQEntry",
        "resubmit": "resubmitDLQEntry",
        "batch_resubmit": "batchResubmitDLQEntries",
        "archive": "archiveDLQEntry",
        "unarchive": "unarchiveDLQEntry",
        "batch_archive": "batchArchiveDLQEntries",
        "batch_unarchive": "batchUnarchiveDLQEntries",
    }
    tags = ("Error Recovery",)
    more_errors = {"batch_resubmit": (404,), "batch_archive": (404,), "batch_unarchive": (404,)}
    list_key = "entries"
    list_name = "DLQList"
    pagination_class = CursorPagination
    conditional_actions = {"get", "create"}

    @extend_schema(
        parameters=[DeadLetterFilters],
        responses={200: OpenApiResponse(DeadLetterOutput(many=True), "DLQ entries list")},
    )
    def list_entries(self, request: Request) -> Response:
        """List dead letter queue entries

        The newest first.
        """
        rows = dead_letters.listed(wanted(self.query(DeadLetterFilters))).select_related("task")
        return self.listed(rows, DeadLetterOutput)

    @extend_schema(responses={200: OpenApiResponse(DeadLetterDetailOutput, "The entry and its story")})
    def get(self, request: Request, dlq_id: str) -> Response:
        """Get a dead letter queue entry

        With the runs of the task, what was changed when it was resubmitted, and the entries before it.
        """
        self.query()
        letter = _letter(dlq_id)
        return self.tagged(letter, Response(_detail(letter)))

    @extend_schema(responses={200: OpenApiResponse(GroupsOutput, "Pending entries by what has failed")})
    def groups(self, request: Request) -> Response:
        """Group pending entries by error

        The largest group first, at most 100 of them; of the newest 100,000 pending entries.
        """
        self.query()
        now = database_now()
        found, is_capped = dead_letters.groups(now=now)
        return Response(GroupsOutput({"timestamp": now, "groups": found, "capped": is_capped}).data)

    @extend_schema(
        parameters=[LOCATION],
        request=DeadLetterInput,
        responses={201: OpenApiResponse(DeadLetterDetailOutput, "DLQ entry created")},
    )
    def create(self, request: Request) -> Response:
        """Manually add entry to DLQ

        For something that failed elsewhere, or for a task that has ended and should run again. 409 if it has an entry.
        """
        letter = dead_letters.add_by_hand(self.validated(DeadLetterInput), By(self.principal.name), now=database_now())
        return self.tagged(letter, created(_detail(letter), location=_address(letter)))

    @extend_schema(request=ResubmitInput, responses={202: OpenApiResponse(ResubmittedOutput, "Resubmission queued")})
    def resubmit(self, request: Request, dlq_id: str) -> Response:
        """Resubmit failed task from DLQ

        As a new task, once: 409 if it was resubmitted already or is archived. A run of a schedule waits for its turn.
        """
        now, by, body = self._asked(ResubmitInput)
        letter = _letter(dlq_id)
        made = dead_letters.resubmit(letter, changes(body), by, now=now)
        said = {
            "message": "Resubmission queued",
            "dlq_id": letter.dlq_id,
            "new_task_id": made.task_id,
            "status": queries.shown_status(made),
            "estimated_execution": _estimate(made),
        }
        return accepted(ResubmittedOutput(said).data, location=reverse("task", kwargs={"task_id": made.task_id}))

    @extend_schema(
        request=BatchResubmitInput, responses={202: OpenApiResponse(BatchResubmittedOutput, "Resubmissions queued")}
    )
    def batch_resubmit(self, request: Request) -> Response:
        """Resubmit many entries at once

        All of them or none: unknown ones are a 404, those that cannot be resubmitted a 409 that names them.
        """
        now, by, body = self._asked(BatchResubmitInput)
        given = Changes((body.get("options") or {}).get("modify_parameters") or {}, body.get("retry_policy"))
        made = dead_letters.resubmit_all(dead_letters.by_ids(body["dlq_ids"]), given, by, now=now)
        said = {"resubmitted_count": len(made), "new_task_ids": [task.task_id for task in made]}
        return accepted(BatchResubmittedOutput(said).data)

    @extend_schema(request=InterventionInput, responses={202: OpenApiResponse(DeadLetterDetailOutput, "Archived")})
    def archive(self, request: Request, dlq_id: str) -> Response:
        """Archive an entry: nothing is to be done"""
        now, by, _ = self._asked(InterventionInput)
        return accepted(_detail(dead_letters.archive([_letter(dlq_id)], by, now=now)[0]))

    @extend_schema(request=InterventionInput, responses={202: OpenApiResponse(DeadLetterDetailOutput, "Pending again")})
    def unarchive(self, request: Request, dlq_id: str) -> Response:
        """Put an archived entry back among the pending ones"""
        now, by, _ = self._asked(InterventionInput)
        return accepted(_detail(dead_letters.unarchive([_letter(dlq_id)], by, now=now)[0]))

    @extend_schema(request=ManyInput, responses={202: OpenApiResponse(ManyOutput, "Archived")})
    def batch_archive(self, request: Request) -> Response:
        """Archive many entries at once, all of them or none"""
        now, by, body = self._asked(ManyInput)
        done = dead_letters.archive(dead_letters.by_ids(body["dlq_ids"]), by, now=now)
        return accepted(ManyOutput({"count": len(done), "status": "archived"}).data)

    @extend_schema(request=ManyInput, responses={202: OpenApiResponse(ManyOutput, "Pending again")})
    def batch_unarchive(self, request: Request) -> Response:
        """Put many archived entries back at once, all of them or none"""
        now, by, body = self._asked(ManyInput)
        done = dead_letters.unarchive(dead_letters.by_ids(body["dlq_ids"]), by, now=now)
        return accepted(ManyOutput({"count": len(done), "status": "pending"}).data)

    def _asked(self, message: type[InterventionInput]) -> tuple[datetime, By, dict[str, Any]]:
        """Return the time, who asks and why, and what else the body says."""
        body = self.validated(message)
        return database_now(), By(self.principal.name, body.pop("reason", None) or ""), body


def _letter(dlq_id: str) -> DeadLetter:
    letter = DeadLetter.objects.select_related("task").filter(dlq_id=dlq_id).first()
    if letter is None:
        raise NotFound()
    return letter


def _detail(letter: DeadLetter) -> Any:
    context = {
        "task_id": letter.task.task_id,  # where the output of its runs is
        "attempts": queries.latest_attempts(letter.task),
        "chain": dead_letters.chain_of(letter),
        "new_task": Task.objects.filter(pk=letter.new_task_id).first() if letter.new_task_id else None,
    }
    return DeadLetterDetailOutput(letter, context=context).data


def _estimate(task: Task) -> datetime | None:
    """Return when the task may start; of one behind an open breaker, when that will probe."""
    if task.status != TaskStatus.BLOCKED:
        return task.due_at
    if task.blocked_on_id == task.gate_id:
        return None
    return Breaker.objects.filter(gate=task.blocked_on_id).values_list("open_until", flat=True).first()


def _address(letter: DeadLetter) -> str:
    return reverse("dead-letter", kwargs={"dlq_id": letter.dlq_id})
