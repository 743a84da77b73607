"""Run one Python handler to an Outcome, in the thread that asks for it."""

import logging
import sys
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import TracebackType

import orjson

from scheduling import handlers, registry
from scheduling.execution import one_line, run_clock, stop_signal
from scheduling.execution.control import Control
from scheduling.execution.printed import Printed, Sink
from scheduling.execution.run_clock import Now, RunClock, utc_now
from scheduling.outcomes import EXIT_PYTHON_EXCEPTION, Outcome, OutcomeKind
from scheduling.output import STDERR, STDOUT, BoundedOutput
from scheduling.registry import Context, HandlerStopped, ParametersInvalid, StopReason

logger = logging.getLogger(__name__)

EXIT_PARAMETERS = 64  # EX_USAGE
VALUE_BYTES = 64 * 1024


def run_python(
    name: str,
    *,
    task_id: str,
    attempt: int,
    parameters: Mapping[str, object],
    timeout: timedelta | None,
    grace: timedelta,
    control: Control,
    now: Now = utc_now,
) -> Outcome:
    """Call the registered handler in this thread.

    The heartbeat thread keeps its time: when control.overdue(), it calls control.stop("timeout").
    """
    clock = RunClock(control, now)
    if control.reason is not None:
        return clock.stopped(control.reason, note=" before it started")
    registered = registry.lookup(name)
    if registered is None:
        unknown = handlers.HandlerNotAllowed(f"No Python handler is called {name!r}.", "Deploy it")
        return run_clock.refused(unknown, now=now)
    try:
        arguments = registered.arguments(parameters)
    except ParametersInvalid as error:
        return run_clock.refused(error, exit_code=EXIT_PARAMETERS, now=now)
    sink = Sink()
    positional: tuple[Context, ...] = ()
    if registered.takes_context:
        stdout = Printed(sink, STDOUT)
        positional = (Context(task_id, attempt, parameters=parameters, control=control, write=stdout.write),)
    control.begin(timeout, grace)
    value, raised = _call(registered.function, positional, arguments, control, sink)
    output = sink.close()
    reason = _heard(control)
    if reason is not None:
        note = f" after {run_clock.seconds(timeout)}" if reason == "timeout" and timeout is not None else ""
        return clock.stopped(reason, note=note, output=output)
    code, text = (0, "") if raised is None else _explain_exception(raised)
    if text and not isinstance(raised, SystemExit):
        output = output or BoundedOutput()
        output.write(STDERR, _traceback(raised).encode("utf-8", "replace"))
    kind = OutcomeKind.COMPLETED if code == 0 else OutcomeKind.FAILED
    return clock.ended(kind, code, text, value=_plain(value), output=output)


def _call(
    function: Callable[..., object],
    positional: tuple[Context, ...],
    arguments: Mapping[str, object],
    control: Control,
    sink: Sink,
) -> tuple[object, BaseException | None]:
    """Return what the call gave or raised; HandlerStopped may arrive anywhere up to the disarming, and not after."""
    value: object = None
    raised: BaseException | None = None
    shown = sys.stdout, sys.stderr
    try:
        try:
            sys.stdout, sys.stderr = Printed(sink, STDOUT), Printed(sink, STDERR)
            stop_signal.arm(control)
            # Only after the arming: a stop that came earlier sent no signal that was heard.
            if control.reason is not None:
                control.delivered = True
                raise HandlerStopped(control.reason)
            value = function(*positional, **arguments)
        except BaseException as error:
            raised = error
        finally:
            stop_signal.disarm()
    except HandlerStopped as error:  # it arrived just as the handler ended
        raised = error
    finally:
        sys.stdout, sys.stderr = shown
    return value, raised


def _heard(control: Control) -> StopReason | None:
    """Return why the handler was stopped; None if it ended before it heard of it, which is an end of its own."""
    return control.reason if control.delivered else None


def _explain_exception(error: BaseException) -> tuple[int, str]:
    """Return the exit code and one line; sys.exit() means what it means to a process."""
    if isinstance(error, SystemExit):
        if error.code is None:
            return 0, ""
        if isinstance(error.code, int):
            code = error.code & 0xFF
            return code, f"Exited with status {code}" if code else ""
        return EXIT_PYTHON_EXCEPTION, one_line.clean(one_line.safe_text(error.code)) or "Exited with status 1"
    message = one_line.safe_text(error)
    name = type(error).__name__
    return EXIT_PYTHON_EXCEPTION, one_line.clean(f"{name}: {message}" if message else name)


def _traceback(error: BaseException | None) -> str:
    if error is None:
        return ""
    trace: TracebackType | None = error.__traceback__
    # Without our own frame, unless the call itself failed.
    trace = trace.tb_next if trace is not None and trace.tb_next is not None else trace
    return "".join(traceback.format_exception(type(error), error, trace))


def _plain(value: object) -> object:
    """Return `value` as plain JSON; what is no JSON, too large or holds NUL (no database takes it) as short text."""
    if value is None:
        return None
    try:
        body = orjson.dumps(value)
        if len(body) <= VALUE_BYTES and b"\\u0000" not in body:
            return orjson.loads(body)
    except Exception:  # any object may be returned, and its own methods may run here
        logger.debug("A handler's return value is no JSON", exc_info=True)
    return one_line.clean(one_line.safe_text(value, repr))
