"""One field of a cron expression: what may be written in it, and how to say what is wrong with it."""

import re
from dataclasses import dataclass

from k1node.lib.errors import FieldInvalid

FORMAT = "Use format: minute hour day month weekday"


class ScheduleExpressionInvalid(FieldInvalid):
    """The schedule expression cannot be used."""

    def __init__(self, message: str, suggestion: str = FORMAT, field: str = "schedule_expr") -> None:
        super().__init__(field, message, suggestion)


@dataclass(frozen=True)
class Field:
    name: str
    low: int
    high: int
    limits: str
    names: tuple[str, ...] = ()  # the first one means `low`

    def value(self, text: str) -> int:
        """Return a number or a name such as MON as its number."""
        if text in self.names:
            return self.low + self.names.index(text)
        if not text.isdigit():
            raise ScheduleExpressionInvalid(f"{text!r} is not a valid {self.name}: {self.name} must be {self.limits}")
        number = int(text)
        if not self.low <= number <= self.high:
            raise ScheduleExpressionInvalid(f"{self.name} must be {self.limits}, not {text}")
        return number

    @property
    def size(self) -> int:
        return 7 if self.name == "weekday" else self.high - self.low + 1


_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
MINUTE, HOUR, DAY, MONTH, WEEKDAY = FIELDS = (
    Field("minute", 0, 59, "0-59"),
    Field("hour", 0, 23, "0-23"),
    Field("day", 1, 31, "1-31"),
    Field("month", 1, 12, "1-12 or JAN-DEC", _MONTHS),
    Field("weekday", 0, 7, "0-7 (0 and 7 are Sunday) or SUN-SAT", _WEEKDAYS),
)
_ITEM = re.compile(r"(?P<low>\*|\w+)(-(?P<high>\w+))?(/(?P<step>\w+))?", re.ASCII)
_HASHED = re.compile(r"[HR](\([^)]*\))?(/\d+)?", re.ASCII)
_NTH = re.compile(r"(?P<weekday>\w+)#(?P<nth>\w+)", re.ASCII)
_LAST_WEEKDAY = re.compile(r"L(?P<weekday>[0-9]+|[A-Z]{3})", re.ASCII)
_NEAREST = re.compile(r"(?P<before>[0-9]+)W|W(?P<after>[0-9]+)", re.ASCII)


def canonical(field: Field, text: str) -> str:
    """Return one field with names as numbers and without the spellings that croniter reads in its own way."""
    items = [_canonical_item(field, item, alone="," not in text) for item in text.split(",")]
    if "*" in items and len(items) > 1:
        raise ScheduleExpressionInvalid(
            f"The {field.name} field has * inside a list", "Write * alone, or a step as */2"
        )
    return ",".join(items)


def _canonical_item(field: Field, item: str, *, alone: bool) -> str:
    if not item:
        raise ScheduleExpressionInvalid(f"The {field.name} field has an empty place in its list", "Remove a comma")
    if _HASHED.fullmatch(item):
        raise ScheduleExpressionInvalid(
            f"{item!r} is not supported: hashed and random times (H, R) are not the same everywhere",
            f"Choose the {field.name} yourself",
        )
    special = _special_day(field, item, alone=alone)
    if special:
        return special
    match = _ITEM.fullmatch(item)
    if not match or (match["low"] == "*" and match["high"]):
        raise ScheduleExpressionInvalid(f"{item!r} is not a valid {field.name}: {field.name} must be {field.limits}")
    step = _step(field, match["step"])
    if match["low"] == "*":
        if step == 1:
            return "*"
        return f"*/{step}" if step < field.size else str(field.low)
    low = field.value(match["low"])
    if match["high"] is None:
        top = 6 if field is WEEKDAY else field.high
        return f"{low}/{step}" if match["step"] and low + step <= top else str(low)
    high = field.value(match["high"])
    if low == high:  # croniter takes 9-9 for the whole day
        return str(low)
    if low > high and step > 1:
        raise ScheduleExpressionInvalid(
            f"{item!r} wraps around and has a step",
            f"Split it in two: {low}-{field.high}/{step},{field.low}-{high}/{step}",
        )
    if field is WEEKDAY:
        low, high = low % 7, 6 if low == 0 and high == 7 else high
    return f"{low}-{high}/{step}" if step > 1 else f"{low}-{high}"


def _special_day(field: Field, item: str, *, alone: bool) -> str | None:
    """Return `L`, `15W`, `5#3` or `L5` in the spelling croniter takes, None if `item` is none of them."""
    if field is DAY:
        if item == "L":
            return item
        nearest = _NEAREST.fullmatch(item)
        if nearest and not alone:
            raise ScheduleExpressionInvalid(
                "A day with W cannot be part of a list", "Make two schedules, one of them for the day with W"
            )
        return f"{field.value(nearest['after'] or nearest['before'])}W" if nearest else None
    if field is WEEKDAY:
        if last := _LAST_WEEKDAY.fullmatch(item):
            return f"L{field.value(last['weekday']) % 7}"
        if nth := _NTH.fullmatch(item):
            if nth["nth"] not in {"1", "2", "3", "4", "5"}:
                raise ScheduleExpressionInvalid(
                    f"{item!r} must have a number from 1 to 5 after #", "Use for example FRI#3 for the third Friday"
                )
            return f"{field.value(nth['weekday']) % 7}#{nth['nth']}"
    return None


def _step(field: Field, text: str | None) -> int:
    if text is None:
        return 1
    if not text.isdigit() or not 1 <= int(text) <= field.size:
        raise ScheduleExpressionInvalid(
            f"The step of the {field.name} field must be 1-{field.size}, not {text}",
            f"A step counts inside its own field and begins anew with it. {FORMAT}",
        )
    return int(text)
