from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k1node.lib.errors import Detail
from scheduling import cron

FORMAT = "Use format: minute hour day month weekday"
NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
LISTED = "@hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually"
WEEKDAYS = "weekday must be 0-7 (0 and 7 are Sunday) or SUN-SAT"
NEVER = "The expression never fires: no such day exists in the months it names"
NEVER_HINT = "Choose a day that exists, or L for the last day of the month"
STEP_HINT = f"A step counts inside its own field and begins anew with it. {FORMAT}"
HASHED = "is not supported: hashed and random times (H, R) are not the same everywhere"


@pytest.mark.parametrize(
    ("expression", "same_as"),
    [
        pytest.param("@hourly", "0 * * * *", id="hourly"),
        pytest.param("@daily", "0 0 * * *", id="daily"),
        pytest.param("@midnight", "0 0 * * *", id="midnight"),
        pytest.param("@weekly", "0 0 * * 0", id="weekly"),
        pytest.param("@monthly", "0 0 1 * *", id="monthly"),
        pytest.param("@yearly", "0 0 1 1 *", id="yearly"),
        pytest.param(" @Annually ", "0 0 1 1 *", id="annually, spaces, capitals"),
        pytest.param("\t0   0  * * *\n", "0 0 * * *", id="any white space"),
        pytest.param("0 0 ? * ?", "0 0 * * *", id="question mark"),
        pytest.param("05 004 * * *", "5 4 * * *", id="leading zeros"),
        pytest.param("0 0 * jan-mar,DEC *", "0 0 * 1-3,12 *", id="month names"),
        pytest.param("0 0 * * mon-FRI", "0 0 * * 1-5", id="weekday names"),
        pytest.param("0 0 * * 7", "0 0 * * 0", id="7 is Sunday"),
        pytest.param("0 0 * * fri-sun", "0 0 * * 0,5,6", id="range to Sunday"),
        pytest.param("0 0 * * 5-7", "0 0 * * 0,5,6", id="range to 7"),
        pytest.param("0 0 * * 0-7", "0 0 * * 0-6", id="all weekdays"),
        pytest.param("0 22-2 * * *", "0 22,23,0,1,2 * * *", id="range over midnight"),
        pytest.param("0 9-9 * * *", "0 9 * * *", id="range of one"),
        pytest.param("0 9-9/2 * * *", "0 9 * * *", id="range of one with a step"),
        pytest.param("50/15 1 * * *", "50 1 * * *", id="start whose step leaves the field"),
        pytest.param("10/20 1 * * *", "10,30,50 1 * * *", id="start with a step"),
        pytest.param("*/60 * * * *", "*/60 */1 * * *", id="step as wide as the field"),
        pytest.param("0 0 W15 * *", "0 0 15w * *", id="nearest weekday"),
        pytest.param("0 0 * * SUN#2", "0 0 * * 7#2", id="nth weekday by name"),
        pytest.param("0 0 * * lfri", "0 0 * * L5", id="last weekday by name"),
    ],
)
def test_spellings_of_one_schedule_fire_alike(expression: str, same_as: str) -> None:
    assert cron.preview(expression, "UTC", NEW_YEAR, 30) == cron.preview(same_as, "UTC", NEW_YEAR, 30)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        pytest.param("0 0 L * *", ["2026-01-31", "2026-02-28", "2026-03-31"], id="last day"),
        pytest.param("0 0 15,L 2 *", ["2026-02-15", "2026-02-28", "2027-02-15"], id="last day in a list"),
        pytest.param(
            "0 0 30,L 2 *", ["2026-02-28", "2027-02-28", "2028-02-29"], id="last day beside one that never is"
        ),
        pytest.param("0 0 15W 8,11 *", ["2026-08-14", "2026-11-16", "2027-08-16"], id="weekday nearest, both sides"),
        pytest.param("0 0 1W 8 *", ["2026-08-03", "2027-08-02", "2028-08-01"], id="weekday nearest stays in the month"),
        pytest.param("0 0 31W 5,10 *", ["2026-05-29", "2026-10-30", "2027-05-31"], id="weekday nearest at the end"),
        pytest.param("0 0 * * 5#3", ["2026-01-16", "2026-02-20", "2026-03-20"], id="third Friday"),
        pytest.param("0 0 * * MON#5", ["2026-03-30", "2026-06-29", "2026-08-31"], id="fifth Monday"),
        pytest.param("0 0 * * L7", ["2026-01-25", "2026-02-22", "2026-03-29"], id="last Sunday"),
        pytest.param("0 0 * * L1,1#1", ["2026-01-05", "2026-01-26", "2026-02-02"], id="first and last Monday"),
        pytest.param("0 0 13 * 5", ["2026-01-02", "2026-01-09", "2026-01-13"], id="day or weekday"),
        pytest.param("0 0 20 * 5#3", ["2026-01-16", "2026-01-20", "2026-02-20"], id="day or nth weekday"),
        pytest.param("0 0 31 2 1", ["2026-02-02", "2026-02-09", "2026-02-16"], id="day that never is or weekday"),
        pytest.param("0 0 */10 * 1", ["2026-05-11", "2026-06-01", "2026-08-31"], id="day with a star and weekday"),
        pytest.param("0 0 1 * */7", ["2026-02-01", "2026-03-01", "2026-11-01"], id="weekday with a star and day"),
        pytest.param("0 0 29 2 *", ["2028-02-29", "2032-02-29", "2036-02-29"], id="29 February"),
        pytest.param("0 0 * 2 FRI#5", ["2036-02-29", "2064-02-29", "2092-02-29"], id="fifth Friday of February"),
    ],
)
def test_days_are_found_in_the_calendar(expression: str, expected: list[str]) -> None:
    assert [f"{fire:%Y-%m-%d}" for fire in cron.preview(expression, "UTC", NEW_YEAR, 3)] == expected


