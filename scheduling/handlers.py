"""Which handlers may run, and the environment they run in.

A handler is text from whoever may write schedules, so it is held to one narrow shape: `python:NAME`, or an allowed
interpreter, a script under the handler root, and literal arguments. No shell reads it: shell syntax is refused rather
than passed on as letters, which would surprise its author. The text is parsed once; the file it names is looked at
before every run, because a link or a mode may have changed since the task was accepted. Whoever can replace a file
between that look and the start owns it or its folder already.
"""

import functools
import json
import os
import re
import shlex
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson
from django.conf import settings

from k1node.lib.errors import FieldInvalid
from scheduling import registry

MAX_LENGTH = 500
PYTHON_PREFIX = "python:"
DEFAULT_FOLDER = "ops"  # without a root of its own, the project's other files (manage.py) must stay out of reach

PARAMETER_PREFIX = "K1_PARAM_"
MAX_VALUE_BYTES = 100_000  # the kernel takes 128 kB for one variable
MAX_PARAMETER_BYTES = 500_000  # and 2 MB for all of them and the arguments

SHELL_SYNTAX = re.compile(r"&&|\|\||>>|<<|\$\(|[;|&><$`(){}*?~]")
OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


class HandlerNotAllowed(FieldInvalid):
    """The handler may not run on this node."""

    def __init__(self, message: str, suggestion: str) -> None:
        super().__init__("handler", message, suggestion)


@dataclass(frozen=True, slots=True)
class CommandHandler:
    """`argv[1]` is the script's real path; `root` is where it runs (None: wherever the process is)."""

    argv: tuple[str, ...]
    root: str | None = None

    @property
    def display(self) -> str:
        """Return the line for people: the script relative to the root."""
        script = self.argv[1]
        if self.root is not None and script.startswith(f"{self.root}/"):
            script = script[len(self.root) + 1 :]
        return shlex.join((self.argv[0], script, *self.argv[2:]))


@dataclass(frozen=True, slots=True)
class PythonHandler:
    name: str

    @property
    def display(self) -> str:
        return f"{PYTHON_PREFIX}{self.name}"


def registered(text: str) -> registry.Registered | None:
    """Return the Python handler that `text` names; None for a command, and for one that this node does not know."""
    return registry.lookup(text.removeprefix(PYTHON_PREFIX)) if text.startswith(PYTHON_PREFIX) else None


def parse(handler: str) -> CommandHandler | PythonHandler:
    """Return what `handler` would run now; raise HandlerNotAllowed with a suggestion. Cheap enough for every run."""
    if handler.startswith(PYTHON_PREFIX):
        return _python(handler)
    configured = settings.K1NODE_HANDLER_ROOT
    base = _real(str(configured or settings.BASE_DIR))
    folder = "" if configured else DEFAULT_FOLDER
    interpreter, script, rest = _split(handler, tuple(settings.K1NODE_HANDLER_INTERPRETERS), base, folder)
    try:
        real = _checked(script, base, folder)
    except OSError as error:
        raise HandlerNotAllowed(
            f"The script {script} cannot be opened: {error.strerror}.", "Check the path; it is relative to the root"
        ) from None
    return CommandHandler((interpreter, real, *rest), base)


def root() -> Path:
    """Return the folder that commands run in."""
    return Path(_real(str(settings.K1NODE_HANDLER_ROOT or settings.BASE_DIR)))


def environment() -> dict[str, str]:
    """Return the variables every command gets; nothing else of the node's environment, so no secret, reaches one."""
    return dict(_base_environment(str(settings.K1NODE_DATA), tuple(settings.K1NODE_HANDLER_ENV)))


def parameter_environment(parameters: Mapping[str, object]) -> dict[str, str]:
    """Return K1_PARAM_<NAME> for each parameter that fits; all of them are on stdin as JSON anyway."""
    variables: dict[str, str] = {}
    left = MAX_PARAMETER_BYTES
    for name, value in parameters.items():
        key = _variable(name)
        if not key:
            continue
        text = as_text(value)
        size = len(text.encode())
        if size <= MAX_VALUE_BYTES and len(key) + size <= left:
            variables[key] = text
            left -= len(key) + size + 10  # 10: "=", NUL and the pointer
    return variables


def as_text(value: object) -> str:
    """Return `value` as an environment variable holds it: text as it is, true, false, empty for null, else JSON."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode().replace("\0", "")
    return "" if value is None else as_json(value).decode()


def as_json(value: object) -> bytes:
    """Return `value` as JSON, whatever a request's body can hold."""
    try:
        return orjson.dumps(value)
    except TypeError:  # a number over 64 bits, or half of a surrogate pair
        return json.dumps(value, default=str).encode()


@functools.lru_cache(maxsize=4096)
def _variable(name: str) -> str:
    key = re.sub(r"[^A-Z0-9]", "_", name.upper())
    return f"{PARAMETER_PREFIX}{key}" if key.strip("_") else ""


