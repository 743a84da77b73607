"""What operators do to tasks: the record, the event, and retries as new tasks."""

from concurrent.futures import Future
from datetime import datetime, timedelta
from typing import Any

import pytest

from k1node.events.models import Event
from k1node.lib.errors import FieldInvalid, InvalidRequest, NotFound
from recovery import interventions, records, supervision
from recovery.models import Intervention
from recovery.records import By
from scheduling import claims, settlement, steering
from scheduling.models import Attempt, Control, Gate, OverlapPolicy, Task, TaskStatus
from scheduling.outcomes import Outcome, OutcomeKind
from scheduling.steering import Impossible
from tests.databases import Rival, only_postgresql
from tests.factories import NOW, make_policy, make_schedule, make_task

pytestmark = pytest.mark.django_db

LATER = NOW + timedelta(minutes=1)
ANA = By("ana", "the disk is full")


def failed(**fields: Any) -> Task:
    return make_task(**{"status": TaskStatus.FAILED, "attempt": 5, "exit_code": 3} | fields)


def events() -> list[tuple[str, dict[str, Any]]]:
    return list(Event.objects.order_by("pk").values_list("name", "data"))


# --- the record ---------------------------------------------------------------------------------------------------


def test_it_is_kept_who_did_what_when_why_before_and_after() -> None:
    task = make_task(task_id="job")

    interventions.pause(task, ANA, now=LATER)

    row = Intervention.objects.get()
    assert (row.task_id, row.action, row.performed_by, row.reason, row.created_at) == (
        task.pk,
        "pause",
        "ana",
        "the disk is full",
        LATER,
    )
    assert (row.before, row.after) == ({"status": "queued", "priority": 5}, {"status": "paused", "priority": 5})
    assert events() == [("task.paused", {"task_id": "job", "status": "paused", "by": "ana"})]


def test_a_refused_one_leaves_nothing_behind() -> None:
    task = make_task(status=TaskStatus.COMPLETED)

    with pytest.raises(Impossible):
        interventions.cancel(task, ANA, now=LATER)

    assert not Intervention.objects.exists()
    assert events() == []


def test_the_end_of_a_run_is_told_by_the_run() -> None:
    interventions.cancel(make_task(status=TaskStatus.EXECUTING), ANA, now=LATER)

    assert events() == []
    assert Intervention.objects.get().after == {"status": "executing", "priority": 5, "asked": "cancel"}


def test_the_end_of_one_that_was_given_back_is_told() -> None:
    task = make_task(task_id="job", control=Control.CANCEL, control_reason="by ana")

    interventions.skip(task, ANA, now=LATER)

    assert events() == [("task.skipped", {"task_id": "job", "status": "skipped", "by": "ana"})]
    assert "asked" not in Intervention.objects.get().after


def test_a_newer_run_leaves_the_reason_of_who_ends_the_earlier_one() -> None:
    schedule = make_schedule(overlap_policy=OverlapPolicy.CANCEL_RUNNING)
    running = make_task(schedule=schedule, status=TaskStatus.EXECUTING)
    interventions.skip(running, ANA, now=NOW)

    interventions.retry(failed(schedule=schedule), ANA, now=LATER)

    running.refresh_from_db()
    assert (running.control, running.control_reason) == (Control.SKIP, "Skipped by ana: the disk is full")


def test_a_newer_run_ends_a_paused_one() -> None:
    schedule = make_schedule(overlap_policy=OverlapPolicy.CANCEL_RUNNING)
    running = make_task(schedule=schedule, status=TaskStatus.EXECUTING)
    interventions.pause(running, ANA, now=NOW)

    interventions.retry(failed(schedule=schedule), ANA, now=LATER)

    running.refresh_from_db()
    assert (running.control, running.paused_at) == (Control.CANCEL, None)


def test_a_waiting_task_ends_with_the_reason() -> None:
    interventions.skip(make_task(task_id="job"), ANA, now=LATER)

    task = Task.objects.get()
    assert (task.status, task.last_error) == (TaskStatus.SKIPPED, "Skipped by ana: the disk is full")
    assert events() == [("task.skipped", {"task_id": "job", "status": "skipped", "by": "ana"})]


def test_a_task_that_is_gone_is_not_found() -> None:
    task = make_task()
    Task.objects.all().delete()

    with pytest.raises(NotFound):
        interventions.pause(task, ANA, now=LATER)


def test_history_goes_with_its_task_and_stays_with_a_living_one() -> None:
    kept, gone = make_task(), make_task()
    for task in (kept, gone):
        interventions.pause(task, ANA, now=NOW)
    Task.objects.filter(pk=gone.pk)._raw_delete("default")

    early, deleted = interventions.prune(NOW), interventions.prune(LATER)

    assert (early, deleted) == (0, 1)
    assert Intervention.objects.get().task_id == kept.pk


