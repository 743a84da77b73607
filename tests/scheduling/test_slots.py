"""Slots: what a pass plans for one schedule, and what it writes for many, whatever rivals and edits do meanwhile."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.models import Sum
from django.test.utils import CaptureQueriesContext

from k1node.events import log
from scheduling import cron, gates, schedules, settlement, slots
from scheduling.models import (
    CatchUp,
    Gate,
    OverlapPolicy,
    Schedule,
    ScheduleType,
    Slot,
    Task,
    TaskStatus,
)
from scheduling.outcomes import Action, Decision, Outcome, OutcomeKind
from scheduling.slots import Planned
from tests.databases import Rival
from tests.factories import make_schedule, make_task

MINUTE = timedelta(minutes=1)
NOON = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
AT = NOON + timedelta(milliseconds=200)  # when a clock that is on time looks
OVERLAP = "overlap: an earlier run has not ended"


def unsaved(**fields: Any) -> Schedule:
    """Return a schedule, due every five minutes and next at noon, that is in no database."""
    defaults = {
        "pk": 1,
        "task_id": "backup",
        "handler": "python:noop",
        "schedule_type": ScheduleType.CRON,
        "schedule_expr": "*/5 * * * *",
        "next_fire_at": NOON,
    }
    return Schedule(**defaults | fields)


def due(**fields: Any) -> Schedule:
    """Return a schedule whose slot is noon."""
    return make_schedule(**{"handler": "python:noop", "next_fire_at": NOON} | fields)


def fates(plan: slots.Plan) -> list[tuple[str, str, int]]:
    """Return (first slot, outcome, count) of what is planned."""
    return [(f"{slot.first:%H:%M}", slot.outcome.value, slot.count) for slot in plan.slots]


def ledger(schedule: Schedule) -> list[tuple[str, str, int, str]]:
    rows = Slot.objects.filter(schedule=schedule).order_by("due_at")
    return [(f"{row.due_at:%H:%M}", row.outcome, row.count, row.reason) for row in rows]


def statuses(schedule: Schedule) -> list[tuple[str, str]]:
    """Return (time of the slot, status) of the schedule's runs."""
    rows = Task.objects.filter(schedule=schedule).order_by("pk")
    return [(row.task_id[-7:-3], row.status) for row in rows]


def finish(task: Task, now: datetime, kind: OutcomeKind = OutcomeKind.COMPLETED) -> None:
    """Settle `task` as a worker would."""
    from scheduling import claims

    [claim] = claims.claim(owner="w", now=now, window=1, choose=len)
    assert claim.task_id == task.task_id
    outcome = Outcome(kind, now, now, 1, 0)
    decision = Decision(Action.COMPLETE, spent=True)
    settlement.settle([settlement.Settlement(claim, outcome, decision)], worker="w", shard=0, now=now)


