import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from scheduling.execution import survivors
from tests.scheduling.runs import COMPLETED, Run, is_dead, read_pid, written

pytestmark = pytest.mark.usefixtures("worker_process")

QUIET = "exec >/dev/null 2>&1"


def test_no_descriptor_and_no_process_is_left_after_200_runs(run: Run) -> None:
    run("true")
    descriptors, children = os.listdir("/proc/self/fd"), survivors.children()

    for _ in range(200):
        run("true")

    assert os.listdir("/proc/self/fd") == descriptors
    assert survivors.children() == children


def test_a_background_child_that_holds_the_pipes_does_not_hold_the_run(run: Run, tmp_path: Path) -> None:
    began = time.monotonic()

    outcome = run(f"sleep 30 & echo $! > {tmp_path}/pid; echo done")

    assert time.monotonic() - began < 2
    assert (outcome.kind, written(outcome)) == (COMPLETED, b"done\n")
    assert is_dead(read_pid(tmp_path / "pid"))


def test_a_background_child_that_writes_for_ever_does_not_hold_the_run(run: Run) -> None:
    assert run("yes & sleep 0.05").kind is COMPLETED


def test_what_left_the_group_is_ended_too(run: Run, tmp_path: Path) -> None:
    # A double fork with a session of its own, as a daemon does it.
    outcome = run(
        f'(setsid bash -c \'{QUIET}; trap "" TERM HUP; sleep 30 & echo $! > {tmp_path}/inner; '
        f"echo $$ > {tmp_path}/outer; wait' &) ; while [ ! -e {tmp_path}/outer ]; do sleep 0.01; done"
    )

    assert outcome.kind is COMPLETED
    assert is_dead(read_pid(tmp_path / "outer"))
    assert is_dead(read_pid(tmp_path / "inner"))


def test_children_from_before_the_run_are_left_alone(run: Run) -> None:
    bystander = os.posix_spawn("/bin/sleep", ["sleep", "30"], {})
    try:
        run("(setsid sleep 30 &)")

        assert survivors.children() >= {bystander}
        assert psutil.Process(bystander).status() != psutil.STATUS_ZOMBIE
    finally:
        os.kill(bystander, signal.SIGKILL)
        os.waitpid(bystander, 0)


def test_children_are_found_without_the_kernels_list(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: ["0"] if path == "/proc/self/task" else listdir(path))

    run(f"(setsid bash -c 'echo $$ > {tmp_path}/pid; exec sleep 30' &); until [ -s {tmp_path}/pid ]; do :; done")

    assert is_dead(read_pid(tmp_path / "pid"))
