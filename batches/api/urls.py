"""Addresses of the batches API, under /api/v2/ and before those of single tasks: `batch` is no task's id."""

from django.urls import path

from batches.api import views

batches = views.BatchViewSet.as_view
members = views.BatchTaskViewSet.as_view
ONE = "tasks/batch/<str:batch_id>"

urlpatterns = [
    path("tasks/batch", batches({"get": "list", "post": "create"}), name="batches"),
    path(ONE, batches({"get": "retrieve"}), name="batch"),
    path(f"{ONE}/tasks", members({"get": "list", "post": "add"}), name="batch-tasks"),
    path(f"{ONE}/close", batches({"post": "close"}), name="batch-close"),
    path(f"{ONE}/cancel", batches({"post": "cancel"}), name="batch-cancel"),
    path(f"{ONE}/pause", batches({"post": "pause"}), name="batch-pause"),
    path(f"{ONE}/resume", batches({"post": "resume"}), name="batch-resume"),
    path(f"{ONE}/retry-failed", batches({"post": "retry_failed"}), name="batch-retry-failed"),
]
