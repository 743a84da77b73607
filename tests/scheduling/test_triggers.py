"""Triggers: which event schedules an event fits, and what it queues."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from scheduling import triggers
from scheduling.models import OverlapPolicy, Schedule, ScheduleType, Task
from scheduling.triggers import EventInvalid, TooManySchedules, Triggered
from tests.factories import make_schedule

NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)

pytestmark = pytest.mark.django_db


def on(expression: str, **fields: Any) -> Schedule:
    """Return a schedule for an event or a pattern; its runs may overlap."""
    defaults = {
        "handler": "python:noop",
        "schedule_type": ScheduleType.EVENT,
        "schedule_expr": expression,
        "overlap_policy": OverlapPolicy.ALLOW,
    }
    return make_schedule(**defaults | fields)


def trigger(event: str = "order.created", metadata: dict[str, Any] | None = None) -> Triggered:
    return triggers.trigger(event, metadata or {}, "ops", now=NOW)


@pytest.mark.parametrize(
    ("expression", "event", "fits"),
    [
        pytest.param("order.created", "order.created", True, id="the name"),
        pytest.param("order.created", "order.created.late", False, id="a longer name"),
        pytest.param("order.created", "order.create", False, id="a shorter name"),
        pytest.param("order.created", "Order.created", False, id="another case"),
        pytest.param("order.*", "order.created", True, id="a beginning"),
        pytest.param("order.*", "order.", True, id="nothing after the beginning"),
        pytest.param("order.*", "order", False, id="less than the beginning"),
        pytest.param("order.*", "orders.created", False, id="another beginning"),
        pytest.param("*", "x", True, id="everything"),
        pytest.param("order.created*", "order.created", True, id="the whole name as beginning"),
        pytest.param("a_c", "abc", False, id="no wildcards of SQL"),
    ],
)
def test_a_pattern_fits_by_name_or_beginning(expression: str, event: str, fits: bool) -> None:
    on(expression)

    done = trigger(event)

    assert (done.matched, len(done.tasks)) == ((1, 1) if fits else (0, 0))


@pytest.mark.parametrize(
    ("wanted", "metadata", "fits"),
    [
        pytest.param({}, {"a": 1}, True, id="no filter"),
        pytest.param({"a": 1}, {"a": 1, "b": 2}, True, id="equal"),
        pytest.param({"a": 1}, {"a": 2}, False, id="not equal"),
        pytest.param({"a": 1}, {}, False, id="missing"),
        pytest.param({"a": None}, {}, False, id="null is not missing"),
        pytest.param({"a": None}, {"a": None}, True, id="null"),
        pytest.param({"a": 1}, {"a": True}, False, id="true is not one"),
        pytest.param({"a": "1"}, {"a": 1}, False, id="text is no number"),
        pytest.param({"a": 1, "b": 2}, {"a": 1}, False, id="all of them"),
        pytest.param({"a.b": 1}, {"a": {"b": 1}}, True, id="a path"),
        pytest.param({"a.b": 1}, {"a.b": 1}, True, id="a key with a dot"),
        pytest.param({"a.b": 1}, {"a": 1}, False, id="a path through a number"),
        pytest.param({"a": {"b": [1]}}, {"a": {"b": [1]}}, True, id="an object"),
    ],
)
def test_a_filter_asks_for_equal_metadata(wanted: dict[str, Any], metadata: dict[str, Any], fits: bool) -> None:
    on("order.created", event_filter=wanted)

    assert trigger(metadata=metadata).matched == int(fits)


@pytest.mark.parametrize(
    ("fields", "matched"),
    [
        pytest.param({"enabled": False}, 0, id="disabled"),
        pytest.param({"schedule_type": ScheduleType.CRON}, 0, id="not an event schedule"),
        pytest.param({"paused_until": NOW + HOUR}, 1, id="paused"),
        pytest.param({"starts_at": NOW + HOUR}, 1, id="not begun"),
        pytest.param({"ends_at": NOW - HOUR}, 1, id="ended"),
        pytest.param({"skip_next": True}, 1, id="to be left out once"),
    ],
)
def test_a_schedule_that_may_not_run_now_queues_nothing(fields: dict[str, Any], matched: int) -> None:
    on("order.created", **fields)

    done = trigger()

    assert (done.matched, done.tasks) == (matched, [])
    assert not Task.objects.exists()


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"paused_until": NOW}, id="the pause is over"),
        pytest.param({"starts_at": NOW}, id="begins now"),
        pytest.param({"ends_at": NOW}, id="ends now"),
    ],
)
def test_a_schedule_runs_up_to_the_edge_of_its_period(fields: dict[str, Any]) -> None:
    on("order.created", **fields)

    assert len(trigger().tasks) == 1


def test_the_next_run_is_left_out_once() -> None:
    schedule = on("order.created", skip_next=True)

    counts = [len(trigger().tasks) for _ in range(2)]

    assert counts == [0, 1]
    schedule.refresh_from_db()
    assert schedule.skip_next is False


def test_a_run_knows_its_event_and_is_made_like_its_schedule() -> None:
    schedule = on(
        "order.*",
        task_name="Ship",
        parameters={"a": 1, "event": "overwritten"},
        priority=9,
        timeout_ms=7,
        retry_policy_id="aggressive",
        circuit_breaker="default",
    )

    [task] = trigger(metadata={"n": 1}).tasks

    task.refresh_from_db()
    assert task.parameters == {"a": 1, "event": {"name": "order.created", "metadata": {"n": 1}}}
    assert task.task_id.startswith(f"{schedule.task_id}-")
    assert len(task.task_id) >= len(schedule.task_id) + 9
    assert (task.status, task.due_at, task.created_by) == ("queued", NOW, "ops")
    assert (task.task_name, task.priority, task.timeout_ms) == ("Ship", 9, 7)
    assert (task.retry_policy_id, task.circuit_breaker) == ("aggressive", schedule.task_id)


@pytest.mark.parametrize(
    ("policy", "statuses"),
    [
        pytest.param(OverlapPolicy.ALLOW, ["queued", "queued", "queued"], id="allow"),
        pytest.param(OverlapPolicy.SKIP, ["queued"], id="skip"),
        pytest.param(OverlapPolicy.QUEUE_ONE, ["queued", "blocked"], id="queue_one"),
        pytest.param(OverlapPolicy.CANCEL_RUNNING, ["cancelled", "cancelled", "queued"], id="cancel_running"),
    ],
)
def test_events_in_a_row_follow_the_overlap_policy(policy: OverlapPolicy, statuses: list[str]) -> None:
    on("order.created", overlap_policy=policy)

    matched = [trigger().matched for _ in range(3)]

    assert matched == [1, 1, 1]
    assert [task.status for task in Task.objects.order_by("pk")] == statuses


@pytest.mark.parametrize("event", ["", "order.*", "-x", "a b", "ä", "a" * 201, "a\n"])
def test_a_name_no_event_can_have_is_refused(event: str) -> None:
    with pytest.raises(EventInvalid) as caught:
        trigger(event)

    assert [detail.field for detail in caught.value.details] == ["event"]


def test_too_much_metadata_is_refused() -> None:
    with pytest.raises(EventInvalid) as caught:
        trigger(metadata={"text": "x" * triggers.MAX_METADATA_BYTES})

    assert [detail.field for detail in caught.value.details] == ["metadata"]


def test_more_schedules_than_one_event_may_start_queue_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triggers, "MOST_SCHEDULES", 2)
    for _ in range(3):
        on("order.*")

    with pytest.raises(TooManySchedules):
        trigger()

    assert not Task.objects.exists()


def test_the_number_of_queries_does_not_grow_with_the_schedules() -> None:
    def count() -> int:
        with CaptureQueriesContext(connection) as queries:
            assert len(trigger().tasks) == Schedule.objects.count()
        return len(queries)

    on("order.created", overlap_policy=OverlapPolicy.QUEUE_ONE)
    on("order.created")
    Task.objects.all().delete()
    trigger()
    Task.objects.update(status="completed")
    from scheduling.models import Gate

    Gate.objects.update(in_flight=0, waiting=0)
    few = count()
    for _ in range(8):
        on("order.*")

    Task.objects.update(status="completed")
    Gate.objects.update(in_flight=0, waiting=0)
    assert count() == few


def test_the_schedules_of_an_event_are_found_by_their_index() -> None:
    schedules = Schedule.objects.filter(schedule_type="event", enabled=True, schedule_expr__in=["order.*", "*"])

    if connection.vendor == "sqlite":
        assert "schedule_event" in schedules.explain()