# --- plan -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "now", "planned", "then"),
    [
        pytest.param({}, NOON - MINUTE, [], "12:00", id="not due yet"),
        pytest.param({}, NOON, [("12:00", "fired", 1)], "12:05", id="due this instant"),
        pytest.param({}, AT, [("12:00", "fired", 1)], "12:05", id="on time"),
        pytest.param({"next_fire_at": None}, AT, [], None, id="never due"),
        pytest.param(
            {"catch_up": CatchUp.NONE}, NOON + MINUTE, [("12:00", "fired", 1)], "12:05", id="a minute late is on time"
        ),
        pytest.param(
            {"catch_up": CatchUp.NONE},
            NOON + 2 * MINUTE,
            [("12:00", "missed", 1)],
            "12:05",
            id="late, none",
        ),
        pytest.param(
            {"catch_up": CatchUp.NONE},
            NOON + 12 * MINUTE,
            [("12:00", "missed", 3)],
            "12:15",
            id="several late, none",
        ),
        pytest.param(
            {"catch_up": CatchUp.LAST},
            NOON + 12 * MINUTE,
            [("12:00", "missed", 2), ("12:10", "late", 1)],
            "12:15",
            id="several late, last",
        ),
        pytest.param(
            {"catch_up": CatchUp.LAST},
            NOON + 10 * MINUTE,
            [("12:00", "missed", 2), ("12:10", "fired", 1)],
            "12:15",
            id="one on time makes the late ones needless",
        ),
        pytest.param(
            {"catch_up": CatchUp.LAST, "catch_up_window_ms": 60_000},
            NOON + 12 * MINUTE,
            [("12:00", "missed", 3)],
            "12:15",
            id="last, but older than the window",
        ),
        pytest.param(
            {"catch_up": CatchUp.ALL},
            NOON + 12 * MINUTE,
            [("12:00", "late", 1), ("12:05", "late", 1), ("12:10", "late", 1)],
            "12:15",
            id="several late, all",
        ),
        pytest.param(
            {"catch_up": CatchUp.ALL, "catch_up_cap": 2},
            NOON + 12 * MINUTE,
            [("12:00", "missed", 1), ("12:05", "late", 1), ("12:10", "late", 1)],
            "12:15",
            id="all, up to the cap",
        ),
        pytest.param(
            {"catch_up": CatchUp.ALL, "catch_up_window_ms": 8 * 60_000},
            NOON + 12 * MINUTE,
            [("12:00", "missed", 1), ("12:05", "late", 1), ("12:10", "late", 1)],
            "12:15",
            id="all, within the window",
        ),
        pytest.param(
            {"catch_up": CatchUp.ALL, "catch_up_cap": 0},
            NOON + 12 * MINUTE,
            [("12:00", "missed", 3)],
            "12:15",
            id="all, but a cap of none",
        ),
        pytest.param(
            {"paused_until": NOON + 60 * MINUTE}, AT, [("12:00", "skipped", 1)], "12:05", id="paused: the beat goes on"
        ),
        pytest.param({"paused_until": NOON}, AT, [("12:00", "fired", 1)], "12:05", id="the pause ends with the slot"),
        pytest.param(
            {"paused_until": NOON + 7 * MINUTE, "catch_up": CatchUp.ALL},
            NOON + 12 * MINUTE,
            [("12:00", "skipped", 2), ("12:10", "late", 1)],
            "12:15",
            id="late and paused is skipped, not missed",
        ),
        pytest.param({"skip_next": True}, AT, [("12:00", "skipped", 1)], "12:05", id="asked to leave out the next"),
        pytest.param(
            {"skip_next": True, "catch_up": CatchUp.ALL},
            NOON + 7 * MINUTE,
            [("12:00", "skipped", 1), ("12:05", "late", 1)],
            "12:10",
            id="asked to leave out the next, which is late",
        ),
        pytest.param(
            {"skip_next": True, "catch_up": CatchUp.NONE},
            NOON + 10 * MINUTE,
            [("12:00", "missed", 2), ("12:10", "skipped", 1)],
            "12:15",
            id="the next run is left out, not a slot that is missed anyway",
        ),
        pytest.param({"ends_at": NOON}, AT, [("12:00", "fired", 1)], None, id="the last slot is that of the end"),
        pytest.param(
            {"ends_at": NOON + 6 * MINUTE, "catch_up": CatchUp.ALL},
            NOON + 12 * MINUTE,
            [("12:00", "late", 1), ("12:05", "late", 1)],
            None,
            id="nothing after the end",
        ),
        pytest.param({"ends_at": NOON - MINUTE}, AT, [], None, id="ended before its slot"),
    ],
)
def test_a_plan_says_what_becomes_of_every_slot(
    fields: dict[str, Any], now: datetime, planned: list[tuple[str, str, int]], then: str | None
) -> None:
    plan = slots.plan(unsaved(**fields), now)

    assert fates(plan) == planned
    assert (plan.next_fire_at and f"{plan.next_fire_at:%H:%M}") == then


