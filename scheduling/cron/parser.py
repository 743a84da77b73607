"""From the text of a cron expression to a CronExpression. croniter expands the fields, once they are checked."""

from functools import lru_cache

from croniter import CroniterError, croniter  # type: ignore[import-untyped]

from scheduling.cron.calendar import LAST, CronExpression, DayRule
from scheduling.cron.fields import (
    DAY,
    FIELDS,
    FORMAT,
    HOUR,
    MINUTE,
    MONTH,
    WEEKDAY,
    Field,
    ScheduleExpressionInvalid,
    canonical,
)

MAX_LENGTH = 200
ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}


@lru_cache(maxsize=4096)
def parse(expression: str) -> CronExpression:
    """Return `expression` ready to be asked for times; it is sure to fire, if only on a 29 February.

    Accepts five fields with names, ranges, steps and lists, `?`, `L`, `15W`, `5#3`, `L5`, and the @ aliases.
    Raises ScheduleExpressionInvalid.
    """
    raw = _five_fields(expression)
    fields = [canonical(field, text) for field, text in zip(FIELDS, raw, strict=True)]
    nth_items = ["#" in item or "L" in item for item in fields[4].split(",")]
    if any(nth_items) and not all(nth_items):
        raise ScheduleExpressionInvalid(
            "A weekday list cannot mix plain days with # or L", "Make two schedules, one for each kind"
        )
    text = " ".join(fields)
    try:
        expanded, nth = croniter.expand(text)
    except CroniterError as error:
        raise ScheduleExpressionInvalid(f"{expression!r} is not a valid expression") from error
    nearest = fields[2].endswith("W")
    parsed = CronExpression(
        text=text,
        minutes=_values(MINUTE, expanded[0]),
        hours=_values(HOUR, expanded[1]),
        months=frozenset(_values(MONTH, expanded[3])),
        day_rule=DayRule(
            days=frozenset(() if nearest else _values(DAY, expanded[2])),
            last_day="l" in expanded[2],
            nearest=expanded[2][0] if nearest else None,
            weekdays=frozenset(() if nth else _values(WEEKDAY, expanded[4])),
            nth=frozenset((day, LAST if n == "l" else n) for day, ns in nth.items() for n in ns),
            both=raw[2].startswith("*") or raw[4].startswith("*"),
        ),
        fixed=not raw[0].startswith("*") and not raw[1].startswith("*"),
    )
    if not parsed.ever_fires():
        raise ScheduleExpressionInvalid(
            "The expression never fires: no such day exists in the months it names",
            "Choose a day that exists, or L for the last day of the month",
        )
    return parsed


def _five_fields(expression: str) -> list[str]:
    """Return the fields in capitals, an alias spelled out and `?` as `*`."""
    if len(expression) > MAX_LENGTH:
        raise ScheduleExpressionInvalid(
            f"The expression is longer than {MAX_LENGTH} characters", "Split it into several schedules"
        )
    if not expression.isascii():
        raise ScheduleExpressionInvalid(
            "The expression may contain ASCII characters only",
            "Type it anew: pasted text often brings look-alike spaces, dashes or asterisks",
        )
    text = expression.strip()
    if not text:
        raise ScheduleExpressionInvalid("The expression is empty")
    if text.startswith("@"):
        text = _expand_alias(text)
    fields = text.upper().split()
    if len(fields) == 6:
        raise ScheduleExpressionInvalid(
            "The expression has 6 fields; seconds are not supported", f"Leave the seconds out. {FORMAT}"
        )
    if len(fields) != 5:
        raise ScheduleExpressionInvalid(f"The expression must have 5 fields, not {len(fields)}")
    for place in (2, 4):
        if fields[place] == "?":
            fields[place] = "*"
    return fields


def _expand_alias(text: str) -> str:
    alias = text.lower().split()[0]
    if alias == "@reboot":
        raise ScheduleExpressionInvalid(
            "@reboot is not supported: a schedule fires at times, not at starts", "Let the system start the job"
        )
    if alias == "@every":
        raise ScheduleExpressionInvalid("@every is not supported", "Use a step, for example */15 * * * *")
    if text.lower() not in ALIASES:
        raise ScheduleExpressionInvalid(f"{text!r} is not a known alias", f"Use one of {', '.join(ALIASES)}")
    return ALIASES[alias]


def _values(field: Field, expanded: list[int | str]) -> tuple[int, ...]:
    if expanded == ["*"]:
        return tuple(range(field.low, field.low + field.size))
    return tuple(sorted(value for value in expanded if isinstance(value, int)))
