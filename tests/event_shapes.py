"""Every event that the code publishes during the tests is held against the catalogue."""

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import orjson
import pytest
from jsonschema import Draft202012Validator

from k1node.events import log
from k1node.events.catalogue import EVENTS

LOG = log.__file__
TESTS = str(Path(__file__).resolve().parent)


class UnknownEvent(AssertionError):
    """An event was published that the catalogue does not describe."""


class WrongShape(AssertionError):
    """An event was published with other data than the catalogue says."""


@cache
def validator(name: str) -> Draft202012Validator:
    # Others must bear with more than they know; what the code says it adds, it has to say.
    return Draft202012Validator({**EVENTS[name].data(), "additionalProperties": False})


def check(facts: Sequence[tuple[str, str]]) -> None:
    """Raise UnknownEvent or WrongShape for the first of `facts`, names and JSON, that is not as described."""
    for name, text in facts:
        if name not in EVENTS:
            raise UnknownEvent(f"{name} is not in k1node/events/catalogue.py")
        data = orjson.loads(text)
        for error in validator(name).iter_errors(data):
            raise WrongShape(f"{name}: {error.json_path}: {error.message} in {data}")


def hold_against_the_catalogue(patch: pytest.MonkeyPatch) -> None:
    """Let each publish of the code's own be checked first; the tests' own may say what they like."""
    publish = log.publish_json

    def checked(facts: Sequence[tuple[str, str]], **moment: object) -> None:
        caller = sys._getframe(1)
        while caller.f_back is not None and caller.f_code.co_filename == LOG:
            caller = caller.f_back
        if not caller.f_code.co_filename.startswith(TESTS):
            check(facts)
        publish(facts, **moment)  # type: ignore[arg-type]

    patch.setattr(log, "publish_json", checked)
