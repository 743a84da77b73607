"""Schedules to look at: the sample handlers of ops/agents at work, one run of each at once."""

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, connection
from django.utils import timezone

from k1node.lib import sql
from k1node.node.start import console_url
from scheduling import schedules
from scheduling.models import Schedule

BY = "demo"
ON_SQLITE_ONLY = {"demo-backup"}
DEMO: tuple[dict[str, Any], ...] = (
    {
        "task_id": "demo-backup",
        "task_name": "Back the node's database up",
        "handler": "bash ops/agents/backup.sh",
        "schedule_type": "cron",
        "schedule_expr": "0 2 * * *",
        "parameters": {"keep": 7},
        "priority": 8,
    },
    {
        "task_id": "demo-healthcheck",
        "task_name": "Check the disk and the node itself",
        "handler": "bash ops/agents/healthcheck.sh",
        "schedule_type": "cron",
        "schedule_expr": "* * * * *",
        "parameters": {"min_free_percent": 2},
        "timeout_ms": 30_000,
    },
    {
        "task_id": "demo-export",
        "task_name": "Export the tasks of the last hour",
        "handler": "bash ops/agents/export.sh",
        "schedule_type": "cron",
        "schedule_expr": "@hourly",
        "parameters": {"dataset": "demo", "format": "csv", "since": "1h"},
        "timeout_ms": 300_000,
    },
    {
        "task_id": "demo-fail",
        "task_name": "Fail, always: watch the retries",
        "handler": "bash ops/agents/fail.sh",
        "schedule_type": "cron",
        "schedule_expr": "* * * * *",
        "retry_policy": "aggressive",
        "priority": 2,
    },
    {
        "task_id": "demo-sleep",
        "task_name": "Sleep for 20 s, in Python: try to cancel it",
        "handler": "python:sleep",
        "schedule_type": "cron",
        "schedule_expr": "*/5 * * * *",
        "parameters": {"seconds": 20},
    },
    {
        "task_id": "demo-greet",
        "task_name": "Greet on every event demo.…",
        "handler": "bash ops/agents/greet.sh",
        "schedule_type": "event",
        "schedule_expr": "demo.*",
    },
    {
        "task_id": "demo-order-eu",
        "task_name": "Greet on orders from the EU only",
        "handler": "bash ops/agents/greet.sh",
        "schedule_type": "event",
        "schedule_expr": "order.created",
        "event_filter": {"region": "eu"},
        "parameters": {"greeting": "A parameter of the schedule"},
        "priority": 9,
    },
)
# What the first runs of the event schedules are told has happened.
EVENTS = {
    "demo-greet": {"name": "demo.loaded", "metadata": {"by": "manage.py demo"}},
    "demo-order-eu": {"name": "order.created", "metadata": {"region": "eu", "order": 1}},
}
NEXT_STEPS = """
The first runs are queued. If the node is not running: make run

  Watch them      NODE/admin/scheduling/task/
  Their files     DATA/backups and DATA/exports
  The API         NODE/api/v2/docs

Set the two event schedules off yourself:

  KEY=$(.venv/bin/python manage.py createapikey demo --scope scheduler:trigger | tail -n 1)
  curl -X POST NODE/api/v2/scheduler/trigger -H "Authorization: Bearer $KEY" \\
    -H 'Content-Type: application/json' -d '{"event": "demo.hello", "metadata": {"from": "me"}}'
  curl -X POST NODE/api/v2/scheduler/trigger -H "Authorization: Bearer $KEY" \\
    -H 'Content-Type: application/json' -d '{"event": "order.created", "metadata": {"region": "eu"}}'

To clear up, delete the schedules whose ids begin with demo-.
"""


class Command(BaseCommand):
    help = "Load sample schedules and run each once; a second time mends what was changed and runs nothing."

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            for values in DEMO:
                if values["task_id"] in ON_SQLITE_ONLY and sql.is_postgresql():
                    self.stdout.write(f"  {values['task_id']:<18} left out: on PostgreSQL backups are made by pg_dump")
                    continue
                schedule, note = self._load(values)
                words = schedules.in_words(schedule)
                self.stdout.write(f"  {schedule.task_id:<18} {note:<10} {words[:1].lower()}{words[1:]}")
        except DatabaseError as error:
            if Schedule._meta.db_table in connection.introspection.table_names():
                raise
            raise CommandError("The database has no tables yet. Start the node first: make run") from error
        node = console_url().removesuffix("/admin/")
        self.stdout.write(NEXT_STEPS.replace("NODE", node).replace("DATA", str(settings.K1NODE_DATA)))

    @staticmethod
    def _load(values: dict[str, Any]) -> tuple[Schedule, str]:
        now = timezone.now()
        known = Schedule.objects.filter(task_id=values["task_id"]).first()
        if known is not None:
            schedule = schedules.update(known, values, BY, now=now)
            return schedule, "unchanged" if schedule.updated_at == known.updated_at else "updated"
        schedule = schedules.create(values, BY, now=now)
        event = EVENTS.get(schedule.task_id)
        schedules.run_now(schedule, BY, {"event": event} if event else None, now=now)
        return schedule, "new, runs"
