"""Addresses of the scheduling API, under /api/v2/."""

from django.urls import path

from scheduling.api import views

schedules = views.ScheduleViewSet.as_view
tasks = views.TaskViewSet.as_view

urlpatterns = [
    path("scheduler/schedules", schedules({"get": "list", "post": "create"}), name="schedules"),
    path(
        "scheduler/schedules/<str:schedule_id>",
        schedules({"get": "retrieve", "patch": "partial_update", "delete": "destroy"}),
        name="schedule",
    ),
    path("scheduler/schedules/<str:schedule_id>/run", schedules({"post": "run"}), name="schedule-run"),
    path("scheduler/schedules/<str:schedule_id>/preview", schedules({"get": "preview"}), name="schedule-preview"),
    path(
        "scheduler/schedules/<str:schedule_id>/slots", views.SlotViewSet.as_view({"get": "list"}), name="schedule-slots"
    ),
    path("scheduler/preview", views.ExpressionViewSet.as_view({"get": "preview"}), name="expression-preview"),
    path("scheduler/trigger", views.TriggerViewSet.as_view({"post": "trigger"}), name="trigger"),
    path("scheduler/queue", views.QueueViewSet.as_view({"get": "status"}), name="queue"),
    path("tasks", tasks({"get": "list", "post": "create"}), name="tasks"),
    path("tasks/<str:task_id>", tasks({"get": "retrieve"}), name="task"),
    path("tasks/<str:task_id>/output", tasks({"get": "output"}), name="task-output"),
]
