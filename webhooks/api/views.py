"""The endpoints of webhooks: validate, one call into the app, respond."""

from datetime import timedelta
from typing import Any

from django.urls import reverse
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from k1node.api.views import ApiViewSet, accepted, created, gone
from k1node.events.catalogue import EVENTS
from k1node.lib.clock_time import database_now
from webhooks import endpoints
from webhooks.api.delivery_serializers import DeliveryOutput
from webhooks.api.serializers import (
    EventTypesOutput,
    NewWebhookOutput,
    RotateSecretInput,
    TestInput,
    WebhookFilters,
    WebhookInput,
    WebhookOutput,
    WebhookUpdate,
    flat,
)
from webhooks.endpoints import State
from webhooks.models import Webhook

READ = ("webhooks:read",)
WRITE = ("webhooks:write",)
TAGS = ("Webhooks",)


def _location(description: str, status: int) -> OpenApiParameter:
    """Return what the OpenAPI document says of an answer's Location."""
    return OpenApiParameter("Location", str, OpenApiParameter.HEADER, description=description, response=[status])


class WebhookViewSet(ApiViewSet):
    required_scopes = {
        "list_webhooks": READ,
        "get": READ,
        "event_types": READ,
        "create": WRITE,
        "update": WRITE,
        "delete_webhook": WRITE,
        "enable": WRITE,
        "rotate_secret": WRITE,
        "test": WRITE,
    }
    operation_ids = {
        "list_webhooks": "listWebhooks",
        "get": "getWebhook",
        "event_types": "listEventTypes",
        "create": "createWebhook",
        "update": "updateWebhook",
        "delete_webhook": "deleteWebhook",
        "enable": "enableWebhook",
        "rotate_secret": "rotateWebhookSecret",
        "test": "testWebhook",
    }
    tags = TAGS
    list_key = "webhooks"
    list_name = "WebhookList"
    conditional_actions = {"get", "create", "update", "delete_webhook", "enable", "rotate_secret"}
    settings_fields = endpoints.CHANGEABLE
    # Of the answers: shown once, and not again when an answer is repeated.
    secret_fields = ("secret",)

    @extend_schema(
        parameters=[WebhookFilters], responses={200: OpenApiResponse(WebhookOutput(many=True), "The webhooks")}
    )
    def list_webhooks(self, request: Request) -> Response:
        """List the webhooks

        The newest first.
        """
        wanted = self.query(WebhookFilters)
        rows = endpoints.present()
        if "state" in wanted:
            rows = endpoints.in_state(rows, State(wanted["state"]))
        if "name" in wanted:
            rows = rows.filter(name=wanted["name"])
        return self.listed(rows, WebhookOutput)

    @extend_schema(responses={200: OpenApiResponse(WebhookOutput, "The webhook")})
    def get(self, request: Request, webhook_id: str) -> Response:
        """Get a webhook, and how it is doing"""
        self.query()
        row = self._webhook(webhook_id)
        return self.tagged(row, Response(WebhookOutput(row).data))

    @extend_schema(
        parameters=[_location("URL of the webhook", 201)],
        request=WebhookInput,
        responses={201: OpenApiResponse(NewWebhookOutput, "Webhook made")},
    )
    def create(self, request: Request) -> Response:
        """Register a webhook

        Events that happen from now on are posted to its URL. The answer has the secret that its signatures are made
        with, this once.
        """
        body = flat(self.validated(WebhookInput))
        row, secret = endpoints.create(body, by=self.principal.name, now=database_now())
        address = reverse("webhook", kwargs={"webhook_id": row.webhook_id})
        return self.tagged(row, created(_with_secret(row, secret), location=address))

    @extend_schema(request=WebhookUpdate, responses={200: OpenApiResponse(WebhookOutput, "Webhook changed")})
    def update(self, request: Request, webhook_id: str) -> Response:
        """Change a webhook

        It counts for the next attempt, of what waits already too. `active: false` pauses it: what waits goes on
        waiting, and events that happen meanwhile are not made for it. `active: true` also enables what the node has
        disabled.
        """
        row, body = self._webhook(webhook_id), flat(self.validated(WebhookUpdate))
        by, now = self.principal.name, database_now()
        changed = self.guarded(
            endpoints.present().filter(pk=row.pk), lambda: endpoints.change(row, body, by=by, now=now)
        )
        return self.tagged(changed, Response(WebhookOutput(changed).data))

    @extend_schema(responses={204: OpenApiResponse(description="Webhook deleted")})
    def delete_webhook(self, request: Request, webhook_id: str) -> Response:
        """Delete a webhook

        No request to it begins any more; what waits for it is cancelled.
        """
        self.query()
        row, by, now = self._webhook(webhook_id), self.principal.name, database_now()
        self.guarded(endpoints.present().filter(pk=row.pk), lambda: endpoints.delete(row, by=by, now=now))
        return gone()

    @extend_schema(request=None, responses={200: OpenApiResponse(WebhookOutput, "Webhook active")})
    def enable(self, request: Request, webhook_id: str) -> Response:
        """Enable a webhook that was disabled or paused, or try a failing one now

        It starts as if it had never failed, with what waits for it.
        """
        row = endpoints.enable(self._webhook(webhook_id), by=self.principal.name, now=database_now())
        return self.tagged(row, Response(WebhookOutput(row).data))

    @extend_schema(request=RotateSecretInput, responses={200: OpenApiResponse(NewWebhookOutput, "The new secret")})
    def rotate_secret(self, request: Request, webhook_id: str) -> Response:
        """Give a webhook a new secret

        The answer has it, this once. For the overlap each request is signed with both: `webhook-signature` has two
        signatures, `X-K1Node-Signature` that of the old secret and `X-K1Node-Signature-Next` that of the new one. A
        rotation that is under way ends: its new secret becomes the old one.
        """
        body = self.validated(RotateSecretInput)
        row, secret = endpoints.rotate_secret(
            self._webhook(webhook_id),
            secret=body.get("secret"),
            overlap=timedelta(seconds=body["overlap_seconds"]),
            by=self.principal.name,
            now=database_now(),
        )
        return self.tagged(row, Response(_with_secret(row, secret)))

    @extend_schema(
        parameters=[_location("URL of the delivery, which tells what came of it", 202)],
        request=TestInput,
        responses={202: OpenApiResponse(DeliveryOutput, "The delivery, on its way")},
    )
    def test(self, request: Request, webhook_id: str) -> Response:
        """Send a test to a webhook

        Once, without retries, also to one that is not active. It does not count for how the webhook is doing.
        """
        row = self._webhook(webhook_id)
        event = self.validated(TestInput).get("event")
        delivery = endpoints.send_test(row, event, by=self.principal.name, now=database_now())
        address = reverse(
            "webhook-delivery", kwargs={"webhook_id": row.webhook_id, "delivery_id": delivery.delivery_id}
        )
        return accepted(DeliveryOutput(delivery).data, location=address)

    @extend_schema(responses={200: OpenApiResponse(EventTypesOutput, "The events")})
    def event_types(self, request: Request) -> Response:
        """List what webhooks can be told

        Each with the JSON Schema of what is posted. Later versions may add to the data, and never take away.
        """
        self.query()
        shown = [
            {"name": name, "summary": event.summary, "schema": event.envelope(), "example": event.sample()}
            for name, event in ((name, EVENTS[name]) for name in endpoints.event_names())
        ]
        return Response({"event_types": shown})

    def _webhook(self, webhook_id: str) -> Webhook:
        return self.found(endpoints.present(), webhook_id=webhook_id)


def _with_secret(row: Webhook, secret: str) -> Any:
    return NewWebhookOutput(row, context={"secret": secret}).data
