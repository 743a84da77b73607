"""Messages taken at their word: unknown fields are refused, nothing is coerced, every refusal says what to write.

The same fields read query parameters, where everything is text: see QuerySerializer.
"""

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn

import orjson
from django.core.exceptions import ValidationError as DjangoValidationError
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.fields import SkipField, get_error_detail

from k1node.api.errors import Hint, invalid
from k1node.api.renderers import timestamp
from k1node.lib.errors import InvalidRequest

MAX_OBJECT_BYTES = 64 * 1024
# Unknown fields that are each named, with what was meant: looking for that costs most of a millisecond, and a body has
# room for 100,000 of them.
UNKNOWN_NAMED = 20

INTEGER_TEXT = re.compile(r"-?[0-9]{1,18}")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
LINE_BREAK = re.compile("[\\x00-\\x1f\\x7f\\x85\\u2028\\u2029]")
RFC3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?"
    r"(?P<offset>[Zz]|[+-][0-9]{2}:[0-9]{2})?"
)
EXAMPLE_MOMENT = "2025-11-09T20:37:29+08:00"


def words_for(value: object) -> str:
    """Return the JSON type of `value` in words."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case str():
            return "a string"
        case int() | float():
            return "a number"
        case Mapping():
            return "an object"
        case list() | tuple():
            return "a list"
    return type(value).__name__


def did_you_mean(given: object, known: Iterable[str], *, otherwise: str | None = None) -> str | None:
    """Return "Did you mean …?" if something known is close, else `otherwise`."""
    close = difflib.get_close_matches(str(given)[:100], list(known), n=1)
    return f"Did you mean {close[0]}?" if close else otherwise


class StrictField(serializers.Field[Any, Any, Any, Any]):
    """What the strict fields share; always beside one of DRF's, which the OpenAPI document is made from."""

    default_error_messages = {
        "required": "This field is required",
        "null": "Must not be null",
        "blank": "Must not be empty",
        "max_length": "Must have at most {max_length} characters",
        "min_length": "Must have at least {min_length} characters",
    }

    @property
    def reads_text(self) -> bool:
        """Whether values come from a query string."""
        return getattr(self.root, "reads_text", False)

    @staticmethod
    def refuse(message: str, suggestion: str | None = None) -> NoReturn:
        raise invalid(message, suggestion)


class StrictInteger(StrictField, serializers.IntegerField):
    def to_internal_value(self, data: Any) -> int:
        if self.reads_text and isinstance(data, str) and INTEGER_TEXT.fullmatch(data):
            data = int(data)
        if isinstance(data, float) and data.is_integer():
            data = int(data)  # 5.0 is a whole number: JSON has but one kind, and some languages write it so
        if isinstance(data, bool) or not isinstance(data, int):
            self._refuse_type(data)
        low, high = self.min_value, self.max_value
        if (low is not None and data < low) or (high is not None and data > high):
            self.refuse(f"Must be {self._range()}", self._example())
        return int(data)

    def _refuse_type(self, data: Any) -> NoReturn:
        if self.reads_text:
            self.refuse("Must be a whole number", self._example())
        if isinstance(data, str) and INTEGER_TEXT.fullmatch(data):
            self.refuse("Must be a whole number, not a string", f"Write {int(data)} without quotes")
        what = "a number with a fraction" if isinstance(data, float) else words_for(data)
        self.refuse(f"Must be a whole number, not {what}", self._example())

    def _range(self) -> str:
        low, high = self.min_value, self.max_value
        if low is not None and high is not None:
            return f"from {low} to {high}"
        if low is not None:
            return f"at least {low}"
        return f"at most {high}" if high is not None else ""

    def _example(self) -> str:
        words = self._range()
        if not words:
            return "Use a number such as 5"
        return f"Use a number {words}" if words.startswith("from") else f"Use a number of {words}"


class StrictNumber(StrictField, serializers.FloatField):
    def to_internal_value(self, data: Any) -> float:
        if self.reads_text and isinstance(data, str):
            try:
                data = float(data)
            except ValueError:
                self.refuse("Must be a number")
        if isinstance(data, bool) or not isinstance(data, int | float):
            self.refuse(f"Must be a number, not {words_for(data)}")
        value = float(data)
        if not math.isfinite(value):
            self.refuse("Must be a finite number")
        low, high = self.min_value, self.max_value
        if low is not None and value < low:
            self.refuse(f"Must be at least {low:g}")
        if high is not None and value > high:
            self.refuse(f"Must be at most {high:g}")
        return value


