import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from scheduling import execution
from scheduling.execution.control import Control
from scheduling.outcomes import OutcomeKind
from tests.scheduling.runs import FAILED, Run, written

pytestmark = pytest.mark.usefixtures("worker_process")


def test_the_clock_is_the_callers(run: Run, now: datetime) -> None:
    times = iter([now, now + timedelta(seconds=5)])

    outcome = run("true", now=lambda: next(times))

    assert (outcome.started_at, outcome.finished_at) == (now, now + timedelta(seconds=5))
    assert outcome.duration_ms < 1000


def test_parameters_arrive_on_stdin_and_as_variables(run: Run) -> None:
    parameters = {"target": "$(reboot)", "count": 3, "event": {"name": "disk.full", "metadata": {}}}

    outcome = run('cat; echo; echo "$K1_PARAM_TARGET $K1_PARAM_COUNT $K1_EVENT_NAME"', parameters=parameters)

    body, variables = written(outcome).splitlines()
    assert json.loads(body) == parameters
    assert variables == b"$(reboot) 3 disk.full"


def test_the_environment_is_ours_and_has_no_secret(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "hidden")
    monkeypatch.setenv("SECRET_KEY", "hidden")

    outcome = run("env", environment={"K1_SCHEDULE": "backup"})

    names = {line.split(b"=")[0] for line in written(outcome).splitlines()}
    of_bash = {b"PWD", b"SHLVL", b"_", b"OLDPWD"}
    expected = {b"PATH", b"HOME", b"LANG", b"TZ", b"K1NODE_DATA", b"K1_PYTHON"}
    assert names - of_bash == expected | {b"K1_TASK_ID", b"K1_ATTEMPT", b"K1_SCHEDULE"}


def test_a_refused_handler_fails_with_78(run: Run) -> None:
    outcome = execution.run(
        "bash nope.sh",
        task_id="x",
        attempt=1,
        parameters={},
        timeout=None,
        grace=timedelta(),
        control=Control(),
    )

    assert (outcome.kind, outcome.exit_code) == (FAILED, 78)
    assert outcome.error == "handler The script nope.sh cannot be opened: No such file or directory."


def test_a_run_that_is_stopped_before_its_start_never_starts(run: Run, tmp_path: Path) -> None:
    control = Control()
    control.stop("cancel")

    outcome = run(f"touch {tmp_path}/ran", control=control)

    assert (outcome.kind, outcome.exit_code) == (OutcomeKind.CANCELLED, None)
    assert outcome.error == "Cancelled before it started"
    assert not (tmp_path / "ran").exists()


def test_an_unknown_python_handler_fails_with_78(run: Run) -> None:
    assert run("python:gone").exit_code == 78
