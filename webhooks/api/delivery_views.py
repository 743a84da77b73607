"""The endpoints of deliveries: what was sent, when, and what came of it."""

from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from k1node.access.scopes import ADMIN
from k1node.api.pagination import CursorPagination
from k1node.api.views import ApiViewSet
from webhooks import delivery_log, endpoints
from webhooks.api.delivery_serializers import MOST_ATTEMPTS, DeliveryDetailOutput, DeliveryFilters, DeliveryOutput
from webhooks.models import Attempt, Delivery

READ = ("webhooks:read",)


class DeliveryViewSet(ApiViewSet):
    required_scopes = {"list_deliveries": READ, "get": READ}
    operation_ids = {"list_deliveries": "listWebhookDeliveries", "get": "getWebhookDelivery"}
    tags = ("Webhooks",)
    list_key = "deliveries"
    list_name = "WebhookDeliveryList"
    pagination_class = CursorPagination
    conditional_actions = {"get"}

    @extend_schema(
        parameters=[DeliveryFilters], responses={200: OpenApiResponse(DeliveryOutput(many=True), "The deliveries")}
    )
    def list_deliveries(self, request: Request, webhook_id: str) -> Response:
        """List the deliveries to a webhook

        The newest first; the filters narrow each other. Those that have ended are kept for K1NODE_KEEP_DELIVERY_DAYS.
        """
        filters = self.query(DeliveryFilters)
        webhook = self.found(endpoints.present(), webhook_id=webhook_id)
        return self.listed(delivery_log.find(webhook, **filters), DeliveryOutput)

    @extend_schema(responses={200: OpenApiResponse(DeliveryDetailOutput, "The delivery")})
    def get(self, request: Request, webhook_id: str, delivery_id: str) -> Response:
        """Get a delivery with its attempts

        What a receiver answered is shown to those with the scope `admin` alone.
        """
        self.query()
        rows = Delivery.objects.filter(webhook__webhook_id=webhook_id, webhook__deleted_at__isnull=True)
        row = self.found(rows.select_related("message"), delivery_id=delivery_id)
        tries = Attempt.objects.filter(delivery=row).order_by("-number")
        if not self.principal.may(ADMIN):
            tries = tries.defer("response_headers", "response_body")
        context = {"attempts": list(tries[:MOST_ATTEMPTS])[::-1], "shows_answers": self.principal.may(ADMIN)}
        return self.tagged(row, Response(DeliveryDetailOutput(row, context=context).data))