@pytest.mark.parametrize(
    ("fields", "used"),
    [
        pytest.param({}, False, id="not wished"),
        pytest.param({"skip_next": True}, True, id="a run is left out"),
        pytest.param({"skip_next": True, "paused_until": NOON + MINUTE}, False, id="paused: no run was due"),
    ],
)
def test_the_wish_to_skip_is_used_up_by_a_run(fields: dict[str, Any], used: bool) -> None:
    plan = slots.plan(unsaved(**fields), AT)

    assert plan.uses_skip_next is used


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        pytest.param({"catch_up": CatchUp.NONE}, slots.REASONS[CatchUp.NONE], id="none"),
        pytest.param({"catch_up": CatchUp.LAST}, slots.REASONS[CatchUp.LAST], id="last"),
        pytest.param({"catch_up": CatchUp.ALL, "catch_up_cap": 1}, slots.REASONS[CatchUp.ALL], id="all"),
        pytest.param({"catch_up": CatchUp.ALL, "catch_up_window_ms": 1}, slots.TOO_OLD, id="too old"),
        pytest.param({"paused_until": NOON + 3 * MINUTE}, "paused", id="paused"),
        pytest.param(
            {"paused_until": NOON + 3 * MINUTE, "pause_reason": "disk " * 100},
            f"paused: {'disk ' * 100}"[:200],
            id="paused for a reason, as much of it as fits",
        ),
        pytest.param({"skip_next": True, "catch_up": CatchUp.ALL}, slots.ASKED, id="asked"),
    ],
)
def test_a_slot_that_does_not_run_has_a_reason(fields: dict[str, Any], reason: str) -> None:
    plan = slots.plan(unsaved(**fields), NOON + 7 * MINUTE)

    assert plan.slots[0].reason == reason


@pytest.mark.parametrize("policy", list(CatchUp))
def test_more_slots_than_a_pass_looks_at_are_all_covered_over_passes(policy: CatchUp) -> None:
    schedule = unsaved(schedule_expr="* * * * *", catch_up=policy, catch_up_cap=3)
    now = NOON + (2 * slots.MOST_SLOTS + 10) * MINUTE + timedelta(milliseconds=5)
    planned: list[Planned] = []

    for _ in range(5):
        plan = slots.plan(schedule, now)
        planned += plan.slots
        schedule.next_fire_at = plan.next_fire_at

    every = cron.fires_between("* * * * *", "UTC", NOON - MINUTE, now, 20_000)
    assert sum(slot.count for slot in planned) == len(every)
    assert (planned[0].first, planned[-1].last) == (every[0], every[-1])
    starts = [slot.first for slot in planned]
    assert starts == sorted(set(starts))
    assert schedule.next_fire_at == every[-1] + MINUTE
    runs = [(slot.first, slot.outcome) for slot in planned if slot.is_run]
    # The newest is on time; `all` adds the three late ones before it (the one a minute late is on time too).
    assert [first for first, outcome in runs if outcome == Slot.Outcome.FIRED] == every[-1:]
    assert len(runs) == (4 if policy == CatchUp.ALL else 1)


def test_a_pass_looks_at_a_bounded_number_of_slots() -> None:
    schedule = unsaved(schedule_expr="* * * * *", catch_up=CatchUp.NONE)

    plan = slots.plan(schedule, NOON + 400 * 24 * 60 * MINUTE)

    assert 0 < sum(slot.count for slot in plan.slots) <= slots.MOST_SLOTS
    assert len(plan.slots) == 1


def test_jitter_is_bounded_and_always_the_same() -> None:
    schedule = unsaved(jitter_ms=30_000)

    delays = [slots.due_at(schedule, NOON + minutes * MINUTE) - NOON - minutes * MINUTE for minutes in range(200)]

    assert delays == [slots.due_at(schedule, NOON + m * MINUTE) - NOON - m * MINUTE for m in range(200)]
    assert all(timedelta(0) <= delay <= timedelta(seconds=30) for delay in delays)
    assert len(set(delays)) > 150


