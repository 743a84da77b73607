"""Dead letters: who gets one, how it ends, and that it ends once."""

import time
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from k1node import tidying
from k1node.events.models import Event
from k1node.lib.errors import FieldInvalid, InvalidRequest, NotFound
from recovery import dead_letters, interventions, records, supervision
from recovery.dead_letters import Wanted
from recovery.models import DeadLetter, Intervention
from recovery.records import By
from recovery.retries import Changes, DeadLetterRefuses
from scheduling import claims
from scheduling.claims import Claim
from scheduling.models import Attempt, Gate, OverlapPolicy, Task, TaskStatus
from scheduling.outcomes import Outcome, OutcomeKind
from scheduling.queue import TaskIdTaken
from scheduling.steering import Impossible
from tests.databases import Rival, only_postgresql, only_sqlite
from tests.factories import NOW, make_attempt, make_dead_letter, make_policy, make_schedule, make_task

pytestmark = pytest.mark.django_db

LATER = NOW + timedelta(minutes=1)
ANA = By("ana", "mended the disk")
NOTHING = Changes()
Status = DeadLetter.Status


def run(kind: OutcomeKind = OutcomeKind.FAILED, code: int | None = 3, error: str = "disk 7 full") -> Claim:
    """Claim the next task and settle it."""
    (claim,) = claims.claim(owner="w", now=NOW, window=1, choose=len)
    settlement = supervision.conclude(claim, Outcome(kind, NOW, NOW, 1, code, error), supervision.Policies())
    supervision.settle([settlement], worker="w", shard=0, now=NOW)
    return claim


def events(name: str) -> list[dict[str, Any]]:
    return list(Event.objects.filter(name=name).order_by("pk").values_list("data", flat=True))


# --- who gets one -------------------------------------------------------------------------------------------------


def test_a_task_that_fails_for_good_gets_one() -> None:
    schedule = make_schedule()
    make_policy(name="once", max_attempts=1)
    task = make_task(task_id="job", retry_policy_id="once", schedule=schedule, circuit_breaker="api")

    run()

    letter = DeadLetter.objects.get()
    assert letter.dlq_id == "dlq-job-1772600767890"
    assert (letter.task, letter.status, letter.failed_at) == (task, "pending", NOW)
    assert (letter.error_code, letter.error_message) == (3, "disk 7 full")
    assert (letter.handler, letter.schedule, letter.circuit_breaker) == (task.handler, schedule, "api")
    assert events("dlq.added") == [
        {"dlq_id": letter.dlq_id, "task_id": "job", "error_code": 3, "error_message": "disk 7 full"}
    ]


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        pytest.param(OutcomeKind.FAILED, 3, id="to be tried again"),
        pytest.param(OutcomeKind.COMPLETED, 0, id="completed"),
        pytest.param(OutcomeKind.CANCELLED, None, id="cancelled"),
        pytest.param(OutcomeKind.SKIPPED, None, id="skipped"),
        pytest.param(OutcomeKind.DRAINED, None, id="drained"),
    ],
)
def test_no_other_end_makes_one(kind: OutcomeKind, code: int | None) -> None:
    make_task()

    run(kind, code)

    assert not DeadLetter.objects.exists()


def test_a_final_exit_code_makes_one_at_the_first_attempt() -> None:
    make_task()

    run(code=78)

    assert DeadLetter.objects.get().error_code == 78


def test_a_task_that_is_lost_with_its_last_attempt_gets_one_from_the_rescue() -> None:
    make_policy(name="once", max_attempts=1)
    make_task(retry_policy_id="once")
    with transaction.atomic():
        (claim,) = claims.claim(owner="dead", now=NOW, window=1, choose=len)

    supervision.rescue_worker("dead", (claim.id, claim.fence), supervision.Policies(), now=LATER)

    assert DeadLetter.objects.get().error_code == 137


def test_a_late_result_makes_none() -> None:
    make_policy(name="once", max_attempts=1)
    make_task(retry_policy_id="once")
    (claim,) = claims.claim(owner="w", now=NOW, window=1, choose=len)
    Task.objects.update(fence=99)
    settlement = supervision.conclude(claim, Outcome(OutcomeKind.FAILED, NOW, NOW, 1, 3, ""), supervision.Policies())

    supervision.settle([settlement], worker="w", shard=0, now=NOW)

    assert not DeadLetter.objects.exists()


