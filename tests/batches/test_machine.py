"""A batch driven at random: what its gate counts is what its tasks are, after every step."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import transaction
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from batches import progress, steering, submission, upkeep
from batches.models import Batch
from batches.steering import RETRY_FAILED
from k1node.events.models import Event
from k1node.lib.errors import Conflict
from k1node.operations import jobs
from recovery import breakers, dead_letters, interventions, supervision
from recovery.models import DeadLetter
from recovery.records import By
from recovery.retries import Changes
from scheduling import claims, gates
from scheduling.claims import Claim
from scheduling.models import ACTIVE, FINISHED, Attempt, Gate, Task, TaskStatus
from scheduling.outcomes import Outcome, OutcomeKind
from tests.factories import NOW, make_policy

ANA = By("ana")
NAME = "api"
RESULTS = [*[OutcomeKind.COMPLETED] * 4, *[OutcomeKind.FAILED] * 3, OutcomeKind.DRAINED]
CODES = [1, 1, 64]  # the last is final
STEPS = ["work"] * 4 + ["wait"] * 3 + ["claim"] * 2 + ["settle"] * 2 + ["give back", "kill", "rescue"]
STEPS += ["intervene"] * 3 + ["retry"] * 2 + ["resubmit", "batch", "batch", "batch", "add", "breaker"]
VERBS = {
    "pause": interventions.pause,
    "resume": interventions.resume,
    "skip": interventions.skip,
    "cancel": interventions.cancel,
}
ON_BATCHES: dict[str, Any] = {
    "pause": steering.pause,
    "resume": steering.resume,
    "cancel": steering.cancel,
    "retry failed": steering.retry_failed,
    "close": lambda batch, by, now: submission.close(batch, by=by.name, now=now),
}


def bundle(head: Sequence[tuple[str, bool]]) -> int:
    """Choose as a worker that knows all handlers to be short."""
    return next((max(1, place) for place, (_, solo) in enumerate(head) if solo), len(head))


def whole(pk: int) -> Gate:
    """Return a gate with what its workers have counted; they are left as they are."""
    gate = Gate.objects.get(pk=pk)
    gates.with_tallies([gate])
    return gate


class Batches(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.savepoint = transaction.savepoint()
        self.now: datetime = NOW
        self.held: list[Claim] = []
        self.number = 0
        self.rounds: set[int] = set()
        self.policies = supervision.Policies()

    def teardown(self) -> None:
        transaction.savepoint_rollback(self.savepoint)

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        draw = data.draw
        make_policy(name="quick", max_attempts=2, first_wait_ms=1000, jitter="none")
        self.policies.read()
        breakers.create(NAME, {"window_size": 3, "min_calls": 2, "probes": 2}, ANA, now=self.now)
        self.options = submission.Options(
            fail_fast=draw(st.booleans()),
            fail_fast_running=draw(st.sampled_from(["finish", "cancel"])),
            parallel=draw(st.sampled_from([True, True, False])),
            max_concurrent=draw(st.sampled_from([None, 1, 2, 3])),
        )
        self.batch = submission.submit(
            self.items(draw(st.integers(3, 7)), draw(st.booleans())),
            batch_id="b",
            options=self.options,
            is_open=draw(st.sampled_from([False, False, True])),
            by="ana",
            now=self.now,
        )
        # What else there is to do.
        submission.submit(self.items(2, False), batch_id="other", by="bob", now=self.now)

    def items(self, count: int, odd: bool) -> list[dict[str, Any]]:
        made = []
        for _ in range(count):
            self.number += 1
            each: dict[str, Any] = {"handler": "python:noop", "retry_policy": "quick", "task_id": f"t{self.number}"}
            if odd and self.number % 3 == 0:
                each |= {"circuit_breaker": NAME, "priority": 7}
            if odd and self.number % 4 == 0:
                each["delay_until"] = (self.now + timedelta(seconds=40)).isoformat()
            made.append(each)
        return made

    # --- what happens -------------------------------------------------------------------------------------------

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        draw = data.draw
        self.before = self.counts()
        self.retried = False
        match draw(st.sampled_from(STEPS)):
            case "work":
                self.work(
                    draw(st.lists(st.sampled_from(RESULTS), min_size=1, max_size=5)), draw(st.sampled_from(CODES))
                )
            case "wait":
                self.wait(draw(st.sampled_from([0, 1, 3, 61])))
            case "claim":
                self.claim(draw(st.integers(1, 4)))
            case "settle" if self.held:
                self.settle(
                    self.take(draw(st.integers(1, 4))), draw(st.sampled_from(RESULTS)), draw(st.sampled_from(CODES))
                )
            case "give back" if self.held:
                claims.give_back(self.take(draw(st.integers(1, 3))))
            case "kill" if self.held:
                supervision.rescue_worker("w", draw(st.sampled_from(self.running())), self.policies, now=self.now)
                self.held = []
            case "rescue" if self.held:
                self.now += timedelta(seconds=21)
                supervision.rescue_expired(self.policies, now=self.now)
                self.held = []
            case "intervene":
                self.intervene(draw(st.sampled_from(sorted(VERBS))), draw(st.integers(0, 99)))
            case "retry":
                self.retry(draw(st.integers(0, 99)))
            case "resubmit":
                self.resubmit(draw(st.integers(0, 99)))
            case "batch":
                self.steer(draw(st.sampled_from(sorted([*ON_BATCHES, "resume", "retry failed"]))))
            case "add":
                with suppress(Conflict):
                    submission.add(self.batch, self.items(2, True), by="ana", now=self.now)
            case "breaker":
                self.operate(draw(st.sampled_from(["open", "close"])))

    def running(self) -> list[tuple[int, int] | None]:
        return [None, *[(each.id, each.fence) for each in self.held]]

    def take(self, count: int) -> list[Claim]:
        taken, self.held = self.held[:count], self.held[count:]
        return taken

    def claim(self, count: int) -> None:
        stands = Gate.objects.get(pk=self.batch.gate_id)
        taken = claims.claim(owner="w", now=self.now, window=count, choose=bundle)
        if stands.closed or stands.spent:
            assert all(each.gate_id != stands.pk for each in taken)
        self.held += taken

    def settle(self, taken: list[Claim], kind: OutcomeKind, code: int) -> None:
        done = []
        for each in taken:
            control = Task.objects.values_list("control", flat=True).get(pk=each.id)
            asked = {"cancel": OutcomeKind.CANCELLED, "skip": OutcomeKind.SKIPPED}.get(control, kind)
            outcome = Outcome(asked, self.now, self.now, 1, code if asked is OutcomeKind.FAILED else 0, "")
            done.append((each, outcome))
        settlements = supervision.conclude_all(done, self.policies)
        assert len(supervision.settle(settlements, worker="w", shard=0, now=self.now)) == len(taken)

    def work(self, outcomes: list[OutcomeKind], code: int) -> None:
        for kind in outcomes:
            self.claim(1)
            if self.held:
                self.settle([self.held.pop()], kind, code)
            self.wait(0)

    def wait(self, seconds: int) -> None:
        """Let the clock do what it does."""
        self.now += timedelta(seconds=seconds)
        claims.stage(now=self.now)
        breakers.wake_idle(now=self.now)
        breakers.tend(now=self.now)
        while jobs.tend({RETRY_FAILED.name: RETRY_FAILED}, now=self.now):
            self.retried = True
        while upkeep.tend(now=self.now):
            pass
        self.nothing_waits_for_nothing()
        self.what_is_over_has_ended()

    def intervene(self, verb: str, which: int) -> None:
        tasks = list(Task.objects.order_by("pk"))
        with suppress(Conflict):
            VERBS[verb](tasks[which % len(tasks)], ANA, now=self.now)

    def retry(self, which: int) -> None:
        ended = list(Task.objects.filter(status__in=FINISHED).order_by("pk"))
        if ended:
            with suppress(Conflict):
                interventions.retry(ended[which % len(ended)], ANA, now=self.now)
                self.retried = True

    def resubmit(self, which: int) -> None:
        letters = list(DeadLetter.objects.select_related("task").order_by("pk"))
        if letters:
            with suppress(Conflict):
                dead_letters.resubmit(letters[which % len(letters)], Changes(), ANA, now=self.now)
                self.retried = True

    def steer(self, verb: str) -> None:
        with suppress(Conflict):
            ON_BATCHES[verb](self.batch, ANA, now=self.now)

    def operate(self, verb: str) -> None:
        with suppress(Conflict):
            if verb == "open":
                breakers.open_(NAME, ANA, until=self.now + timedelta(minutes=1), now=self.now)
            else:
                breakers.close(NAME, ANA, until=self.now + timedelta(minutes=1), now=self.now)

    # --- what holds once the clock has looked -------------------------------------------------------------------

    def nothing_waits_for_nothing(self) -> None:
        gate = self.gate()
        if gate.closed:
            return
        due = Task.objects.filter(blocked_on=gate, due_at__lte=self.now).count()
        if gate.spent:
            assert gate.waiting == 0
        elif gate.ordered:
            assert not gate.waiting or gate.in_flight == 1
        elif due:
            assert gate.in_flight == gate.limit

    def what_is_over_has_ended(self) -> None:
        batch, gate = Batch.objects.get(pk=self.batch.pk), self.gate()
        assert not gate.reopened
        is_over = not batch.open and not gate.waiting and not gate.in_flight
        assert (batch.ended_at is not None) == is_over

    # --- what always holds --------------------------------------------------------------------------------------

    def gate(self) -> Gate:
        return whole(self.batch.gate_id)

    def counts(self) -> dict[str, int]:
        gate = self.gate()
        return {name: getattr(gate, name) for name in gates.FINALS}

    @invariant()
    def the_gates_count_what_there_is(self) -> None:
        for gate in map(whole, Gate.objects.filter(kind="batch").values_list("pk", flat=True)):
            members = list(Task.objects.filter(gate=gate))
            there = Counter(task.status for task in members)
            waiting = sum(task.blocked_on_id == gate.pk for task in members)
            active = sum(there[status] for status in ACTIVE)
            assert (gate.waiting, gate.in_flight) == (waiting, active - waiting)
            assert {name: getattr(gate, name) for name in gates.FINALS} == {n: there[n] for n in gates.FINALS}
            assert gate.batch.total == len(members)

    @invariant()
    def finals_only_move_forward_but_where_one_is_retried(self) -> None:
        if not getattr(self, "retried", True):
            assert all(count >= self.before[name] for name, count in self.counts().items())

    @invariant()
    def no_more_are_in_flight_than_may_be(self) -> None:
        gate = self.gate()
        assert gate.limit is None or gate.in_flight <= gate.limit

    @invariant()
    def one_by_one_means_the_first_first(self) -> None:
        if not self.options.parallel:
            active = Task.objects.filter(gate=self.batch.gate_id, status__in=ACTIVE).order_by("pk")
            in_flight = [task for task in active if task.blocked_on_id != task.gate_id]
            assert not in_flight or in_flight == [active[0]]

    @invariant()
    def nothing_is_about_to_start_behind_a_closed_or_spent_gate(self) -> None:
        gate = self.gate()
        if gate.closed or gate.spent:
            idle = gates.in_flight(gate).exclude(status__in=(TaskStatus.EXECUTING, TaskStatus.PAUSED))
            assert not idle.exists()

    @invariant()
    def progress_adds_up(self) -> None:
        row, report = progress.read(self.batch)
        assert report.ended + report.waiting + report.in_progress == report.total == row.total
        executing = Task.objects.filter(gate=row.gate, status=TaskStatus.EXECUTING, started_at__isnull=False)
        assert report.in_progress == executing.count()

    @invariant()
    def each_round_has_one_end_at_most(self) -> None:
        ends = Counter(
            (event.data["batch_id"], event.data["round"])
            for event in Event.objects.filter(name__in=("batch.completed", "batch.failed"))
        )
        assert all(count == 1 for count in ends.values())
        batch = Batch.objects.get(pk=self.batch.pk)
        told = {number for batch_id, number in ends if batch_id == "b"}
        assert told == set(range(1, batch.round + (batch.ended_at is not None)))

    @invariant()
    def what_is_held_is_executing(self) -> None:
        executing = set(Task.objects.filter(status=TaskStatus.EXECUTING).values_list("pk", flat=True))
        assert executing == {each.id for each in self.held}

    @invariant()
    def each_fence_has_one_attempt(self) -> None:
        fences = list(Attempt.objects.values_list("task_id", "fence"))
        assert len(fences) == len(set(fences))


@pytest.mark.django_db
def test_a_batch_keeps_its_promises_whatever_happens() -> None:
    run_state_machine_as_test(
        Batches,
        settings=settings(
            max_examples=12,
            stateful_step_count=40,
            deadline=None,
            phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink a failure takes minutes
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
