"""The endpoints of circuit breakers and of the hold: validate, one call into the app, respond."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.urls import reverse
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from k1node.api.declared import PAGED
from k1node.api.serializers import StrictSerializer
from k1node.api.views import ApiViewSet, accepted, created, gone
from k1node.lib.clock_time import database_now
from k1node.lib.errors import NotFound
from recovery import breakers, holds
from recovery.api.breaker_serializers import (
    BreakerDetailOutput,
    BreakerFilters,
    BreakerInput,
    BreakerOutput,
    BreakerSettingsInput,
    BreakerStatusOutput,
    HoldOutput,
    HoldStateOutput,
    NoHoldOutput,
    ProbeOutput,
)
from recovery.api.serializers import InterventionInput, UntilInput
from recovery.models import Breaker
from recovery.records import By

READ = ("error-recovery:read",)
ADMIN = ("error-recovery:admin",)
TAGS = ("Error Recovery",)
LOCATION = OpenApiParameter("Location", str, OpenApiParameter.HEADER, description="URL of the breaker", response=[201])


def _context(rows: Sequence[Breaker], now: datetime) -> dict[str, Any]:
    return {"remaining": breakers.remaining_ms(rows, now=now), "waiting": breakers.waiting(rows)}


def _detail(row: Breaker, now: datetime) -> Any:
    return BreakerDetailOutput(row, context=_context([row], now)).data


class BreakerViewSet(ApiViewSet):
    required_scopes = {
        "list_status": READ,
        "get": READ,
        "create": ADMIN,
        "update": ADMIN,
        "delete_breaker": ADMIN,
        "open_breaker": ADMIN,
        "close": ADMIN,
        "reset": ADMIN,
        "probe": ADMIN,
    }
    operation_ids = {
        "list_status": "getCircuitBreakerStatus",
        "get": "getCircuitBreaker",
        "create": "createCircuitBreaker",
        "update": "updateCircuitBreaker",
        "delete_breaker": "deleteCircuitBreaker",
        "open_breaker": "openCircuitBreaker",
        "close": "closeCircuitBreaker",
        "reset": "resetCircuitBreaker",
        "probe": "probeCircuitBreaker",
    }
    tags = TAGS
    list_key = "breakers"
    conditional_actions = {"get", "create", "update", "delete_breaker"}
    settings_fields = breakers.FIGURES

    @extend_schema(
        parameters=[BreakerFilters, *PAGED],
        responses={200: OpenApiResponse(BreakerStatusOutput, "State of the breakers")},
    )
    def list_status(self, request: Request) -> Response:
        """Get circuit breaker status

        In the order of their ids. A breaker appears with the first result of a task that names it, or when it is made.
        """
        asked = self.query(BreakerFilters)
        now = database_now()
        rows = Breaker.objects.order_by("breaker_id")
        if "breaker_id" in asked:
            rows = rows.filter(breaker_id=asked["breaker_id"])
        paginator = self.pagination_class()
        page: Any = paginator.paginate_queryset(rows, self.request, self)
        answer = paginator.get_paginated_response(BreakerOutput(page, many=True, context=_context(page, now)).data)
        answer.data = {"timestamp": now, **answer.data}
        return answer

    @extend_schema(responses={200: OpenApiResponse(BreakerDetailOutput, "The breaker")})
    def get(self, request: Request, breaker_id: str) -> Response:
        """Get a circuit breaker and its settings"""
        self.query()
        row = _breaker(breaker_id)
        return self.tagged(row, Response(_detail(row, database_now())))

    @extend_schema(
        parameters=[LOCATION],
        request=BreakerInput,
        responses={201: OpenApiResponse(BreakerDetailOutput, "Breaker created")},
    )
    def create(self, request: Request) -> Response:
        """Make a circuit breaker before its first use"""
        now, by, body = self._asked(BreakerInput)
        row = breakers.create(body.pop("breaker_id"), body, by, now=now)
        return self.tagged(row, created(_detail(row, now), location=_address(row)))

    @extend_schema(
        request=BreakerSettingsInput, responses={200: OpenApiResponse(BreakerDetailOutput, "Breaker updated")}
    )
    def update(self, request: Request, breaker_id: str) -> Response:
        """Change the settings of a circuit breaker

        They hold from the next result on.
        """
        now, by, body = self._asked(BreakerSettingsInput, row=_breaker(breaker_id))
        rows = Breaker.objects.filter(breaker_id=breaker_id)
        row = self.guarded(rows, lambda: breakers.configure(breaker_id, body, by, now=now))
        return self.tagged(row, Response(_detail(row, now)))

    @extend_schema(request=InterventionInput, responses={204: OpenApiResponse(description="Breaker deleted")})
    def delete_breaker(self, request: Request, breaker_id: str) -> Response:
        """Delete a circuit breaker

        409 while it is not closed, or while a schedule or an unfinished task names it.
        """
        now, by, _ = self._asked(InterventionInput)
        rows = Breaker.objects.filter(breaker_id=breaker_id)
        self.guarded(rows, lambda: breakers.delete(breaker_id, by, now=now))
        return gone()

    @extend_schema(request=UntilInput, responses={202: OpenApiResponse(BreakerDetailOutput, "Breaker held open")})
    def open_breaker(self, request: Request, breaker_id: str) -> Response:
        """Hold a circuit breaker open

        Nothing that names it starts, until `until` or until somebody resets it. After `until` it probes.
        """
        now, by, body = self._asked(UntilInput)
        return accepted(_detail(breakers.open_(breaker_id, by, until=body.get("until"), now=now), now))

    @extend_schema(request=UntilInput, responses={202: OpenApiResponse(BreakerDetailOutput, "Breaker held closed")})
    def close(self, request: Request, breaker_id: str) -> Response:
        """Hold a circuit breaker closed

        Everything goes through, whatever fails, until `until` or until somebody resets it.
        """
        now, by, body = self._asked(UntilInput)
        return accepted(_detail(breakers.close(breaker_id, by, until=body.get("until"), now=now), now))

    @extend_schema(request=InterventionInput, responses={202: OpenApiResponse(BreakerDetailOutput, "Breaker reset")})
    def reset(self, request: Request, breaker_id: str) -> Response:
        """Reset a circuit breaker

        Closed as new, and working by itself again: nobody holds it, its window is empty.
        """
        now, by, _ = self._asked(InterventionInput)
        return accepted(_detail(breakers.reset(breaker_id, by, now=now), now))

    @extend_schema(request=InterventionInput, responses={202: OpenApiResponse(ProbeOutput, "A task tries")})
    def probe(self, request: Request, breaker_id: str) -> Response:
        """Let one waiting task try now

        Of an open breaker. If it succeeds, the other probes follow. 409 if nothing waits, or somebody holds it open.
        """
        now, by, _ = self._asked(InterventionInput)
        row, task_id = breakers.probe(breaker_id, by, now=now)
        said = {"breaker_id": row.breaker_id, "state": row.state, "task_id": task_id}
        return accepted(ProbeOutput(said).data, location=reverse("task", kwargs={"task_id": task_id}))

    def _asked(self, message: type[StrictSerializer], **context: Any) -> tuple[datetime, By, dict[str, Any]]:
        """Return the time, who asks and why, and what else the body says."""
        now = database_now()
        body = self.validated(message, now=now, **context)
        return now, By(self.principal.name, body.pop("reason", None) or ""), body


class HoldViewSet(ApiViewSet):
    required_scopes = {"get": READ, "hold": ADMIN, "release": ADMIN}
    operation_ids = {"get": "getHold", "hold": "holdEverything", "release": "releaseHold"}
    tags = TAGS

    @extend_schema(responses={200: OpenApiResponse(HoldStateOutput, "The hold; without one, held is false and all")})
    def get(self, request: Request) -> Response:
        """Say whether everything is held"""
        self.query()
        row = holds.current()
        return Response({"held": False} if row is None else HoldOutput(row).data)

    @extend_schema(request=UntilInput, responses={202: OpenApiResponse(HoldOutput, "Nothing starts")})
    def hold(self, request: Request) -> Response:
        """Let nothing start

        On any node, until `until` or until it is released. What runs goes on, schedules go on filling the queue.
        """
        now = database_now()
        body = self.validated(UntilInput, now=now)
        row = holds.hold(self._by(body), until=body.get("until"), now=now)
        return accepted(HoldOutput(row).data, location=reverse("hold"))

    @extend_schema(request=InterventionInput, responses={202: OpenApiResponse(NoHoldOutput, "Tasks start again")})
    def release(self, request: Request) -> Response:
        """Let tasks start again"""
        holds.release(self._by(self.validated(InterventionInput)), now=database_now())
        return accepted({"held": False}, location=reverse("hold"))

    def _by(self, body: dict[str, Any]) -> By:
        return By(self.principal.name, body.get("reason") or "")


def _breaker(breaker_id: str) -> Breaker:
    row = Breaker.objects.filter(breaker_id=breaker_id).first()
    if row is None:
        raise NotFound()
    return row


def _address(row: Breaker) -> str:
    return reverse("circuit-breaker", kwargs={"breaker_id": row.breaker_id})
