"""Schedules: what people may write, and what an edit, a deletion and a run at once do."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection

from k1node.events.models import Event
from k1node.lib.errors import InvalidRequest
from scheduling import schedules, slots
from scheduling.models import OverlapPolicy, Schedule, ScheduleTally, ScheduleType, Slot, Task, TaskStatus
from scheduling.queue import TaskIdTaken
from scheduling.schedules import RunLeftOut, ScheduleIdTaken, ScheduleNotFound
from tests.databases import Rival
from tests.factories import make_schedule, make_task

MINUTE = timedelta(minutes=1)
NOON = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
NOW = NOON + timedelta(milliseconds=200)

pytestmark = pytest.mark.django_db


def values(**fields: Any) -> dict[str, Any]:
    return {
        "task_id": "backup",
        "handler": "python:noop",
        "schedule_type": "cron",
        "schedule_expr": "*/5 * * * *",
    } | fields


def problems(error: InvalidRequest) -> list[str]:
    return [detail.field for detail in error.details]


# --- create -----------------------------------------------------------------------------------------------------


def test_a_new_cron_schedule_has_the_defaults_and_is_due_from_now_on() -> None:
    schedule = schedules.create(values(), "ops", now=NOW)

    schedule.refresh_from_db()
    assert schedule.next_fire_at == NOON + 5 * MINUTE
    assert (schedule.priority, schedule.retry_policy_id, schedule.circuit_breaker) == (5, "standard", "")
    assert (schedule.overlap_policy, schedule.catch_up) == ("skip", "last")
    assert (schedule.catch_up_window_ms, schedule.catch_up_cap) == (86_400_000, 100)
    assert (schedule.enabled, schedule.created_by) == (True, "ops")
    event = Event.objects.get()
    assert event.name == "schedule.created"
    assert event.data == {"task_id": "backup", "schedule_type": "cron", "schedule_expr": "*/5 * * * *", "by": "ops"}


def test_runs_of_a_new_event_schedule_may_overlap_and_no_clock_fires_it() -> None:
    schedule = schedules.create(values(schedule_type="event", schedule_expr="order.*"), "ops", now=NOW)

    assert (schedule.overlap_policy, schedule.next_fire_at) == ("allow", None)


def test_a_disabled_schedule_is_not_due() -> None:
    assert schedules.create(values(enabled=False), "ops", now=NOW).next_fire_at is None


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        pytest.param({"task_id": "-x"}, "task_id", id="id begins with a dash"),
        pytest.param({"task_id": "a/b"}, "task_id", id="id with a slash"),
        pytest.param({"task_id": "x" * 121}, "task_id", id="id too long"),
        pytest.param({"task_id": "batch"}, "task_id", id="reserved id"),
        pytest.param({"handler": "rm -rf /"}, "handler", id="handler"),
        pytest.param(
            {"handler": "python:sleep", "parameters": {"seconds": "x"}}, "parameters.seconds", id="parameters"
        ),
        pytest.param({"schedule_expr": "61 * * * *"}, "schedule_expr", id="minute 61"),
        pytest.param({"schedule_expr": "* * * * * *"}, "schedule_expr", id="six fields"),
        pytest.param({"schedule_expr": ""}, "schedule_expr", id="empty"),
        pytest.param({"schedule_expr": "0 0 31 2 *"}, "schedule_expr", id="31 February"),
        pytest.param({"schedule_type": "event", "schedule_expr": "* * * * *"}, "schedule_expr", id="cron for an event"),
        pytest.param({"schedule_type": "event", "schedule_expr": "a*b"}, "schedule_expr", id="a star in the middle"),
        pytest.param({"schedule_type": "event", "schedule_expr": ""}, "schedule_expr", id="no event name"),
        pytest.param({"schedule_type": "event", "schedule_expr": "a" * 201}, "schedule_expr", id="event name too long"),
        pytest.param({"timezone": "Europe/Berln"}, "timezone", id="zone"),
        pytest.param({"retry_policy": "standrad"}, "retry_policy", id="policy"),
        pytest.param({"circuit_breaker": "a b"}, "circuit_breaker", id="breaker"),
        pytest.param({"circuit_breaker": "status"}, "circuit_breaker", id="reserved breaker"),
        pytest.param(
            {"task_id": "status", "circuit_breaker": "default"}, "circuit_breaker", id="reserved by the own name"
        ),
        pytest.param({"event_filter": {"a": 1}}, "event_filter", id="a filter without events"),
        pytest.param({"starts_at": NOON, "ends_at": NOON}, "ends_at", id="ends with its start"),
        pytest.param({"starts_at": datetime(9999, 1, 1, tzinfo=UTC)}, "starts_at", id="starts too far ahead"),
    ],
)
def test_what_cannot_run_is_refused_with_a_suggestion(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        schedules.create(values(**fields), "ops", now=NOW)

    assert problems(caught.value) == [field]
    assert caught.value.details[0].suggestion
    assert not Schedule.objects.exists()


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(InvalidRequest) as caught:
        schedules.create(values(handler="", schedule_expr="x", timezone="x", retry_policy="x"), "ops", now=NOW)

    assert problems(caught.value) == ["handler", "retry_policy", "schedule_expr", "timezone"]


@pytest.mark.parametrize("expression", ["*", "order.created", "order.*", "a:b/c-d_e*", "A" * 200])
def test_an_event_may_be_named_or_begun(expression: str) -> None:
    schedule = schedules.create(values(schedule_type="event", schedule_expr=expression), "ops", now=NOW)

    assert schedule.schedule_expr == expression


def test_an_id_is_taken_once() -> None:
    schedules.create(values(), "ops", now=NOW)

    with pytest.raises(ScheduleIdTaken) as caught:
        schedules.create(values(), "ops", now=NOW)

    assert [detail.field for detail in caught.value.details] == ["task_id"]
    assert Event.objects.count() == 1


def test_an_id_that_a_task_has_is_taken_too() -> None:
    make_task(task_id="backup")

    with pytest.raises(ScheduleIdTaken):
        schedules.create(values(), "ops", now=NOW)


# --- update -----------------------------------------------------------------------------------------------------


def test_an_edit_changes_what_it_names_and_says_so() -> None:
    schedule = schedules.create(values(), "ops", now=NOW)

    changed = schedules.update(schedule, {"priority": 9, "retry_policy": "aggressive", "enabled": True}, "eve", now=NOW)

    changed.refresh_from_db()
    assert (changed.priority, changed.retry_policy_id, changed.handler) == (9, "aggressive", "python:noop")
    assert changed.updated_at > schedule.updated_at
    event = Event.objects.get(name="schedule.updated")
    assert event.data == {"task_id": "backup", "changed": ["priority", "retry_policy"], "by": "eve"}


def test_an_edit_that_changes_nothing_writes_nothing() -> None:
    schedule = schedules.create(values(), "ops", now=NOW)

    same = schedules.update(schedule, {"priority": 5, "parameters": {}}, "eve", now=NOW)

    assert same.updated_at == schedule.updated_at
    assert not Event.objects.filter(name="schedule.updated").exists()


def test_true_is_not_one() -> None:
    schedule = schedules.create(values(parameters={"n": 1}), "ops", now=NOW)

    changed = schedules.update(schedule, {"parameters": {"n": True}}, "eve", now=NOW)

    changed.refresh_from_db()
    assert changed.parameters == {"n": True}
    assert changed.parameters["n"] is True


@pytest.mark.parametrize(
    ("changes", "next_fire_at"),
    [
        pytest.param({"schedule_expr": "30 * * * *"}, NOON + 30 * MINUTE, id="expression"),
        pytest.param({"timezone": "Asia/Kathmandu", "schedule_expr": "0 18 * * *"}, NOON + 15 * MINUTE, id="zone"),
        pytest.param({"enabled": False}, None, id="disabled"),
        pytest.param({"ends_at": NOON + MINUTE}, None, id="ends"),
        pytest.param({"starts_at": NOON + 60 * MINUTE}, NOON + 60 * MINUTE, id="starts"),
        pytest.param({"schedule_type": "event", "schedule_expr": "a.b"}, None, id="an event schedule now"),
        pytest.param({"priority": 1}, NOON - 60 * MINUTE, id="nothing about time"),
    ],
)
def test_an_edit_of_the_times_counts_from_now(changes: dict[str, Any], next_fire_at: datetime | None) -> None:
    schedule = schedules.create(values(), "ops", now=NOON - 65 * MINUTE)

    schedules.update(schedule, changes, "eve", now=NOW)

    schedule.refresh_from_db()
    assert schedule.next_fire_at == next_fire_at


def test_enabling_again_fires_nothing_that_has_passed() -> None:
    schedule = schedules.create(values(enabled=False), "ops", now=NOON - 65 * MINUTE)

    assert schedules.update(schedule, {"enabled": True}, "eve", now=NOW).next_fire_at == NOON + 5 * MINUTE


def test_an_edit_does_not_come_back_to_a_slot_that_a_clock_ahead_has_fired() -> None:
    schedule = schedules.create(values(), "ops", now=NOON - MINUTE)
    slots.fire_due(now=NOON)

    schedules.update(schedule, {"schedule_expr": "*/10 * * * *"}, "eve", now=NOON - timedelta(milliseconds=3))

    schedule.refresh_from_db()
    assert schedule.next_fire_at == NOON + 10 * MINUTE


def test_an_edit_puts_a_schedule_that_could_not_be_fired_back_to_work() -> None:
    schedule = make_schedule(next_fire_at=None, last_error="It broke")

    changed = schedules.update(schedule, {}, "eve", now=NOW)

    assert (changed.last_error, changed.next_fire_at) == ("", NOON + 5 * MINUTE)


def test_a_schedule_whose_script_is_gone_can_still_be_disabled() -> None:
    schedule = make_schedule(handler="bash ops/gone.sh", next_fire_at=NOON)

    assert schedules.update(schedule, {"enabled": False}, "eve", now=NOW).next_fire_at is None


def test_an_edit_is_checked_against_the_rest_of_the_row() -> None:
    schedule = schedules.create(values(ends_at=NOON + 60 * MINUTE), "ops", now=NOW)

    with pytest.raises(InvalidRequest) as caught:
        schedules.update(schedule, {"schedule_type": "event", "starts_at": NOON + 61 * MINUTE}, "eve", now=NOW)

    assert problems(caught.value) == ["schedule_expr", "ends_at"]
    schedule.refresh_from_db()
    assert (schedule.schedule_type, schedule.starts_at) == ("cron", None)


@pytest.mark.django_db(transaction=True)
def test_an_edit_keeps_what_a_rival_has_written_meanwhile(rival: Rival) -> None:
    schedule = schedules.create(values(), "ops", now=NOW)
    rival.do(schedules.update, schedule, {"priority": 9}, "rival", now=NOW)

    schedules.update(schedule, {"task_name": "Backup"}, "eve", now=NOW)

    schedule.refresh_from_db()
    assert (schedule.priority, schedule.task_name) == (9, "Backup")


def test_what_is_deleted_cannot_be_edited() -> None:
    schedule = make_schedule()
    stale = Schedule.objects.get(pk=schedule.pk)
    schedules.delete(schedule, "eve", now=NOW)

    with pytest.raises(ScheduleNotFound):
        schedules.update(stale, {"priority": 1}, "eve", now=NOW)


# --- delete -----------------------------------------------------------------------------------------------------


def test_deleting_removes_the_rule_and_keeps_its_tasks() -> None:
    schedule, other = make_schedule(), make_schedule()
    running = make_task(schedule=schedule, status=TaskStatus.EXECUTING)
    waiting = make_task(schedule=schedule)
    Slot.objects.create(schedule=schedule, due_at=NOW, last_due_at=NOW, outcome="fired", recorded_at=NOW)
    for each in (schedule, other):
        ScheduleTally.objects.create(schedule=each, shard=0)

    schedules.delete(schedule, "eve", now=NOW)

    assert list(Schedule.objects.all()) == [other]
    assert {task.pk: task.status for task in Task.objects.all()} == {running.pk: "executing", waiting.pk: "queued"}
    assert [tally.schedule_id for tally in ScheduleTally.objects.all()] == [other.pk]
    assert Event.objects.get().data == {"task_id": schedule.task_id, "by": "eve"}


def test_deleting_twice_is_told() -> None:
    schedule = make_schedule()
    schedules.delete(schedule, "eve", now=NOW)

    with pytest.raises(ScheduleNotFound):
        schedules.delete(schedule, "eve", now=NOW)


# --- run now ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="as it is"),
        pytest.param({"enabled": False}, id="disabled"),
        pytest.param({"paused_until": NOON + 60 * MINUTE}, id="paused"),
        pytest.param({"schedule_type": ScheduleType.EVENT, "schedule_expr": "a.b"}, id="an event schedule"),
        pytest.param({"jitter_ms": 3_600_000}, id="with jitter"),
    ],
)
def test_a_schedule_runs_at_once_whatever_its_state(fields: dict[str, Any]) -> None:
    schedule = make_schedule(handler="python:noop", priority=8, parameters={"a": 1, "b": 1}, **fields)

    task = schedules.run_now(schedule, "eve", {"b": 2}, now=NOW)

    task.refresh_from_db()
    assert task.task_id.startswith(f"{schedule.task_id}-run-")
    assert (task.status, task.due_at, task.priority) == ("queued", NOW, 8)
    assert (task.parameters, task.created_by, task.schedule_id) == ({"a": 1, "b": 2}, "eve", schedule.pk)
    assert not Slot.objects.exists()


@pytest.mark.parametrize(
    ("policy", "refused", "status"),
    [
        pytest.param(OverlapPolicy.ALLOW, False, "queued", id="allow"),
        pytest.param(OverlapPolicy.SKIP, True, None, id="skip"),
        pytest.param(OverlapPolicy.QUEUE_ONE, False, "blocked", id="queue_one"),
        pytest.param(OverlapPolicy.CANCEL_RUNNING, False, "queued", id="cancel_running"),
    ],
)
def test_a_run_at_once_follows_the_overlap_policy(policy: OverlapPolicy, refused: bool, status: str | None) -> None:
    schedule = make_schedule(handler="python:noop", overlap_policy=policy)
    first = schedules.run_now(schedule, "eve", now=NOW)

    if refused:
        with pytest.raises(RunLeftOut, match="an earlier run has not ended"):
            schedules.run_now(schedule, "eve", now=NOW)
    else:
        second = schedules.run_now(schedule, "eve", now=NOW)
        assert second.status == status

    first.refresh_from_db()
    assert first.status == ("cancelled" if policy == OverlapPolicy.CANCEL_RUNNING else "queued")
    assert Task.objects.count() == (1 if refused else 2)


def test_a_schedule_that_is_gone_cannot_be_run() -> None:
    schedule = make_schedule()
    schedules.delete(Schedule.objects.get(), "eve", now=NOW)

    with pytest.raises(ScheduleNotFound):
        schedules.run_now(schedule, "ops", now=NOW)

    assert not Task.objects.exists()


@pytest.mark.parametrize("policy", [OverlapPolicy.ALLOW, OverlapPolicy.CANCEL_RUNNING])
def test_a_run_can_be_shown_when_its_schedule_goes_at_that_moment(policy: OverlapPolicy) -> None:
    schedule = make_schedule(overlap_policy=policy)
    if policy != OverlapPolicy.ALLOW:
        schedules.run_now(schedule, "ops", now=NOW)

    task = schedules.run_now(schedule, "ops", now=NOW)
    schedules.delete(Schedule.objects.get(), "eve", now=NOW)

    assert task.schedule == schedule


def test_parameters_for_a_run_at_once_are_checked() -> None:
    schedule = make_schedule(handler="python:sleep", parameters={"seconds": 1})

    with pytest.raises(InvalidRequest) as caught:
        schedules.run_now(schedule, "eve", {"seconds": "long"}, now=NOW)

    assert problems(caught.value) == ["parameters.seconds"]


def test_every_id_is_its_own() -> None:
    schedule = make_schedule(handler="python:noop", overlap_policy=OverlapPolicy.ALLOW)

    ids = {schedules.run_now(schedule, "eve", now=NOW).task_id for _ in range(20)}

    assert len(ids) == 20


# --- for people -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        pytest.param({"schedule_expr": "0 2 * * *"}, "At 02:00", id="cron"),
        pytest.param({"schedule_expr": "0 2 * * *", "timezone": "Asia/Tokyo"}, "At 02:00 (Asia/Tokyo)", id="zone"),
        pytest.param({"schedule_expr": "broken"}, "", id="what cannot be read"),
        pytest.param({"schedule_type": "event", "schedule_expr": "a.b"}, "On the event a.b", id="event"),
        pytest.param(
            {"schedule_type": "event", "schedule_expr": "a.*"}, "On every event whose name begins with a.", id="pattern"
        ),
        pytest.param({"schedule_type": "event", "schedule_expr": "*"}, "On every event", id="all events"),
    ],
)
def test_a_schedule_says_in_words_when_it_runs(fields: dict[str, Any], words: str) -> None:
    assert schedules.in_words(Schedule(**{"schedule_type": "cron"} | fields)) == words


@pytest.mark.parametrize(
    ("fields", "at"),
    [
        pytest.param({}, NOON, id="the next slot"),
        pytest.param({"next_fire_at": None}, None, id="none"),
        pytest.param({"skip_next": True}, NOON + 5 * MINUTE, id="the one after the skipped"),
        pytest.param({"paused_until": NOON + 7 * MINUTE}, NOON + 10 * MINUTE, id="after the pause"),
        pytest.param({"paused_until": NOON + 5 * MINUTE}, NOON + 5 * MINUTE, id="with the end of the pause"),
        pytest.param({"paused_until": NOON + 7 * MINUTE, "skip_next": True}, NOON + 15 * MINUTE, id="both"),
        pytest.param({"paused_until": NOON + 7 * MINUTE, "ends_at": NOON + 8 * MINUTE}, None, id="never again"),
    ],
)
def test_the_next_execution_is_what_will_really_run(fields: dict[str, Any], at: datetime | None) -> None:
    schedule = make_schedule(**{"next_fire_at": NOON} | fields)

    assert schedules.next_execution(schedule) == at
    if at is not None:
        moment = NOON
        while not Task.objects.exists():
            slots.fire_due(now=moment)
            moment += 5 * MINUTE
        assert Slot.objects.get(outcome="fired").due_at == at


def test_a_plain_task_may_not_take_a_schedules_id() -> None:
    from scheduling import tasks

    make_schedule(task_id="backup")

    with pytest.raises(TaskIdTaken):
        tasks.submit({"task_id": "backup", "handler": "python:noop"}, "eve", now=NOW)

    assert connection.in_atomic_block  # nothing was broken by it
