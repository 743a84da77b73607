"""Breaker, retries and interventions driven at random beside a small model, one step at a time."""

from contextlib import suppress
from datetime import datetime, timedelta

import pytest
from django.db import transaction
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from k1node.lib.errors import Conflict
from recovery import breakers, dead_letters, interventions, supervision
from recovery.breaker_rules import State
from recovery.models import Breaker, DeadLetter
from recovery.records import By
from recovery.retries import Changes
from scheduling import claims, gates, parking, queue
from scheduling.claims import Claim
from scheduling.models import FINISHED, Attempt, Gate, Task, TaskStatus
from scheduling.outcomes import Outcome, OutcomeKind
from scheduling.queue import NewTask
from tests.factories import NOW, make_policy

NAME = "api"
ANA = By("ana")
# Most runs come to something.
KINDS = [*OutcomeKind, *[OutcomeKind.FAILED] * 6, *[OutcomeKind.COMPLETED] * 3]
RESULTS = [OutcomeKind.COMPLETED, OutcomeKind.FAILED]
STEPS = ["work"] * 3 + ["wait"] * 2 + ["claim", "settle", "enqueue", "give back", "intervene", "intervene", "retry"]
STEPS += ["operate", "dead letter", "dead letter"]
CODES = [1, 1, 64]  # the last is final
PICK = st.integers(0, 99)
SPENT = {OutcomeKind.COMPLETED, OutcomeKind.FAILED, OutcomeKind.TIMEOUT, OutcomeKind.LOST}
VERBS = {
    "pause": interventions.pause,
    "resume": interventions.resume,
    "skip": interventions.skip,
    "cancel": interventions.cancel,
}


