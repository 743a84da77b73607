"""Request bodies: JSON, and only what every later reader, database and answer can carry."""

import json
import math
import re
from collections.abc import Mapping
from typing import IO, Any

import orjson
from rest_framework.parsers import JSONParser

from k1node.api.errors import WHOLE_BODY
from k1node.api.renderers import JSON
from k1node.lib.errors import Detail, InvalidRequest

MAX_DEPTH = 64
INTEGERS = range(-(2**63), 2**63)
NUL = re.compile(rb"\\u0000")
STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
AS_PARENTHESES = bytes.maketrans(b"[{]}", b"(())")
NO_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))


class BodyInvalid(InvalidRequest):
    """The request body is not usable JSON"""

    def __init__(self, message: str, suggestion: str | None = None) -> None:
        super().__init__(details=(Detail(WHOLE_BODY, message, suggestion),))


class JsonParser(JSONParser):
    """Reads a body whose media type is JSON or missing (see k1node.api.negotiation)."""

    media_type = JSON

    def parse(
        self, stream: IO[bytes], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> Any:
        return loads(stream.read())


def loads(raw: bytes) -> Any:
    """Return the value `raw` says; an empty or blank body is an empty object. Raises BodyInvalid."""
    if not raw.strip():
        return {}
    if raw.startswith(b"\xef\xbb\xbf"):
        raise BodyInvalid("Must not begin with a byte order mark", "Send plain UTF-8")
    try:
        # Two passes: this one is strict about grammar, UTF-8, surrogates and infinities at a few ms a megabyte, and
        # refuses 1,024 levels before the second, which sees each pair and number, could run out of stack.
        orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise _refused(raw, error) from None
    # Only a body with that many brackets can be too deep.
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _depth(raw) > MAX_DEPTH:
        raise BodyInvalid(f"Is nested deeper than {MAX_DEPTH} levels", "Flatten the value")
    value = json.loads(raw, object_pairs_hook=_object, parse_int=_integer, parse_float=_number)
    if NUL.search(raw):
        _refuse_nul(value)
    return value


def _refused(raw: bytes, error: orjson.JSONDecodeError) -> BodyInvalid:
    try:
        raw.decode()
    except UnicodeDecodeError as bad:
        return BodyInvalid(f"Is not UTF-8 (byte {bad.start})", "Encode the body as UTF-8")
    what = error.msg.lower()
    if "surrogate" in what:
        return BodyInvalid(f"Has half of a surrogate pair: {error}", "Send the character itself, in UTF-8")
    if "infinity" in what:
        return BodyInvalid(f"Has a number too large for a double: {error}", "Send it as a string")
    if "depth" in what:
        return BodyInvalid(f"Is nested deeper than {MAX_DEPTH} levels", "Flatten the value")
    return BodyInvalid(f"Is not valid JSON: {error}")


def _depth(raw: bytes) -> int:
    """Return how deep valid JSON is nested, or MAX_DEPTH + 1 if that is deeper. A few ms a megabyte."""
    brackets = STRING.sub(b"", raw).translate(AS_PARENTHESES, NO_BRACKETS)
    depth = 0
    while brackets and depth <= MAX_DEPTH:
        brackets = brackets.replace(b"()", b"")  # the innermost of every branch
        depth += 1
    return depth


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise BodyInvalid(f"Has the key {key[:100]!r} twice in one object", "Keep one of them")
            seen.add(key)
    return value


def _integer(digits: str) -> int:
    # Longer texts are out of range whatever they say, and Python refuses to read the very long ones.
    value = int(digits) if len(digits) <= 20 else None
    if value is None or value not in INTEGERS:
        raise BodyInvalid(f"Has an integer of more than 64 bits: {digits[:24]}…", "Send it as a string")
    return value


def _number(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise BodyInvalid(f"Has a number too large for a double: {digits[:24]}", "Send it as a string")
    return value


def _refuse_nul(value: Any) -> None:
    """Raise BodyInvalid if a key or string has a NUL character: PostgreSQL cannot store one."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            if "\0" in item:
                raise BodyInvalid("Has a NUL character in a string", "Leave \\u0000 out")
        elif isinstance(item, dict):
            waiting += item.keys()
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
