"""What a measurement does on a node's database: run by bench.node.Site.inside in a process with that node's settings.

Each function takes keyword arguments from the command line, as JSON, and returns an answer that is printed as JSON.
"""

import json
import random
import secrets
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import django

django.setup()

from django.conf import settings  # noqa: E402
from django.db import connection, transaction  # noqa: E402

from batches import submission  # noqa: E402
from bench.processes import cpu_seconds, wait_until  # noqa: E402
from k1node.access import keys  # noqa: E402
from k1node.events import log  # noqa: E402
from k1node.events.catalogue import EVENTS  # noqa: E402
from k1node.lib import sql  # noqa: E402
from k1node.lib.clock_time import database_now  # noqa: E402
from k1node.operations.models import Item, Operation  # noqa: E402
from recovery import breakers, dead_letters, redrives  # noqa: E402
from recovery.dead_letters import Wanted  # noqa: E402
from recovery.fingerprints import fingerprint  # noqa: E402
from recovery.models import Breaker, DeadLetter  # noqa: E402
from recovery.records import By  # noqa: E402
from recovery.retries import Changes  # noqa: E402
from scheduling import claims, queue, slots  # noqa: E402
from scheduling.models import (  # noqa: E402
    Attempt,
    MinuteCounter,
    OverlapPolicy,
    RetryPolicy,
    Schedule,
    ScheduleType,
    Task,
    TaskStatus,
)
from scheduling.queue import NewTask  # noqa: E402
from webhooks import endpoints  # noqa: E402
from webhooks.models import Delivery, Webhook  # noqa: E402

ENQUEUE_AT_ONCE = 1000
LOOK_SECONDS = 0.01


# --- tasks ---------------------------------------------------------------------------------------------------------


def drain(
    *,
    count: int,
    handler: str,
    workers: int,
    up: int,
    solo: bool = False,
    breaker: str = "",
    policy: str = "standard",
    as_batch: bool = False,
    seconds: float = 600,
) -> dict[str, float]:
    """Fill the queue while all workers are held, let them go, and say how long they took.

    `seconds` in the answer: from the start of the first task to the moment when all are seen settled and committed.
    `cpu_seconds`: of all processes below `up`, from the release to that moment.
    """
    release = settings.K1NODE_DATA / f"release-{secrets.token_hex(4)}"
    _enqueue("gate", workers, "bench.gate", parameters={"path": str(release)}, priority=10)
    gates = Task.objects.filter(handler="python:bench.gate", status=TaskStatus.EXECUTING)
    wait_until(lambda: gates.count() == workers, 60, f"{workers} workers to be held")
    began = time.monotonic()
    if as_batch:
        _submit("bench", count, handler)
    else:
        _enqueue("bench", count, handler, solo=solo, circuit_breaker=breaker, retry_policy=policy)
    enqueued = time.monotonic() - began
    # Whatever the filling has set off (a checkpoint, an autovacuum) is not what is measured.
    time.sleep(1)
    cpu_before = cpu_seconds(up)
    release.touch()
    done_at = _wait_until_idle(seconds)
    cpu_after = cpu_seconds(up)
    tasks = Task.objects.filter(task_id__startswith="bench-")
    _check_all_completed(tasks, count)
    attempts = Attempt.objects.filter(task__in=tasks)
    first_at, last_at = (
        attempts.order_by(order).values_list(column, flat=True).first()
        for order, column in (("started_at", "started_at"), ("-finished_at", "finished_at"))
    )
    assert first_at is not None and last_at is not None
    return {
        "seconds": (done_at - first_at).total_seconds(),
        "seconds_to_last_finish": (last_at - first_at).total_seconds(),
        "seconds_to_enqueue": enqueued,
        "cpu_seconds": cpu_after - cpu_before,
    }


def await_completed(*, count: int, seconds: float = 600) -> dict[str, Any]:
    """Wait until `count` tasks have completed and none is left; say when that was seen, in seconds of the epoch."""
    done_at = _wait_until_idle(seconds)
    _check_all_completed(Task.objects.all(), count)
    return {"done_at": done_at.timestamp()}


def last_finish(*, batch: str) -> float:
    """Return when the last task of a batch finished, in seconds of the epoch."""
    last = Task.objects.filter(gate__key=batch).order_by("-finished_at").values_list("finished_at", flat=True).first()
    assert last is not None
    return last.timestamp()