@pytest.mark.parametrize(
    ("fields", "first"),
    [
        pytest.param({}, NOON + 5 * MINUTE, id="after now"),
        pytest.param({"starts_at": NOON - MINUTE}, NOON + 5 * MINUTE, id="begun already"),
        pytest.param({"starts_at": NOON + 60 * MINUTE}, NOON + 60 * MINUTE, id="at its start"),
        pytest.param({"starts_at": NOON + 61 * MINUTE}, NOON + 65 * MINUTE, id="after its start"),
        pytest.param({"ends_at": NOON + 4 * MINUTE}, None, id="ends before"),
        pytest.param({"ends_at": NOON + 5 * MINUTE}, NOON + 5 * MINUTE, id="ends with it"),
        pytest.param({"enabled": False}, None, id="disabled"),
        pytest.param({"schedule_type": ScheduleType.EVENT, "schedule_expr": "a.b"}, None, id="an event schedule"),
    ],
)
def test_the_first_slot_lies_ahead_and_within_the_period(fields: dict[str, Any], first: datetime | None) -> None:
    assert slots.first_fire_at(unsaved(**fields), NOON) == first


# --- the pass ---------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_due_slot_makes_one_task_one_row_and_the_next_time() -> None:
    schedule = due(
        task_name="Backup",
        parameters={"a": 1},
        priority=9,
        timeout_ms=7,
        retry_policy_id="aggressive",
        circuit_breaker="default",
    )

    assert slots.fire_due(now=AT) == 1

    task = Task.objects.get()
    assert task.task_id == f"{schedule.task_id}-20260304T120000Z"
    assert (task.status, task.due_at, task.created_at) == (TaskStatus.QUEUED, NOON, AT)
    assert (task.schedule_id, task.task_name, task.parameters) == (schedule.pk, "Backup", {"a": 1})
    assert (task.priority, task.timeout_ms, task.retry_policy_id) == (9, 7, "aggressive")
    assert task.circuit_breaker == schedule.task_id  # "default" is one of its own
    row = Slot.objects.get()
    assert (row.schedule_id, row.due_at, row.last_due_at, row.count) == (schedule.pk, NOON, NOON, 1)
    assert (row.outcome, row.task_id, row.recorded_at) == (Slot.Outcome.FIRED, task.pk, AT)
    schedule.refresh_from_db()
    assert schedule.next_fire_at == NOON + 5 * MINUTE


@pytest.mark.django_db
def test_a_second_pass_finds_nothing_due() -> None:
    due()

    slots.fire_due(now=AT)

    assert slots.fire_due(now=AT) == 0
    assert (Task.objects.count(), Slot.objects.count()) == (1, 1)


@pytest.mark.django_db
def test_jitter_delays_the_task_and_not_the_slot() -> None:
    schedule = due(jitter_ms=60_000)

    slots.fire_due(now=AT)

    task = Task.objects.get()
    assert task.due_at == slots.due_at(schedule, NOON)
    assert task.status == (TaskStatus.SCHEDULED if task.due_at > AT else TaskStatus.QUEUED)
    assert Slot.objects.get().due_at == NOON


@pytest.mark.django_db
def test_a_late_slot_is_recorded_as_late() -> None:
    schedule = due(catch_up=CatchUp.LAST)

    slots.fire_due(now=NOON + 12 * MINUTE)

    assert ledger(schedule) == [
        ("12:00", "missed", 2, slots.REASONS[CatchUp.LAST]),
        ("12:10", "late", 1, ""),
    ]
    assert statuses(schedule) == [("1210", TaskStatus.QUEUED)]


@pytest.mark.django_db
def test_the_wish_to_skip_is_taken_back_with_the_slot() -> None:
    schedule = due(skip_next=True)

    slots.fire_due(now=AT)
    slots.fire_due(now=AT + 5 * MINUTE)

    assert ledger(schedule) == [("12:00", "skipped", 1, slots.ASKED), ("12:05", "fired", 1, "")]
    schedule.refresh_from_db()
    assert schedule.skip_next is False


@pytest.mark.django_db
def test_missed_slots_are_told_to_the_event_log() -> None:
    schedule = due(catch_up=CatchUp.NONE)
    before = log.end()

    slots.fire_due(now=NOON + 12 * MINUTE)

    [(name, data)] = [(event.name, event.data) for event in _events_after(before)]
    assert name == "schedule.missed"
    assert (data["task_id"], data["count"]) == (schedule.task_id, 3)


