"""The worker's loop, run by hand in this process: turns, bundles, the heartbeat's steps."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import InterfaceError, OperationalError, connection, transaction
from pytest_django import Settings

from k1node import worker as worker_module
from k1node.events.models import Event
from k1node.lib import clock_time, lifeline
from k1node.lib.board import Board
from k1node.lib.clock_time import database_now
from k1node.worker import Bundle, Durations, Worker
from scheduling import claims, queue, registry, settlement
from scheduling.models import Attempt, OutputChunk, Task, TaskStatus
from scheduling.outcomes import Outcome, OutcomeKind
from scheduling.queue import NewTask
from scheduling.settlement import Settlement
from tests.conftest import HandlerRoot
from tests.databases import Rival, only_postgresql
from tests.factories import NOW

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def worker(board: Board, settings: Settings) -> Iterator[Worker]:
    settings.K1NODE_MAX_CPU_PERCENT = settings.K1NODE_MAX_MEMORY_PERCENT = 100
    number = board.open_cluster(1)
    made = Worker(board.take_slot(number))
    yield made
    made.heartbeat.end()


def put(handler: str = "python:noop", count: int = 1, **fields: object) -> list[Task]:
    now = database_now()
    return queue.enqueue(
        [NewTask(task_id=f"t-{time.monotonic_ns()}-{n}", handler=handler, due_at=now, **fields) for n in range(count)],  # type: ignore[arg-type]
        now=now,
    )


def statuses() -> set[str]:
    return set(Task.objects.values_list("status", flat=True))


def test_a_turn_runs_everything_that_waits(worker: Worker) -> None:
    put(count=25)

    worker.turn()

    assert statuses() == {TaskStatus.COMPLETED}
    assert Attempt.objects.count() == 25


def test_a_command_runs_with_its_parameters_and_its_output_is_kept(worker: Worker, handler_root: HandlerRoot) -> None:
    handler = handler_root.write("hello.sh", 'echo "hello $K1_PARAM_WHO"; cat; echo "$K1_API_URL" >&2')
    (task,) = put(handler, parameters={"who": "$(id) `id`; it's"})

    worker.turn()

    task.refresh_from_db()
    text = b"".join(bytes(chunk.data) for chunk in OutputChunk.objects.filter(stream="stdout").order_by("position"))
    assert task.status == TaskStatus.COMPLETED, task.last_error
    assert text.decode().startswith("hello $(id) `id`; it's\n")
    assert "/api/v2" in bytes(OutputChunk.objects.get(stream="stderr").data).decode()


def test_a_failed_command_is_scheduled_again(worker: Worker, handler_root: HandlerRoot) -> None:
    (task,) = put(handler_root.write("bad.sh", "echo no such database >&2; exit 3"))

    worker.turn()

    task.refresh_from_db()
    assert (task.status, task.attempt, task.exit_code) == (TaskStatus.SCHEDULED, 1, 3)
    assert task.last_error == "Exited with status 3: no such database"


def test_a_handler_that_may_no_longer_run_fails_for_good(worker: Worker, handler_root: HandlerRoot) -> None:
    (task,) = put(handler_root.write("gone.sh", "true"))
    (handler_root.path / "gone.sh").unlink()

    worker.turn()

    task.refresh_from_db()
    assert (task.status, task.exit_code) == (TaskStatus.FAILED, 78)


def test_unknown_handlers_run_alone_and_short_ones_in_bundles(worker: Worker) -> None:
    put(count=12)

    worker.turn()

    started = Event.objects.filter(name="task.started").count()
    assert 1 <= started < 12


@pytest.mark.parametrize("control", ["cancel", "skip"])
def test_a_task_that_was_ended_while_it_was_given_back_does_not_begin(
    worker: Worker, handler_root: HandlerRoot, control: str
) -> None:
    (task,) = put(handler_root.write("a.sh", "touch ran"))
    Task.objects.update(control=control, control_reason="by ana")

    worker.turn()

    task.refresh_from_db()
    assert (task.status, task.last_error) == (f"{control}led" if control == "cancel" else "skipped", "by ana")
    assert not (handler_root.path / "ran").exists()


def test_nothing_is_claimed_once_up_is_gone(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    (task,) = put()
    monkeypatch.setattr(lifeline, "is_cut", lambda _: True)

    worker.turn()

    task.refresh_from_db()
    assert (task.status, task.fence) == (TaskStatus.QUEUED, 0)


def test_a_busy_node_starts_nothing_more(worker: Worker, board: Board, settings: Settings) -> None:
    settings.K1NODE_MAX_CONCURRENT = 1
    board.slot(worker.slot.index).pid = 1  # or the next one would be given this process's own slot
    other = board.take_slot(0)
    assert other.begin(max_running=1)
    put()

    worker.turn()

    assert statuses() == {TaskStatus.QUEUED}


def test_over_the_cpu_limit_one_task_at_a_time_still_runs(worker: Worker, board: Board, settings: Settings) -> None:
    settings.K1NODE_MAX_CPU_PERCENT = 80
    board.record_load(99.0, 10.0)
    put()

    worker.turn()

    assert statuses() == {TaskStatus.COMPLETED}


def test_a_draining_node_takes_nothing(worker: Worker, board: Board) -> None:
    board.drain(time.monotonic() + 5)
    put()

    worker.turn()

    assert statuses() == {TaskStatus.QUEUED}


def test_a_retired_cluster_takes_nothing(worker: Worker, board: Board) -> None:
    board.retire_cluster(board.clusters()[0].number)
    put()

    worker.turn()

    assert statuses() == {TaskStatus.QUEUED}


def test_a_running_command_is_cancelled_from_elsewhere(
    worker: Worker, handler_root: HandlerRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "CONTROL_SECONDS", 0.1)
    (task,) = put(handler_root.write("long.sh", "echo begun; sleep 30"))
    cancel = threading.Timer(0.3, lambda: _in_thread(lambda: _cancel_when_running(task)))
    cancel.start()

    worker.turn()

    cancel.join()
    task.refresh_from_db()
    assert task.status == TaskStatus.CANCELLED


def _cancel_when_running(task: Task) -> None:
    while not Task.objects.filter(pk=task.pk, status=TaskStatus.EXECUTING).update(control="cancel"):
        time.sleep(0.02)


def _in_thread(work: Callable[[], object]) -> None:
    try:
        work()
    finally:
        connection.close()


def test_a_lost_lease_ends_the_command_and_its_result_is_dropped(
    worker: Worker, handler_root: HandlerRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "CONTROL_SECONDS", 0.1)
    (task,) = put(handler_root.write("long.sh", "sleep 30"))

    def take_away() -> None:
        while not Task.objects.filter(pk=task.pk, status=TaskStatus.EXECUTING).update(fence=77):
            time.sleep(0.02)

    thief = threading.Thread(target=_in_thread, args=(take_away,))
    thief.start()

    worker.turn()

    thief.join()
    task.refresh_from_db()
    assert (task.status, task.fence) == (TaskStatus.EXECUTING, 77)
    assert not Attempt.objects.exists()


def test_a_drain_that_is_over_gives_the_running_command_back(
    worker: Worker, board: Board, handler_root: HandlerRoot
) -> None:
    (task,) = put(handler_root.write("long.sh", "sleep 30"))
    threading.Timer(0.4, lambda: board.drain(time.monotonic())).start()

    worker.turn()

    task.refresh_from_db()
    assert (task.status, task.attempt) == (TaskStatus.QUEUED, 0)
    assert Attempt.objects.get().outcome == "drained"


def test_a_slow_bundle_gives_its_unstarted_rest_back(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "SLOW_BUNDLE_SECONDS", 0.1)
    held: list[str] = []

    monkeypatch.setattr(registry, "_handlers", dict(registry._handlers))

    @registry.handler("slow-once")
    def slow_once() -> None:
        time.sleep(0.5)
        held.append(",".join(sorted(Task.objects.values_list("status", flat=True))))

    worker.durations.add("python:slow-once", 1.0)
    worker.window = 10
    put("python:slow-once", count=3)
    monkeypatch.setattr(worker_module, "TURN_SECONDS", 0.0)

    worker.turn()

    assert held == ["executing,queued,queued"]


def test_the_last_of_a_slow_bundle_counts_as_started(worker: Worker) -> None:
    put("python:sleep", count=2)
    with transaction.atomic():
        held = claims.claim(owner=worker.owner, now=database_now(), window=2, choose=len)
    bundle = Bundle(held)
    bundle.next()
    bundle.finish(Outcome(OutcomeKind.COMPLETED, NOW, NOW, 0))
    last = bundle.next()
    assert last is not None
    before = Task.objects.get(pk=last.id).started_at

    worker.heartbeat._give_back(bundle)
    started_at = Task.objects.get(pk=last.id).started_at
    worker.heartbeat._give_back(bundle)

    assert (before, started_at is None) == (None, False)
    assert Task.objects.get(pk=last.id).started_at == started_at


@pytest.mark.parametrize(("looks", "paused"), [(True, True), (False, False)])
def test_only_a_python_handler_that_looks_is_paused(worker: Worker, looks: bool, paused: bool) -> None:
    put("python:sleep")
    with transaction.atomic():
        held = claims.claim(owner=worker.owner, now=database_now(), window=1, choose=len)
    bundle = Bundle(held)
    bundle.next()
    bundle.control.checkpoints = looks
    Task.objects.update(control="pause")

    worker.heartbeat._look(bundle)

    assert bundle.control.is_paused == paused


def test_python_handlers_end_at_their_timeout(worker: Worker) -> None:
    (task,) = put("python:sleep", parameters={"seconds": 30}, timeout_ms=200)

    worker.turn()

    task.refresh_from_db()
    assert (task.status, task.exit_code) == (TaskStatus.SCHEDULED, 124)


@pytest.mark.parametrize(
    ("means", "head", "count"),
    [
        ({}, [("a", False)] * 5, 1),
        ({"a": 1.0}, [("a", False)] * 5, 5),
        ({"a": 1.0}, [("a", False), ("a", False), ("b", False)], 2),
        ({"a": 1.0}, [("a", False), ("a", True), ("a", False)], 1),
        ({"a": 1.0}, [("a", True), ("a", False)], 1),
        ({"a": 30.0}, [("a", False)] * 9, 3),
        ({"a": 80.0}, [("a", False)] * 9, 1),
    ],
    ids=["unknown", "short", "unknown behind", "solo behind", "solo first", "sum", "long"],
)
def test_what_makes_a_bundle(means: dict[str, float], head: list[tuple[str, bool]], count: int) -> None:
    durations = Durations()
    for handler, mean in means.items():
        durations.add(handler, mean)

    assert durations.choose(head) == count


def test_durations_believe_slowness_quicker_than_speed() -> None:
    durations = Durations()
    durations.add("a", 10.0)
    durations.add("a", 110.0)
    slower = durations._means["a"]
    durations.add("a", 10.0)

    assert (slower, round(durations._means["a"], 6)) == (60.0, 55.0)


def test_whoever_takes_a_waiting_claim_owns_it() -> None:
    put(count=3)

    with transaction.atomic():
        held = claims.claim(owner="me", now=database_now(), window=3, choose=len)
    bundle = Bundle(held)

    first = bundle.next()
    rest = bundle.take_waiting()

    assert first is held[0]
    assert rest == held[1:]
    assert bundle.next() is None
    assert abs(database_now() - bundle.started_at()) < timedelta(seconds=5)


def test_a_result_outlives_a_broken_connection(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "SETTLE_PAUSE_SECONDS", 0.01)
    (task,) = put()
    settle, failures = settlement.settle, [OperationalError("gone"), InterfaceError("gone")]

    def broken(settlements: Sequence[Settlement], **more: Any) -> object:
        if settlements and failures:
            raise failures.pop()
        return settle(settlements, **more)

    monkeypatch.setattr(settlement, "settle", broken)

    worker.turn()

    task.refresh_from_db()
    assert (task.status, failures) == (TaskStatus.COMPLETED, [])
    assert Attempt.objects.count() == 1


def test_a_heartbeat_beats_on_after_an_error(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[Exception] = [InterfaceError("the connection is closed"), OSError("bad file descriptor")]
    monkeypatch.setattr(worker_module, "CONTROL_SECONDS", 0.0)
    steered = worker.heartbeat._look

    def look(bundle: Bundle) -> None:
        if errors:
            raise errors.pop()
        steered(bundle)

    monkeypatch.setattr(worker.heartbeat, "_look", look)
    (task,) = put("python:sleep", parameters={"seconds": 30}, timeout_ms=800)

    watcher = threading.Timer(5, lambda: worker.heartbeat.bundle and worker.heartbeat.bundle.control.stop("cancel"))
    watcher.start()
    worker.turn()

    watcher.cancel()
    task.refresh_from_db()
    assert (errors, task.exit_code) == ([], 124)


def test_a_handler_that_ends_while_it_is_settled_as_stuck_lets_nothing_else_begin(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(count=2)
    with transaction.atomic():
        held = claims.claim(owner="me", now=database_now(), window=2, choose=lambda _: 1)
    bundle = Bundle(held)
    bundle.next()
    bundle.control.begin(None, timedelta(0))
    bundle.control.stop("timeout")
    went_on = threading.Event()
    killed: list[int] = []

    def finish() -> None:
        bundle.finish(Outcome(OutcomeKind.COMPLETED, NOW, NOW, 0))
        went_on.set()

    main = threading.Thread(target=finish, daemon=True)

    def kill(_pid: int, number: int) -> None:
        main.start()
        main.join(0.3)
        killed.append(number)
        assert not went_on.is_set()

    monkeypatch.setattr(os, "kill", kill)
    monkeypatch.setattr(lifeline, "end_this_process_after", lambda _: None)

    worker.heartbeat._end_stuck(bundle)

    main.join(5)
    assert killed == [signal.SIGKILL]
    assert sorted(Task.objects.values_list("status", flat=True)) == ["queued", "scheduled"]


def test_a_stuck_handler_s_worker_ends_even_if_nothing_can_be_written(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The handler may be stuck inside a write transaction, which on SQLite keeps everybody else from writing.
    put()
    with transaction.atomic():
        held = claims.claim(owner="me", now=database_now(), window=2, choose=lambda _: 1)
    bundle = Bundle(held)
    bundle.next()
    bundle.control.begin(None, timedelta(0))
    bundle.control.stop("timeout")
    limits: list[float] = []
    monkeypatch.setattr(os, "kill", lambda *_: None)
    monkeypatch.setattr(lifeline, "end_this_process_after", limits.append)

    worker.heartbeat._end_stuck(bundle)

    assert limits == [worker_module.STUCK_SETTLE_SECONDS]


@only_postgresql
def test_a_retry_is_due_by_the_database_s_clock(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    (task,) = put("python:sleep", parameters={"seconds": "no number"})
    assert clock_time._offset is not None
    monkeypatch.setattr(clock_time, "_offset", clock_time._offset + 3600)

    worker.turn()

    attempt = Attempt.objects.get()
    assert attempt.finished_at - database_now() < timedelta(seconds=5)
    assert attempt.finished_at > datetime.now(UTC) + timedelta(minutes=59)


@only_postgresql
def test_a_run_during_which_the_database_has_restarted_is_settled_with_all_its_output(
    worker: Worker, handler_root: HandlerRoot, rival: Rival
) -> None:
    (task,) = put(handler_root.write("long.sh", "echo begun; sleep 0.5; echo ended"))
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (session,) = cursor.fetchone()

    def cut() -> None:
        while not Task.objects.filter(pk=task.pk, status=TaskStatus.EXECUTING).exists():
            time.sleep(0.02)
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s)", [session])

    cutting = rival.start(cut)

    worker.turn()

    cutting.result(10)
    task.refresh_from_db()
    text = b"".join(bytes(chunk.data) for chunk in OutputChunk.objects.order_by("position"))
    assert (task.status, text) == (TaskStatus.COMPLETED, b"begun\nended\n")