def add_event_schedules(*, event: str, count: int, handler: str) -> None:
    """Make schedules that all match one event, their runs beside each other."""
    Schedule.objects.bulk_create(
        Schedule(
            task_id=f"on-event-{number}",
            handler=handler,
            schedule_type=ScheduleType.EVENT,
            schedule_expr=event,
            overlap_policy=OverlapPolicy.ALLOW,
        )
        for number in range(count)
    )


def _enqueue(prefix: str, count: int, handler: str, **fields: Any) -> None:
    name = handler if " " in handler or ":" in handler else f"python:{handler}"
    for start in range(0, count, ENQUEUE_AT_ONCE):
        now = database_now()
        numbers = range(start, min(count, start + ENQUEUE_AT_ONCE))
        queue.enqueue([NewTask(f"{prefix}-{number}", name, now, **fields) for number in numbers], now=now)


def _submit(prefix: str, count: int, handler: str) -> None:
    """Submit the tasks as one batch, without limit or order."""
    given = [{"task_id": f"{prefix}-{number}"} for number in range(count)]
    size = submission.MOST_TASKS
    now, shared = database_now(), {"handler": handler}
    batch = submission.submit(given[:size], batch_id=prefix, defaults=shared, is_open=True, by="bench", now=now)
    for start in range(size, count, size):
        submission.add(batch, given[start : start + size], by="bench", now=database_now())
    submission.close(batch, by="bench", now=database_now())


def _wait_until_idle(seconds: float) -> datetime:
    """Return when no task was seen queued, executing or waiting for another try."""

    def is_idle() -> bool:
        with connection.cursor() as cursor:
            # One statement, so one moment; all of it reads partial indexes that are empty or not.
            cursor.execute(
                "SELECT 1 WHERE EXISTS (SELECT 1 FROM scheduling_task WHERE status = 'executing')"
                " OR EXISTS (SELECT 1 FROM scheduling_task WHERE status = 'queued')"
                " OR EXISTS (SELECT 1 FROM scheduling_task WHERE status = 'scheduled')"
            )
            return cursor.fetchone() is None

    wait_until(is_idle, seconds, "the queue to be empty", every=LOOK_SECONDS)
    return datetime.now(UTC)


def _check_all_completed(tasks: Any, count: int) -> None:
    completed = tasks.filter(status=TaskStatus.COMPLETED).count()
    if completed != count:
        found = list(tasks.exclude(status=TaskStatus.COMPLETED).values_list("task_id", "status", "last_error")[:3])
        raise RuntimeError(f"{completed} of {count} tasks completed; for example {found}")


# --- breakers ------------------------------------------------------------------------------------------------------


def add_policies() -> None:
    """Make the policies that the drains with and without retries use."""
    RetryPolicy.objects.create(name="bench-at-once", max_attempts=5, first_wait_ms=0, cap_ms=0, jitter="none")
    RetryPolicy.objects.create(name="bench-once", max_attempts=1)


def seen_open(*, name: str, workers: int) -> float:
    """Return the seconds from the opening of a breaker to the last start of a task that names it."""
    _enqueue(f"fail-{name}", 400 * workers, "bench.failing", circuit_breaker=name, retry_policy="bench-once")
    wait_until(lambda: Breaker.objects.filter(breaker_id=name, state="OPEN").exists(), 60, "the breaker to open")
    tasks = Task.objects.filter(circuit_breaker=name)
    wait_until(lambda: not tasks.filter(status__in=("queued", "executing")).exists(), 60, "the rest to be parked")
    row = Breaker.objects.get(breaker_id=name)
    last = Attempt.objects.filter(task__in=tasks).order_by("-started_at").values_list("started_at", flat=True).first()
    assert last is not None
    breakers.open_(name, By("bench"), now=database_now())  # it is not to probe beside the next measurement
    return max(0.0, (last - row.changed_at).total_seconds())


def park(*, count: int, name: str) -> dict[str, float]:
    """Queue `count` urgent tasks of a breaker, open it, and say how long the clock's parking of them took."""
    breakers.create(name, {}, By("bench"), now=database_now())
    _enqueue("parked", min(count, ENQUEUE_AT_ONCE), "noop", circuit_breaker=name, priority=9)
    _multiply("parked-%", count)
    breakers.open_(name, By("bench"), now=database_now())
    began = time.monotonic()
    while breakers.tend(now=database_now()):
        pass
    seconds = time.monotonic() - began
    parked = Task.objects.filter(status=TaskStatus.BLOCKED).count()
    if parked != count:
        raise RuntimeError(f"{parked} of {count} tasks were parked")
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    return {"seconds": seconds}