def test_plain_settlements_ask_nothing_for_it() -> None:
    make_task()
    (claim,) = claims.claim(owner="w", now=NOW, window=1, choose=len)
    done = supervision.conclude(claim, Outcome(OutcomeKind.COMPLETED, NOW, NOW, 1, 0), supervision.Policies())

    with CaptureQueriesContext(connection) as captured:
        supervision.settle([done], worker="w", shard=0, now=NOW)

    assert not [each for each in captured if "deadletter" in each["sql"]]


# --- by hand ------------------------------------------------------------------------------------------------------


def by_hand(**values: Any) -> DeadLetter:
    given = {"task_id": "elsewhere", "handler": "python:noop", "error_code": 500, "error_message": "bad gateway"}
    return dead_letters.add_by_hand(given | values, ANA, now=LATER)


def test_one_made_by_hand_has_a_failed_task_that_never_ran() -> None:
    letter = by_hand(handler="python:sleep", parameters={"seconds": 1})

    task = letter.task
    assert (letter.dlq_id, letter.created_by) == (f"dlq-elsewhere-{int(LATER.timestamp() * 1000)}", "ana")
    assert (task.status, task.attempt, task.exit_code, task.last_error) == ("failed", 0, 500, "bad gateway")
    assert (task.parameters, task.finished_at) == ({"seconds": 1}, LATER)
    assert events("dlq.added")[0]["by"] == "ana"


def test_a_task_that_has_ended_is_taken_as_it_is() -> None:
    task = make_task(task_id="elsewhere", handler="python:noop", status=TaskStatus.COMPLETED, parameters={"a": 1})

    letter = by_hand()

    assert letter.task == task
    assert Task.objects.get().status == "completed"


@pytest.mark.parametrize(
    ("values", "error"),
    [
        pytest.param({"handler": "rm -rf /"}, InvalidRequest, id="handler"),
        pytest.param({"handler": "python:sleep", "parameters": {"seconds": []}}, InvalidRequest, id="parameters"),
        pytest.param({"task_id": "-x"}, InvalidRequest, id="id"),
        pytest.param({"task_id": "living"}, DeadLetterRefuses, id="not ended"),
        pytest.param({"task_id": "dead"}, DeadLetterRefuses, id="has one"),
        pytest.param({"task_id": "done", "handler": "python:sleep"}, FieldInvalid, id="other handler"),
        pytest.param({"task_id": "done", "parameters": {"a": 2}}, FieldInvalid, id="other parameters"),
        pytest.param({"task_id": "nightly"}, TaskIdTaken, id="a schedule"),
    ],
)
def test_what_cannot_be_added_leaves_nothing(values: dict[str, Any], error: type[Exception]) -> None:
    make_task(task_id="living", handler="python:noop")
    make_dead_letter(make_task(task_id="dead", handler="python:noop", status=TaskStatus.FAILED))
    make_task(task_id="done", handler="python:noop", status=TaskStatus.COMPLETED, parameters={"a": 1})
    make_schedule(task_id="nightly")

    with pytest.raises(error):
        by_hand(**values)

    assert DeadLetter.objects.count() == 1
    assert Task.objects.count() == 3


# --- resubmitting -------------------------------------------------------------------------------------------------


def test_a_resubmission_is_a_new_task_with_the_changes() -> None:
    make_policy(name="patient")
    task = make_task(
        task_id="job",
        handler="python:sleep",
        parameters={"seconds": 3},
        timeout_ms=1000,
        priority=8,
        status=TaskStatus.FAILED,
    )
    letter = make_dead_letter(task)

    made = dead_letters.resubmit(letter, Changes({"seconds": 1, "timeout_ms": 5000}, "patient"), ANA, now=LATER)

    assert (made.task_id, made.status, made.priority, made.origin) == ("job-retry-1", "queued", 8, task)
    assert (made.parameters, made.timeout_ms, made.retry_policy_id) == ({"seconds": 1}, 5000, "patient")
    letter.refresh_from_db()
    assert (letter.status, letter.resolved_at, letter.resolved_by, letter.reason) == (
        "resubmitted",
        LATER,
        "ana",
        "mended the disk",
    )
    assert (letter.new_task, letter.new_task_name) == (made, "job-retry-1")
    assert letter.changes == {"parameters": {"seconds": 1, "timeout_ms": 5000}, "retry_policy": "patient"}
    row = Intervention.objects.get()
    assert (row.task, row.action, row.after) == (task, "resubmit", {"new_task_id": "job-retry-1"})
    assert events("dlq.resubmitted") == [
        {"dlq_id": letter.dlq_id, "task_id": "job", "new_task_id": "job-retry-1", "by": "ana"}
    ]