def test_29_february_is_found_over_a_year_without_a_leap_day() -> None:
    found = cron.next_fire("0 0 29 2 *", "UTC", datetime(2096, 2, 29, tzinfo=UTC))

    assert found == datetime(2104, 2, 29, tzinfo=UTC)


def test_parsed_expressions_are_shared() -> None:
    assert cron.parse("*/5 * * * *") is cron.parse("*/5 * * * *")


@pytest.mark.parametrize(
    ("expression", "message", "suggestion"),
    [
        pytest.param("", "The expression is empty", FORMAT, id="empty"),
        pytest.param(" \t ", "The expression is empty", FORMAT, id="blank"),
        pytest.param(
            "0 " * 101, "The expression is longer than 200 characters", "Split it into several schedules", id="long"
        ),
        pytest.param(
            "0 0 * * *\u00a0",
            "The expression may contain ASCII characters only",
            "Type it anew: pasted text often brings look-alike spaces, dashes or asterisks",
            id="not ASCII",
        ),
        pytest.param("0 0 * *", "The expression must have 5 fields, not 4", FORMAT, id="four fields"),
        pytest.param("backup", "The expression must have 5 fields, not 1", FORMAT, id="one word"),
        pytest.param(
            "*/15 0 0 * * *",
            "The expression has 6 fields; seconds are not supported",
            f"Leave the seconds out. {FORMAT}",
            id="six fields",
        ),
        pytest.param("0 0 0 * * * 2027", "The expression must have 5 fields, not 7", FORMAT, id="seven fields"),
        pytest.param(
            "@reboot",
            "@reboot is not supported: a schedule fires at times, not at starts",
            "Let the system start the job",
            id="reboot",
        ),
        pytest.param(
            "@every 5m", "@every is not supported", "Use a step, for example */15 * * * *", id="every with a length"
        ),
        pytest.param("@dayly", "'@dayly' is not a known alias", f"Use one of {LISTED}", id="unknown alias"),
        pytest.param("@daily 5", "'@daily 5' is not a known alias", f"Use one of {LISTED}", id="alias and more"),
        pytest.param("61 * * * *", "minute must be 0-59, not 61", FORMAT, id="minute 61"),
        pytest.param("60/2 * * * *", "minute must be 0-59, not 60", FORMAT, id="start 60"),
        pytest.param("0 24 * * *", "hour must be 0-23, not 24", FORMAT, id="hour 24"),
        pytest.param("0 0 0 * *", "day must be 1-31, not 0", FORMAT, id="day 0"),
        pytest.param("0 0 1-32 * *", "day must be 1-31, not 32", FORMAT, id="day range to 32"),
        pytest.param("0 0 1 0 *", "month must be 1-12 or JAN-DEC, not 0", FORMAT, id="month 0"),
        pytest.param(
            "0 0 1 foo *", "'FOO' is not a valid month: month must be 1-12 or JAN-DEC", FORMAT, id="unknown month"
        ),
        pytest.param("0 0 * * 8", f"{WEEKDAYS}, not 8", FORMAT, id="weekday 8"),
        pytest.param("0 0 * * MOO", f"'MOO' is not a valid weekday: {WEEKDAYS}", FORMAT, id="unknown weekday"),
        pytest.param("0 0 * * 5L", f"'5L' is not a valid weekday: {WEEKDAYS}", FORMAT, id="5L for L5"),
        pytest.param("0 0 LW * *", "'LW' is not a valid day: day must be 1-31", FORMAT, id="LW"),
        pytest.param("-5 * * * *", "'-5' is not a valid minute: minute must be 0-59", FORMAT, id="negative"),
        pytest.param("*-5 * * * *", "'*-5' is not a valid minute: minute must be 0-59", FORMAT, id="range from *"),
        pytest.param("? * * * *", "'?' is not a valid minute: minute must be 0-59", FORMAT, id="? in minutes"),
        pytest.param("L * * * *", "'L' is not a valid minute: minute must be 0-59", FORMAT, id="L in minutes"),
        pytest.param("0\x000 * * * *", "'0\\x000' is not a valid minute: minute must be 0-59", FORMAT, id="zero byte"),
        pytest.param(
            "1,,2 * * * *", "The minute field has an empty place in its list", "Remove a comma", id="empty place"
        ),
        pytest.param(
            "0 0 *,3 * *",
            "The day field has * inside a list",
            "Write * alone, or a step as */2",
            id="* in a list",
        ),
        pytest.param(
            "*/0 * * * *", "The step of the minute field must be 1-60, not 0", STEP_HINT, id="step of nothing"
        ),
        pytest.param(
            "*/90 * * * *", "The step of the minute field must be 1-60, not 90", STEP_HINT, id="step over the hour"
        ),
        pytest.param("0 0 * * */8", "The step of the weekday field must be 1-7, not 8", STEP_HINT, id="step over days"),
        pytest.param("*/X * * * *", "The step of the minute field must be 1-60, not X", STEP_HINT, id="step X"),
        pytest.param(
            "0 22-2/2 * * *",
            "'22-2/2' wraps around and has a step",
            "Split it in two: 22-23/2,0-2/2",
            id="step over midnight",
        ),
        pytest.param("H * * * *", f"'H' {HASHED}", "Choose the minute yourself", id="hashed"),
        pytest.param("0 r(0-5)/2 * * *", f"'R(0-5)/2' {HASHED}", "Choose the hour yourself", id="random with a range"),
        pytest.param(
            "0 0 1,15W * *",
            "A day with W cannot be part of a list",
            "Make two schedules, one of them for the day with W",
            id="W in a list",
        ),
        pytest.param(
            "0 0 * * 5#6",
            "'5#6' must have a number from 1 to 5 after #",
            "Use for example FRI#3 for the third Friday",
            id="sixth Friday",
        ),
        pytest.param(
            "0 0 * * 1,5#3",
            "A weekday list cannot mix plain days with # or L",
            "Make two schedules, one for each kind",
            id="plain and nth weekdays",
        ),
        pytest.param("0 0 31 2 *", NEVER, NEVER_HINT, id="31 February"),
        pytest.param("0 0 31 APR,JUN,SEP,NOV ?", NEVER, NEVER_HINT, id="31 of the short months"),
        pytest.param("0 0 30 2 */2", NEVER, NEVER_HINT, id="30 February and a weekday"),
    ],
)
def test_unusable_expressions_say_what_to_write_instead(expression: str, message: str, suggestion: str) -> None:
    with pytest.raises(cron.ScheduleExpressionInvalid) as caught:
        cron.parse(expression)

    assert caught.value.details == (Detail("schedule_expr", message, suggestion),)


def test_errors_can_name_another_field() -> None:
    error = cron.ScheduleExpressionInvalid("The expression is empty", field="expression")

    assert (error.details, error.status, error.code) == (
        (Detail("expression", "The expression is empty", FORMAT),),
        400,
        "INVALID_REQUEST",
    )


@given(st.text(alphabet="0123456789*/,-?LWHR#@ adfmnorstuv\t()", max_size=24) | st.text(max_size=12))
@settings(max_examples=200, deadline=None)
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        parsed = cron.parse(text)
    except cron.ScheduleExpressionInvalid as error:
        assert error.details[0].suggestion
        assert error.__cause__ is None, "croniter refused what the field checks had let through"
    else:
        assert cron.parse(parsed.text).minutes == parsed.minutes
