"""Addresses of redeliveries, among those of the webhooks API."""

from django.urls import path

from webhooks.api import redelivery_views

redeliveries = redelivery_views.RedeliveryViewSet.as_view
again = redelivery_views.AgainViewSet.as_view
ONE = "webhooks/<str:webhook_id>/redeliveries/<str:redelivery_id>"

urlpatterns = [
    path(
        "webhooks/<str:webhook_id>/redeliveries",
        redeliveries({"get": "list_redeliveries", "post": "create"}),
        name="webhook-redeliveries",
    ),
    path(ONE, redeliveries({"get": "get"}), name="webhook-redelivery"),
    path(f"{ONE}/start", redeliveries({"post": "start"}), name="webhook-redelivery-start"),
    path(f"{ONE}/stop", redeliveries({"post": "stop"}), name="webhook-redelivery-stop"),
    path(f"{ONE}/cancel", redeliveries({"post": "cancel"}), name="webhook-redelivery-cancel"),
    path(
        "webhooks/<str:webhook_id>/deliveries/<str:delivery_id>/redeliver",
        again({"post": "redeliver"}),
        name="webhook-redeliver",
    ),
]