class StrictBoolean(StrictField, serializers.BooleanField):
    def to_internal_value(self, data: Any) -> bool:
        if isinstance(data, bool):
            return data
        if isinstance(data, str) and data in ("true", "false"):
            if self.reads_text:
                return data == "true"
            self.refuse("Must be true or false, not a string", f"Write {data} without quotes")
        if self.reads_text:
            self.refuse("Must be true or false", "Use true or false")
        self.refuse(f"Must be true or false, not {words_for(data)}", "Use true or false")


class StrictString(StrictField, serializers.CharField):
    """A string without control characters; line breaks only with `multiline=True`.

    `shape`, a regular expression, is for the OpenAPI document alone: what a check of the domain's takes, or a little
    more. That check has the better words for what it refuses.
    """

    def __init__(self, *, multiline: bool = False, shape: str | None = None, **kwargs: Any) -> None:
        self.multiline = multiline
        self.shape = shape
        if shape is not None:
            kwargs.setdefault("trim_whitespace", False)
        super().__init__(**kwargs)

    def run_validation(self, data: Any = serializers.empty) -> Any:
        # The parent would take a number for its digits before to_internal_value sees it.
        if data is not serializers.empty and data is not None and not isinstance(data, str):
            suggestion = f'Write "{data}" with quotes' if isinstance(data, int | float) else None
            self.refuse(f"Must be a string, not {words_for(data)}", suggestion)
        return super().run_validation(data)

    def to_internal_value(self, data: Any) -> str:
        # Before spaces around it are taken away: a line break there is refused like one in the middle.
        if "\0" in data:
            self.refuse("Must not contain a NUL character")
        if (CONTROL if self.multiline else LINE_BREAK).search(data):
            what = "control characters" if self.multiline else "line breaks or control characters"
            self.refuse(f"Must not contain {what}", "Write plain text")
        return str(super().to_internal_value(data))


class StrictChoice(StrictField, serializers.ChoiceField):
    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, str):
            self.refuse(f"Must be a string, not {words_for(data)}", self._known())
        if data == "" and self.allow_blank:
            return ""
        if data not in self.choice_strings_to_values:
            self.refuse(
                f"{data[:100]!r} is not one of the choices",
                did_you_mean(data, self.choice_strings_to_values, otherwise=self._known()),
            )
        return self.choice_strings_to_values[data]

    def _known(self) -> str:
        return f"Use one of: {', '.join(self.choice_strings_to_values)}"


class StrictObject(StrictField, serializers.DictField):
    """A JSON object of any content, as large as `max_bytes` when written as JSON."""

    def __init__(self, *, max_bytes: int = MAX_OBJECT_BYTES, **kwargs: Any) -> None:
        self.max_bytes = max_bytes
        super().__init__(**kwargs)

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        if not isinstance(data, dict):
            self.refuse(f"Must be an object, not {words_for(data)}", 'Use {"name": value}')
        if not data and not self.allow_empty:
            self.refuse("Must not be empty")
        size = len(orjson.dumps(data))
        if size > self.max_bytes:
            self.refuse(f"Must be at most {self.max_bytes:,} bytes of JSON, not {size:,}", "Pass a reference instead")
        return data

    def to_representation(self, value: Any) -> Any:
        return value


class StrictList(StrictField, serializers.ListField):
    """`unique` is for the OpenAPI document alone; who says it refuses what is named twice."""

    def __init__(self, *, unique: bool = False, **kwargs: Any) -> None:
        self.unique = unique
        super().__init__(**kwargs)

    default_error_messages = {
        "empty": "Must not be empty",
        "max_length": "Must have at most {max_length} items",
        "min_length": "Must have at least {min_length} items",
    }

    def to_internal_value(self, data: Any) -> list[Any]:
        if not isinstance(data, list):
            self.refuse(f"Must be a list, not {words_for(data)}", "Use [value, …]")
        if self.max_length is not None and len(data) > self.max_length:
            self.refuse(f"Must have at most {self.max_length} items, not {len(data):,}")
        return list(super().to_internal_value(data))