def redrive(*, count: int, name: str) -> dict[str, float]:
    """Make `count` dead letters, redrive them by the node's clock, and say how long planning and doing took."""
    now = database_now()
    tasks = Task.objects.bulk_create(
        [
            Task(
                task_id=f"{name}-{number}",
                handler="python:noop",
                status=TaskStatus.FAILED,
                attempt=5,
                due_at=now,
                created_at=now,
                finished_at=now,
                exit_code=1,
            )
            for number in range(count)
        ],
        batch_size=ENQUEUE_AT_ONCE,
    )
    DeadLetter.objects.bulk_create(
        [
            DeadLetter(
                dlq_id=dead_letters.id_of(task.task_id, now),
                task=task,
                failed_at=now,
                error_code=1,
                error_message="down",
                fingerprint=fingerprint(1, "down"),
                handler=task.handler,
            )
            for task in tasks
        ],
        batch_size=ENQUEUE_AT_ONCE,
    )
    began = time.monotonic()
    wanted = Wanted(fingerprint=fingerprint(1, "down"))
    job, _ = redrives.plan(wanted, Changes({"timeout_ms": 5000}), By("bench"), now=now)
    planned = time.monotonic() - began
    began = time.monotonic()
    redrives.start(job.operation_id, By("bench"), now=database_now())
    wait_until(lambda: Operation.objects.get(pk=job.pk).state == "completed", 120, "the redrive to be done")
    seconds = time.monotonic() - began
    made = Item.objects.filter(operation=job, state="done").count()
    if made != count:
        raise RuntimeError(f"{made} of {count} entries were resubmitted")
    return {"planned": planned, "seconds": seconds}


