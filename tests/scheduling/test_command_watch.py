import threading
import time
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from scheduling.execution.control import Control
from scheduling.outcomes import OutcomeKind
from scheduling.output import STDOUT
from tests.scheduling.runs import COMPLETED, TIMEOUT, Run, is_dead, read_pid, span_ms, stop_when, wait_for, written

pytestmark = pytest.mark.usefixtures("worker_process")


def test_a_timeout_ends_the_whole_group(run: Run, tmp_path: Path) -> None:
    outcome = run(f"sleep 30 & echo $! > {tmp_path}/pid; echo before; wait", timeout=timedelta(milliseconds=150))

    assert (outcome.kind, outcome.exit_code, outcome.error) == (TIMEOUT, 124, "Timed out after 0.15 s")
    assert written(outcome) == b"before\n"
    assert is_dead(read_pid(tmp_path / "pid"))
    assert outcome.duration_ms < 1000


def test_who_ignores_term_is_killed_after_the_grace(run: Run) -> None:
    outcome = run(
        "trap 'echo ignored' TERM; while true; do sleep 0.01; done",
        timeout=timedelta(milliseconds=100),
        grace=timedelta(milliseconds=150),
    )

    assert (outcome.kind, outcome.exit_code) == (TIMEOUT, 124)
    assert outcome.error == "Timed out after 0.1 s; it did not end within 0.15 s of TERM and was killed"
    assert written(outcome, STDOUT) == b"ignored\n"
    assert 250 <= outcome.duration_ms < 1000


def test_the_rest_of_the_group_has_the_grace_too(run: Run, tmp_path: Path) -> None:
    # The shell dies of TERM at once; its child needs a moment to clean up.
    outcome = run(
        f'bash -c \'trap "sleep 0.1; echo clean > {tmp_path}/clean; exit" TERM; echo ready; '
        "while true; do sleep 0.01; done'; true",
        timeout=timedelta(milliseconds=150),
    )

    assert outcome.error == "Timed out after 0.15 s"
    assert (tmp_path / "clean").exists()
    assert outcome.duration_ms < 1500


def test_a_group_that_outlives_its_grace_is_killed(run: Run, tmp_path: Path) -> None:
    outcome = run(
        f"bash -c 'trap \"\" TERM; echo $$ > {tmp_path}/pid; while true; do sleep 0.01; done'; true",
        timeout=timedelta(milliseconds=100),
        grace=timedelta(milliseconds=100),
    )

    assert outcome.error.endswith("and was killed")
    assert is_dead(read_pid(tmp_path / "pid"))


@pytest.mark.parametrize(
    ("reason", "kind", "code", "error"),
    [
        ("cancel", OutcomeKind.CANCELLED, None, "Cancelled"),
        ("skip", OutcomeKind.SKIPPED, None, "Skipped"),
        ("drain", OutcomeKind.DRAINED, None, "Stopped because the node is shutting down"),
        ("lease", OutcomeKind.LOST, 137, "Ended because its lease was lost"),
        ("timeout", TIMEOUT, 124, "Timed out after 10 s"),
    ],
)
def test_another_thread_stops_a_command(
    run: Run, tmp_path: Path, reason: str, kind: OutcomeKind, code: int | None, error: str
) -> None:
    control = Control()
    thread = stop_when((tmp_path / "ready").exists, control, reason)

    outcome = run(f"touch {tmp_path}/ready; sleep 30", control=control)

    thread.join()
    assert (outcome.kind, outcome.exit_code, outcome.error) == (kind, code, error)
    assert outcome.duration_ms < 1000


def test_a_lost_lease_gives_no_grace(run: Run, tmp_path: Path) -> None:
    control = Control()
    thread = stop_when((tmp_path / "ready").exists, control, "lease")

    outcome = run(f"trap 'echo asked' TERM; touch {tmp_path}/ready; while true; do sleep 0.01; done", control=control)

    thread.join()
    assert (outcome.kind, written(outcome)) == (OutcomeKind.LOST, b"")


def test_a_paused_command_stands_still_and_so_does_its_clock(run: Run, tmp_path: Path) -> None:
    control = Control()
    seen: list[str] = []

    def pause() -> None:
        pid = read_pid(tmp_path / "pid")
        control.pause()
        wait_for(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
        time.sleep(0.3)
        seen.append(psutil.Process(pid).status())
        assert not control.overdue(time.monotonic() + 60)
        control.resume()

    thread = threading.Thread(target=pause)
    thread.start()
    outcome = run(
        f"echo $$ > {tmp_path}/pid; for i in 1 2 3 4 5; do sleep 0.02; done",
        control=control,
        timeout=timedelta(milliseconds=290),
    )

    thread.join()
    assert outcome.kind is COMPLETED, outcome.error
    assert seen == [psutil.STATUS_STOPPED]
    assert 0.3 <= control.paused_seconds < 1
    assert outcome.duration_ms <= span_ms(outcome) - 290
    assert not control.is_paused


def test_a_paused_command_can_be_cancelled(run: Run, tmp_path: Path) -> None:
    control = Control()

    def cancel() -> None:
        pid = read_pid(tmp_path / "pid")
        control.pause()
        wait_for(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
        control.stop("cancel")

    thread = threading.Thread(target=cancel)
    thread.start()
    outcome = run(
        f"trap 'echo bye; exit' TERM; echo $$ > {tmp_path}/pid; while :; do sleep 0.01; done", control=control
    )

    thread.join()
    assert outcome.kind is OutcomeKind.CANCELLED
    assert written(outcome, STDOUT) == b"bye\n"
    assert outcome.duration_ms < 1000


def test_a_command_may_be_paused_before_it_starts(run: Run) -> None:
    control = Control()
    control.pause()
    timer = threading.Timer(0.3, control.resume)
    timer.start()

    outcome = run("true", control=control, timeout=timedelta(milliseconds=150))

    timer.join()
    assert outcome.kind is COMPLETED
    assert outcome.duration_ms <= span_ms(outcome) - 100


def test_a_command_that_ends_by_itself_at_the_last_moment_is_completed(run: Run) -> None:
    control = Control()

    outcome = run("exit 0", control=control)
    control.stop("cancel")

    assert outcome.kind is COMPLETED