# --- a pause outlives the run -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "attempt"), [(OutcomeKind.DRAINED, 0), (OutcomeKind.LOST, 1), (OutcomeKind.FAILED, 1)]
)
@pytest.mark.parametrize("end", [None, NOW + timedelta(minutes=30)])
def test_a_paused_run_that_ends_with_its_node_does_not_start_again_by_itself(
    kind: OutcomeKind, attempt: int, end: datetime | None
) -> None:
    make_task(handler="bash a.sh")
    (claim,) = claims.claim(owner="w", now=NOW, window=1, choose=len)
    interventions.pause(Task.objects.get(), ANA, until=end, now=NOW)

    outcome = Outcome(kind, NOW, LATER, 1000)
    settlement.settle([supervision.conclude(claim, outcome, supervision.Policies())], worker="w", shard=0, now=LATER)

    task = Task.objects.get()
    assert (task.status, task.attempt, task.paused_at, task.control) == (TaskStatus.PAUSED, attempt, LATER, "")
    assert task.paused_until == end
    interventions.resume(task, ANA, now=LATER + timedelta(hours=1))
    assert Task.objects.get().status == TaskStatus.QUEUED


def test_a_paused_run_that_completes_has_completed() -> None:
    make_task(handler="bash a.sh")
    (claim,) = claims.claim(owner="w", now=NOW, window=1, choose=len)
    interventions.pause(Task.objects.get(), ANA, until=LATER, now=NOW)

    outcome = Outcome(OutcomeKind.COMPLETED, NOW, LATER, 1000, 0)
    settlement.settle([supervision.conclude(claim, outcome, supervision.Policies())], worker="w", shard=0, now=LATER)

    task = Task.objects.get()
    assert (task.status, task.paused_at, task.paused_until) == (TaskStatus.COMPLETED, None, None)


def test_a_claim_that_is_given_back_unstarted_is_paused_then() -> None:
    make_task()
    held = claims.claim(owner="w", now=NOW, window=1, choose=len)
    Task.objects.update(control=Control.PAUSE, paused_at=NOW, paused_until=LATER)

    claims.give_back(held)

    task = Task.objects.get()
    assert (task.status, task.control, task.paused_at, task.paused_until) == (TaskStatus.PAUSED, "", NOW, LATER)


# --- a pause that ends by itself ----------------------------------------------------------------------------------


def test_a_pause_that_is_over_is_resumed_by_the_clock() -> None:
    task = make_task(task_id="job")
    interventions.pause(task, ANA, until=LATER, now=NOW)

    early, done, again = (interventions.resume_overdue(now=at) for at in (NOW, LATER, LATER))

    assert (early, done, again) == (0, 1, 0)
    task.refresh_from_db()
    assert (task.status, task.paused_at, task.paused_until) == (TaskStatus.QUEUED, None, None)
    paused, resumed = Intervention.objects.order_by("pk")
    until = {"until": LATER.isoformat()}
    assert (paused.after, resumed.before) == ({"status": "paused", "priority": 5} | until,) * 2
    assert (resumed.action, resumed.performed_by, resumed.created_at) == ("resume", "clock", LATER)
    assert resumed.after == {"status": "queued", "priority": 5}
    assert [(name, data["by"]) for name, data in events()] == [("task.paused", "ana"), ("task.resumed", "clock")]


def test_the_pause_of_a_run_is_taken_back() -> None:
    task = make_task(status=TaskStatus.EXECUTING, handler="bash a.sh")
    interventions.pause(task, ANA, until=LATER, now=NOW)

    interventions.resume_overdue(now=LATER)

    task.refresh_from_db()
    assert (task.status, task.control, task.paused_at, task.paused_until) == (TaskStatus.EXECUTING, "", None, None)
    assert task.lease_owner == "worker"
    assert events()[-1] == ("task.resumed", {"task_id": task.task_id, "status": "executing", "by": "clock"})


def test_a_paused_run_whose_node_has_died_goes_on_when_its_pause_is_over() -> None:
    make_task(handler="bash a.sh")
    claims.claim(owner="w", now=NOW, window=1, choose=len)
    interventions.pause(Task.objects.get(), ANA, until=LATER, now=NOW)
    policies, after = supervision.Policies(), NOW + timedelta(seconds=21)

    supervision.rescue_expired(policies, now=after)
    paused = Task.objects.get()
    interventions.resume_overdue(now=LATER)

    assert (paused.status, paused.attempt, paused.paused_until) == (TaskStatus.PAUSED, 1, LATER)
    assert Task.objects.get().status == TaskStatus.QUEUED


