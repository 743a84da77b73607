"""Run one command to an Outcome."""

import errno
import os
import signal
from collections.abc import Callable, Mapping
from datetime import timedelta

from scheduling.execution import one_line, run_clock, start, survivors
from scheduling.execution.control import Control
from scheduling.execution.run_clock import Now, RunClock, utc_now
from scheduling.execution.watch import Watch
from scheduling.handlers import CommandHandler
from scheduling.outcomes import Outcome, OutcomeKind
from scheduling.output import STDERR, STDOUT, Chunk

EXIT_TRY_AGAIN = 75  # EX_TEMPFAIL
EXIT_CANNOT_RUN = 126
EXIT_NOT_FOUND = 127

SHORT_OF_SOMETHING = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETXTBSY}


def run_command(
    command: CommandHandler,
    *,
    parameters: Mapping[str, object],
    environment: Mapping[str, str],
    timeout: timedelta | None,
    grace: timedelta,
    control: Control,
    on_start: Callable[[int], None] | None = None,
    on_flush: Callable[[list[Chunk]], None] | None = None,
    now: Now = utc_now,
) -> Outcome:
    """Run `command` with exactly `environment`, and end everything it started.

    `on_start` is told the process id, which is the group's too. `on_flush` is given new output every second of a run
    that takes longer than one; if it fails, the output is kept for the next flush.
    """
    clock = RunClock(control, now)
    control.wait_while_paused()  # a process would be half started before STOP reached it
    if control.reason is not None:
        return clock.stopped(control.reason, note=" before it started")
    before = survivors.children_before()
    try:
        process = start.spawn(command, parameters, environment, control)
    except OSError as error:
        return clock.ended(OutcomeKind.FAILED, *_explain_spawn(command, error))
    watch = Watch(process, control, on_flush=on_flush, before=before)
    try:
        control.begin(timeout, grace)
        if on_start is not None:
            on_start(process.pid)
        watch.until_over()
    finally:
        status = watch.end()
    if watch.reason is not None:
        note = f" after {run_clock.seconds(timeout)}" if watch.reason == "timeout" and timeout is not None else ""
        if watch.killed and watch.reason != "lease":
            note += f"; it did not end within {run_clock.seconds(grace)} of TERM and was killed"
        return clock.stopped(watch.reason, note=note, output=watch.pipes.output)
    exit_code, text = _explain_status(status, watch.pipes.last)
    kind = OutcomeKind.COMPLETED if exit_code == 0 else OutcomeKind.FAILED
    return clock.ended(kind, exit_code, text, output=watch.pipes.output)


def _explain_spawn(command: CommandHandler, error: OSError) -> tuple[int, str]:
    reason = error.strerror or str(error)
    text = f"Could not start {command.display}: {reason}"
    if error.errno in SHORT_OF_SOMETHING:
        return EXIT_TRY_AGAIN, one_line.clean(text)  # may well work later, and 126 would be final
    return (EXIT_NOT_FOUND if isinstance(error, FileNotFoundError) else EXIT_CANNOT_RUN), one_line.clean(text)


def _explain_status(status: int | None, last: Mapping[str, bytes]) -> tuple[int | None, str]:
    """Return the exit code and one line on what went wrong, empty for success."""
    if status is None:
        return None, "Its exit status could not be read"
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        number = -code
        try:
            return 128 + number, f"Killed by {signal.Signals(number).name} ({number})"
        except ValueError:
            return 128 + number, f"Killed by signal {number}"
    if code == 0:
        return 0, ""
    line = _last_line(last[STDERR]) or _last_line(last[STDOUT])
    return code, one_line.clean(f"Exited with status {code}: {line}" if line else f"Exited with status {code}")


def _last_line(data: bytes) -> str:
    lines = (one_line.clean(line) for line in reversed(data.decode("utf-8", "replace").splitlines()))
    return next((line for line in lines if line), "")
