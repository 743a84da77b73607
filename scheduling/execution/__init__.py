"""Run one handler to an Outcome: the step between the claim and the settlement of a task.

Whatever the handler does becomes an Outcome; an exception from here is a bug of ours. One run at a time in a process:
the worker runs handlers in its main thread, and its heartbeat thread steers them through a Control.

A command is started by posix_spawn in a session of its own. It reads its parameters as JSON from a memory file (no
deadlock, however large) and writes into two pipes; one poll waits for the pipes, the process (pidfd) and the Control
(eventfd), and output is stored in the order it arrives. The run is over when the process is: what is in the pipes
then is read, and everything that is left of it is killed. That is its process group and, because prepare_process()
made the worker a child subreaper, every descendant that left the group: orphans become children of the worker, so a
child that was not there before the run belongs to it. With no survivors this costs two system calls.

To stop a command: TERM and CONT to the group (it may be stopped), the grace, then KILL; members of the group that
outlive the command have the same grace. A lost lease is KILL at once, for another worker may have started the task.
Pausing is STOP to the group; the timeout's clock stands still, and so does the duration.

A Python handler runs right here. Control.stop() then sends SIGUSR1 to the main thread, whose signal handler raises
HandlerStopped, but only between arming and disarming around the call, and once an arming: nothing is raised into the
code that follows. Nobody kills it: the worker's heartbeat ends the process when Control.is_stuck(). Children that a
Python handler leaves behind are its own affair.

The steps of a command are in commands, start, watch, command_output and survivors; those of a Python
handler in python_runs, printed and stop_signal. Both have control and run_clock.
"""

from collections.abc import Callable, Mapping
from datetime import timedelta

from scheduling import handlers, registry
from scheduling.execution import commands, python_runs
from scheduling.execution.control import Control
from scheduling.execution.run_clock import Now, refused, stuck, utc_now
from scheduling.execution.start import prepare_process
from scheduling.execution.stop_signal import install as install_stop_signal
from scheduling.handlers import PythonHandler
from scheduling.outcomes import Outcome
from scheduling.output import Chunk

__all__ = ["Control", "install_stop_signal", "prepare_process", "refused", "run", "stuck"]


def run(
    handler: str,
    *,
    task_id: str,
    attempt: int,
    parameters: Mapping[str, object],
    timeout: timedelta | None,
    grace: timedelta,
    control: Control,
    environment: Mapping[str, str] | None = None,
    on_start: Callable[[int], None] | None = None,
    on_flush: Callable[[list[Chunk]], None] | None = None,
    now: Now = utc_now,
) -> Outcome:
    """Run `handler` as its text says; one that may not run (any more) fails with exit code 78.

    Commands get K1_TASK_ID, K1_ATTEMPT, K1_EVENT_NAME and the parameters as variables, and `environment` over them.
    """
    try:
        parsed = handlers.parse(handler)
    except handlers.HandlerNotAllowed as error:
        return refused(error, now=now)
    if isinstance(parsed, PythonHandler):
        return python_runs.run_python(
            parsed.name,
            task_id=task_id,
            attempt=attempt,
            parameters=parameters,
            timeout=timeout,
            grace=grace,
            control=control,
            now=now,
        )
    variables = handlers.environment()
    variables.update(handlers.parameter_environment(parameters))
    variables["K1_TASK_ID"] = task_id
    variables["K1_ATTEMPT"] = str(attempt)
    event = parameters.get(registry.EVENT)
    if isinstance(event, Mapping) and "name" in event:
        variables["K1_EVENT_NAME"] = handlers.as_text(event["name"])
    return commands.run_command(
        parsed,
        parameters=parameters,
        environment=variables if environment is None else {**variables, **environment},
        timeout=timeout,
        grace=grace,
        control=control,
        on_start=on_start,
        on_flush=on_flush,
        now=now,
    )
