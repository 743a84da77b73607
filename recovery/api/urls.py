"""Addresses of the recovery API, under /api/v2/."""

from django.urls import path

from recovery.api import breaker_views, dead_letter_views, policy_views, redrive_views, views

tasks = views.InterventionViewSet.as_view
breakers = breaker_views.BreakerViewSet.as_view
letters = dead_letter_views.DeadLetterViewSet.as_view
redrives = redrive_views.RedriveViewSet.as_view
redrive_entries = redrive_views.RedriveEntryViewSet.as_view
hold = breaker_views.HoldViewSet.as_view
policies = policy_views.PolicyViewSet.as_view

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
    path("circuit-breaker", breakers({"post": "create"}), name="circuit-breakers"),
    path("circuit-breaker/status", breakers({"get": "list_status"}), name="circuit-breaker-status"),
    path(
        "circuit-breaker/<str:breaker_id>",
        breakers({"get": "get", "patch": "update", "delete": "delete_breaker"}),
        name="circuit-breaker",
    ),
    path("circuit-breaker/<str:breaker_id>/open", breakers({"post": "open_breaker"}), name="circuit-breaker-open"),
    path("circuit-breaker/<str:breaker_id>/close", breakers({"post": "close"}), name="circuit-breaker-close"),
    path("circuit-breaker/<str:breaker_id>/reset", breakers({"post": "reset"}), name="circuit-breaker-reset"),
    path("circuit-breaker/<str:breaker_id>/probe", breakers({"post": "probe"}), name="circuit-breaker-probe"),
    path("retry-policies", policies({"get": "list_policies", "post": "create"}), name="retry-policies"),
    path(
        "retry-policies/<str:name>",
        policies({"get": "get", "patch": "update", "delete": "retire"}),
        name="retry-policy",
    ),
    path("scheduler/hold", hold({"get": "get", "post": "hold"}), name="hold"),
    path("scheduler/hold/release", hold({"post": "release"}), name="hold-release"),
    path("queue/dlq", letters({"get": "list_entries", "post": "create"}), name="dead-letters"),
    path("queue/dlq/groups", letters({"get": "groups"}), name="dead-letter-groups"),
    path("queue/dlq/batch-resubmit", letters({"post": "batch_resubmit"}), name="dead-letters-resubmit"),
    path("queue/dlq/batch-archive", letters({"post": "batch_archive"}), name="dead-letters-archive"),
    path("queue/dlq/batch-unarchive", letters({"post": "batch_unarchive"}), name="dead-letters-unarchive"),
    path("queue/dlq/redrives", redrives({"get": "list_redrives", "post": "create"}), name="redrives"),
    path("queue/dlq/redrives/<str:redrive_id>", redrives({"get": "get"}), name="redrive"),
    path("queue/dlq/redrives/<str:redrive_id>/start", redrives({"post": "start"}), name="redrive-start"),
    path("queue/dlq/redrives/<str:redrive_id>/stop", redrives({"post": "stop"}), name="redrive-stop"),
    path("queue/dlq/redrives/<str:redrive_id>/cancel", redrives({"post": "cancel"}), name="redrive-cancel"),
    path(
        "queue/dlq/redrives/<str:redrive_id>/entries", redrive_entries({"get": "list_entries"}), name="redrive-entries"
    ),
    path("queue/dlq/<str:dlq_id>", letters({"get": "get"}), name="dead-letter"),
    path("queue/dlq/<str:dlq_id>/resubmit", letters({"post": "resubmit"}), name="dead-letter-resubmit"),
    path("queue/dlq/<str:dlq_id>/archive", letters({"post": "archive"}), name="dead-letter-archive"),
    path("queue/dlq/<str:dlq_id>/unarchive", letters({"post": "unarchive"}), name="dead-letter-unarchive"),
]