def store_attempts(*, count: int) -> float:
    """Store `count` attempts of tasks that are gone, and the counters of three policies for a full week."""
    began = time.monotonic()
    now = database_now().replace(second=0, microsecond=0)
    columns = (
        "task_id, fence, number, outcome, decision, worker, started_at, finished_at, duration_ms, error, output_bytes"
    )
    moment = sql.stored(now - timedelta(days=1))
    numbers = (
        "generate_series(1, %s) AS n"
        if connection.vendor == "postgresql"
        else "(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < %s) SELECT n FROM s)"
    )
    with connection.cursor() as cursor:
        for start in range(0, count, 250_000):
            cursor.execute(
                f"INSERT INTO scheduling_attempt ({columns}) SELECT {1_000_000_000 + start} + n, 1, 1, 'completed',"
                f" 'complete', 'w', {sql.moment_mark()}, {sql.moment_mark()}, 1, '', 0 FROM {numbers}",
                [moment, moment, min(250_000, count - start)],
            )
    minutes = 7 * 1440
    MinuteCounter.objects.bulk_create(
        [
            MinuteCounter(
                minute=now - timedelta(minutes=number),
                policy=policy,
                # Those of the last minutes are not folded yet.
                worker="" if number > 10 else f"w{worker}",
                attempts=100,
                successes=95,
                completed=90,
                completed_after_retry=5,
                finished_attempts=100,
                failed=1,
                failed_after_retry=1,
                retries=5,
            )
            for number in range(minutes)
            # As the clock leaves them: a row for each minute of the last 26 hours, before that for each hour.
            if number < 26 * 60 or (now - timedelta(minutes=number)).minute == 0
            for policy in ("standard", "aggressive", "conservative")
            for worker in range(1 if number > 10 else 8)
        ],
        batch_size=ENQUEUE_AT_ONCE,
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    return time.monotonic() - began


# --- slots ---------------------------------------------------------------------------------------------------------


def slots_to_starts(*, samples: int, at_a_time: int, handler: str, folder: str) -> list[float]:
    """Return the milliseconds from each slot's due time to the time that its command wrote into `folder`.

    Cron comes round once a minute, so the next fire time of four every-minute schedules is set by hand, again and
    again, to moments that lie a second or so ahead: the clock, the ledger and the queue cannot tell the difference.
    Each moment lies in a second of its own, for a run is named after its slot to the second.
    """
    rows = [
        Schedule.objects.create(
            task_id=f"slot-{number}",
            handler=handler,
            schedule_type=ScheduleType.CRON,
            schedule_expr="* * * * *",
            overlap_policy=OverlapPolicy.ALLOW,
        )
        for number in range(at_a_time)
    ]
    delays: list[float] = []
    while len(delays) < samples:
        due = {row: database_now() + timedelta(seconds=random.uniform(0.6, 1.6)) for row in rows}
        for row, at in due.items():
            Schedule.objects.filter(pk=row.pk).update(next_fire_at=at)
        for row, at in due.items():
            file = Path(folder, f"{row.task_id}-{at:%Y%m%dT%H%M%SZ}")
            wait_until(file.exists, 20, f"a run of {row.task_id}", every=0.01)
            delays.append((float(file.read_text()) - at.timestamp()) * 1000)
        time.sleep(random.uniform(1.0, 1.3))
    return delays


# --- parts, without a running node ---------------------------------------------------------------------------------


def fill(*, count: int) -> None:
    """Queue `count` tasks of mixed priority."""
    chosen = random.Random(count)
    now = database_now() - timedelta(hours=1)
    _enqueue_mixed(min(count, ENQUEUE_AT_ONCE), now, chosen)
    _multiply("%", count)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")


def _multiply(named: str, count: int) -> None:
    """Add copies of the tasks whose ids are LIKE `named`, until there are `count` of them."""
    columns = [field.column for field in Task._meta.concrete_fields if field.column not in ("id", "task_id", "due_at")]
    names = ", ".join(f'"{column}"' for column in columns)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM scheduling_task WHERE task_id LIKE %s", [named])
        have = int(cursor.fetchone()[0])
        while have < count:
            # The same rows once more, a little later: through enqueue half a million would take minutes.
            offset = "+ interval '1 millisecond'" if connection.vendor == "postgresql" else ""
            cursor.execute(
                f"INSERT INTO scheduling_task (task_id, due_at, {names})"
                f" SELECT task_id || %s, due_at {offset}, {names} FROM scheduling_task WHERE task_id LIKE %s"
                " ORDER BY id LIMIT %s",
                [f"-{have}", named, min(have, count - have)],
            )
            have += cursor.rowcount


def _enqueue_mixed(count: int, now: datetime, chosen: random.Random) -> None:
    queue.enqueue(
        [
            NewTask(
                f"fill-{number}",
                "python:noop",
                now - timedelta(seconds=chosen.uniform(0, 3600)),
                priority=chosen.randint(1, 10),
            )
            for number in range(count)
        ],
        now=now,
    )


def claim(*, bundle: int, rounds: int) -> dict[str, float]:
    """Return the milliseconds of claiming a bundle: the claim alone, and with its BEGIN and COMMIT.

    Each claim is committed, as a worker's is; the tasks are put back afterwards, outside of the time measured.
    """
    alone, whole = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        with transaction.atomic():
            inside = time.perf_counter()
            held = claims.claim(owner="bench", now=database_now(), window=bundle, choose=len)
            alone.append((time.perf_counter() - inside) * 1000)
        whole.append((time.perf_counter() - began) * 1000)
        if len(held) != bundle:
            raise RuntimeError(f"{len(held)} tasks were claimed instead of {bundle}")
        with transaction.atomic():
            claims.give_back(held)
    return {"alone": statistics.median(alone), "whole": statistics.median(whole)}


def check_keys(*, rounds: int, checks: int) -> dict[str, Any]:
    """Return the microseconds of CPU that a key check takes beyond its query, for each round, and those of the query.

    The time of a check in a PostgreSQL server is in neither: only this process is measured.
    """
    text = [keys.issue(f"bench-{number}", ["scheduler:read", "scheduler:trigger"])[1] for number in range(100)][50]
    digest = keys.digest(text)

    def query() -> None:
        with connection.cursor() as cursor:
            cursor.execute(keys.BY_DIGEST, (digest,))
            cursor.fetchone()

    def check() -> None:
        if keys.examine(text)[0] is None:
            raise RuntimeError("The key was refused")

    def cpu(work: Callable[[], None]) -> float:
        began = time.thread_time()
        for _ in range(20):
            work()
        return (time.thread_time() - began) / 20 * 1e6

    cpu(check)  # notes the key's use, once a minute
    beyond, alone = [], []
    for _ in range(rounds):
        # By turns and in short pieces: what else the machine does meets both sides alike.
        pairs = [(cpu(check), cpu(query)) for _ in range(checks // 20)]
        alone.append(statistics.median(pair[1] for pair in pairs))
        beyond.append(statistics.median(pair[0] for pair in pairs) - alone[-1])
    return {"beyond": beyond, "query": statistics.median(alone)}


EXPRESSIONS = ("* * * * *", "*/5 * * * *", "7 * * * *", "30 4 * * *", "0 9 * * mon-fri", "15 3 1 * *")


def fire_passes(*, schedules: int, due: int, passes: int) -> list[float]:
    """Return the seconds of each fire pass over `due` schedules among `schedules`.

    Each pass has others, which have never fired before: their overlap gates are made in it, the dearest case.
    """
    now = database_now().replace(microsecond=0)
    rows = [
        Schedule(
            task_id=f"cron-{number}",
            handler="python:noop",
            schedule_type=ScheduleType.CRON,
            schedule_expr=EXPRESSIONS[number % len(EXPRESSIONS)],
            timezone="Europe/Berlin" if number % 3 == 0 else "UTC",
            next_fire_at=now + timedelta(hours=1, seconds=number % 3600),
        )
        for number in range(schedules)
    ]
    Schedule.objects.bulk_create(rows, batch_size=1000)
    pks = list(Schedule.objects.order_by("pk").values_list("pk", flat=True))
    random.Random(1).shuffle(pks)
    taken = []
    for number in range(passes):
        mine = pks[number * due : (number + 1) * due]
        _make_due(mine, database_now() - timedelta(seconds=1))
        now = database_now()
        before = Task.objects.count()
        began = time.perf_counter()
        while slots.fire_due(now=now):
            pass
        taken.append(time.perf_counter() - began)
        made = Task.objects.count() - before
        if made != due:
            raise RuntimeError(f"The pass made {made} tasks instead of {due}")
    return taken


def _make_due(pks: Sequence[int], at: datetime) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        among, values = sql.among(pks)
        cursor.execute(f"UPDATE scheduling_schedule SET next_fire_at = %s WHERE id {among}", [sql.stored(at), *values])


# --- webhooks -------------------------------------------------------------------------------------------------------


def add_webhooks(*, urls: Sequence[str], event: str, max_in_flight: int = 4) -> None:
    for number, url in enumerate(urls):
        values = {"name": f"hook {number}", "url": url, "events": [event], "max_in_flight": max_in_flight}
        endpoints.create(values, by="bench", now=database_now())


def publish(*, name: str, count: int, per_second: float = 0) -> None:
    """Publish so many events of this name: at once, or spread evenly."""
    data = dict(EVENTS[name].example)
    begun = time.monotonic()
    if not per_second:
        for start in range(0, count, ENQUEUE_AT_ONCE):
            now, at_once = database_now(), min(ENQUEUE_AT_ONCE, count - start)
            sql.in_transaction(partial(log.publish_many, [(name, data)] * at_once, now=now))
        return
    for number in range(count):
        time.sleep(max(0.0, begun + number / per_second - time.monotonic()))
        with transaction.atomic():
            log.publish(name, data, now=datetime.now(UTC))


def await_deliveries(*, event: str, count: int) -> None:
    wait_until(
        lambda: Delivery.objects.filter(event=event).count() >= count, 120, f"{count} deliveries of {event}", every=0.5
    )


def arm_hanging(*, event: str, active: bool) -> None:
    """Let the webhook of this event be tried, as if it had never failed, or not at all."""
    hanging = Delivery.objects.filter(event=event).values("webhook")[:1]
    Webhook.objects.filter(pk__in=hanging).update(
        active=active, failures=0, failing_since=None, open_until=None, paced_until=None
    )
    Delivery.objects.filter(event=event, state=Delivery.State.PENDING).update(due_at=database_now())


COMMANDS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        drain,
        await_completed,
        last_finish,
        add_event_schedules,
        add_policies,
        seen_open,
        park,
        slots_to_starts,
        fill,
        claim,
        check_keys,
        fire_passes,
        redrive,
        store_attempts,
        add_webhooks,
        publish,
        await_deliveries,
        arm_hanging,
    )
}

if __name__ == "__main__":
    print(json.dumps(COMMANDS[sys.argv[1]](**json.loads(sys.argv[2]))))
