"""Form fields for what operators write by hand: lengths of time and JSON."""

import json
import re
from typing import Any, NoReturn

from django import forms
from django.core.exceptions import ValidationError

from k1node.api.serializers import MAX_OBJECT_BYTES

UNITS = {"d": 86_400_000, "h": 3_600_000, "min": 60_000, "s": 1000, "ms": 1}
PART = re.compile(r"(?P<count>[0-9]{1,12}(?:\.[0-9]{1,3})?)\s*(?P<unit>[a-z]+)")
SPELLINGS = {
    "m": "min",
    "minute": "min",
    "minutes": "min",
    "sec": "s",
    "second": "s",
    "seconds": "s",
    "hour": "h",
    "hours": "h",
    "day": "d",
    "days": "d",
}
EXAMPLE = "Write it with units: 30 s, 15 min, 1 h 30 min, 2 d"


class DurationField(forms.Field):
    """Milliseconds, shown and typed as `1 h 30 min`."""

    widget = forms.TextInput

    def __init__(self, *, low: int = 0, high: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.low, self.high = low, high

    def prepare_value(self, value: Any) -> Any:
        return in_units(value) if isinstance(value, int) else value

    def to_python(self, value: Any) -> int | None:
        if value in self.empty_values:
            return None
        if isinstance(value, int):
            return value
        ms = parse_duration(str(value))
        if not self.low <= ms <= self.high:
            raise ValidationError(f"Must be from {in_units(self.low)} to {in_units(self.high)}.", code="range")
        return ms


def in_units(ms: int) -> str:
    """Return `ms` exactly, as 1 h 30 min."""
    parts = []
    for unit, size in UNITS.items():
        count, ms = divmod(ms, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts) or "0 s"


def parse_duration(text: str) -> int:
    """Return the milliseconds that `text` means; raise ValidationError with an example."""
    text = text.strip().lower()
    if re.fullmatch(r"[0-9.]+", text):
        if not float(text.replace(".", "0")):
            return 0
        raise ValidationError(f"{text} of which unit? {EXAMPLE}.", code="unit")
    total, end = 0.0, 0
    for part in PART.finditer(text):
        unit = SPELLINGS.get(part["unit"], part["unit"])
        if text[end : part.start()].strip(" ,") or unit not in UNITS:
            break
        total += float(part["count"]) * UNITS[unit]
        end = part.end()
    if not end or end < len(text):
        raise ValidationError(f"Is not a length of time. {EXAMPLE}.", code="invalid")
    return round(total)


class JsonObjectField(forms.JSONField):
    """A JSON object as indented text; an error says where it is."""

    widget = forms.Textarea

    def __init__(self, **kwargs: Any) -> None:
        widget = forms.Textarea(attrs={"rows": 6, "cols": 60, "spellcheck": "false", "class": "k1-json-input"})
        super().__init__(required=False, widget=widget, **kwargs)

    def prepare_value(self, value: Any) -> Any:
        if isinstance(value, forms.fields.InvalidJSONInput):
            return value
        return json.dumps(value, indent=2, ensure_ascii=False)

    def bound_data(self, data: Any, initial: Any) -> Any:
        # What was typed comes back as it was typed, errors and all.
        return initial if self.disabled else forms.fields.InvalidJSONInput(data or "")

    def to_python(self, value: Any) -> Any:
        if value in self.empty_values:
            return {}
        if isinstance(value, dict):
            return value
        if len(value.encode()) > MAX_OBJECT_BYTES:
            raise ValidationError(f"Must be at most {MAX_OBJECT_BYTES:,} bytes.", code="size")
        try:
            read = json.loads(value, parse_constant=_refuse_constant)
        except json.JSONDecodeError as error:
            raise ValidationError(
                f"Is not JSON: line {error.lineno}, column {error.colno}: {error.msg}.", code="invalid"
            ) from None
        except RecursionError:
            raise ValidationError("Is nested too deeply.", code="invalid") from None
        if not isinstance(read, dict):
            raise ValidationError('Must be an object: {"name": "value"}.', code="object")
        return read


def _refuse_constant(name: str) -> NoReturn:
    raise ValidationError(f"{name} is not JSON. Use a number, or null.", code="invalid")