def test_who_resumes_before_leaves_the_clock_nothing_to_do() -> None:
    task = make_task()
    interventions.pause(task, ANA, until=LATER, now=NOW)
    interventions.resume(task, ANA, now=NOW)
    interventions.pause(task, ANA, now=NOW)

    assert interventions.resume_overdue(now=LATER) == 0

    task.refresh_from_db()
    assert (task.status, task.paused_until) == (TaskStatus.PAUSED, None)


def test_a_pass_of_the_clock_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        make_task(status=TaskStatus.PAUSED, paused_at=NOW, paused_until=LATER)
    monkeypatch.setattr(interventions, "RESUME_MOST", 2)

    assert [interventions.resume_overdue(now=LATER) for _ in range(3)] == [2, 1, 0]


def test_a_person_who_is_faster_than_the_clock_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    task, other = make_task(), make_task()
    for each in (task, other):
        interventions.pause(each, ANA, until=LATER, now=NOW)
    find = steering.overdue

    def overtaken(**given: Any) -> list[Task]:
        found = find(**given)
        interventions.cancel(task, ANA, now=LATER)
        return found

    monkeypatch.setattr(steering, "overdue", overtaken)

    assert interventions.resume_overdue(now=LATER) == 1
    task.refresh_from_db()
    other.refresh_from_db()
    assert (task.status, other.status) == (TaskStatus.CANCELLED, TaskStatus.QUEUED)


