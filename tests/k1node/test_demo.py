"""`manage.py demo` and `manage.py prune`."""

from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import call_command
from django.utils import timezone

from k1node.lib.sql import is_postgresql
from k1node.management.commands import demo
from scheduling import handlers
from scheduling.models import Schedule, Slot, Task
from tests.factories import make_attempt, make_schedule, make_task


def run(command: str) -> str:
    out = StringIO()
    call_command(command, stdout=out)
    return out.getvalue()


def loaded() -> list[str]:
    return [values["task_id"] for values in demo.DEMO if not is_postgresql() or values["task_id"] != "demo-backup"]


@pytest.mark.django_db
def test_the_demo_loads_its_schedules_and_runs_each_once() -> None:
    out = run("demo")

    assert sorted(Schedule.objects.values_list("task_id", flat=True)) == sorted(loaded())
    assert sorted(Task.objects.values_list("schedule__task_id", flat=True)) == sorted(loaded())
    assert set(Task.objects.values_list("status", flat=True)) == {"queued"}
    assert "/api/v2/scheduler/trigger" in out


@pytest.mark.django_db
def test_the_demo_tells_the_runs_of_event_schedules_what_has_happened() -> None:
    run("demo")

    task = Task.objects.get(schedule__task_id="demo-order-eu")

    assert task.parameters["event"] == {"name": "order.created", "metadata": {"region": "eu", "order": 1}}
    assert task.parameters["greeting"] == "A parameter of the schedule"


@pytest.mark.django_db
def test_a_second_demo_changes_nothing() -> None:
    run("demo")
    before = list(Schedule.objects.order_by("pk").values())

    out = run("demo")

    assert list(Schedule.objects.order_by("pk").values()) == before
    assert Task.objects.count() == len(loaded())
    assert out.count("unchanged") == len(loaded())


@pytest.mark.django_db
def test_a_second_demo_mends_what_was_changed_but_leaves_a_disabled_schedule_so() -> None:
    run("demo")
    Schedule.objects.filter(task_id="demo-fail").update(schedule_expr="0 0 1 1 *", enabled=False)

    out = run("demo")

    mended = Schedule.objects.get(task_id="demo-fail")
    assert (mended.schedule_expr, mended.enabled) == ("* * * * *", False)
    assert out.count("updated") == 1


@pytest.mark.parametrize("values", demo.DEMO, ids=lambda values: values["task_id"])
def test_every_handler_of_the_demo_may_run(values: dict[str, object]) -> None:
    assert handlers.parse(str(values["handler"])).display == values["handler"]


@pytest.mark.django_db
def test_prune_deletes_all_that_is_too_old_and_says_how_much() -> None:
    now = timezone.now()
    make_attempt(make_task(status="completed", finished_at=now - timedelta(days=31)))
    kept = make_task(status="completed", finished_at=now - timedelta(days=29))
    schedule = make_schedule()
    old = now - timedelta(days=40)
    Slot.objects.create(schedule=schedule, due_at=old, last_due_at=old, outcome="missed", recorded_at=old)

    out = run("prune")

    assert out == (
        "Deleted 2 rows: tasks and slots older than 30 days, resolved dead letters older than 90 days,"
        " events older than 7 days.\n"
    )
    assert list(Task.objects.values_list("pk", flat=True)) == [kept.pk]
    assert not Slot.objects.exists()