@pytest.mark.parametrize("status", [Status.RESUBMITTED, Status.ARCHIVED])
def test_only_a_pending_one_is_resubmitted(status: DeadLetter.Status) -> None:
    letter = make_dead_letter(status=status, new_task_name="job-retry-1")

    with pytest.raises(DeadLetterRefuses) as refused:
        dead_letters.resubmit(letter, NOTHING, ANA, now=LATER)

    assert {"resubmitted": "as job-retry-1", "archived": "Unarchive it"}[status] in str(refused.value)
    assert Task.objects.count() == 1


def test_parameters_grow_no_further_than_those_of_a_new_task() -> None:
    letter = make_dead_letter(
        make_task(handler="python:noop", status=TaskStatus.FAILED, parameters={"a": "x" * 60_000})
    )

    with pytest.raises(FieldInvalid, match="validation"):
        dead_letters.resubmit(letter, Changes({"b": "y" * 60_000}), ANA, now=LATER)

    assert dead_letters.resubmit(letter, Changes({"b": "y"}), ANA, now=LATER).parameters["b"] == "y"


def test_a_second_resubmission_is_refused_also_when_the_first_has_ended() -> None:
    letter = make_dead_letter()
    made = dead_letters.resubmit(letter, NOTHING, ANA, now=LATER)
    Task.objects.filter(pk=made.pk).update(status=TaskStatus.COMPLETED, finished_at=LATER)

    with pytest.raises(DeadLetterRefuses):
        dead_letters.resubmit(letter, NOTHING, ANA, now=LATER)


def test_one_that_fails_again_makes_a_new_entry_that_names_the_one_before() -> None:
    make_policy(name="once", max_attempts=1)
    first = make_dead_letter(make_task(task_id="job", status=TaskStatus.FAILED, retry_policy_id="once"))
    dead_letters.resubmit(first, NOTHING, ANA, now=NOW)
    run()
    second = DeadLetter.objects.get(status="pending")
    dead_letters.resubmit(second, NOTHING, ANA, now=NOW)
    run()
    third = DeadLetter.objects.get(status="pending")

    assert [letter.task.task_id for letter in (first, second, third)] == ["job", "job-retry-1", "job-retry-2"]
    assert third.previous_dlq_id == second.dlq_id
    assert [letter.dlq_id for letter in dead_letters.chain_of(third)] == [first.dlq_id, second.dlq_id]


def test_a_retry_of_the_task_resubmits_its_entry() -> None:
    letter = make_dead_letter()

    made = interventions.retry(letter.task, ANA, now=LATER)

    letter.refresh_from_db()
    assert (letter.status, letter.new_task) == ("resubmitted", made)
    with pytest.raises(DeadLetterRefuses):
        dead_letters.resubmit(letter, NOTHING, ANA, now=LATER)


def test_one_whose_task_is_being_retried_waits_for_that() -> None:
    letter = make_dead_letter()
    make_task(task_id="again", origin=letter.task)

    with pytest.raises(Impossible, match="again has not ended"):
        dead_letters.resubmit(letter, NOTHING, ANA, now=LATER)


@pytest.mark.parametrize("policy", OverlapPolicy.values)
def test_runs_of_a_schedule_wait_for_their_turn_whatever_its_overlap_policy(policy: str) -> None:
    schedule = make_schedule(overlap_policy=policy)
    running = make_task(schedule=schedule, status=TaskStatus.EXECUTING)
    letters = [make_dead_letter(make_task(schedule=schedule, status=TaskStatus.FAILED)) for _ in range(3)]

    made = dead_letters.resubmit_all(letters, NOTHING, ANA, now=LATER)

    alone = policy != OverlapPolicy.ALLOW
    assert [task.status for task in made] == ["blocked" if alone else "queued"] * 3
    running.refresh_from_db()
    assert (running.status, running.control) == ("executing", "")
    if alone:
        gate = Gate.objects.get(kind="overlap")
        assert (gate.in_flight, gate.waiting) == (1, 3)


def test_many_are_resubmitted_in_a_fixed_number_of_queries() -> None:
    def counted(count: int) -> int:
        letters = [make_dead_letter() for _ in range(count)]
        with CaptureQueriesContext(connection) as captured:
            made = dead_letters.resubmit_all(letters, NOTHING, ANA, now=LATER)
        assert [task.task_id for task in made] == [f"{letter.task.task_id}-retry-1" for letter in letters]
        return len(captured)

    counted(1)

    assert counted(30) == counted(2)


