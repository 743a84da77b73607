"""The endpoints of redrives: validate, one call into the app, respond."""

from typing import Any

from django.db.models import QuerySet
from django.urls import reverse
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from k1node.api.pagination import CursorPagination
from k1node.api.views import ApiViewSet, accepted, created
from k1node.lib.clock_time import database_now
from k1node.lib.errors import NotFound
from k1node.operations.jobs import Pace
from k1node.operations.models import Operation
from recovery import redrives
from recovery.api.dead_letter_serializers import changes
from recovery.api.redrive_serializers import (
    RedriveDetailOutput,
    RedriveEntryFilters,
    RedriveEntryOutput,
    RedriveInput,
    RedriveOutput,
    RedrivePlanOutput,
)
from recovery.api.serializers import InterventionInput
from recovery.dead_letters import Wanted
from recovery.records import By

READ = ("error-recovery:read",)
WRITE = ("error-recovery:write",)
LOCATION = OpenApiParameter(
    "Location", str, OpenApiParameter.HEADER, description="URL of the redrive", response=[201, 202]
)


class RedriveViewSet(ApiViewSet):
    required_scopes = {
        "list_redrives": READ,
        "get": READ,
        "create": WRITE,
        "start": WRITE,
        "stop": WRITE,
        "cancel": WRITE,
    }
    operation_ids = {
        "list_redrives": "listRedrives",
        "get": "getRedrive",
        "create": "planRedrive",
        "start": "startRedrive",
        "stop": "stopRedrive",
        "cancel": "cancelRedrive",
    }
    tags = ("Error Recovery",)
    list_key = "redrives"
    pagination_class = CursorPagination
    conditional_actions = {"get"}

    @extend_schema(responses={200: OpenApiResponse(RedriveOutput(many=True), "The redrives")})
    def list_redrives(self, request: Request) -> Response:
        """List redrives

        The newest first.
        """
        self.query()
        return self.listed(Operation.objects.filter(kind=redrives.KIND), RedriveOutput)

    @extend_schema(responses={200: OpenApiResponse(RedriveDetailOutput, "How far it has come")})
    def get(self, request: Request, redrive_id: str) -> Response:
        """Get a redrive and its progress"""
        self.query()
        job = _redrive(redrive_id)
        return self.tagged(job, Response(RedriveDetailOutput(job).data))

    @extend_schema(
        parameters=[LOCATION],
        request=RedriveInput,
        responses={
            201: OpenApiResponse(RedrivePlanOutput, "Planned; nothing has happened yet"),
            202: OpenApiResponse(RedrivePlanOutput, "Begun, as `start` asked"),
        },
    )
    def create(self, request: Request) -> Response:
        """Plan a redrive

        Freezes the set of pending entries that fit, and says how many and what would become of the first of them.
        Start it, or cancel it; a plan that nobody starts is forgotten after a day. 409 if nothing fits.
        """
        body = self.validated(RedriveInput)
        now, by = database_now(), By(self.principal.name, body.get("reason") or "")
        job, is_capped = redrives.plan(
            Wanted(**body["filter"]),
            changes(body),
            by,
            pace=Pace(body.get("per_second"), body.get("first", 0)),
            stop_when_open=body["stop_when_breaker_opens"],
            now=now,
        )
        if body["start"]:
            job = redrives.start(job.operation_id, by, now=now)
        told = {**RedriveDetailOutput(job).data, "capped": is_capped}
        return accepted(told, location=_address(job)) if body["start"] else created(told, location=_address(job))

    @extend_schema(request=InterventionInput, responses={202: OpenApiResponse(RedriveOutput, "It begins")})
    def start(self, request: Request, redrive_id: str) -> Response:
        """Start a redrive, or go on after it has stopped"""
        job = redrives.start(redrive_id, self._by(), now=database_now())
        return accepted(RedriveOutput(job).data, location=_address(job))

    @extend_schema(request=InterventionInput, responses={202: OpenApiResponse(RedriveOutput, "It rests")})
    def stop(self, request: Request, redrive_id: str) -> Response:
        """Let a redrive rest until it is started again"""
        job = redrives.stop(redrive_id, self._by(), now=database_now())
        return accepted(RedriveOutput(job).data, location=_address(job))

    @extend_schema(request=InterventionInput, responses={202: OpenApiResponse(RedriveOutput, "It has ended")})
    def cancel(self, request: Request, redrive_id: str) -> Response:
        """Cancel a redrive

        What it has resubmitted stays so; the other entries are pending as before.
        """
        job = redrives.cancel(redrive_id, self._by(), now=database_now())
        return accepted(RedriveOutput(job).data, location=_address(job))

    def _by(self) -> By:
        return By(self.principal.name, self.validated(InterventionInput).get("reason") or "")


class EntriesPagination(CursorPagination):
    """In the order of the job."""

    def ordered(self, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.order_by("position")

    def position(self, row: Any) -> int:
        return int(row.position)

    def after(self, queryset: QuerySet[Any], position: int) -> QuerySet[Any]:
        return queryset.filter(position__gt=position)


class RedriveEntryViewSet(ApiViewSet):
    required_scopes = {"list_entries": READ}
    operation_ids = {"list_entries": "listRedriveEntries"}
    tags = ("Error Recovery",)
    list_key = "entries"
    pagination_class = EntriesPagination

    @extend_schema(
        parameters=[RedriveEntryFilters], responses={200: OpenApiResponse(RedriveEntryOutput(many=True), "The entries")}
    )
    def list_entries(self, request: Request, redrive_id: str) -> Response:
        """List the entries of a redrive and what became of them

        The oldest first, in the order in which they are resubmitted.
        """
        rows = _redrive(redrive_id).items.all()
        asked = self.query(RedriveEntryFilters)
        if "state" in asked:
            rows = rows.filter(state=asked["state"])
        paginator = self.pagination_class()
        page = paginator.paginate_queryset(rows, self.request, self)
        return paginator.get_paginated_response(RedriveEntryOutput(redrives.results(page), many=True).data)


def _redrive(redrive_id: str) -> Operation:
    row = Operation.objects.filter(operation_id=redrive_id, kind=redrives.KIND).first()
    if row is None:
        raise NotFound()
    return row


def _address(job: Operation) -> str:
    return reverse("redrive", kwargs={"redrive_id": job.operation_id})
