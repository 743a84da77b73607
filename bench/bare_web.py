"""Schedules by a view of Django REST framework as its tutorial writes it: no key, no scope, no limit, no log line."""

from typing import Any

from django.urls import path
from rest_framework.generics import ListAPIView
from rest_framework.pagination import PageNumberPagination
from rest_framework.renderers import JSONRenderer

from scheduling import queries
from scheduling.api.serializers import ScheduleOutput
from scheduling.models import Schedule


class Pages(PageNumberPagination):
    page_size = 20


class Schedules(ListAPIView):  # type: ignore[type-arg]
    queryset = Schedule.objects.order_by("task_id")
    serializer_class = ScheduleOutput
    renderer_classes = [JSONRenderer]
    pagination_class = Pages

    def get_serializer(self, page: Any, **options: Any) -> Any:
        # The same rows with the same figures, which need their one query.
        return ScheduleOutput(page, context={"statistics": queries.statistics(page)}, **options)


urlpatterns = [path("schedules", Schedules.as_view())]
