"""The pages of scheduling. Schedules are changed through scheduling.schedules, as by the API; the rest is read."""

from scheduling.admin import policies, records, schedules, tasks

__all__ = ["policies", "records", "schedules", "tasks"]
