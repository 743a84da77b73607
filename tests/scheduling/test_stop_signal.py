import signal
import threading
import time
from datetime import timedelta

import pytest

from scheduling.execution import stop_signal
from scheduling.execution.control import Control
from scheduling.outcomes import Outcome, OutcomeKind
from scheduling.registry import Context, handler
from tests.scheduling.runs import COMPLETED, TIMEOUT, Run, stop_when, wait_for, written

pytestmark = pytest.mark.usefixtures("worker_process")


def test_the_stop_signal_breaks_an_endless_loop(run: Run) -> None:
    control = Control()
    looping = threading.Event()

    @handler("test-loops")
    def loops() -> None:
        print("started")
        looping.set()
        while True:
            pass

    thread = stop_when(looping.is_set, control, "cancel")
    outcome = run("python:test-loops", control=control)

    thread.join()
    assert (outcome.kind, outcome.exit_code, outcome.error) == (OutcomeKind.CANCELLED, None, "Cancelled")
    assert written(outcome) == b"started\n"
    assert outcome.duration_ms < 1000


def test_a_stop_just_before_the_call_is_heard(run: Run) -> None:
    class StoppedLate(Control):
        def begin(self, timeout: timedelta | None, grace: timedelta) -> None:
            super().begin(timeout, grace)
            self.stop("cancel")

    called: list[bool] = []
    handler("test-late")(lambda: called.append(True))

    assert run("python:test-late", control=StoppedLate()).kind is OutcomeKind.CANCELLED
    assert not called


def test_the_stop_signal_breaks_a_sleep(run: Run) -> None:
    control = Control()
    asleep = threading.Event()

    @handler("test-sleeps")
    def sleeps() -> None:
        asleep.set()
        time.sleep(30)

    thread = stop_when(asleep.is_set, control, "drain")
    outcome = run("python:test-sleeps", control=control)

    thread.join()
    assert outcome.kind is OutcomeKind.DRAINED
    assert outcome.duration_ms < 1000


def test_the_heartbeat_enforces_the_timeout(run: Run) -> None:
    control = Control()

    def beat() -> None:
        wait_for(lambda: control.overdue(time.monotonic()))
        control.stop("timeout")

    thread = threading.Thread(target=beat)
    thread.start()
    outcome = run("python:sleep", parameters={"seconds": 30}, control=control, timeout=timedelta(milliseconds=80))

    thread.join()
    assert (outcome.kind, outcome.exit_code, outcome.error) == (TIMEOUT, 124, "Timed out after 0.08 s")


def test_a_handler_that_swallows_the_stop_is_stopped_all_the_same(run: Run) -> None:
    control = Control()

    @handler("test-swallows")
    def swallows() -> str:
        try:
            control.stop("cancel")
            while True:
                pass
        except BaseException:
            return "fine"

    assert run("python:test-swallows", control=control).kind is OutcomeKind.CANCELLED


def test_who_ends_before_hearing_of_the_stop_is_completed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_signal, "_installed", False)
    control = Control()

    @handler("test-deaf")
    def deaf() -> None:
        control.stop("cancel")

    assert run("python:test-deaf", control=control).kind is COMPLETED


def test_checkpoints_work_without_the_signal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_signal, "_installed", False)
    control = Control()
    seen: list[bool] = []

    @handler("test-checks")
    def checks(context: Context) -> None:
        seen.append(context.checkpoints)
        context.checkpoint()
        seen.append(context.checkpoints)
        control.stop("skip")
        context.checkpoint()

    assert run("python:test-checks", control=control).kind is OutcomeKind.SKIPPED
    assert seen == [False, True]
    assert control.checkpoints


def test_no_stop_leaks_out_of_the_run(run: Run) -> None:
    # Stops that arrive around the very end: each run is an outcome, and nothing is raised after it.
    kinds = set()
    for number in range(300):
        control = Control()
        handler(f"test-short-{number}")(lambda: None)
        delay = number % 30
        thread = threading.Thread(target=lambda c=control, d=delay: (sum(range(d * 20)), c.stop("cancel")))
        thread.start()
        kinds.add(run(f"python:test-short-{number}", control=control).kind)
        thread.join()

    assert kinds <= {COMPLETED, OutcomeKind.CANCELLED}
    assert stop_signal._armed is None


def test_a_signal_outside_a_run_does_nothing() -> None:
    signal.raise_signal(signal.SIGUSR1)


def test_a_handler_outside_the_main_thread_is_not_signalled(run: Run) -> None:
    control = Control()
    outcomes: list[Outcome] = []

    @handler("test-elsewhere")
    def elsewhere(context: Context) -> None:
        while True:
            time.sleep(0.005)
            context.checkpoint()

    thread = threading.Thread(target=lambda: outcomes.append(run("python:test-elsewhere", control=control)))
    thread.start()
    wait_for(lambda: control.checkpoints)
    control.stop("cancel")

    thread.join()
    assert outcomes[0].kind is OutcomeKind.CANCELLED