def _events_after(before: log.Cursor) -> Sequence[log.LoggedEvent]:
    """Return the events behind `before`, those of the transaction that goes on included."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT id, name, data FROM events_event WHERE id > %s ORDER BY id", [before.id])
        import orjson

        return [
            log.LoggedEvent(log.Cursor(0, pk), name, AT, orjson.loads(data) if isinstance(data, str) else data)
            for pk, name, data in cursor.fetchall()
        ]


@pytest.mark.django_db
@pytest.mark.parametrize(
    "rival_to",
    [
        pytest.param(NOON + 5 * MINUTE, id="a rival clock fired it"),
        pytest.param(None, id="it was disabled"),
    ],
)
def test_a_schedule_that_was_moved_between_plan_and_apply_is_left_alone(rival_to: datetime | None) -> None:
    schedule = due()
    plan = slots.plan(schedule, AT)
    Schedule.objects.filter(pk=schedule.pk).update(next_fire_at=rival_to)

    slots._apply([(schedule, plan)], now=AT)

    assert not Task.objects.exists()
    assert not Slot.objects.exists()
    schedule.refresh_from_db()
    assert schedule.next_fire_at == rival_to


@pytest.mark.django_db
def test_an_edit_between_plan_and_apply_wins() -> None:
    schedule, neighbour = due(), due()
    plans = [(each, slots.plan(each, AT)) for each in (schedule, neighbour)]
    schedules.update(Schedule.objects.get(pk=schedule.pk), {"priority": 10}, "tester", now=AT)

    slots._apply(plans, now=AT)

    assert [task.schedule_id for task in Task.objects.all()] == [neighbour.pk]
    slots.fire_due(now=AT)
    assert Task.objects.get(schedule=schedule).priority == 10


@pytest.mark.django_db
def test_a_schedule_deleted_between_plan_and_apply_makes_nothing() -> None:
    schedule = due()
    plan = slots.plan(schedule, AT)
    schedules.delete(schedule, "tester", now=AT)

    slots._apply([(schedule, plan)], now=AT)

    assert not Task.objects.exists()
    assert not Slot.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_two_clocks_at_one_moment_fire_a_slot_once(rival: Rival) -> None:
    schedule = due()

    counts = [rival.start(slots.fire_due, now=AT), rival.start(slots.fire_due, now=AT)]
    slots.fire_due(now=AT)
    for each in counts:
        each.result(10)

    assert statuses(schedule) == [("1200", TaskStatus.QUEUED)]
    assert ledger(schedule) == [("12:00", "fired", 1, "")]


# --- overlap ----------------------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("policy", "runs", "rows"),
    [
        pytest.param(
            OverlapPolicy.ALLOW,
            [("1200", "queued"), ("1205", "queued"), ("1210", "queued")],
            [("12:00", "fired", 1, ""), ("12:05", "fired", 1, ""), ("12:10", "fired", 1, "")],
            id="allow",
        ),
        pytest.param(
            OverlapPolicy.SKIP,
            [("1200", "queued")],
            [("12:00", "fired", 1, ""), ("12:05", "skipped", 2, OVERLAP)],
            id="skip",
        ),
        pytest.param(
            OverlapPolicy.QUEUE_ONE,
            [("1200", "queued"), ("1205", "blocked")],
            [
                ("12:00", "fired", 1, ""),
                ("12:05", "fired", 1, ""),
                ("12:10", "skipped", 1, "overlap: one run waits already"),
            ],
            id="queue_one",
        ),
        pytest.param(
            OverlapPolicy.CANCEL_RUNNING,
            [("1200", "cancelled"), ("1205", "cancelled"), ("1210", "queued")],
            [("12:00", "fired", 1, ""), ("12:05", "fired", 1, ""), ("12:10", "fired", 1, "")],
            id="cancel_running",
        ),
    ],
)
@pytest.mark.parametrize("late", [False, True], ids=["in three passes", "in one pass"])
def test_runs_that_overlap_follow_the_policy(
    policy: OverlapPolicy, runs: list[tuple[str, str]], rows: list[tuple[str, str, int, str]], late: bool
) -> None:
    schedule = due(overlap_policy=policy, catch_up=CatchUp.ALL)

    for step in [2] if late else range(3):
        slots.fire_due(now=AT + step * 5 * MINUTE)

    assert statuses(schedule) == runs
    if late:
        as_late = {"12:00": "late", "12:05": "late"}
        rows = [
            (at, as_late.get(at, outcome) if outcome == "fired" else outcome, count, reason)
            for at, outcome, count, reason in rows
        ]
    assert ledger(schedule) == rows
    _assert_exact_counts()


def _assert_exact_counts() -> None:
    for gate in Gate.objects.all():
        members = Task.objects.filter(gate=gate)
        assert gate.in_flight == gates.in_flight(gate).count()
        assert gate.waiting == members.filter(status=TaskStatus.BLOCKED).count()


@pytest.mark.django_db
def test_a_waiting_run_goes_on_when_the_earlier_one_is_settled() -> None:
    schedule = due(overlap_policy=OverlapPolicy.QUEUE_ONE)
    slots.fire_due(now=AT)
    slots.fire_due(now=AT + 5 * MINUTE)

    finish(Task.objects.get(task_id__endswith="T120000Z"), AT + 6 * MINUTE)

    assert statuses(schedule) == [("1200", "completed"), ("1205", "queued")]
    slots.fire_due(now=AT + 10 * MINUTE)
    assert statuses(schedule)[2:] == [("1210", "blocked")]
    _assert_exact_counts()


@pytest.mark.django_db
def test_a_run_is_not_skipped_once_the_earlier_one_has_ended() -> None:
    schedule = due(overlap_policy=OverlapPolicy.SKIP)
    slots.fire_due(now=AT)
    finish(Task.objects.get(), AT + MINUTE)

    slots.fire_due(now=AT + 5 * MINUTE)

    assert statuses(schedule) == [("1200", "completed"), ("1205", "queued")]


@pytest.mark.django_db
def test_a_running_task_is_told_to_end_and_lets_the_newer_one_through() -> None:
    schedule = due(overlap_policy=OverlapPolicy.CANCEL_RUNNING)
    slots.fire_due(now=AT)
    Task.objects.update(status=TaskStatus.EXECUTING, lease_expires_at=AT, fence=1, started_at=AT)

    slots.fire_due(now=AT + 5 * MINUTE)

    first, second = Task.objects.order_by("pk")
    assert (first.status, first.control) == (TaskStatus.EXECUTING, "cancel")
    assert second.status == TaskStatus.BLOCKED
    assert second.schedule_id == schedule.pk


# --- the ledger over passes, and what must not stop it ----------------------------------------------------------


@pytest.mark.django_db
def test_consecutive_slots_of_one_fate_share_a_row_over_passes() -> None:
    schedule = due(paused_until=NOON + 12 * MINUTE)

    for step in range(4):
        slots.fire_due(now=AT + step * 5 * MINUTE)

    assert ledger(schedule) == [("12:00", "skipped", 3, "paused"), ("12:15", "fired", 1, "")]
    row = Slot.objects.order_by("due_at").first()
    assert row is not None
    assert row.last_due_at == NOON + 10 * MINUTE


@pytest.mark.django_db
def test_a_long_outage_leaves_one_row_of_missed_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "MOST_SLOTS", 10)
    schedule = due(catch_up=CatchUp.LAST)
    now = NOON + timedelta(hours=5, minutes=2)

    while slots.fire_due(now=now):
        pass

    assert ledger(schedule) == [("12:00", "missed", 60, slots.REASONS[CatchUp.LAST]), ("17:00", "late", 1, "")]


@pytest.mark.django_db
def test_a_schedule_that_cannot_be_planned_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    bad = due(schedule_expr="61 * * * *")
    good = due()

    slots.fire_due(now=AT)

    assert [task.schedule_id for task in Task.objects.all()] == [good.pk]
    bad.refresh_from_db()
    assert (bad.next_fire_at, bad.enabled) == (None, True)
    assert bad.last_error.startswith("ScheduleExpressionInvalid")
    assert "Schedule cannot be fired" in caplog.text


@pytest.mark.django_db
def test_a_schedule_that_cannot_be_written_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    first, bad, last = due(), due(jitter_ms=2**62), due()

    slots.fire_due(now=AT)

    assert {task.schedule_id for task in Task.objects.all()} == {first.pk, last.pk}
    assert Slot.objects.count() == 2
    bad.refresh_from_db()
    assert bad.next_fire_at is None
    assert bad.last_error.startswith("OverflowError")
    assert slots.fire_due(now=AT) == 0


@pytest.mark.django_db
def test_an_edit_that_mends_a_bad_schedule_is_not_undone_by_the_clock() -> None:
    bad = due(schedule_expr="61 * * * *")
    stale = Schedule.objects.get(pk=bad.pk)
    schedules.update(bad, {"schedule_expr": "0 * * * *"}, "tester", now=AT)

    slots._stop(stale, ValueError("as it was"))

    bad.refresh_from_db()
    assert (bad.next_fire_at, bad.last_error) == (NOON + 60 * MINUTE, "")


@pytest.mark.django_db
def test_a_run_whose_id_somebody_has_taken_gets_another() -> None:
    schedule, other = due(), due()
    taken = make_task(task_id=slots.run_id(schedule, NOON))

    slots.fire_due(now=AT)

    run = Task.objects.get(schedule=schedule)
    assert run.pk != taken.pk
    assert run.task_id.startswith(f"{taken.task_id}-")
    assert Task.objects.filter(schedule=other).exists()


@pytest.mark.django_db
def test_a_thousand_due_schedules_take_a_bounded_number_of_queries() -> None:
    Schedule.objects.bulk_create(
        Schedule(
            task_id=f"s{number}",
            handler="python:noop",
            schedule_type=ScheduleType.CRON,
            schedule_expr="*/5 * * * *",
            next_fire_at=NOON,
            overlap_policy=OverlapPolicy.SKIP if number % 2 else OverlapPolicy.ALLOW,
        )
        for number in range(1_000)
    )

    slots.fire_due(now=AT, limit=1_000)  # the overlap gates are made one by one, once
    Task.objects.filter(gate=None).update(status=TaskStatus.COMPLETED)

    with CaptureQueriesContext(connection) as queries:
        slots.fire_due(now=AT + 5 * MINUTE, limit=1_000)

    assert (Task.objects.count(), Slot.objects.count()) == (1_500, 2_000)
    # SQLite takes so many rows in one INSERT; the number of other statements does not grow with the schedules.
    assert len([each for each in queries if not each["sql"].startswith("INSERT")]) <= 16
    assert len(queries) <= 80


@pytest.mark.django_db
def test_the_longest_overdue_come_first() -> None:
    late, later, ahead = (
        due(next_fire_at=NOON - MINUTE),
        due(next_fire_at=NOON),
        due(next_fire_at=NOON + MINUTE),
    )

    assert slots.due_schedules(now=AT) == [late, later]
    assert slots.due_schedules(now=AT, limit=1) == [late]
    assert slots.next_slot_at() == NOON - MINUTE
    assert ahead.next_fire_at is not None


@pytest.mark.django_db
def test_a_pass_after_a_long_outage_looks_at_a_bounded_number_of_slots_of_all_schedules_together() -> None:
    # Three thousand minutes each: planning them all before writing any takes longer than a clock may be silent.
    for _ in range(20):
        make_schedule(handler="python:noop", schedule_expr="* * * * *", next_fire_at=NOON - 3_000 * MINUTE)

    count = slots.fire_due(now=AT)

    covered = Slot.objects.aggregate(total=Sum("count"))["total"]
    assert covered <= 2 * slots.MOST_SLOTS
    assert count > 0
    while slots.fire_due(now=AT):
        pass
    assert Slot.objects.aggregate(total=Sum("count"))["total"] == 20 * 3_001


@pytest.mark.django_db
def test_a_ledger_row_that_still_grows_is_as_young_as_its_last_slot() -> None:
    schedule = due(paused_until=NOON + timedelta(days=60))
    slots.fire_due(now=AT)

    slots.fire_due(now=AT + 5 * MINUTE)

    assert Slot.objects.get(schedule=schedule).recorded_at == AT + 5 * MINUTE
