"""Addresses of the recovery API, under /api/v2/."""

from django.urls import path

from recovery.api import views

tasks = views.InterventionViewSet.as_view

urlpatterns = [
    path("metrics/retry-stats", views.MetricsViewSet.as_view({"get": "retry_stats"}), name="retry-stats"),
    path("tasks/<str:task_id>/explain", views.ExplainViewSet.as_view({"get": "explain"}), name="task-explain"),
    path("tasks/<str:task_id>/pause", tasks({"post": "pause"}), name="task-pause"),
    path("tasks/<str:task_id>/resume", tasks({"post": "resume"}), name="task-resume"),
    path("tasks/<str:task_id>/skip", tasks({"post": "skip"}), name="task-skip"),
    path("tasks/<str:task_id>/cancel", tasks({"post": "cancel"}), name="task-cancel"),
    path("tasks/<str:task_id>/retry", tasks({"post": "retry"}), name="task-retry"),
    path("tasks/<str:task_id>/priority", tasks({"post": "priority"}), name="task-priority"),
    path("tasks/<str:task_id>/intervention-history", tasks({"get": "list_history"}), name="task-intervention-history"),
]
