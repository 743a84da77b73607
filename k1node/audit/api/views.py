"""The audit log over the API: read, never written."""

from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from k1node.api.pagination import CursorPagination
from k1node.api.views import ApiViewSet
from k1node.audit.api.serializers import AuditFilters, AuditRecordOutput
from k1node.audit.models import AuditRecord
from k1node.lib.admin_base import key_in


class AuditViewSet(ApiViewSet):
    required_scopes = {"list": ("admin",), "retrieve": ("admin",)}
    operation_ids = {"list": "listAuditRecords", "retrieve": "getAuditRecord"}
    tags = ("Access",)
    list_key = "records"
    list_name = "AuditRecordList"
    pagination_class = CursorPagination

    @extend_schema(
        parameters=[AuditFilters], responses={200: OpenApiResponse(AuditRecordOutput(many=True), "The audit log")}
    )
    def list(self, request: Request) -> Response:
        """List what was done, by whom, from where

        Newest first. Refusals of one kind, source and minute are one record. The filters narrow each other.
        """
        filters = self.query(AuditFilters)
        rows = AuditRecord.objects.all()
        action = filters.pop("action", "")
        if action.endswith("*"):
            rows = rows.filter(action__startswith=action.rstrip("*"))
        elif action:
            rows = rows.filter(action=action)
        moments = {"since": "at__gte", "until": "at__lt"}
        return self.listed(
            rows.filter(**{moments.get(name, name): value for name, value in filters.items()}), AuditRecordOutput
        )

    @extend_schema(responses={200: OpenApiResponse(AuditRecordOutput, "The record")})
    def retrieve(self, request: Request, record_id: str) -> Response:
        """Get one record of the audit log"""
        self.query()
        return Response(AuditRecordOutput(self.found(AuditRecord.objects.all(), pk=key_in(record_id))).data)
