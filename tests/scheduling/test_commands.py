import json
import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scheduling import execution
from scheduling.execution import commands
from scheduling.execution.control import Control
from scheduling.handlers import CommandHandler
from scheduling.outcomes import Outcome
from scheduling.output import STDERR, STDOUT
from tests.scheduling.runs import COMPLETED, FAILED, Run, is_dead, written

if TYPE_CHECKING:
    from tests.conftest import HandlerRoot

pytestmark = pytest.mark.usefixtures("worker_process")


def test_a_command_that_ends_well_is_completed(run: Run) -> None:
    started: list[int] = []

    outcome = run("echo out; echo err >&2", on_start=started.append)

    assert (outcome.kind, outcome.exit_code, outcome.error) == (COMPLETED, 0, "")
    assert outcome.output is not None
    assert sorted((chunk.stream, chunk.data) for chunk in outcome.output.take()) == [
        (STDERR, b"err\n"),
        (STDOUT, b"out\n"),
    ]
    assert outcome.started_at <= outcome.finished_at
    assert started and is_dead(started[0])


def test_large_parameters_that_nobody_reads_do_no_harm(run: Run) -> None:
    assert run("true", parameters={"x": "y" * 3_000_000}).kind is COMPLETED


def test_parameters_that_strict_json_refuses_still_arrive(run: Run) -> None:
    outcome = run("cat", parameters={"big": 2**70, "half": "\ud83d"})

    assert json.loads(written(outcome)) == {"big": 2**70, "half": "\ud83d"}


def test_a_command_runs_in_the_root_in_a_session_of_its_own(run: Run, handler_root: "HandlerRoot") -> None:
    os.set_inheritable(leaked := os.open(os.devnull, os.O_RDONLY), True)
    execution.prepare_process()

    outcome = run('pwd; ps -o sid=,pgid= -p $$ | xargs; echo "$$ $$"; ls /proc/self/fd | xargs')

    folder, session, expected, descriptors = written(outcome).decode().splitlines()
    assert folder == str(handler_root.path)
    assert session == expected
    assert descriptors == "0 1 2 3"  # 3 is the folder that ls reads
    os.close(leaked)


def test_a_process_elsewhere_moves_for_the_spawn_only(
    run: Run, handler_root: "HandlerRoot", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    outcome = run("pwd")

    assert written(outcome).decode().strip() == str(handler_root.path)
    assert Path.cwd() == tmp_path


def test_ignored_signals_are_not_inherited(run: Run) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        outcome = run("grep -E '^Sig(Ign|Blk)' /proc/self/status")
    finally:
        signal.signal(signal.SIGINT, before)

    masks = [int(line.split()[1], 16) for line in written(outcome).splitlines()]
    assert [mask & 0x7FFF_FFFF for mask in masks] == [0, 0]  # above: the C library's own


@pytest.mark.parametrize(
    ("body", "code", "error"),
    [
        ("exit 3", 3, "Exited with status 3"),
        ("echo out; echo first >&2; echo 'last one' >&2; echo >&2; exit 64", 64, "Exited with status 64: last one"),
        ("echo from out; exit 1", 1, "Exited with status 1: from out"),
        (r"printf 'no newline' >&2; exit 1", 1, "Exited with status 1: no newline"),
        (r"printf 'bad \377 \0 \033[31mred\033[0m\n' >&2; exit 1", 1, "Exited with status 1: bad \ufffd red"),
        ("kill -9 $$", 137, "Killed by SIGKILL (9)"),
        ("kill -TERM $$", 143, "Killed by SIGTERM (15)"),
        ("kill -35 $$", 163, "Killed by signal 35"),
        ("exit 127", 127, "Exited with status 127"),
    ],
)
def test_failures_say_why(run: Run, body: str, code: int, error: str) -> None:
    outcome = run(body)

    assert (outcome.kind, outcome.exit_code, outcome.error) == (FAILED, code, error)


def test_a_long_last_line_is_cut(run: Run) -> None:
    outcome = run("head -c 5000 /dev/zero | tr '\\0' x >&2; exit 1")

    assert len(outcome.error) == 500
    assert outcome.error.endswith("xxx…")


def spawn(command: CommandHandler, **environment: str) -> Outcome:
    return commands.run_command(
        command,
        parameters={},
        environment={"PATH": os.environ["PATH"]} | environment,
        timeout=None,
        grace=timedelta(),
        control=Control(),
    )


def test_a_missing_interpreter_is_127() -> None:
    outcome = spawn(CommandHandler(("no-such-shell", "x")))

    assert (outcome.kind, outcome.exit_code) == (FAILED, 127)
    assert outcome.error == "Could not start no-such-shell x: no-such-shell is not on the PATH of handlers"


def test_an_interpreter_that_is_no_program_is_126(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("neither a program nor a script")
    broken.chmod(0o755)

    outcome = spawn(CommandHandler(("broken", "x")), PATH=str(tmp_path))

    assert (outcome.exit_code, outcome.error) == (126, "Could not start broken x: Exec format error")


def test_permission_denied_is_126(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "posix_spawn", denied)

    outcome = spawn(CommandHandler(("bash", "x")))

    assert (outcome.exit_code, outcome.error) == (126, "Could not start bash x: Permission denied")


def test_too_large_an_environment_is_126() -> None:
    outcome = spawn(CommandHandler(("bash", "x")), HUGE="x" * 200_000)

    assert (outcome.exit_code, outcome.error) == (126, "Could not start bash x: Argument list too long")


def test_a_machine_out_of_processes_is_worth_a_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object, **__: object) -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "posix_spawn", exhausted)
    descriptors = os.listdir("/proc/self/fd")

    outcome = spawn(CommandHandler(("bash", "x")))

    assert (outcome.kind, outcome.exit_code) == (FAILED, 75)
    assert os.listdir("/proc/self/fd") == descriptors


def test_an_error_of_the_caller_ends_the_command(run: Run) -> None:
    started: list[int] = []

    def fail(pid: int) -> None:
        started.append(pid)
        raise RuntimeError("the database is away")

    with pytest.raises(RuntimeError, match="away"):
        run("sleep 30", on_start=fail)

    assert is_dead(started[0])