def test_all_or_none_of_many() -> None:
    good, spent, blocked = make_dead_letter(), make_dead_letter(status=Status.ARCHIVED), make_dead_letter()
    make_task(task_id="again", origin=blocked.task)

    with pytest.raises(DeadLetterRefuses) as refused:
        dead_letters.resubmit_all([good, spent, blocked], NOTHING, ANA, now=LATER)

    assert [detail.field for detail in refused.value.details] == [spent.dlq_id, blocked.dlq_id]
    good.refresh_from_db()
    assert good.status == "pending"
    assert not Intervention.objects.exists()
    assert not Task.objects.filter(task_id__contains="-retry-").exists()


def test_those_that_could_not_run_are_named_before_anything_happens() -> None:
    letters = [make_dead_letter(make_task(handler="python:gone", status=TaskStatus.FAILED)) for _ in range(2)]

    with pytest.raises(InvalidRequest) as refused:
        dead_letters.resubmit_all(letters, NOTHING, ANA, now=LATER)

    assert [detail.field for detail in refused.value.details] == [letter.dlq_id for letter in letters]


@pytest.mark.parametrize(
    "changes", [Changes({"timeout_ms": 0}), Changes({"timeout_ms": True}), Changes(retry_policy="none such")]
)
def test_changes_that_cannot_fit_are_refused(changes: Changes) -> None:
    letter = make_dead_letter()

    with pytest.raises(FieldInvalid):
        dead_letters.resubmit(letter, changes, ANA, now=LATER)


@pytest.mark.django_db(transaction=True)
@only_postgresql
def test_of_two_at_the_same_moment_one_resubmits(rival: Rival, monkeypatch: pytest.MonkeyPatch) -> None:
    letter = make_dead_letter()
    record = records.record_many
    others: list[Future[Task]] = []

    def overtaken(*args: Any, **kwargs: Any) -> None:
        if not others:
            others.append(rival.start(dead_letters.resubmit, letter, NOTHING, By("ben"), now=LATER))
        record(*args, **kwargs)

    monkeypatch.setattr(records, "record_many", overtaken)

    made = dead_letters.resubmit(letter, NOTHING, ANA, now=LATER)

    with pytest.raises(DeadLetterRefuses, match="resubmitted already"):
        others[0].result(10)
    assert Task.objects.exclude(pk=letter.task_id).get() == made
    letter.refresh_from_db()
    assert letter.resolved_by == "ana"


@pytest.mark.django_db(transaction=True)
@only_postgresql
def test_a_retry_that_waited_for_an_entry_made_by_hand_resolves_it(rival: Rival) -> None:
    task = make_task(task_id="elsewhere", handler="python:noop", status=TaskStatus.COMPLETED)
    others: list[Future[Task]] = []

    with transaction.atomic():
        letter = by_hand()
        others.append(rival.start(interventions.retry, task, ANA, now=LATER))
        time.sleep(0.3)

    made = others[0].result(10)
    letter.refresh_from_db()
    assert (letter.status, letter.new_task) == ("resubmitted", made)


# --- archiving ----------------------------------------------------------------------------------------------------


def test_archived_and_back_again() -> None:
    letters = [make_dead_letter(), make_dead_letter()]

    dead_letters.archive(letters, ANA, now=LATER)
    dead_letters.unarchive(letters[:1], By("bob"), now=LATER)

    assert list(DeadLetter.objects.order_by("pk").values_list("status", "resolved_by", "reason")) == [
        ("pending", "", ""),
        ("archived", "ana", "mended the disk"),
    ]
    assert [row.action for row in Intervention.objects.order_by("pk")] == ["archive", "archive", "unarchive"]
    assert len(events("dlq.archived")) == 2
    assert events("dlq.unarchived")[0]["by"] == "bob"


def test_all_of_several_are_archived_or_none() -> None:
    pending, spent = make_dead_letter(), make_dead_letter(status=Status.RESUBMITTED)

    with pytest.raises(DeadLetterRefuses, match=f"{spent.dlq_id} is resubmitted"):
        dead_letters.archive([pending, spent], ANA, now=LATER)
    with pytest.raises(DeadLetterRefuses):
        dead_letters.unarchive([spent], ANA, now=LATER)

    pending.refresh_from_db()
    assert pending.status == "pending"


# --- reading ------------------------------------------------------------------------------------------------------


def test_what_failed_for_the_same_reason_is_one_group() -> None:
    schedule = make_schedule(task_id="nightly")
    for number in range(3):
        task = make_task(status=TaskStatus.FAILED, schedule=schedule)
        make_dead_letter(task, error_message=f"disk {number} full", failed_at=NOW + timedelta(minutes=number))
    make_dead_letter(error_message="no route", failed_at=NOW - timedelta(hours=2))
    make_dead_letter(error_message="no route", status=Status.ARCHIVED)

    found, is_capped = dead_letters.groups(now=LATER)

    assert not is_capped
    assert [(group["error_line"], group["count"], group["last_hour"]) for group in found] == [
        ("disk <n> full", 3, 3),
        ("no route", 1, 0),
    ]
    first = found[0]
    assert (first["first_failed_at"], first["last_failed_at"]) == (NOW, NOW + timedelta(minutes=2))
    assert (first["error_code"], first["schedules"]) == (3, ["nightly"])


