"""The page of a task, with the batch that it belongs to."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from recovery.admin import OperatedTaskAdmin
from scheduling.models import Task

admin.site.unregister(Task)


@admin.register(Task)
class BatchedTaskAdmin(OperatedTaskAdmin):
    seen_with = (*OperatedTaskAdmin.seen_with, "gate__batch")

    def beside(self, request: HttpRequest, task: Task) -> dict[str, Any]:
        return {**super().beside(request, task), "batch": getattr(task.gate, "batch", None)}
