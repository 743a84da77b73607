import sys
import threading
from datetime import UTC, datetime
from typing import Any

import pytest

from scheduling.execution.control import Control
from scheduling.outcomes import OutcomeKind
from scheduling.output import STDERR, STDOUT
from scheduling.registry import Context, HandlerStopped, handler
from tests.scheduling.runs import COMPLETED, FAILED, Run, span_ms, stop_when, written

pytestmark = pytest.mark.usefixtures("worker_process")


def test_noop_is_completed(run: Run) -> None:
    outcome = run("python:noop", parameters={"anything": [1]})

    assert (outcome.kind, outcome.exit_code, outcome.error) == (COMPLETED, 0, "")
    assert (outcome.value, outcome.output) == (None, None)


def test_a_python_handler_sees_its_run(run: Run) -> None:
    @handler("test-sees")
    def sees(context: Context, target: str, event: Any = None) -> dict[str, Any]:
        print("printed", end="")
        print("to stderr", file=sys.stderr)
        context.log("logged")
        return {"id": context.task_id, "attempt": context.attempt, "all": context.parameters, "target": target}

    parameters = {"target": "s3", "event": {"name": "x"}}
    outcome = run("python:test-sees", parameters=parameters)

    assert outcome.value == {"id": "backup-1", "attempt": 2, "all": parameters, "target": "s3"}
    assert outcome.output is not None
    assert [(chunk.stream, chunk.data) for chunk in outcome.output.take()] == [
        (STDOUT, b"printed"),
        (STDERR, b"to stderr\n"),
        (STDOUT, b"logged\n"),
    ]


def test_streams_are_given_back_and_late_writers_are_ignored(run: Run) -> None:
    kept: list[Any] = []
    shown = sys.stdout, sys.stderr

    @handler("test-keeps")
    def keeps() -> None:
        kept.append(sys.stdout)

    outcome = run("python:test-keeps")
    kept[0].write("late")

    assert (sys.stdout, sys.stderr) == shown
    assert outcome.output is None


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ValueError("bad\nvalue"), 1, "ValueError: bad value"),
        (KeyError("name"), 1, "KeyError: 'name'"),
        (RuntimeError(), 1, "RuntimeError"),
        (RuntimeError("nul\0 half\ud83d"), 1, "RuntimeError: nul half?"),
        (Unprintable(), 1, "Unprintable: <Unprintable without a text>"),
        (KeyboardInterrupt(), 1, "KeyboardInterrupt"),
        (HandlerStopped("cancel"), 1, "HandlerStopped: cancel"),
        (SystemExit(3), 3, "Exited with status 3"),
        (SystemExit(64), 64, "Exited with status 64"),
        (SystemExit(-1), 255, "Exited with status 255"),
        (SystemExit("no disk"), 1, "no disk"),
    ],
)
def test_what_a_python_handler_raises_is_an_outcome(run: Run, error: BaseException, code: int, text: str) -> None:
    @handler("test-raises")
    def raises() -> None:
        raise error

    outcome = run("python:test-raises")

    assert (outcome.kind, outcome.exit_code, outcome.error) == (FAILED, code, text)
    assert (b"Traceback" in written(outcome, STDERR)) is not isinstance(error, SystemExit)


@pytest.mark.parametrize("code", [None, 0])
def test_sys_exit_zero_is_completed(run: Run, code: int | None) -> None:
    handler("test-exits")(lambda: sys.exit(code))

    assert (run("python:test-exits").kind, run("python:test-exits").exit_code) == (COMPLETED, 0)


def test_the_traceback_starts_at_the_handler(run: Run) -> None:
    @handler("test-trace")
    def trace() -> None:
        raise ValueError("here")

    lines = written(run("python:test-trace"), STDERR).decode().splitlines()

    assert lines[1].endswith("in trace")
    assert lines[-1] == "ValueError: here"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": [1, None, "x"]}, {"a": [1, None, "x"]}),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00+00:00"),
        (float("nan"), None),
        (
            {
                1,
            },
            "{1}",
        ),
        (2**70, str(2**70)),
        ("nul\0", "'nul\\x00'"),
        ("x" * 70_000, "'" + "x" * 498 + "…"),
    ],
)
def test_values_become_plain_json(run: Run, value: object, expected: object) -> None:
    handler("test-returns")(lambda: value)

    outcome = run("python:test-returns")

    assert (outcome.kind, outcome.value) == (COMPLETED, expected)


def test_parameters_that_do_not_fit_fail_with_64(run: Run) -> None:
    outcome = run("python:sleep", parameters={"seconds": "long"})

    assert (outcome.kind, outcome.exit_code) == (FAILED, 64)
    assert outcome.error == "parameters.seconds must be a number, not text"


def test_a_paused_python_handler_waits_at_its_checkpoint(run: Run) -> None:
    control = Control()
    timer = threading.Timer(0.15, control.resume)

    @handler("test-pauses")
    def pauses(context: Context) -> None:
        control.pause()
        timer.start()
        context.checkpoint()

    outcome = run("python:test-pauses", control=control)

    timer.join()
    assert outcome.kind is COMPLETED
    assert outcome.duration_ms <= span_ms(outcome) - 140


def test_a_paused_python_handler_can_be_cancelled(run: Run) -> None:
    control = Control()
    control.pause()
    thread = stop_when(lambda: control.checkpoints, control, "cancel")

    outcome = run("python:sleep", parameters={"seconds": 30}, control=control)

    thread.join()
    assert outcome.kind is OutcomeKind.CANCELLED
