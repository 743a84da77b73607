"""Random expressions, times and zones: against other libraries, against a watched clock, against themselves."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter  # type: ignore[import-untyped]
from cronsim import CronSim
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scheduling import cron

CHANGES = [
    ("America/New_York", datetime(2026, 3, 8, 7, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 11, 1, 6, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 10, 3, 15, 30, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 4, 4, 15, tzinfo=UTC)),
    ("America/Sao_Paulo", datetime(2018, 11, 4, 3, tzinfo=UTC)),
    ("America/Sao_Paulo", datetime(2018, 2, 18, 2, tzinfo=UTC)),
    ("America/St_Johns", datetime(2010, 3, 14, 3, 31, tzinfo=UTC)),
    ("America/St_Johns", datetime(2010, 11, 7, 2, 31, tzinfo=UTC)),
    ("Antarctica/Troll", datetime(2026, 3, 29, 1, tzinfo=UTC)),
    ("Antarctica/Troll", datetime(2026, 10, 25, 1, tzinfo=UTC)),
    ("Antarctica/Casey", datetime(2010, 3, 4, 15, tzinfo=UTC)),  # 3 hours back
    ("Pacific/Apia", datetime(2011, 12, 30, 10, tzinfo=UTC)),
    ("Pacific/Kwajalein", datetime(1993, 8, 21, 12, tzinfo=UTC)),
    ("Asia/Pyongyang", datetime(2015, 8, 14, 15, tzinfo=UTC)),
]


def items(low: int, high: int) -> st.SearchStrategy[str]:
    """One field: numbers, rising ranges, steps, lists."""
    number = st.integers(low, high)
    span = st.tuples(number, number).map(sorted).filter(lambda ends: ends[0] < ends[1])
    step = st.integers(2, max(high - low, 3))
    item = st.one_of(
        number.map(str),
        span.map(lambda ends: f"{ends[0]}-{ends[1]}"),
        st.tuples(span, step).map(lambda parts: f"{parts[0][0]}-{parts[0][1]}/{parts[1]}"),
        step.map(lambda width: f"*/{width}"),
    )
    return st.lists(item, min_size=1, max_size=3).map(",".join) | st.just("*")


EXPRESSIONS = st.tuples(
    items(0, 59),
    items(0, 23),
    st.just("*") | items(1, 31) | st.just("L"),
    st.just("*") | items(1, 12),
    st.just("*") | items(0, 7) | st.sampled_from(["MON-FRI", "SAT,SUN", "5#3", "1#1,0#5"]),
).map(" ".join)
TIMES = st.datetimes(datetime(1990, 1, 1), datetime(2060, 1, 1), timezones=st.just(UTC))
ZONES = st.sampled_from(sorted({zone for zone, _ in CHANGES} | {"UTC", "Asia/Kolkata", "Europe/Berlin"}))


def parsed_or_skipped(expression: str) -> cron.CronExpression:
    try:
        return cron.parse(expression)
    except cron.ScheduleExpressionInvalid:
        assume(False)
        raise


@given(EXPRESSIONS, TIMES)
@settings(max_examples=300, deadline=None)
def test_cronsim_finds_the_same_times(expression: str, after: datetime) -> None:
    parsed_or_skipped(expression)
    other = CronSim(expression, after)

    found = cron.preview(expression, "UTC", after, 4)

    assert found == [next(other) for _ in range(4)]


@given(EXPRESSIONS, TIMES)
@settings(max_examples=150, deadline=None)
def test_croniter_finds_the_same_times(expression: str, after: datetime) -> None:
    parsed_or_skipped(expression)
    day, weekday = expression.split()[2::2]
    assume("#" not in weekday or day == "*")  # croniter takes a day and an nth weekday for "and"
    assume("*" not in day[1:] + weekday[1:])  # and a * that is not the first character for one that is
    other = croniter(expression, after, ret_type=datetime, implement_cron_bug=True)

    found = cron.preview(expression, "UTC", after, 3)

    assert found == [other.get_next() for _ in range(3)]


@given(EXPRESSIONS, ZONES, TIMES)
@settings(max_examples=150, deadline=None)
def test_times_rise_and_match_the_wall_clock(expression: str, zone: str, after: datetime) -> None:
    parsed = parsed_or_skipped(expression)

    found = cron.preview(expression, zone, after, 4)

    assert after < found[0]
    assert all(earlier < later for earlier, later in zip(found, found[1:], strict=False))
    for fire in found:
        wall = fire.astimezone(ZoneInfo(zone)).replace(tzinfo=None, fold=0)
        at_a_change = fire.astimezone(ZoneInfo(zone)).utcoffset() != (
            (fire - timedelta(minutes=1)).astimezone(ZoneInfo(zone)).utcoffset()
        )
        assert parsed.first_wall_time(wall) == wall or (parsed.fixed and at_a_change)


@given(EXPRESSIONS, ZONES, TIMES, st.timedeltas(timedelta(0), timedelta(days=3)))
@settings(max_examples=100, deadline=None)
def test_asking_later_gives_the_same_next_time_until_it_comes(
    expression: str, zone: str, after: datetime, wait: timedelta
) -> None:
    parsed_or_skipped(expression)

    found = cron.next_fire(expression, zone, after)

    assert cron.next_fire(expression, zone, min(after + wait, found - timedelta(microseconds=1))) == found


def minute_by_minute(parsed: cron.CronExpression, zone: ZoneInfo, start: datetime, minutes: int) -> list[datetime]:
    """Watch the clock on the wall: the rules as a person would apply them, with no arithmetic on zones."""
    found = []
    minute = timedelta(minutes=1)
    last = highest = start.astimezone(zone).replace(tzinfo=None, fold=0)
    for count in range(1, minutes + 1):
        now = start + count * minute
        wall = now.astimezone(zone).replace(tzinfo=None, fold=0)
        if parsed.fixed:
            due = wall > highest and parsed.first_wall_time(highest + minute) <= wall
        else:
            due = parsed.first_wall_time(wall) == wall
        if due:
            found.append(now)
        last, highest = wall, max(highest, wall)
    assert last <= highest
    return found


DENSE = st.one_of(
    st.tuples(items(0, 59), items(0, 23)).map(lambda fields: f"{fields[0]} {fields[1]} * * *"),
    st.tuples(st.integers(0, 59), items(0, 4)).map(lambda fields: f"{fields[0]} {fields[1]} * * *"),
    st.tuples(items(0, 59), items(22, 23)).map(lambda fields: f"{fields[0]} {fields[1]} * * *"),
)


@pytest.mark.parametrize(("zone", "change"), CHANGES, ids=lambda value: str(value)[:20])
@given(expression=DENSE, offset=st.integers(-100, 100))
@settings(max_examples=8, deadline=None)
def test_a_watched_clock_agrees_around_every_change(zone: str, change: datetime, expression: str, offset: int) -> None:
    parsed = cron.parse(expression)
    # A start before both passes, so that the watcher has seen every time that comes again.
    start = change - timedelta(hours=6, minutes=offset)
    end = start + timedelta(hours=14)

    found = cron.fires_between(expression, zone, start, end, 1000)

    assert found == minute_by_minute(parsed, ZoneInfo(zone), start, 14 * 60)


@given(EXPRESSIONS)
@settings(max_examples=100, deadline=None)
def test_every_expression_can_be_described(expression: str) -> None:
    parsed_or_skipped(expression)

    words = cron.describe(expression, "UTC")

    assert words
    assert not set("*/#") & set(words)