@functools.lru_cache(maxsize=8)
def _base_environment(data: str, names: tuple[str, ...]) -> dict[str, str]:
    base = {
        "PATH": os.environ.get("PATH") or os.defpath,
        "HOME": os.environ.get("HOME") or "/",
        "LANG": os.environ.get("LANG") or "C.UTF-8",
        "TZ": os.environ.get("TZ") or "UTC",
        "K1NODE_DATA": data,
        "K1_PYTHON": sys.executable,
    }
    return base | {name: os.environ[name] for name in names if name in os.environ}


@functools.lru_cache(maxsize=1024)
def _python(handler: str) -> PythonHandler:
    name = handler.removeprefix(PYTHON_PREFIX)
    if registry.lookup(name) is None:
        known = ", ".join(f"{PYTHON_PREFIX}{each}" for each in registry.names())
        raise HandlerNotAllowed(f"No Python handler is called {name[:100]!r}.", f"Use one of: {known}")
    return PythonHandler(name)


@functools.lru_cache(maxsize=1024)
def _split(handler: str, interpreters: tuple[str, ...], base: str, folder: str) -> tuple[str, str, tuple[str, ...]]:
    """Return the interpreter, the script as written, and the arguments."""
    allowed = ", ".join(interpreters)
    _refuse_shell_syntax(handler)
    try:
        words = shlex.split(handler)
    except ValueError:
        raise HandlerNotAllowed("A quotation mark is never closed.", "Close the quote or remove it") from None
    if not words or not words[0]:
        raise HandlerNotAllowed("The handler is empty.", "Write for example: bash ops/agents/backup.sh")
    if words[0] not in interpreters:
        raise HandlerNotAllowed(
            f"{words[0]!r} is not an allowed interpreter.",
            f"Start with one of: {allowed}; or with {PYTHON_PREFIX} and a registered name",
        )
    if len(words) < 2 or not words[1]:
        raise HandlerNotAllowed("No script is named.", f"Write for example: {words[0]} ops/agents/backup.sh")
    if words[1].startswith("-"):
        raise HandlerNotAllowed(
            f"{words[1]!r} is an option; the first word after {words[0]} must be the script.",
            "Put the code into a script and name the script",
        )
    script = os.path.normpath(os.path.join(base, words[1]))
    # Before the file system is asked: a path outside must not tell whether something exists there.
    if not _is_under(script, os.path.join(base, folder)):
        raise _outside(words[1], folder)
    return words[0], words[1], tuple(words[2:])


def _refuse_shell_syntax(handler: str) -> None:
    if len(handler) > MAX_LENGTH:
        raise HandlerNotAllowed(f"The handler is longer than {MAX_LENGTH} characters.", "Move it into a script")
    if not handler.isprintable():
        odd = next(each for each in handler if not each.isprintable())
        shown = {"\n": "a line break", "\0": "a NUL byte"}.get(odd, f"the character U+{ord(odd):04X}")
        raise HandlerNotAllowed(f"The handler contains {shown}.", "Write it as one line of plain text")
    found = SHELL_SYNTAX.search(handler)
    if found:
        raise HandlerNotAllowed(
            f"The handler contains the shell operator {found.group()!r}, and no shell reads it.",
            "Put it into a script, and pass what changes as parameters",
        )


@functools.lru_cache(maxsize=8)
def _real(folder: str) -> str:
    # Once a process: a root that is moved under a running node refuses its scripts until the restart.
    return os.path.realpath(folder)


def _resolve(path: str) -> tuple[str, os.stat_result]:
    """Return the real path and the state of one and the same file: two look-ups by name could see two files."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}"), os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _checked(script: str, base: str, folder: str) -> str:
    """Return the real path of `script`; raise OSError, or HandlerNotAllowed if it must not run."""
    # Joined, not normalised: the kernel follows links before "..", and so must this.
    real, state = _resolve(f"{base}/{script}" if script[0] != "/" else script)
    allowed = os.path.join(base, folder) if folder else base
    if not _is_under(real, allowed):
        raise _outside(script, folder)
    if not stat.S_ISREG(state.st_mode):
        raise HandlerNotAllowed(f"{script} is not a regular file.", "Name a script file")
    shown = real[len(base) + 1 :]
    if state.st_mode & OTHERS_MAY_WRITE:
        raise HandlerNotAllowed(f"{shown} can be written by other users of this machine.", f"chmod go-w {shown}")
    above = os.path.dirname(real)
    while True:
        mode = os.stat(above).st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise HandlerNotAllowed(f"{shown} lies in a folder that everyone can write.", f"chmod o-w {above}")
        if len(above) <= len(base):
            return real
        above = os.path.dirname(above)


def _is_under(path: str, folder: str) -> bool:
    return path.startswith(f"{folder.rstrip('/')}/")


def _outside(script: str, folder: str) -> HandlerNotAllowed:
    where = f"{folder}/ of the project folder" if folder else "the handler root"
    hint = (
        f"Move the script under {folder}/, or set K1NODE_HANDLER_ROOT" if folder else "Move the script under the root"
    )
    return HandlerNotAllowed(f"{script} is not under {where}.", hint)
