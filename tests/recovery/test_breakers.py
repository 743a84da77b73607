"""Circuit breakers in the queue: what opens them, what waits behind them, how it goes on."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from k1node.events.models import Event
from k1node.lib import sql
from recovery import breakers, interventions, supervision
from recovery.breakers import BreakerRefuses
from recovery.models import Breaker, Intervention
from recovery.records import By
from scheduling import claims, gates, parking, queue, schedules
from scheduling.claims import Claim
from scheduling.models import GateKind, Task, TaskStatus
from scheduling.outcomes import Outcome, OutcomeKind
from scheduling.queue import NewTask
from tests.databases import Rival, only_postgresql, only_sqlite
from tests.factories import NOW, make_gate, make_schedule, make_task

pytestmark = pytest.mark.django_db
NAME = "api"
ANA = By("ana", "it is down")
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
POLICIES = supervision.Policies()


def take(count: int = 50, *, now: datetime = NOW) -> list[Claim]:
    with transaction.atomic():
        return claims.claim(owner="me", now=now, window=count, choose=len)


def settle(held: list[Claim], kind: OutcomeKind = OutcomeKind.COMPLETED, code: int = 0, *, now: datetime = NOW) -> None:
    """End the runs of these claims, all alike; the retries lie an hour ahead."""
    POLICIES.read()
    with transaction.atomic():
        supervision.settle(
            [supervision.conclude(claim, Outcome(kind, now, now, 5, code), POLICIES) for claim in held],
            worker="w",
            shard=0,
            now=now,
        )
        Task.objects.filter(status=TaskStatus.SCHEDULED).update(due_at=now + timedelta(hours=1))


def tend(now: datetime = NOW) -> None:
    """Do what the clock does, until nothing is due."""
    breakers.wake_idle(now=now)
    for _ in range(20):
        if not breakers.tend(now=now):
            break


def opened(now: datetime = NOW, calls: int = 5) -> Breaker:
    """Return a breaker that five failures have opened."""
    for _ in range(calls):
        make_task(circuit_breaker=NAME)
    settle(take(now=now), OutcomeKind.FAILED, 1, now=now)
    row = Breaker.objects.get()
    assert row.state == "OPEN"
    return row


def row() -> Breaker:
    return Breaker.objects.get(breaker_id=NAME)


def states(**lookup: Any) -> list[str]:
    return list(Task.objects.filter(**lookup).order_by("pk").values_list("status", flat=True))


def events() -> list[str]:
    return list(Event.objects.filter(name__startswith="breaker.").order_by("pk").values_list("name", flat=True))


# --- opening ----------------------------------------------------------------------------------------------------


def test_the_first_result_makes_the_breaker() -> None:
    make_task(circuit_breaker=NAME)

    settle(take())

    made = row()
    assert (made.state, made.window, made.gate.kind, made.gate.key) == ("CLOSED", "s", GateKind.BREAKER, NAME)
    assert not made.gate.closed


def test_failures_open_it_and_say_so_once() -> None:
    found = opened()

    assert (found.generation, found.open_until, found.gate.closed) == (1, NOW + MINUTE, True)
    assert found.gate.generation == 1
    event = Event.objects.get(name="breaker.opened")
    assert event.data["breaker_id"] == NAME
    assert event.data["reason"] == "5 of the last 5 calls failed"


@pytest.mark.parametrize(
    ("kind", "code", "window"),
    [
        (OutcomeKind.COMPLETED, 0, "s"),
        (OutcomeKind.FAILED, 1, "f"),
        (OutcomeKind.FAILED, 75, "f"),
        (OutcomeKind.TIMEOUT, 124, "f"),
        (OutcomeKind.FAILED, 64, None),
        (OutcomeKind.FAILED, 127, None),
        (OutcomeKind.LOST, 137, None),
        (OutcomeKind.DRAINED, 0, None),
        (OutcomeKind.CANCELLED, 0, None),
        (OutcomeKind.SKIPPED, 0, None),
    ],
)
def test_only_what_speaks_of_the_called_thing_counts(kind: OutcomeKind, code: int, window: str | None) -> None:
    make_task(circuit_breaker=NAME)

    settle(take(), kind, code)

    found = Breaker.objects.first()
    assert (found and found.window) == window


def test_a_success_over_a_window_of_successes_writes_nothing() -> None:
    for _ in range(21):
        make_task(circuit_breaker=NAME)
    settle(take(20))
    held = take(1)

    with CaptureQueriesContext(
        connection,
    ) as captured:
        settle(held)

    about = [query["sql"] for query in captured if "recovery_breaker" in query["sql"]]
    assert len(about) == 1
    assert about[0].startswith("SELECT")
    assert "FOR UPDATE" not in about[0]


def test_tasks_without_a_breaker_cost_no_query_more() -> None:
    make_task()
    held = take()

    with CaptureQueriesContext(connection) as captured:
        settle(held)
        take()

    assert not [query for query in captured if "recovery_breaker" in query["sql"] or "'breaker'" in query["sql"]]


def test_a_result_from_before_it_opened_moves_nothing() -> None:
    late = make_task(circuit_breaker=NAME, priority=10)
    (held,) = take(1)
    opened()
    Breaker.objects.update(open_until=NOW)
    tend()
    before = row()
    assert before.state == "HALF-OPEN"

    settle([held])

    after = row()
    assert (after.state, after.successes, after.generation) == ("HALF-OPEN", 0, before.generation)
    assert states(pk=late.pk) == ["completed"]


# --- waiting ----------------------------------------------------------------------------------------------------


def test_a_claim_parks_what_an_open_breaker_stops_and_takes_the_rest() -> None:
    opened()
    stopped = [make_task(circuit_breaker=NAME, priority=9, status=TaskStatus.QUEUED) for _ in range(3)]
    free = make_task(priority=1)

    held = take()

    assert [claim.id for claim in held] == [free.pk]
    for task in stopped:
        task.refresh_from_db()
        assert (task.status, task.blocked_on_id, task.attempt, task.fence) == ("blocked", row().gate_id, 0, 0)


def test_a_claim_passes_over_many_stopped_tasks_to_those_behind_them() -> None:
    opened()
    for _ in range(30):
        make_task(circuit_breaker=NAME, priority=9)
    free = make_task(priority=1)

    held = take(10)

    assert [claim.id for claim in held] == [free.pk]


def test_newcomers_are_parked_at_once_and_later_ones_are_not() -> None:
    opened()

    made = queue.enqueue(
        [
            NewTask("now", "python:noop", NOW, circuit_breaker=NAME),
            NewTask("later", "python:noop", NOW + MINUTE, circuit_breaker=NAME),
            NewTask("other", "python:noop", NOW, circuit_breaker="other"),
        ],
        now=NOW,
    )

    assert [task.status for task in made] == ["blocked", "scheduled", "queued"]
    assert made[0].blocked_on_id == row().gate_id


def test_the_clock_parks_what_was_queued_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breakers, "PARK_AT_ONCE", 4)
    opened()
    for _ in range(10):
        make_task(circuit_breaker=NAME)

    breakers.tend(now=NOW)
    assert states(circuit_breaker=NAME, attempt=0).count("blocked") == 4
    tend()

    assert states(circuit_breaker=NAME, attempt=0) == ["blocked"] * 10
    assert row().look_at == NOW + MINUTE


def test_a_parked_member_of_an_overlap_counts_as_in_flight_and_lets_the_next_go_when_it_ends() -> None:
    opened()
    gate = make_gate(kind=GateKind.OVERLAP, limit=1, in_flight=1, waiting=1)
    parked = make_task(gate=gate, circuit_breaker=NAME)
    waiting = make_task(gate=gate, status=TaskStatus.BLOCKED, blocked_on=gate)
    take()
    gates.sweep(now=NOW)
    gate.refresh_from_db()
    assert (gate.in_flight, gate.waiting) == (1, 1)

    interventions.cancel(Task.objects.get(pk=parked.pk), ANA, now=NOW)

    gate.refresh_from_db()
    assert (gate.in_flight, gate.waiting, gate.cancelled) == (1, 0, 1)
    assert states(pk=waiting.pk) == ["queued"]


def test_a_newer_run_that_cancels_the_earlier_one_finds_it_parked() -> None:
    opened()
    schedule = make_schedule()
    gate = make_gate(kind=GateKind.OVERLAP, key=str(schedule.pk), limit=1, in_flight=1, waiting=1)
    earlier = make_task(gate=gate, circuit_breaker=NAME, schedule=schedule)
    newer = make_task(gate=gate, status=TaskStatus.BLOCKED, blocked_on=gate, schedule=schedule)
    take()

    with transaction.atomic():
        queue.end_earlier_runs(schedule, gate.pk, keep=newer.task_id, now=NOW)

    assert states(pk__in=[earlier.pk, newer.pk]) == ["cancelled", "queued"]
    gate.refresh_from_db()
    assert (gate.in_flight, gate.waiting) == (1, 0)


def test_a_parked_task_can_be_paused_and_is_parked_again_when_it_is_resumed() -> None:
    opened()
    task = make_task(circuit_breaker=NAME)
    take()

    interventions.pause(task, ANA, now=NOW)
    task.refresh_from_db()
    assert (task.status, task.blocked_on_id) == ("paused", None)
    interventions.resume(task, ANA, now=NOW)
    take()

    assert states(pk=task.pk) == ["blocked"]


# --- probing ----------------------------------------------------------------------------------------------------


def waiting_behind_an_open_one(count: int) -> list[Task]:
    opened()
    tasks = [make_task(circuit_breaker=NAME) for _ in range(count)]
    tend()
    return tasks


def test_when_its_time_is_over_as_many_as_it_may_try_and_no_more() -> None:
    tasks = waiting_behind_an_open_one(5)
    later = NOW + MINUTE

    tend(later)
    held = take(now=later)
    tend(later + SECOND)
    make_task(circuit_breaker=NAME)

    assert [claim.id for claim in held] == [task.pk for task in tasks[:3]]
    assert take(now=later) == []
    assert row().state == "HALF-OPEN"
    assert events() == ["breaker.opened", "breaker.half_open"]


def test_good_probes_close_it_and_what_waited_goes_little_by_little() -> None:
    waiting_behind_an_open_one(40)
    later = NOW + MINUTE
    tend(later)

    settle(take(now=later), now=later)
    assert (row().state, row().window) == ("CLOSED", "")
    tend(later)
    first = states(attempt=0).count("queued")
    tend(later + SECOND)
    second = states(attempt=0).count("queued")
    tend(later + 2 * SECOND)

    assert (first, second, states(attempt=0).count("queued")) == (10, 30, 37)
    assert (row().look_at, row().gate.closed) == (None, False)
    assert len(take(now=later)) == 37


def test_a_bad_probe_opens_it_for_twice_as_long_and_its_permit_is_gone() -> None:
    waiting_behind_an_open_one(4)
    later = NOW + MINUTE
    tend(later)

    settle(take(now=later)[:1], OutcomeKind.FAILED, 1, now=later)

    assert (row().state, row().open_until) == ("OPEN", later + 2 * MINUTE)
    assert not Task.objects.filter(status=TaskStatus.SCHEDULED, permit__gt=0).exists()


def test_the_other_probes_of_a_failed_round_say_nothing() -> None:
    waiting_behind_an_open_one(4)
    later = NOW + MINUTE
    tend(later)
    held = take(now=later)
    settle(held[:1], OutcomeKind.FAILED, 1, now=later)
    opened_again = row()

    settle(held[1:2], OutcomeKind.FAILED, 1, now=later)
    settle(held[2:], now=later)

    assert (row().generation, row().openings) == (opened_again.generation, 2)


@pytest.mark.parametrize(
    ("how", "next_one"), [("lost", 1), ("cancelled", 1), ("paused", 1), ("drained", 0)], ids=lambda value: str(value)
)
def test_a_probe_that_comes_to_nothing_leaves_its_place_to_the_next(how: str, next_one: int) -> None:
    tasks = waiting_behind_an_open_one(4)
    Breaker.objects.update(probes=1)
    later = NOW + MINUTE
    tend(later)
    if how == "paused":
        interventions.pause(tasks[0], ANA, now=later)
    else:
        settle(take(now=later), OutcomeKind(how), 137, now=later)

    tend(later + SECOND)

    assert list(Task.objects.filter(permit=row().generation)) == [tasks[next_one]]


def test_a_permit_does_not_outlive_a_pause() -> None:
    tasks = waiting_behind_an_open_one(2)
    Breaker.objects.update(probes=1)
    later = NOW + MINUTE
    tend(later)
    interventions.pause(tasks[0], ANA, now=later)
    tend(later + SECOND)

    interventions.resume(tasks[0], ANA, now=later)
    held = take(now=later)

    assert [claim.id for claim in held] == [tasks[1].pk]


def test_a_pause_that_a_claim_is_given_back_with_ends_its_permit() -> None:
    tasks = waiting_behind_an_open_one(1)
    later = NOW + MINUTE
    tend(later)
    held = take(now=later)
    Task.objects.update(control="pause")

    claims.give_back(held)

    task = Task.objects.get(pk=tasks[0].pk)
    assert (task.status, task.permit) == ("paused", 0)


def test_a_claim_that_is_given_back_keeps_its_permit() -> None:
    tasks = waiting_behind_an_open_one(1)
    later = NOW + MINUTE
    tend(later)
    claims.give_back(take(now=later))

    assert [claim.id for claim in take(now=later)] == [tasks[0].pk]


def test_all_there_was_to_try_is_enough_to_close_it() -> None:
    waiting_behind_an_open_one(1)
    later = NOW + MINUTE
    tend(later)

    settle(take(now=later), now=later)
    tend(later)

    assert row().state == "CLOSED"


def test_one_that_nobody_waits_at_probes_with_the_first_that_comes() -> None:
    waiting_behind_an_open_one(0)
    later = NOW + MINUTE
    tend(later)
    assert (row().state, row().look_at) == ("HALF-OPEN", None)
    (made,) = queue.enqueue([NewTask("first", "python:noop", later, circuit_breaker=NAME)], now=later)
    assert made.status == TaskStatus.BLOCKED

    tend(later)

    assert [claim.task_id for claim in take(now=later)] == ["first"]


def test_a_failed_task_waits_behind_its_breaker_when_its_backoff_is_over() -> None:
    opened()
    with transaction.atomic():
        claims.stage(now=NOW + timedelta(hours=2))

    assert take(now=NOW + timedelta(hours=2)) == []
    assert states() == ["blocked"] * 5
    assert set(Task.objects.values_list("attempt", flat=True)) == {1}


def test_a_probe_that_is_paused_while_it_runs_leaves_its_place_to_the_next() -> None:
    waiting_behind_an_open_one(3)
    Task.objects.update(handler="bash ops/agents/backup.sh")
    Breaker.objects.update(probes=1)
    later = NOW + MINUTE
    tend(later)
    (held,) = take(now=later)

    interventions.pause(Task.objects.get(pk=held.id), ANA, now=later)

    tend(later + SECOND)
    assert len(take(now=later + SECOND)) == 1


def test_the_permits_that_nobody_has_claimed_go_to_more_urgent_tasks() -> None:
    waiting_behind_an_open_one(3)
    later = NOW + MINUTE
    tend(later)
    (urgent,) = queue.enqueue([NewTask("urgent", "python:noop", later, circuit_breaker=NAME, priority=10)], now=later)
    assert states(pk=urgent.pk) == ["blocked"]

    tend(later + SECOND)

    assert take(1, now=later + SECOND)[0].task_id == "urgent"
    assert parking.permits_out(NAME, row().generation) == 3


def test_a_clock_that_steps_back_lets_no_more_probe() -> None:
    opened()
    late = NOW + 2 * MINUTE
    queue.enqueue([NewTask(f"t{number}", "python:noop", late, circuit_breaker=NAME) for number in range(40)], now=late)

    for seconds in range(5):
        tend(NOW + MINUTE + seconds * SECOND)
    claims.stage(now=late)

    assert len(take(now=late)) == 3


def test_openings_are_counted_so_far() -> None:
    waiting_behind_an_open_one(1)
    Breaker.objects.update(openings=1_000)
    later = NOW + MINUTE
    tend(later)

    settle(take(now=later), OutcomeKind.FAILED, 1, now=later)

    assert (row().state, row().openings) == ("OPEN", 1_000)


def test_what_is_staged_while_it_is_open_is_parked_by_the_clock_and_not_by_claims() -> None:
    breakers.create(NAME, {}, ANA, now=NOW)
    breakers.open_(NAME, ANA, now=NOW)
    tend()
    later = NOW + MINUTE
    queue.enqueue([NewTask(f"n{number}", "python:noop", later, circuit_breaker=NAME) for number in range(50)], now=NOW)
    claims.stage(now=later)
    free = make_task(priority=1)

    tend(later)

    assert set(states(circuit_breaker=NAME)) == {"blocked"}
    assert [claim.id for claim in take(2, now=later)] == [free.pk]


# --- operators --------------------------------------------------------------------------------------------------


def test_held_open_nothing_starts_until_it_is_reset() -> None:
    make_task(circuit_breaker=NAME)
    settle(take())
    task = make_task(circuit_breaker=NAME)

    breakers.open_(NAME, ANA, now=NOW)
    tend()
    tend(NOW + timedelta(days=9))
    assert take() == []
    assert (row().state, row().pin, row().pinned_by, row().pin_reason) == ("OPEN", "open", "ana", "it is down")
    breakers.reset(NAME, ANA, now=NOW)
    tend()

    assert (row().pin, row().pinned_by) == ("", "")
    assert [claim.id for claim in take()] == [task.pk]


def test_held_open_until_a_moment_it_probes_then() -> None:
    make_task(circuit_breaker=NAME)
    settle(take())

    breakers.open_(NAME, ANA, until=NOW + MINUTE, now=NOW)
    tend()
    tend(NOW + MINUTE)

    assert (row().state, row().pin) == ("HALF-OPEN", "")


def test_held_closed_it_lets_everything_go_and_works_by_itself_after() -> None:
    waiting_behind_an_open_one(3)

    breakers.close(NAME, ANA, until=NOW + MINUTE, now=NOW)
    tend()
    held = take()
    assert len(held) == 3
    settle(held, OutcomeKind.FAILED, 1)
    assert (row().state, row().window) == ("CLOSED", "fff")
    tend(NOW + MINUTE)

    assert (row().state, row().pin, row().window) == ("CLOSED", "", "")


def test_what_operators_do_is_written_down() -> None:
    opened()

    breakers.close(NAME, ANA, until=NOW + MINUTE, now=NOW)

    done = Intervention.objects.get()
    assert (done.action, done.breaker_id, done.task_id, done.performed_by) == ("close", NAME, None, "ana")
    assert done.reason == "it is down"
    assert done.before == {"state": "OPEN"}
    assert done.after == {"state": "CLOSED", "held": "closed", "until": (NOW + MINUTE).isoformat()}
    assert events() == ["breaker.opened", "breaker.closed"]


def test_a_probe_by_hand_lets_the_most_urgent_go_at_once() -> None:
    tasks = waiting_behind_an_open_one(5)
    (urgent,) = queue.enqueue([NewTask("urgent", "python:noop", NOW, circuit_breaker=NAME, priority=9)], now=NOW)

    _, task_id = breakers.probe(NAME, ANA, now=NOW)
    held = take()
    assert ([claim.task_id for claim in held], task_id) == ([urgent.task_id], urgent.task_id)
    settle(held)
    tend()

    assert row().state == "HALF-OPEN"
    assert [claim.id for claim in take()] == [task.pk for task in tasks[:2]]


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        pytest.param(lambda: breakers.reset(NAME, ANA, now=NOW), "It is closed", id="closed"),
        pytest.param(lambda: breakers.open_(NAME, ANA, now=NOW), "held open by ana", id="held"),
        pytest.param(lambda: tend(NOW + MINUTE), "half-open", id="half-open"),
        pytest.param(lambda: None, "No task waits", id="nobody waits"),
    ],
)
def test_a_probe_that_cannot_be_says_why(prepare: Callable[[], object], reason: str) -> None:
    opened()
    prepare()

    with pytest.raises(BreakerRefuses, match=reason):
        breakers.probe(NAME, ANA, now=NOW)

    assert not Intervention.objects.filter(action="probe").exists()


def test_settings_hold_from_the_next_result_on() -> None:
    breakers.create(NAME, {"min_calls": 2, "window_size": 4, "open_ms": 1000}, ANA, now=NOW)
    for _ in range(2):
        make_task(circuit_breaker=NAME)
    settle(take(), OutcomeKind.FAILED, 1)

    assert (row().state, row().open_until) == ("OPEN", NOW + SECOND)
    breakers.configure(NAME, {"window_size": 1}, ANA, now=NOW)
    assert (row().window, row().min_calls) == ("f", 2)


def test_a_breaker_is_made_once() -> None:
    breakers.create(NAME, {}, ANA, now=NOW)

    with pytest.raises(BreakerRefuses, match="already"):
        breakers.create(NAME, {}, ANA, now=NOW)


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        pytest.param(lambda: make_schedule(circuit_breaker=NAME), "The schedule", id="a schedule"),
        pytest.param(lambda: make_schedule(circuit_breaker="default", task_id=NAME), "The schedule", id="its own"),
        pytest.param(lambda: make_task(circuit_breaker=NAME), "have not ended", id="a queued task"),
        pytest.param(
            lambda: make_task(circuit_breaker=NAME, status=TaskStatus.PAUSED), "have not ended", id="a paused task"
        ),
        pytest.param(lambda: breakers.open_(NAME, ANA, now=NOW), "It is OPEN", id="open"),
    ],
)
def test_a_breaker_in_use_is_not_deleted(prepare: Callable[[], object], reason: str) -> None:
    breakers.create(NAME, {}, ANA, now=NOW)
    prepare()

    with pytest.raises(BreakerRefuses, match=reason):
        breakers.delete(NAME, ANA, now=NOW)


def test_a_breaker_that_nothing_uses_is_forgotten_and_goes_on_where_its_door_stands() -> None:
    make_task(circuit_breaker=NAME)
    settle(take())
    breakers.reset(NAME, ANA, now=NOW)

    breakers.delete(NAME, ANA, now=NOW)

    assert not Breaker.objects.exists()
    make_task(circuit_breaker=NAME)
    settle(take())
    assert (row().window, row().generation, row().gate.generation) == ("s", 1, 1)


@only_sqlite  # PostgreSQL chooses by statistics
def test_whether_it_is_in_use_is_asked_of_live_tasks_alone() -> None:
    asked: list[tuple[str, Any]] = []

    def note(execute: Any, statement: str, values: Any, *rest: Any) -> Any:
        asked.append((statement, values))
        return execute(statement, values, *rest)

    with connection.execute_wrapper(note):
        assert not breakers._is_in_use(NAME)
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {asked[0][0]}", asked[0][1])
        steps = [step[3] for step in cursor.fetchall()]

    assert "SCAN scheduling_task" not in steps
    assert not [step for step in steps if "scheduling_task" in step and "INDEX task_" not in step]


def test_a_probe_is_not_passed_over_for_what_another_breaker_stops() -> None:
    tasks = waiting_behind_an_open_one(1)
    later = NOW + MINUTE
    tend(later)
    breakers.create("other", {}, ANA, now=NOW)
    breakers.open_("other", ANA, now=NOW)
    stopped = make_task(circuit_breaker="other", priority=9)
    make_task(priority=1)

    held = take(now=later)

    assert tasks[0].pk in {claim.id for claim in held}
    assert states(pk=stopped.pk) == ["blocked"]


def test_a_task_behind_an_open_door_is_found_and_let_through() -> None:
    breakers.create(NAME, {}, ANA, now=NOW)
    task = make_task(circuit_breaker=NAME, status=TaskStatus.BLOCKED, blocked_on=row().gate)

    breakers.wake_forgotten(now=NOW)
    tend()

    assert states(pk=task.pk) == ["queued"]


def test_the_clocks_look_costs_the_same_however_many_rest() -> None:
    for number in range(30):
        breakers.create(f"b-{number}", {}, ANA, now=NOW)

    with CaptureQueriesContext(connection) as captured:
        assert not breakers.tend(now=NOW)
        breakers.wake_idle(now=NOW)

    assert len(captured) == 3


# --- rivals -----------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_two_clocks_give_out_no_more_permits_than_one(rival: Rival) -> None:
    waiting_behind_an_open_one(9)
    later = NOW + MINUTE
    started: list[Future[int]] = []

    def while_the_permits_are_counted(execute: Any, statement: str, *rest: Any) -> Any:
        if "permit > 0" in statement and not started:
            started.append(rival.start(breakers.tend, now=later))
            time.sleep(0.3)
        return execute(statement, *rest)

    with connection.execute_wrapper(while_the_permits_are_counted):
        breakers.tend(now=later)
    started[0].result(10)
    tend(later)

    assert Task.objects.filter(status=TaskStatus.QUEUED, permit=row().generation).count() == 3


@pytest.mark.django_db(transaction=True)
@only_postgresql
def test_a_probe_by_hand_is_the_task_that_it_names(rival: Rival) -> None:
    first, second = waiting_behind_an_open_one(2)

    with transaction.atomic():
        Task.objects.select_for_update().get(pk=first.pk)
        _, named = rival.do(breakers.probe, NAME, ANA, now=NOW)

    assert named == second.task_id
    assert list(Task.objects.filter(permit__gt=0)) == [second]


@pytest.mark.django_db(transaction=True)
@only_postgresql
def test_a_schedule_that_fires_while_its_probe_closes_the_breaker_waits_and_never_deadlocks(
    rival: Rival, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = make_schedule(circuit_breaker=NAME, handler="python:noop", overlap_policy="queue_one")
    opened()
    gate = make_gate(kind=GateKind.OVERLAP, key=str(schedule.pk), limit=1, in_flight=1)
    make_task(gate=gate, circuit_breaker=NAME, schedule=schedule, priority=9)
    tend()
    Breaker.objects.update(probes=1)
    later = NOW + MINUTE
    tend(later)
    held = take(1, now=later)
    others: list[Future[None]] = []

    def before_the_door(execute: Any, statement: str, *rest: Any) -> Any:
        if "FOR SHARE" in statement and not others:
            others.append(rival.start(settle, held, now=later))
            time.sleep(0.3)
        return execute(statement, *rest)

    monkeypatch.setattr(sql, "TRIES", 1)  # a deadlock would be repeated otherwise
    with connection.execute_wrapper(before_the_door):
        schedules.run_now(schedule, "me", now=later)
    others[0].result(10)

    assert row().state == "CLOSED"


@pytest.mark.django_db(transaction=True)
@only_postgresql
def test_a_newcomer_of_the_moment_in_which_it_closes_is_not_left_behind(rival: Rival) -> None:
    waiting_behind_an_open_one(0)
    with transaction.atomic():
        queue.enqueue([NewTask("newcomer", "python:noop", NOW, circuit_breaker=NAME)], now=NOW)
        closing = rival.start(breakers.reset, NAME, ANA, now=NOW)
        time.sleep(0.3)
        assert not closing.done()  # it waits for the newcomer

    closing.result(10)
    tend()

    assert states(task_id="newcomer") == ["queued"]


@pytest.mark.django_db(transaction=True)
@only_postgresql
def test_a_door_that_opens_while_a_claim_would_park_stops_nothing(rival: Rival) -> None:
    opened()
    task = make_task(circuit_breaker=NAME)
    done: list[object] = []

    def before_it_locks_the_door(execute: Any, statement: str, *rest: Any) -> Any:
        if "FOR SHARE" in statement and not done:
            done.append(rival.do(breakers.reset, NAME, ANA, now=NOW))
        return execute(statement, *rest)

    with connection.execute_wrapper(before_it_locks_the_door):
        held = take()

    assert done
    assert [claim.id for claim in held] == [task.pk]


@pytest.mark.django_db(transaction=True)
@only_postgresql
def test_two_settlements_at_once_open_it_once(rival: Rival) -> None:
    breakers.create(NAME, {}, ANA, now=NOW)
    for _ in range(10):
        make_task(circuit_breaker=NAME)
    held = take()
    started: list[Future[None]] = []

    def between_the_look_and_the_lock(execute: Any, statement: str, *rest: Any) -> Any:
        if "recovery_breaker" in statement and "FOR UPDATE" in statement and not started:
            started.append(rival.start(settle, held[5:], OutcomeKind.FAILED, 1))
            started[0].result(10)
        return execute(statement, *rest)

    with connection.execute_wrapper(between_the_look_and_the_lock):
        settle(held[:5], OutcomeKind.FAILED, 1)

    assert (row().state, row().generation) == ("OPEN", 1)
    assert events() == ["breaker.opened"]


def test_the_sum_of_what_waits_is_counted_so_far() -> None:
    waiting_behind_an_open_one(3)

    assert breakers.waiting([row()]) == {row().pk: 3}
    assert parking.parked([row().gate_id], most=2) == {row().gate_id: 3}


def test_what_remains_of_a_probing_is_the_longest_timeout_of_its_probes() -> None:
    waiting_behind_an_open_one(2)
    Task.objects.filter(status=TaskStatus.BLOCKED).update(timeout_ms=90_000)
    later = NOW + MINUTE
    assert breakers.remaining_ms([row()], now=NOW) == {row().pk: 60_000}
    tend(later)
    assert breakers.remaining_ms([row()], now=later) == {row().pk: 0}
    take(1, now=later)

    assert breakers.remaining_ms([row()], now=later + 10 * SECOND) == {row().pk: 80_000}