@pytest.mark.parametrize(("most", "is_capped"), [(4, True), (5, False)])
def test_it_is_said_when_not_all_were_counted(most: int, is_capped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "GROUPED_MOST", most)
    monkeypatch.setattr(dead_letters, "GROUPS_MOST", 2)
    for number in range(5):
        make_dead_letter(error_code=number)

    assert dead_letters.groups(now=LATER)[1] is is_capped


def test_groups_take_a_fixed_number_of_queries() -> None:
    def counted() -> int:
        with CaptureQueriesContext(connection) as captured:
            dead_letters.groups(now=LATER)
        return len(captured)

    make_dead_letter()
    few = counted()
    for number in range(20):
        make_dead_letter(error_code=number)

    assert counted() == few <= 4


def test_lists_by_what_is_wanted() -> None:
    schedule = make_schedule(task_id="nightly")
    one = make_dead_letter(
        make_task(
            task_id="job", status=TaskStatus.FAILED, schedule=schedule, circuit_breaker="api", handler="bash a.sh"
        )
    )
    two = make_dead_letter(failed_at=LATER, status=Status.ARCHIVED, error_message="other")

    def found(**wanted: Any) -> list[DeadLetter]:
        return list(dead_letters.listed(Wanted(**wanted)).order_by("pk"))

    assert found() == [one, two]
    assert found(status="archived") == [two]
    assert found(task_id="job") == found(task_id="nightly") == found(schedule="nightly") == [one]
    assert found(handler="bash a.sh") == found(circuit_breaker="api") == found(until=LATER) == [one]
    assert found(fingerprint=two.fingerprint) == found(since=LATER) == [two]
    assert found(task_id="gone") == found(schedule="gone") == found(status="archived", until=LATER) == []


def test_unknown_ids_are_named() -> None:
    letter = make_dead_letter()

    with pytest.raises(NotFound, match="dlq-gone-1"):
        dead_letters.by_ids([letter.dlq_id, "dlq-gone-1"])


@only_sqlite  # PostgreSQL chooses by statistics
@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (Wanted(fingerprint="x"), "letter_fingerprint"),
        (Wanted(handler="x"), "letter_handler"),
        (Wanted(circuit_breaker="x"), "letter_breaker"),
        (Wanted(schedule="x"), "letter_schedule"),
        (Wanted(), "letter_status"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pending_ones_are_found_by_the_index_of_what_is_wanted(wanted: Wanted, index: str) -> None:
    rows = dead_letters.listed(wanted).filter(status=Status.PENDING).order_by("-pk")

    assert f"USING INDEX {index} " in rows.explain()


# --- retention ----------------------------------------------------------------------------------------------------


def test_a_pending_one_keeps_its_task_for_ever_and_a_resolved_one_as_long_as_it_stays() -> None:
    old = NOW - timedelta(days=100)
    ended = {"status": TaskStatus.FAILED, "created_at": old, "finished_at": old}
    pending = make_dead_letter(make_task(**ended), failed_at=old)
    make_attempt(pending.task)
    recent = make_dead_letter(make_task(**ended), status=Status.RESUBMITTED, resolved_at=NOW - timedelta(days=89))
    make_dead_letter(make_task(**ended), status=Status.ARCHIVED, resolved_at=NOW - timedelta(days=91))

    tidying.prune(now=NOW)

    assert list(DeadLetter.objects.order_by("pk")) == [pending, recent]
    assert list(Task.objects.order_by("pk")) == [pending.task, recent.task]
    assert Attempt.objects.exists()


@pytest.mark.django_db(transaction=True)
@only_postgresql
def test_a_task_that_gets_an_entry_while_it_is_pruned_keeps_its_task(rival: Rival) -> None:
    old = NOW - timedelta(days=100)
    make_task(task_id="elsewhere", handler="python:noop", status=TaskStatus.COMPLETED, created_at=old, finished_at=old)

    with transaction.atomic():
        letter = by_hand()
        pruning = rival.start(tidying.prune, now=NOW)
        time.sleep(0.3)
    pruning.result(10)

    assert DeadLetter.objects.select_related("task").get() == letter
    assert Task.objects.get().task_id == "elsewhere"
