"""JSON as every answer of the API has it, moments in one fixed format."""

import json
import math
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import orjson
from django.utils.functional import Promise
from rest_framework.renderers import BaseRenderer

JSON = "application/json"
JSON_V2 = "application/vnd.k1node.v2+json"
JSON_V1 = "application/vnd.k1node.v1+json"
PROBLEM = "application/problem+json"
# What bodies may be sent as, and answers asked for.
MEDIA_TYPES = (JSON, JSON_V2, JSON_V1)


def timestamp(moment: datetime) -> str:
    """Return `moment` (aware) as the API writes it: 2025-11-09T12:37:29.123+00:00."""
    if moment.tzinfo is None:
        raise ValueError(f"A naive datetime ({moment}) has no place in an answer.")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")


def dumps(data: Any) -> bytes:
    """Return `data` as JSON; what orjson refuses (huge integers, lone surrogates) still becomes valid JSON.

    Such values cannot come in through the API, but a Python handler may return them, and a stored value must
    never make every later answer that shows it fail.
    """
    try:
        return orjson.dumps(data, default=_plain, option=orjson.OPT_PASSTHROUGH_DATETIME)
    except orjson.JSONEncodeError:
        return json.dumps(_finite(data), default=_plain, separators=(",", ":")).encode()


class JsonRenderer(BaseRenderer):
    media_type = JSON
    format = "json"
    charset = None  # JSON is UTF-8; a charset parameter has no meaning for it

    def render(
        self, data: Any, accepted_media_type: str | None = None, renderer_context: Mapping[str, Any] | None = None
    ) -> bytes:
        return b"" if data is None else dumps(data)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return timestamp(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Promise):
        return str(value)
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no JSON form here.")


def _finite(value: Any) -> Any:
    """Return `value` with NaN and infinities as null, as orjson writes them."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
