"""Python handlers by name: what `python:NAME` runs, which parameters it takes, and what it sees of its run.

Handlers come from `scheduling.builtin_handlers` and the modules named in K1NODE_HANDLER_MODULES, imported on first use.
A handler's signature is its contract: it is read once, here, and checked at enqueue and again before each run.
"""

import difflib
import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from k1node.lib.errors import Detail, InvalidRequest

BUILTIN_MODULE = "scheduling.builtin_handlers"
CONTEXT = "context"
EVENT = "event"  # what set the task off; every handler may be given it, few read it

NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")

StopReason = Literal["timeout", "cancel", "skip", "drain", "lease"]
Function = TypeVar("Function", bound=Callable[..., object])
Check = Callable[[object], bool]


class ParametersInvalid(InvalidRequest):
    """The parameters do not fit the handler"""


class HandlerStopped(BaseException):
    """Raised inside a running Python handler that is asked to stop; `except Exception` does not swallow it."""

    def __init__(self, reason: StopReason) -> None:
        self.reason = reason
        super().__init__(reason)


class Steering(Protocol):
    """The part of control.Control that a Context reaches."""

    checkpoints: bool

    def checkpoint(self) -> None: ...


class Context:
    """What a Python handler sees of its run, if its first parameter is named `context`."""

    __slots__ = ("_control", "_write", "attempt", "parameters", "task_id")

    def __init__(
        self,
        task_id: str,
        attempt: int,
        *,
        parameters: Mapping[str, object],
        control: Steering,
        write: Callable[[str], object],
    ) -> None:
        self.task_id = task_id
        self.attempt = attempt
        self.parameters = parameters
        self._control = control
        self._write = write

    @property
    def checkpoints(self) -> bool:
        """Say whether the handler has called checkpoint() yet; only then can it be paused."""
        return self._control.checkpoints

    def log(self, text: str) -> None:
        """Write one line to the run's output."""
        self._write(f"{text}\n")

    def checkpoint(self) -> None:
        """Raise HandlerStopped if the run is asked to stop; wait here while it is paused."""
        self._control.checkpoint()


@dataclass(frozen=True, slots=True)
class Parameter:
    """One named parameter: `words` is its type for people, `check` says whether a JSON value fits."""

    name: str
    words: str
    check: Check
    required: bool
    default: object = None


@dataclass(frozen=True, slots=True)
class Registered:
    name: str
    function: Callable[..., object]
    parameters: Mapping[str, Parameter]
    takes_context: bool
    takes_any: bool  # it has **kwargs

    def takes(self, parameter: str) -> bool:
        return self.takes_any or parameter in self.parameters

    def problems(self, given: Mapping[str, object]) -> list[Detail]:
        found = [
            Detail(f"parameters.{known.name}", "is required", f"Add {known.name}: {known.words}")
            for known in self.parameters.values()
            if known.required and known.name not in given
        ]
        for name, value in given.items():
            known_as = self.parameters.get(name)
            if known_as is not None:
                if not known_as.check(value):
                    found.append(_wrong_type(known_as, value))
            elif name == CONTEXT and self.takes_context:
                found.append(Detail(f"parameters.{name}", "is a reserved name", "Rename the parameter"))
            elif not self.takes_any and name != EVENT:
                found.append(Detail(f"parameters.{name}", "is not a parameter of this handler", self._instead_of(name)))
        return found

    def arguments(self, given: Mapping[str, object]) -> Mapping[str, object]:
        """Return the keyword arguments to call with; raise ParametersInvalid naming every problem."""
        if self.takes_any and not self.parameters and not self.takes_context:
            return given
        if problems := self.problems(given):
            raise ParametersInvalid(details=tuple(problems))
        if self.takes_any or EVENT in self.parameters or EVENT not in given:
            return given
        return {name: value for name, value in given.items() if name != EVENT}

    def _instead_of(self, name: str) -> str:
        close = difflib.get_close_matches(name, self.parameters, n=1)
        if close:
            return f"Did you mean {close[0]}?"
        return f"Known parameters: {', '.join(self.parameters)}" if self.parameters else "This handler takes none"


_handlers: dict[str, Registered] = {}
_imported: set[str] = set()


