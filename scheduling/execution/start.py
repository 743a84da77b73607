"""Start one command: posix_spawn in a session of its own, with its parameters on stdin and a pipe for each stream."""

import contextlib
import errno
import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass

from scheduling import handlers
from scheduling.execution import survivors
from scheduling.execution.control import Control
from scheduling.handlers import CommandHandler
from scheduling.output import STDERR, STDOUT

# A worker may ignore some of these (Python itself ignores SIGPIPE), and ignoring is inherited.
DEFAULT_SIGNALS = [number for number in range(1, 32) if number not in (signal.SIGKILL, signal.SIGSTOP)]

_found: dict[tuple[str, str], str] = {}


def prepare_process() -> None:
    """Make this worker process ready for commands: once, after the fork.

    It becomes a child subreaper (the flag is not inherited) and moves to the handler root so that a spawn need not.
    Descriptors 0 to 2 are open, for the pipes of a run must not land there; all above are closed to commands,
    whoever started the node may have left some.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2:
            with contextlib.suppress(OSError):  # the listing's own is closed by now
                os.set_inheritable(descriptor, False)
    os.chdir(handlers.root())
    survivors.become_subreaper()


@dataclass(frozen=True, slots=True)
class Process:
    pid: int  # of its group and session too
    pidfd: int
    wake: int
    stdout: int
    stderr: int


def spawn(
    command: CommandHandler, parameters: Mapping[str, object], environment: Mapping[str, str], control: Control
) -> Process:
    """Start the command; raise OSError with nothing left open or running."""
    executable = _executable(command.argv[0], environment.get("PATH", os.defpath))
    ours: list[int] = []
    theirs: list[int] = []
    try:
        theirs.append(os.memfd_create("parameters"))
        os.write(theirs[0], handlers.as_json(parameters))
        os.lseek(theirs[0], 0, os.SEEK_SET)
        for _stream in (STDOUT, STDERR):
            read_end, write_end = os.pipe()
            ours.append(read_end)
            theirs.append(write_end)
            os.set_blocking(read_end, False)
        wake = control.open_wake()
        pid = _posix_spawn(executable, command, environment, theirs)
        try:
            return Process(pid, os.pidfd_open(pid), wake, *ours)
        except OSError:
            survivors.signal_group(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
    except BaseException:
        control.close_wake()
        for descriptor in ours:
            os.close(descriptor)
        raise
    finally:
        for descriptor in theirs:
            os.close(descriptor)


def _posix_spawn(executable: str, command: CommandHandler, environment: Mapping[str, str], theirs: list[int]) -> int:
    home = None if command.root is None else _working_directory()
    if home == command.root:
        home = None
    elif command.root is not None:
        # Only in a process that prepare_process() did not prepare, or whose handlers moved it.
        os.chdir(command.root)
    try:
        return os.posix_spawn(
            executable,
            command.argv,
            environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, descriptor, target) for target, descriptor in enumerate(theirs)],
            setsid=True,
            setsigmask=(),
            setsigdef=DEFAULT_SIGNALS,
        )
    finally:
        if home is not None:
            os.chdir(home)


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None  # it was removed under us; there is no way back to it


def _executable(name: str, path: str) -> str:
    """Return where `name` is on `path`; raise FileNotFoundError. Remembered while the file is there."""
    found = _found.get((name, path))
    if found is None or not os.access(found, os.X_OK):
        found = shutil.which(name, path=path)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, f"{name} is not on the PATH of handlers")
        _found[name, path] = found
    return found