class Recovery(RuleBasedStateMachine):
    """The model: how many attempts each task has spent, how it ended, and what a worker holds."""

    def __init__(self) -> None:
        super().__init__()
        self.savepoint = transaction.savepoint()
        self.now: datetime = NOW
        self.held: list[Claim] = []
        self.spent: dict[int, int] = {}
        self.ended: dict[int, str] = {}
        self.policies = supervision.Policies()

    def teardown(self) -> None:
        transaction.savepoint_rollback(self.savepoint)

    @initialize()
    def begin(self) -> None:
        make_policy(name="quick", max_attempts=3, first_wait_ms=1000, jitter="none")
        self.policies.read()
        breakers.create(NAME, {"window_size": 3, "min_calls": 2, "probes": 2}, ANA, now=self.now)
        # It begins where most can go wrong: half-open, with more waiting than may try.
        self.enqueue(8, True, 5)
        self.claim(2)
        self.settle(OutcomeKind.FAILED, 1, 2)
        self.wait(0)
        self.wait(61)

    # --- what happens -------------------------------------------------------------------------------------------

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """Do one thing. One rule for all: of many rules each example leaves some out, and few came to a probe."""
        draw = data.draw
        match draw(st.sampled_from(STEPS)):
            case "work":
                outcomes = draw(st.lists(st.sampled_from(RESULTS), min_size=1, max_size=4))
                self.work(outcomes, draw(st.sampled_from(CODES)))
            case "wait":
                self.wait(draw(st.sampled_from([0, 1, 61, 1000])))
            case "enqueue":
                self.enqueue(draw(st.integers(1, 3)), draw(st.booleans()), draw(st.integers(1, 10)))
            case "claim":
                self.claim(draw(st.integers(1, 3)))
            case "settle" if self.held:
                self.settle(draw(st.sampled_from(KINDS)), draw(st.sampled_from(CODES)), draw(st.integers(1, 3)))
            case "give back" if self.held:
                self.give_back()
            case "intervene":
                self.intervene(draw(st.sampled_from(sorted(VERBS))), draw(st.integers(0, 99)))
            case "retry" if self.ended:
                self.retry(draw(st.integers(0, 99)))
            case "dead letter":
                self.dead_letter(draw(st.sampled_from(["resubmit", "resubmit", "archive", "unarchive"])), draw(PICK))
            case "operate":
                self.operate(draw(st.sampled_from(["probe", "probe", "probe", "open", "close", "reset"])))

    def enqueue(self, count: int, named: bool, priority: int) -> None:
        made = queue.enqueue(
            [
                NewTask(
                    f"t{len(self.spent) + number}",
                    "python:noop",
                    self.now,
                    retry_policy="quick",
                    circuit_breaker=NAME if named else "",
                    priority=priority,
                )
                for number in range(count)
            ],
            now=self.now,
        )
        self.spent |= {task.pk: 0 for task in made}

    def claim(self, count: int) -> None:
        taken = claims.claim(owner="w", now=self.now, window=count, choose=len)
        door = parking.doors([NAME])[NAME]
        for each in taken:
            permit = Task.objects.values_list("permit", flat=True).get(pk=each.id)
            assert not (each.circuit_breaker and door.stops(permit))
        self.held += taken

    def settle(self, kind: OutcomeKind, code: int, count: int) -> None:
        for _ in range(min(count, len(self.held))):
            self._settle(self.held.pop(0), kind, code)

    def _settle(self, each: Claim, kind: OutcomeKind, code: int) -> None:
        task = Task.objects.get(pk=each.id)
        asked = {"cancel": OutcomeKind.CANCELLED, "skip": OutcomeKind.SKIPPED}.get(task.control)
        kind = asked or kind
        outcome = Outcome(kind, self.now, self.now, 1, code if kind is OutcomeKind.FAILED else 0, "")
        before = Breaker.objects.get()
        settlements = [supervision.conclude(each, outcome, self.policies)]
        assert len(supervision.settle(settlements, worker="w", shard=0, now=self.now)) == 1
        after = Breaker.objects.get()
        if each.generation != before.generation or not each.circuit_breaker:
            assert after.generation == before.generation  # a late result moves nothing
        self.spent[each.id] += kind in SPENT

    def work(self, outcomes: list[OutcomeKind], code: int) -> None:
        """Claim and settle, and let the clock see what has come of it."""
        for kind in outcomes:
            self.claim(1)
            if self.held:
                self._settle(self.held.pop(), kind, code)
            self.wait(0)

    def give_back(self) -> None:
        assert claims.give_back([self.held.pop()]) == 1

    def wait(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        claims.stage(now=self.now)
        breakers.wake_idle(now=self.now)
        breakers.tend(now=self.now)

    def intervene(self, verb: str, which: int) -> None:
        task = Task.objects.get(pk=sorted(self.spent)[which % len(self.spent)])
        with suppress(Conflict):
            VERBS[verb](task, ANA, now=self.now)

    def retry(self, which: int) -> None:
        task = Task.objects.get(pk=sorted(self.ended)[which % len(self.ended)])
        try:
            made = interventions.retry(task, ANA, now=self.now)
        except Conflict:
            return
        self.spent[made.pk] = 0

    def dead_letter(self, verb: str, which: int) -> None:
        letters = list(DeadLetter.objects.select_related("task").order_by("pk"))
        if not letters:
            return
        letter = letters[which % len(letters)]
        with suppress(Conflict):
            match verb:
                case "resubmit":
                    made = dead_letters.resubmit(letter, Changes(), ANA, now=self.now)
                    assert letter.status == DeadLetter.Status.PENDING
                    self.spent[made.pk] = 0
                case "archive":
                    dead_letters.archive([letter], ANA, now=self.now)
                case "unarchive":
                    dead_letters.unarchive([letter], ANA, now=self.now)

    def operate(self, verb: str) -> None:
        soon = self.now + timedelta(minutes=1)
        with suppress(Conflict):
            match verb:
                case "probe":
                    breakers.probe(NAME, ANA, now=self.now)
                case "open":
                    breakers.open_(NAME, ANA, until=soon, now=self.now)
                case "close":
                    breakers.close(NAME, ANA, until=soon, now=self.now)
                case "reset":
                    breakers.reset(NAME, ANA, now=self.now)

    # --- what always holds --------------------------------------------------------------------------------------

    @invariant()
    def attempts_are_counted_once_and_never_taken_back(self) -> None:
        assert dict(Task.objects.values_list("pk", "attempt")) == self.spent

    @invariant()
    def what_has_ended_stays_so(self) -> None:
        now_ended = dict(Task.objects.filter(status__in=FINISHED).values_list("pk", "status"))
        assert self.ended.items() <= now_ended.items()
        self.ended = now_ended

    @invariant()
    def no_more_probes_than_permits(self) -> None:
        row = Breaker.objects.filter(state=State.HALF_OPEN).first()
        if row is not None:
            assert row.successes + parking.permits_out(NAME, row.generation) <= row.permits <= row.probes

    @invariant()
    def the_door_is_as_the_breaker_says(self) -> None:
        for row in Breaker.objects.select_related("gate"):
            assert (row.gate.closed, row.gate.generation) == (row.state != State.CLOSED, row.generation)

    @invariant()
    def only_what_names_the_breaker_waits_behind_it_and_somebody_will_look(self) -> None:
        parked = Task.objects.filter(status=TaskStatus.BLOCKED)
        assert not parked.exclude(circuit_breaker=NAME).exists()
        row = Breaker.objects.first()
        if row is not None and parked.exists() and row.state != State.HALF_OPEN:
            assert row.look_at is not None

    @invariant()
    def what_is_held_is_executing(self) -> None:
        executing = set(Task.objects.filter(status=TaskStatus.EXECUTING).values_list("pk", flat=True))
        assert executing == {each.id for each in self.held}

    @invariant()
    def each_fence_has_one_attempt_at_most_and_one_end(self) -> None:
        finals = list(
            Attempt.objects.filter(decision__in=("complete", "fail", "cancel", "skip")).values_list(
                "task_id", flat=True
            )
        )
        assert len(finals) == len(set(finals))

    @invariant()
    def each_failed_task_has_one_dead_letter_and_no_other_has_any(self) -> None:
        failed = Task.objects.filter(status=TaskStatus.FAILED).values_list("pk", flat=True)
        assert sorted(failed) == sorted(DeadLetter.objects.values_list("task_id", flat=True))

    @invariant()
    def a_dead_letter_is_resubmitted_as_one_task_and_a_task_is_made_of_one(self) -> None:
        made = []
        for letter in DeadLetter.objects.select_related("new_task"):
            assert (letter.status == DeadLetter.Status.RESUBMITTED) == (letter.new_task is not None)
            if letter.new_task is not None:
                made.append(letter.new_task.pk)
                again = DeadLetter.objects.filter(task=letter.new_task).first()
                assert again is None or again.previous_dlq_id == letter.dlq_id
        assert len(made) == len(set(made))

    @invariant()
    def gates_count_right(self) -> None:
        before = list(Gate.objects.order_by("pk").values())
        gates.sweep(now=self.now)
        assert list(Gate.objects.order_by("pk").values()) == before


@pytest.mark.django_db
def test_recovery_keeps_its_promises_whatever_happens() -> None:
    run_state_machine_as_test(
        Recovery,
        settings=settings(
            max_examples=10,
            stateful_step_count=30,
            deadline=None,
            phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink a failure takes minutes
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
