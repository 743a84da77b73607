"""The endpoints of retry policies: validate, one call into the app, respond."""

from datetime import datetime
from typing import Any

from django.urls import reverse
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from k1node.api.serializers import StrictSerializer
from k1node.api.views import ApiViewSet, created, gone
from k1node.lib.clock_time import database_now
from recovery import policies
from recovery.api.policy_serializers import PolicyChangesInput, PolicyFilters, PolicyInput, PolicyOutput, shown
from recovery.api.serializers import InterventionInput
from recovery.records import By
from scheduling.models import RetryPolicy
from scheduling.policies import FIGURES

READ = ("error-recovery:read",)
ADMIN = ("error-recovery:admin",)
LOCATION = OpenApiParameter("Location", str, OpenApiParameter.HEADER, description="URL of the policy", response=[201])


class PolicyViewSet(ApiViewSet):
    required_scopes = {"list_policies": READ, "get": READ, "create": ADMIN, "update": ADMIN, "retire": ADMIN}
    operation_ids = {
        "list_policies": "listRetryPolicies",
        "get": "getRetryPolicy",
        "create": "createRetryPolicy",
        "update": "updateRetryPolicy",
        "retire": "deleteRetryPolicy",
    }
    tags = ("Error Recovery",)
    list_key = "policies"
    list_name = "RetryPolicyList"
    conditional_actions = {"get", "create", "update", "retire"}
    settings_fields = (*FIGURES, "retired")

    @extend_schema(
        parameters=[PolicyFilters], responses={200: OpenApiResponse(PolicyOutput(many=True), "The retry policies")}
    )
    def list_policies(self, request: Request) -> Response:
        """List the retry policies

        In the order of their names, without retired ones unless they are asked for.
        """
        rows = RetryPolicy.objects.order_by("name")
        if not self.query(PolicyFilters)["include_retired"]:
            rows = rows.filter(retired=False)
        paginator = self.pagination_class()
        page: Any = paginator.paginate_queryset(rows, self.request, self)
        context = {"schedules": policies.schedules_of(page)}
        return paginator.get_paginated_response(PolicyOutput(page, many=True, context=context).data)

    @extend_schema(responses={200: OpenApiResponse(PolicyOutput, "The retry policy")})
    def get(self, request: Request, name: str) -> Response:
        """Get a retry policy

        A retired one too: tasks may still name it.
        """
        self.query()
        row = self.found(RetryPolicy.objects.all(), pk=name)
        return self.tagged(row, Response(_shown(row)))

    @extend_schema(
        parameters=[LOCATION], request=PolicyInput, responses={201: OpenApiResponse(PolicyOutput, "Policy created")}
    )
    def create(self, request: Request) -> Response:
        """Make a retry policy

        What is left out is as in the standard policy of a new node. 409 if the name is taken, by a retired one too.
        """
        now, by, body = self._asked(PolicyInput)
        row = policies.create(body.pop("name"), body, by, now=now)
        return self.tagged(row, created(_shown(row), location=reverse("retry-policy", kwargs={"name": row.name})))

    @extend_schema(request=PolicyChangesInput, responses={200: OpenApiResponse(PolicyOutput, "Policy updated")})
    def update(self, request: Request, name: str) -> Response:
        """Change a retry policy, or restore a retired one

        Its figures hold from the next end of a run on, for all tasks that name it; workers know them in five seconds.
        """
        now, by, body = self._asked(PolicyChangesInput)
        rows = RetryPolicy.objects.filter(pk=name)
        row = self.guarded(rows, lambda: policies.configure(name, body, by, now=now))
        return self.tagged(row, Response(_shown(row)))

    @extend_schema(request=InterventionInput, responses={204: OpenApiResponse(description="Policy retired")})
    def retire(self, request: Request, name: str) -> Response:
        """Retire a retry policy

        Nothing new may name it any more; the tasks that do go on with it. 409 while a schedule names it, and always for
        the built-in ones.
        """
        now, by, _ = self._asked(InterventionInput)
        self.guarded(RetryPolicy.objects.filter(pk=name), lambda: policies.retire(name, by, now=now))
        return gone()

    def _asked(self, message: type[StrictSerializer]) -> tuple[datetime, By, dict[str, Any]]:
        """Return the time, who asks and why, and what else the body says."""
        body = self.validated(message)
        return database_now(), By(self.principal.name, body.pop("reason", None) or ""), body


def _shown(row: RetryPolicy) -> Any:
    return shown(row, policies.schedules_of([row]))
