"""Addresses of the webhooks API, under /api/v2/."""

from django.urls import include, path

from webhooks.api import delivery_views, views

webhooks = views.WebhookViewSet.as_view
deliveries = delivery_views.DeliveryViewSet.as_view

urlpatterns = [
    path("", include("webhooks.api.redelivery_urls")),
    path("webhooks", webhooks({"get": "list_webhooks", "post": "create"}), name="webhooks"),
    path("webhooks/event-types", webhooks({"get": "event_types"}), name="event-types"),
    path(
        "webhooks/<str:webhook_id>",
        webhooks({"get": "get", "patch": "update", "delete": "delete_webhook"}),
        name="webhook",
    ),
    path("webhooks/<str:webhook_id>/test", webhooks({"post": "test"}), name="webhook-test"),
    path("webhooks/<str:webhook_id>/enable", webhooks({"post": "enable"}), name="webhook-enable"),
    path("webhooks/<str:webhook_id>/rotate-secret", webhooks({"post": "rotate_secret"}), name="webhook-rotate-secret"),
    path("webhooks/<str:webhook_id>/deliveries", deliveries({"get": "list_deliveries"}), name="webhook-deliveries"),
    path("webhooks/<str:webhook_id>/deliveries/<str:delivery_id>", deliveries({"get": "get"}), name="webhook-delivery"),
]
