"""Many sessions at once do to the same tasks whatever may happen to them; afterwards every count must be exact."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from functools import partial

import pytest
from django.db import connection, transaction

from k1node.lib import sql
from k1node.lib.clock_time import database_now
from recovery import breakers, interventions, supervision
from recovery.breakers import BreakerRefuses
from recovery.models import Breaker
from recovery.records import By
from scheduling import claims, gates, schedules
from scheduling.claims import Claim
from scheduling.models import ACTIVE, FINISHED, Attempt, Gate, MinuteCounter, OverlapPolicy, Schedule, Task, TaskStatus
from scheduling.outcomes import Outcome, OutcomeKind
from scheduling.schedules import RunLeftOut
from scheduling.steering import Impossible
from tests.factories import make_schedule, make_task

pytestmark = pytest.mark.django_db(transaction=True)

ROUNDS = 60
BREAKER = "flapping"
KINDS = [OutcomeKind.COMPLETED] * 4 + [OutcomeKind.FAILED, OutcomeKind.DRAINED, OutcomeKind.CANCELLED, OutcomeKind.LOST]


class Rivals:
    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.too_many_permits = 0
        self.policies = supervision.Policies()
        self.policies.get("")

    def work(self, seed: int) -> None:
        """Claim, and settle, give back, or die over what was claimed; keep some until somebody has rescued it."""
        chance = random.Random(seed)
        late: list[tuple[Claim, Outcome]] = []

        def exchange(done: list[tuple[Claim, Outcome]], count: int) -> list[Claim]:
            settlements = [supervision.conclude(*each, self.policies) for each in done]
            now = database_now()
            supervision.settle(settlements, worker=f"w{seed}", shard=seed, now=now)
            return claims.claim(owner=f"w{seed}", now=now, window=9, choose=lambda head: min(count, len(head)))

        done: list[tuple[Claim, Outcome]] = []
        for _ in range(ROUNDS):
            held = sql.in_transaction(partial(exchange, done, chance.randint(1, 4)))
            done = []
            for claim in held:
                now = database_now()
                result = claim, Outcome(chance.choice(KINDS), now, now, 0)
                match chance.randrange(8):
                    case 0:
                        sql.in_transaction(partial(claims.give_back, [claim]))
                    case 1:
                        late.append(result)
                    case _:
                        done.append(result)
            if late and chance.random() < 0.3:
                done.append(late.pop())
        sql.in_transaction(partial(exchange, done + late, 1))

    def rescue(self) -> None:
        for _ in range(ROUNDS):
            ahead = database_now() + claims.LEASE + timedelta(seconds=1)
            sql.in_transaction(partial(supervision.rescue_expired, self.policies, now=ahead))
            sql.in_transaction(partial(claims.stage, now=ahead + timedelta(hours=1)))
            time.sleep(0.01)

    def run_again(self, schedule: Schedule) -> None:
        for _ in range(ROUNDS // 2):
            try:
                schedules.run_now(schedule, "me", now=database_now())
            except RunLeftOut:
                time.sleep(0.005)

    def tend(self) -> None:
        """Be the clock of a breaker that opens at every second failure and never rests for long."""
        for _ in range(ROUNDS * 2):
            now = database_now()
            breakers.wake_idle(now=now)
            breakers.tend(now=now)
            self.too_many_permits += self._permits_too_many()
            time.sleep(0.005)

    @staticmethod
    def _permits_too_many() -> int:
        with connection.cursor() as cursor:  # one statement, so one moment
            cursor.execute(
                "SELECT count(*) FROM recovery_breaker AS b WHERE b.state = 'HALF-OPEN' AND b.permits < b.successes +"
                " (SELECT count(*) FROM scheduling_task AS t WHERE t.permit = b.generation"
                " AND t.circuit_breaker = b.breaker_id AND t.status IN ('queued', 'executing'))"
            )
            return int(cursor.fetchone()[0])

    def operate(self, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(ROUNDS // 2):
            try:
                chance.choice((breakers.open_, breakers.reset, breakers.probe, breakers.close))(
                    BREAKER, By("ben"), now=database_now()
                )
                time.sleep(0.01)
                if chance.random() < 0.7:
                    breakers.reset(BREAKER, By("ben"), now=database_now())
            except BreakerRefuses:
                time.sleep(0.01)

    def edit(self, schedule: Schedule) -> None:
        for policy in (OverlapPolicy.ALLOW, OverlapPolicy.SKIP, OverlapPolicy.ALLOW, OverlapPolicy.QUEUE_ONE):
            schedules.update(schedule, {"overlap_policy": policy}, "me", now=database_now())
            schedule.refresh_from_db()
            self.run_again(schedule)

    def intervene(self, seed: int) -> None:
        """Do to whatever task there is whatever comes to mind; what is impossible is refused."""
        chance = random.Random(seed)
        verbs = (interventions.pause, interventions.resume, interventions.skip, interventions.cancel)
        for _ in range(ROUNDS):
            task = chance.choice(list(Task.objects.filter(status__in=ACTIVE)[:50]) or [None])
            ended = Task.objects.filter(status__in=FINISHED).order_by("-pk").first()
            try:
                if task is not None:
                    chance.choice(verbs)(task, By("ana"), now=database_now())
                if ended is not None and chance.random() < 0.3:
                    interventions.retry(ended, By("ana"), now=database_now())
            except Impossible:
                time.sleep(0.005)

    def all_at_once(self, *jobs: Callable[[], None]) -> None:
        def guarded(job: Callable[[], None]) -> None:
            try:
                job()
            except BaseException as error:
                self.errors.append(error)
            finally:
                connection.close()

        threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)


def test_no_count_is_wrong_and_no_task_is_lost_after_a_storm() -> None:
    rivals = Rivals()
    made = [
        make_schedule(handler="python:noop", overlap_policy=policy)
        for policy in (OverlapPolicy.CANCEL_RUNNING, OverlapPolicy.QUEUE_ONE, OverlapPolicy.SKIP)
    ]
    edited = make_schedule(handler="python:noop", overlap_policy=OverlapPolicy.SKIP)
    breakers.create(
        BREAKER,
        {"window_size": 4, "min_calls": 2, "failure_percent": 30, "open_ms": 100},
        By("ben"),
        now=database_now(),
    )
    Breaker.objects.update(open_ms=20, open_cap_ms=100)
    for number in range(60):
        make_task(handler="python:noop", circuit_breaker=BREAKER if number % 2 else "")
    schedules.update(made[0], {"circuit_breaker": BREAKER}, "me", now=database_now())

    rivals.all_at_once(
        *(partial(rivals.work, seed) for seed in range(3)),
        rivals.rescue,
        *(partial(rivals.run_again, schedule) for schedule in made),
        partial(rivals.edit, edited),
        *(partial(rivals.intervene, seed) for seed in range(50, 52)),
        rivals.tend,
        rivals.tend,
        partial(rivals.operate, 7),
    )

    assert rivals.errors == []
    assert rivals.too_many_permits == 0
    breakers.close(BREAKER, By("ben"), now=database_now())
    # Whatever is left is claimed, ended and released until nothing moves any more.
    for task in Task.objects.filter(status=TaskStatus.PAUSED):
        interventions.resume(task, By("ana"), now=database_now())
    for seed in range(100, 160):
        with transaction.atomic():
            supervision.rescue_expired(rivals.policies, now=database_now() + timedelta(minutes=1))
            claims.stage(now=database_now() + timedelta(days=1))
            held = claims.claim(owner=f"w{seed}", now=database_now(), window=200, choose=len)
            now = database_now()
            done = [
                supervision.conclude(claim, Outcome(OutcomeKind.COMPLETED, now, now, 0), rivals.policies)
                for claim in held
            ]
            supervision.settle(done, worker="last", shard=0, now=now)
            breakers.tend(now=now)
    for gate in Gate.objects.all():
        found = Counter(Task.objects.filter(gate=gate).values_list("status", flat=True))
        counted = {name: getattr(gate, name) for name in ("completed", "failed", "skipped", "cancelled")}
        assert (gate.in_flight, gate.waiting) == (0, 0)
        assert counted == {name: found[name] for name in counted}, str(gate)
    assert not Task.objects.filter(status__in=ACTIVE).exists()
    completions = Counter(
        Attempt.objects.filter(decision__in=("complete", "fail", "cancel", "skip")).values_list("task_id", flat=True)
    )
    assert set(completions.values()) == {1}
    assert (
        sum(MinuteCounter.objects.values_list("completed", flat=True))
        == Task.objects.filter(status=TaskStatus.COMPLETED).count()
    )
    assert gates.sweep(now=database_now()) == 0
