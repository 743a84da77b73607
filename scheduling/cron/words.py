"""A cron expression in words. cron-descriptor words the parts; what it misreads is put together here."""

from collections.abc import Iterable

from cron_descriptor import Options, get_description  # type: ignore[import-untyped]

from scheduling.cron.calendar import CronExpression

_IN_WORDS = Options(use_24hour_time_format=True, locale_code="en_US")


def words(parsed: CronExpression) -> str:
    """Return the expression in words, field by field: put together, cron-descriptor takes some "or" for "and"."""
    minute, hour, day, month, weekday = parsed.text.split()
    rule = parsed.day_rule
    minute = _listed(minute, parsed.minutes)
    hour = _listed(hour, parsed.hours)
    month = _listed(month, parsed.months)
    if "/" in weekday:
        weekday = ",".join(map(str, sorted(rule.weekdays)))
    days = []
    if day != "*":
        plain = ",".join(item for item in day.split(",") if item != "L")
        kinds = ([_listed(plain, rule.days)] if plain else []) + (["L"] if rule.last_day else [])
        days.append(" and ".join(_phrase(f"0 0 {kind} * *") for kind in kinds))
    if weekday != "*":
        kinds = weekday.split(",") if rule.nth else [weekday]
        days.append(" and ".join(_phrase(f"0 0 * * {kind}") for kind in kinds))
    if len(days) == 2 and not rule.both:
        days = [f"{days[0]} or {days[1].removeprefix('only ')}"]
    time = get_description(f"{minute} {hour} * * *", _IN_WORDS).replace("At 1 minutes", "At 1 minute")
    return ", ".join([time, *days, *([_phrase(f"0 0 * {month} *")] if month != "*" else [])])


def _listed(text: str, values: Iterable[int]) -> str:
    """Return `text`, or all its values where it has a step inside a list, which cron-descriptor misreads."""
    return ",".join(map(str, sorted(values))) if "," in text and "/" in text else text


def _phrase(expression: str) -> str:
    """Return what cron-descriptor says about the days of an expression that fires at midnight."""
    description: str = get_description(expression, _IN_WORDS)
    return description.removeprefix("At 00:00, ")
