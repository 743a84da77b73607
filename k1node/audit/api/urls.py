"""Addresses of the audit log's API, under /api/v2/."""

from django.urls import path

from k1node.audit.api.views import AuditViewSet

urlpatterns = [
    path("audit", AuditViewSet.as_view({"get": "list"}), name="audit"),
    path("audit/<str:record_id>", AuditViewSet.as_view({"get": "retrieve"}), name="audit-record"),
]