def handler(name: str) -> Callable[[Function], Function]:
    """Register the decorated function as `python:NAME`; raises ValueError or TypeError where it stands."""

    def register(function: Function) -> Function:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no handler name: lower-case letters, digits, dot, dash and underscore.")
        known = _handlers.get(name)
        if known is not None:
            raise ValueError(f"python:{name} is registered twice: {_where(known.function)} and {_where(function)}.")
        _handlers[name] = _read_signature(name, function)
        return function

    return register


def lookup(name: str) -> Registered | None:
    """Return the handler called `name`; None when no module registers it."""
    found = _handlers.get(name)
    if found is None:
        discover()
        found = _handlers.get(name)
    return found


def names() -> list[str]:
    discover()
    return sorted(_handlers)


def check_parameters(name: str, parameters: Mapping[str, object]) -> None:
    """Raise ParametersInvalid with one detail a problem; an unknown name is left to handlers.parse."""
    registered = lookup(name)
    if registered is not None:
        registered.arguments(parameters)


def discover() -> None:
    """Import the modules that register handlers, each once."""
    for module in (BUILTIN_MODULE, *settings.K1NODE_HANDLER_MODULES):
        if module not in _imported:
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise ImproperlyConfigured(f"K1NODE_HANDLER_MODULES: cannot import {module}: {error}") from error
            _imported.add(module)


def _where(function: Callable[..., object]) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', function)}"


def _read_signature(name: str, function: Callable[..., object]) -> Registered:
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"python:{name} is a coroutine function; handlers are plain functions.")
    hints = typing.get_type_hints(function)
    takes_context = takes_any = False
    parameters: dict[str, Parameter] = {}
    for index, each in enumerate(inspect.signature(function).parameters.values()):
        if each.kind is each.VAR_KEYWORD:
            takes_any = True
        elif each.kind in (each.VAR_POSITIONAL, each.POSITIONAL_ONLY):
            raise TypeError(f"python:{name}: parameters are given by name, so {each} cannot be filled.")
        elif index == 0 and each.name == CONTEXT:
            takes_context = True
        else:
            words, check = _type(name, each.name, hints.get(each.name, object))
            required = each.default is each.empty
            parameters[each.name] = Parameter(each.name, words, check, required, None if required else each.default)
    return Registered(name, function, parameters, takes_context, takes_any)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_PLAIN: dict[object, tuple[str, Check]] = {
    int: ("a whole number", _is_int),
    float: ("a number", lambda value: isinstance(value, float) or _is_int(value)),
    str: ("text", lambda value: isinstance(value, str)),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    list: ("a list", lambda value: isinstance(value, list)),
    dict: ("an object", lambda value: isinstance(value, dict)),
    types.NoneType: ("null", lambda value: value is None),
    object: ("any value", lambda value: True),
    Any: ("any value", lambda value: True),
}


def _type(handler_name: str, parameter: str, hint: Any) -> tuple[str, Check]:
    """Return the words and the check for an annotation; raise TypeError for one that no JSON value can fill."""
    if hint in _PLAIN:
        return _PLAIN[hint]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(repr, inner))}", lambda value: any(_same(value, each) for each in inner)
    if origin in (typing.Union, types.UnionType):
        options = [_type(handler_name, parameter, each) for each in inner]
        return " or ".join(words for words, _ in options), lambda value: any(check(value) for _, check in options)
    if origin is list:
        words, check = _type(handler_name, parameter, inner[0])
        return f"a list, each item {words}", lambda value: isinstance(value, list) and all(map(check, value))
    if origin is dict:
        return _PLAIN[dict]
    raise TypeError(f"python:{handler_name}: parameter {parameter} is annotated {hint}, which JSON cannot carry.")


def _same(value: object, literal: object) -> bool:
    return type(value) is type(literal) and value == literal  # 1 is not True


def _wrong_type(known: Parameter, value: object) -> Detail:
    given = next((words for words, check in _PLAIN.values() if check(value)), "something else")
    instead = f"Give {known.words}" if known.required else f"Give {known.words}, or leave it out for {known.default!r}"
    return Detail(f"parameters.{known.name}", f"must be {known.words}, not {given}", instead)
