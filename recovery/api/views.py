"""The recovery endpoints: validate, one call into the app, respond."""

from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from k1node.api.views import ApiViewSet
from k1node.lib.clock_time import database_now
from k1node.lib.errors import FieldInvalid
from recovery import metrics
from recovery.api.serializers import RetryStatsFilters, RetryStatsOutput
from scheduling.models import RetryPolicy

READ = ("error-recovery:read",)
TAGS = ("Error Recovery",)


class MetricsViewSet(ApiViewSet):
    required_scopes = {"retry_stats": READ}
    operation_ids = {"retry_stats": "getRetryStats"}
    tags = TAGS

    @extend_schema(
        parameters=[RetryStatsFilters], responses={200: OpenApiResponse(RetryStatsOutput, "Retry statistics")}
    )
    def retry_stats(self, request: Request) -> Response:
        """Get retry engine metrics"""
        asked = self.query(RetryStatsFilters)
        policy = asked.get("policy")
        if policy is not None and not RetryPolicy.objects.filter(pk=policy).exists():
            known = ", ".join(RetryPolicy.objects.values_list("name", flat=True)[:20])
            raise FieldInvalid("policy", f"There is no retry policy '{policy}'", f"Use one of: {known}")
        return Response(metrics.retry_stats(asked["interval"], policy, now=database_now()))