class Timestamp(StrictField, serializers.DateTimeField):
    """A moment. Read with its offset from UTC, never guessed; written in the API's one format."""

    def to_internal_value(self, value: Any) -> datetime:
        if not isinstance(value, str):
            self.refuse(f"Must be a string with date, time and offset, not {words_for(value)}", f"Use {EXAMPLE_MOMENT}")
        if self.reads_text and re.search(r" [0-9]{2}:[0-9]{2}$", value) and value.count(":") > 2:
            self.refuse("Has lost the + of its offset", "Write %2B for + in a query string")
        shape = RFC3339.fullmatch(value)
        if shape is None:
            self.refuse("Must be a date and time in ISO 8601", f"Use {EXAMPLE_MOMENT}")
        if shape["offset"] is None:
            self.refuse("Must name its offset from UTC", f"Add Z or an offset: {EXAMPLE_MOMENT}")
        try:
            return datetime.fromisoformat(value.upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            self.refuse("There is no such date and time", f"Use {EXAMPLE_MOMENT}")

    def to_representation(self, value: Any) -> str | None:
        return timestamp(value) if isinstance(value, datetime) else value


class StrictSerializer(serializers.Serializer[Any]):
    """The shape of one message. All problems of all fields come back at once, with their paths.

    A validate() or validate_<field>() may raise `invalid(message, suggestion)` or any InvalidRequest of the domain;
    the details of the latter name their own fields.
    """

    default_error_messages = {"invalid": "Must be an object", **StrictField.default_error_messages}
    # Parameters that something else reads: those of the pagination.
    ignored: frozenset[str] = frozenset()

    def run_validation(self, data: Any = serializers.empty) -> Any:
        if data is None and not self.allow_null:
            return self.to_internal_value(data)
        try:
            return super().run_validation(data)
        except InvalidRequest as error:
            raise ValidationError(_as_errors(error, "non_field_errors")) from error

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        if not isinstance(data, Mapping):
            raise ValidationError(
                {"non_field_errors": [ErrorDetail(f"Must be an object, not {words_for(data)}", Hint("invalid"))]}
            )
        values: dict[str, Any] = {}
        errors = self._unknown(data)
        for field in self._writable_fields:
            name = str(field.field_name)
            validate = getattr(self, f"validate_{name}", None)
            try:
                value = field.run_validation(field.get_value(data))
                if validate is not None:
                    value = validate(value)
            except ValidationError as error:
                errors[name] = error.detail
            except DjangoValidationError as error:
                errors[name] = get_error_detail(error)
            except InvalidRequest as error:
                errors.update(_as_errors(error, name))
            except SkipField:
                pass
            else:
                self.set_value(values, field.source_attrs, value)
        if errors:
            raise ValidationError(errors)
        return values

    def _unknown(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return an error for each name in `data` that is no field to write."""
        writable = {str(field.field_name) for field in self._writable_fields}
        unknown = [name for name in data if name not in writable and name not in self.ignored]
        errors: dict[str, Any] = {}
        if len(unknown) > UNKNOWN_NAMED:
            more = f"{self._unknown_message}: {len(unknown) - UNKNOWN_NAMED:,} more"
            errors["non_field_errors"] = [ErrorDetail(more, Hint("unknown"))]
        for name in unknown[:UNKNOWN_NAMED]:
            if name in self.fields:
                errors[name] = [ErrorDetail("Is read-only", Hint("read_only", "Leave it out"))]
            else:
                known = f"Known: {', '.join(sorted(writable))}" if writable else "There are none here"
                suggestion = did_you_mean(name, writable, otherwise=known)
                errors[name[:100]] = [ErrorDetail(self._unknown_message, Hint("unknown", suggestion))]
        return errors

    _unknown_message = "Unknown field"


class QuerySerializer(StrictSerializer):
    """Query parameters: the same fields, whose values arrive as text."""

    reads_text = True
    _unknown_message = "Unknown query parameter"


def _as_errors(error: InvalidRequest, name: str) -> dict[str, list[ErrorDetail]]:
    if not error.details:
        return {name: [ErrorDetail(error.message, Hint("invalid"))]}
    errors: dict[str, list[ErrorDetail]] = {}
    for detail in error.details:
        errors.setdefault(detail.field, []).append(ErrorDetail(detail.message, Hint("invalid", detail.suggestion)))
    return errors
