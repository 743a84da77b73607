"""The endpoints of redeliveries: validate, one call into the app, respond."""

from django.urls import reverse
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from k1node.api.pagination import CursorPagination
from k1node.api.views import ApiViewSet, accepted
from k1node.lib.clock_time import database_now
from k1node.lib.errors import NotFound
from k1node.operations.models import Operation
from webhooks import endpoints, redelivery
from webhooks.api.delivery_serializers import DeliveryOutput
from webhooks.api.redelivery_serializers import (
    RedeliveryBegunOutput,
    RedeliveryDetailOutput,
    RedeliveryInput,
    RedeliveryOutput,
)
from webhooks.models import Delivery, Webhook
from webhooks.redelivery import Mode

READ = ("webhooks:read",)
WRITE = ("webhooks:write",)
LOCATION = OpenApiParameter(
    "Location", str, OpenApiParameter.HEADER, description="URL of the redelivery", response=[202]
)


class RedeliveryViewSet(ApiViewSet):
    required_scopes = {
        "list_redeliveries": READ,
        "get": READ,
        "create": WRITE,
        "start": WRITE,
        "stop": WRITE,
        "cancel": WRITE,
    }
    operation_ids = {
        "list_redeliveries": "listRedeliveries",
        "get": "getRedelivery",
        "create": "startRedelivery",
        "start": "resumeRedelivery",
        "stop": "stopRedelivery",
        "cancel": "cancelRedelivery",
    }
    tags = ("Webhooks",)
    list_key = "redeliveries"
    pagination_class = CursorPagination
    conditional_actions = {"get"}

    @extend_schema(responses={200: OpenApiResponse(RedeliveryOutput(many=True), "The redeliveries")})
    def list_redeliveries(self, request: Request, webhook_id: str) -> Response:
        """List the redeliveries of a webhook

        The newest first.
        """
        self.query()
        return self.listed(redelivery.of(_webhook(webhook_id)), RedeliveryOutput)

    @extend_schema(responses={200: OpenApiResponse(RedeliveryDetailOutput, "How far it has come")})
    def get(self, request: Request, webhook_id: str, redelivery_id: str) -> Response:
        """Get a redelivery and its progress"""
        self.query()
        job = _redelivery(webhook_id, redelivery_id)
        return self.tagged(job, Response(RedeliveryDetailOutput(job).data))

    @extend_schema(
        parameters=[LOCATION],
        request=RedeliveryInput,
        responses={202: OpenApiResponse(RedeliveryBegunOutput, "It begins")},
    )
    def create(self, request: Request, webhook_id: str) -> Response:
        """Deliver what failed, or a whole period, again

        Freezes what fits and begins. What comes again has the same ids as before, so receivers must know what they
        have had. 409 if nothing fits, or if the webhook is not active.
        """
        webhook = _webhook(webhook_id)
        body = self.validated(RedeliveryInput)
        now, by = database_now(), self.principal.name
        wanted = redelivery.checked(
            webhook,
            Mode(body["mode"]),
            since=body["since"],
            until=body.get("until"),
            events=body.get("events"),
            now=now,
        )
        job, is_capped = redelivery.begin(webhook, wanted, per_second=body.get("per_second"), by=by, now=now)
        told = {**RedeliveryOutput(job).data, "capped": is_capped}
        return accepted(told, location=_address(webhook_id, job))

    @extend_schema(request=None, responses={202: OpenApiResponse(RedeliveryOutput, "It goes on")})
    def start(self, request: Request, webhook_id: str, redelivery_id: str) -> Response:
        """Let a redelivery go on that has stopped"""
        name = _redelivery(webhook_id, redelivery_id).operation_id
        job = redelivery.start(name, by=self.principal.name, now=database_now())
        return accepted(RedeliveryOutput(job).data, location=_address(webhook_id, job))

    @extend_schema(request=None, responses={202: OpenApiResponse(RedeliveryOutput, "It rests")})
    def stop(self, request: Request, webhook_id: str, redelivery_id: str) -> Response:
        """Let a redelivery rest until it is started again"""
        name = _redelivery(webhook_id, redelivery_id).operation_id
        job = redelivery.stop(name, by=self.principal.name, now=database_now())
        return accepted(RedeliveryOutput(job).data, location=_address(webhook_id, job))

    @extend_schema(request=None, responses={202: OpenApiResponse(RedeliveryOutput, "It has ended")})
    def cancel(self, request: Request, webhook_id: str, redelivery_id: str) -> Response:
        """Cancel a redelivery

        What it has put in the webhook's queue is sent; the rest is as it was.
        """
        name = _redelivery(webhook_id, redelivery_id).operation_id
        job = redelivery.cancel(name, by=self.principal.name, now=database_now())
        return accepted(RedeliveryOutput(job).data, location=_address(webhook_id, job))


class AgainViewSet(ApiViewSet):
    """One delivery, sent again."""

    required_scopes = {"redeliver": WRITE}
    operation_ids = {"redeliver": "redeliverWebhookDelivery"}
    tags = ("Webhooks",)

    @extend_schema(
        parameters=[
            OpenApiParameter(
                "Location", str, OpenApiParameter.HEADER, description="URL of the delivery", response=[202]
            )
        ],
        request=None,
        responses={202: OpenApiResponse(DeliveryOutput, "The delivery, on its way again")},
    )
    def redeliver(self, request: Request, webhook_id: str, delivery_id: str) -> Response:
        """Send a delivery again

        It keeps its id and its message's, and has all its tries again. 409 while it is on its way, and if its webhook
        is not active.
        """
        rows = Delivery.objects.filter(webhook=_webhook(webhook_id))
        row = self.found(rows, delivery_id=delivery_id)
        again = redelivery.redeliver(row, by=self.principal.name, now=database_now())
        address = reverse("webhook-delivery", kwargs={"webhook_id": webhook_id, "delivery_id": delivery_id})
        return accepted(DeliveryOutput(again).data, location=address)


def _webhook(webhook_id: str) -> Webhook:
    row = endpoints.present().filter(webhook_id=webhook_id).first()
    if row is None:
        raise NotFound()
    return row


def _redelivery(webhook_id: str, redelivery_id: str) -> Operation:
    row = redelivery.of(_webhook(webhook_id)).filter(operation_id=redelivery_id).first()
    if row is None:
        raise NotFound()
    return row


def _address(webhook_id: str, job: Operation) -> str:
    return reverse("webhook-redelivery", kwargs={"webhook_id": webhook_id, "redelivery_id": job.operation_id})