@only_postgresql
@pytest.mark.django_db(transaction=True)
def test_of_two_clocks_one_resumes(rival: Rival, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task()
    interventions.pause(task, ANA, until=LATER, now=NOW)
    record = records.record
    others: list[Future[int]] = []

    def overtaken(*args: Any, **kwargs: Any) -> Intervention:
        if not others:
            others.append(rival.start(interventions.resume_overdue, now=LATER))
        return record(*args, **kwargs)

    monkeypatch.setattr(records, "record", overtaken)

    assert interventions.resume_overdue(now=LATER) == 1
    assert others[0].result(10) == 0
    assert Intervention.objects.filter(action="resume").count() == 1


@pytest.mark.parametrize("status", [TaskStatus.QUEUED, TaskStatus.EXECUTING])
def test_a_newer_run_of_its_schedule_ends_a_pause_and_its_time(status: TaskStatus) -> None:
    schedule = make_schedule(overlap_policy=OverlapPolicy.CANCEL_RUNNING)
    earlier = make_task(schedule=schedule, status=status)
    interventions.pause(earlier, ANA, until=LATER, now=NOW)

    interventions.retry(failed(schedule=schedule), ANA, now=NOW)

    earlier.refresh_from_db()
    assert (earlier.paused_at, earlier.paused_until) == (None, None)
    assert interventions.resume_overdue(now=LATER) == 0


# --- retry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [TaskStatus.FAILED, TaskStatus.CANCELLED, TaskStatus.SKIPPED, TaskStatus.COMPLETED])
def test_a_retry_is_a_new_task_like_the_old_one(status: TaskStatus) -> None:
    make_policy(name="patient")
    task = failed(
        task_id="job",
        status=status,
        handler="python:noop",
        task_name="A job",
        parameters={"a": 1, "b": 2},
        priority=7,
        timeout_ms=5000,
        circuit_breaker="db",
    )
    before = Task.objects.values().get()

    made = interventions.retry(task, ANA, parameters={"b": 3}, retry_policy="patient", now=LATER)

    made.refresh_from_db()
    assert (made.task_id, made.status, made.attempt, made.origin_id) == ("job-retry-1", TaskStatus.QUEUED, 0, task.pk)
    assert (made.task_name, made.parameters, made.priority, made.timeout_ms, made.circuit_breaker) == (
        "A job",
        {"a": 1, "b": 3},
        7,
        5000,
        "db",
    )
    assert (made.retry_policy_id, made.created_by, made.due_at) == ("patient", "ana", LATER)
    assert Task.objects.values().get(pk=task.pk) == before | {"retry_count": 1}
    row = Intervention.objects.get()
    assert (row.task_id, row.before, row.after) == (task.pk, {"status": status}, {"new_task_id": "job-retry-1"})


def test_retries_are_numbered_by_the_original_task() -> None:
    task = failed(task_id="job")
    first = interventions.retry(task, ANA, now=LATER)
    Task.objects.filter(pk=first.pk).update(status=TaskStatus.FAILED, finished_at=LATER)
    first.refresh_from_db()

    second = interventions.retry(first, ANA, now=LATER)

    assert (second.task_id, second.origin_id) == ("job-retry-2", task.pk)


def test_a_number_that_somebody_has_used_is_passed_over() -> None:
    make_task(task_id="job-retry-1")

    made = interventions.retry(failed(task_id="job"), ANA, now=LATER)

    assert made.task_id == "job-retry-2"


def test_a_second_press_does_not_run_it_twice() -> None:
    task = failed(task_id="job")
    interventions.retry(task, ANA, now=LATER)

    with pytest.raises(Impossible, match="job-retry-1 has not ended"):
        interventions.retry(task, ANA, now=LATER)

    assert Task.objects.count() == 2


@pytest.mark.parametrize("status", [TaskStatus.QUEUED, TaskStatus.SCHEDULED, TaskStatus.EXECUTING, TaskStatus.PAUSED])
def test_what_has_not_ended_is_not_retried(status: TaskStatus) -> None:
    with pytest.raises(Impossible, match="has not ended"):
        interventions.retry(make_task(status=status), ANA, now=LATER)


def test_a_timeout_among_the_parameters_is_the_task_s_too() -> None:
    made = interventions.retry(failed(handler="python:noop"), ANA, parameters={"timeout_ms": 9000}, now=LATER)

    assert (made.timeout_ms, made.parameters) == (9000, {"timeout_ms": 9000})


def test_a_handler_that_does_not_know_a_timeout_is_not_given_it() -> None:
    made = interventions.retry(failed(handler="python:sleep"), ANA, parameters={"timeout_ms": 9000}, now=LATER)

    assert (made.timeout_ms, made.parameters) == (9000, {})


@pytest.mark.parametrize("value", [0, -1, "9000", True, 2.5, 10**12])
def test_a_timeout_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(FieldInvalid) as caught:
        interventions.retry(failed(handler="python:noop"), ANA, parameters={"timeout_ms": value}, now=LATER)

    assert caught.value.details[0].field == "parameters.timeout_ms"
    assert Task.objects.count() == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [({"retry_policy": "none-such"}, "retry_policy"), ({"parameters": {"seconds": "long"}}, "parameters.seconds")],
)
def test_what_could_not_run_is_refused(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        interventions.retry(failed(), ANA, **change, now=LATER)

    assert caught.value.details[0].field == field
    assert not Intervention.objects.exists()


def test_a_run_of_a_schedule_waits_behind_the_one_that_goes_on() -> None:
    schedule = make_schedule(overlap_policy=OverlapPolicy.QUEUE_ONE)
    make_task(schedule=schedule, status=TaskStatus.EXECUTING)

    made = interventions.retry(failed(schedule=schedule), ANA, now=LATER)

    gate = Gate.objects.get()
    assert (made.status, made.schedule_id) == (TaskStatus.BLOCKED, schedule.pk)
    assert (gate.in_flight, gate.waiting) == (1, 1)


def test_a_run_that_overlap_leaves_out_is_refused() -> None:
    schedule = make_schedule(overlap_policy=OverlapPolicy.SKIP)
    make_task(schedule=schedule, status=TaskStatus.EXECUTING)

    with pytest.raises(Impossible, match="an earlier run has not ended"):
        interventions.retry(failed(schedule=schedule), ANA, now=LATER)

    assert Task.objects.count() == 2


def test_a_run_that_cancels_earlier_ones_does_so() -> None:
    schedule = make_schedule(overlap_policy=OverlapPolicy.CANCEL_RUNNING)
    running = make_task(schedule=schedule, status=TaskStatus.EXECUTING)

    interventions.retry(failed(schedule=schedule), ANA, now=LATER)

    running.refresh_from_db()
    assert running.control == Control.CANCEL


def test_a_run_of_a_deleted_schedule_is_retried_without_it() -> None:
    schedule = make_schedule()
    task = failed(schedule=schedule)
    schedule.delete()

    made = interventions.retry(task, ANA, now=LATER)

    assert (made.status, made.schedule_id) == (TaskStatus.QUEUED, None)


@only_postgresql
@pytest.mark.django_db(transaction=True)
def test_of_two_at_the_same_moment_one_retries(rival: Rival, monkeypatch: pytest.MonkeyPatch) -> None:
    task = failed(task_id="job")
    record = records.record_many
    others: list[Future[Task]] = []

    def overtaken(*args: Any, **kwargs: Any) -> None:
        if not others:
            others.append(rival.start(interventions.retry, task, By("ben"), now=LATER))
        record(*args, **kwargs)

    monkeypatch.setattr(records, "record_many", overtaken)

    made = interventions.retry(task, ANA, now=LATER)

    with pytest.raises(Impossible, match="job-retry-1 has not ended"):
        others[0].result(10)
    assert made.task_id == "job-retry-1"
    assert not Attempt.objects.exists()
