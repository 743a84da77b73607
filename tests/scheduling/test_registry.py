import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from django.core.exceptions import ImproperlyConfigured
from pytest_django import Settings

from k1node.lib.errors import Detail
from scheduling import registry
from scheduling.registry import Context, ParametersInvalid, handler


@pytest.fixture(autouse=True)
def _clean_registry() -> Iterator[None]:
    registry.discover()
    kept, imported = dict(registry._handlers), set(registry._imported)
    yield
    registry._handlers.clear()
    registry._handlers.update(kept)
    registry._imported.clear()
    registry._imported.update(imported)


def problems(name: str, parameters: dict[str, Any]) -> list[Detail]:
    with pytest.raises(ParametersInvalid) as caught:
        registry.check_parameters(name, parameters)
    assert (caught.value.code, caught.value.status) == ("INVALID_REQUEST", 400)
    return list(caught.value.details)


def test_builtin_handlers_are_found() -> None:
    assert {"noop", "sleep"} <= set(registry.names())
    assert registry.lookup("noop") is not None
    assert registry.lookup("nope") is None


def test_handler_modules_are_imported_on_first_use(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "k1_extra_handlers.py").write_text(
        "from scheduling.registry import handler\n@handler('extra')\ndef extra(): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings.K1NODE_HANDLER_MODULES = ["k1_extra_handlers"]

    assert registry.lookup("extra") is not None
    sys.modules.pop("k1_extra_handlers")


def test_a_handler_module_that_cannot_be_imported_is_a_configuration_error(settings: Settings) -> None:
    settings.K1NODE_HANDLER_MODULES = ["no_such_module_here"]

    with pytest.raises(ImproperlyConfigured, match="no_such_module_here"):
        registry.names()


@pytest.mark.parametrize("name", ["", "Backup", "-x", ".x", "a b", "a/b", "ä", "a\n"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no handler name"):
        handler(name)(lambda: None)


def test_a_name_is_registered_once() -> None:
    handler("test.once-1_a")(lambda: None)

    with pytest.raises(ValueError, match="registered twice"):
        handler("test.once-1_a")(lambda: None)


def test_a_parameter_without_annotation_takes_anything() -> None:
    handler("test-untyped")(lambda value, other=1: None)

    registry.check_parameters("test-untyped", {"value": [], "other": "x"})
    assert problems("test-untyped", {})[0] == Detail("parameters.value", "is required", "Add value: any value")


def test_functions_that_cannot_be_called_by_name_are_refused() -> None:
    async def coroutine() -> None: ...
    def starred(*values: int) -> None: ...
    def positional(value: int, /) -> None: ...
    def unreadable(when: Path) -> None: ...

    for function in (coroutine, starred, positional, unreadable):
        with pytest.raises(TypeError, match="python:test-bad"):
            handler("test-bad")(function)


@handler("test-typed")
def typed(
    context: Context,
    count: int,
    ratio: float = 0.5,
    name: str | None = None,
    mode: Literal["fast", "safe"] = "safe",
    hosts: list[str] = [],  # noqa: B006
    deep: bool = False,
    options: dict[str, int] | None = None,
    anything: object = None,
) -> None: ...


@pytest.mark.parametrize(
    "parameters",
    [
        {"count": 1},
        {"count": 1, "ratio": 2},
        {"count": 1, "ratio": 2.5, "name": None, "mode": "fast", "hosts": ["a"], "deep": True},
        {"count": -1, "name": "x", "options": {"a": 1}, "anything": object()},
        {"count": 1, "event": {"name": "x", "metadata": {}}},
    ],
)
def test_fitting_parameters_pass(parameters: dict[str, Any]) -> None:
    registry.check_parameters("test-typed", parameters)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, Detail("parameters.count", "is required", "Add count: a whole number")),
        (
            {"count": True},
            Detail("parameters.count", "must be a whole number, not true or false", "Give a whole number"),
        ),
        ({"count": 1.0}, Detail("parameters.count", "must be a whole number, not a number", "Give a whole number")),
        (
            {"count": 1, "ratio": False},
            Detail("parameters.ratio", "must be a number, not true or false", "Give a number, or leave it out for 0.5"),
        ),
        (
            {"count": 1, "name": 3},
            Detail(
                "parameters.name",
                "must be text or null, not a whole number",
                "Give text or null, or leave it out for None",
            ),
        ),
        (
            {"count": 1, "mode": "slow"},
            Detail(
                "parameters.mode",
                "must be one of 'fast', 'safe', not text",
                "Give one of 'fast', 'safe', or leave it out for 'safe'",
            ),
        ),
        (
            {"count": 1, "hosts": ["a", 1]},
            Detail(
                "parameters.hosts",
                "must be a list, each item text, not a list",
                "Give a list, each item text, or leave it out for []",
            ),
        ),
        (
            {"count": 1, "ratios": 1},
            Detail("parameters.ratios", "is not a parameter of this handler", "Did you mean ratio?"),
        ),
        ({"count": 1, "context": 1}, Detail("parameters.context", "is a reserved name", "Rename the parameter")),
    ],
)
def test_each_problem_is_named(parameters: dict[str, Any], expected: Detail) -> None:
    assert problems("test-typed", parameters) == [expected]


def test_all_problems_are_named_at_once() -> None:
    fields = [detail.field for detail in problems("test-typed", {"ratio": "x", "zzz": 1})]

    assert fields == ["parameters.count", "parameters.ratio", "parameters.zzz"]


def test_the_event_goes_only_to_those_who_take_it() -> None:
    handler("test-plain")(lambda: None)
    handler("test-event")(lambda event: None)
    handler("test-any")(lambda **anything: None)
    given = {"event": {"name": "x"}}

    taken = [registry._handlers[f"test-{name}"].arguments(given) for name in ("plain", "event", "any")]

    assert taken == [{}, given, given]


def test_noop_takes_anything_and_sleep_a_number() -> None:
    registry.check_parameters("noop", {"context": 1, "x": [], "event": None})
    registry.check_parameters("sleep", {"seconds": 1})

    assert problems("sleep", {"seconds": "1"})[0].field == "parameters.seconds"
