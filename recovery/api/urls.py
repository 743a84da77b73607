"""Addresses of the recovery API, under /api/v2/."""

from django.urls import path

from recovery.api import views

urlpatterns = [
    path("metrics/retry-stats", views.MetricsViewSet.as_view({"get": "retry_stats"}), name="retry-stats"),
]
