"""What of an act's facts may be kept for a year: no secret, nothing of any size."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import orjson

SECRET_NAME = re.compile(r"secret|passw|token|credential|authorization|cookie|digest|api_?key|private_?key", re.I)
SECRET_VALUE = re.compile(r"\b((?:sk|rt)-[A-Za-z0-9_]{8,}|kt-[\w.:-]{20,}|whsec_[\w+/=]{8,}|eyJ[\w-]+\.[\w-]+\.[\w-]*)")
HIDDEN = "(hidden)"
MOST_BYTES = 16 * 1024


def redacted(facts: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return `facts` as JSON can hold them, without secrets; of too large ones only the names and a hash."""
    if facts is None:
        return None
    clean: dict[str, Any] = orjson.loads(orjson.dumps(_clean(facts), default=str))
    text = orjson.dumps(clean)
    if len(text) <= MOST_BYTES:
        return clean
    return {"names": sorted(clean)[:50], "bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}


def outline(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells two sets of parameters apart without saying what is in them: they may hold secrets."""
    text = orjson.dumps(values, option=orjson.OPT_SORT_KEYS, default=str)
    return {"names": sorted(map(str, values))[:50], "sha256": hashlib.sha256(text).hexdigest()}


def _clean(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _hidden(str(name), inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item) for item in value]
    if isinstance(value, str):
        return SECRET_VALUE.sub(HIDDEN, value)
    return value


def _hidden(name: str, value: Any) -> Any:
    is_secret = SECRET_NAME.search(name) and value is not None and not isinstance(value, bool) and value != ""
    return HIDDEN if is_secret else _clean(value)
