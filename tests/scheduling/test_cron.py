from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from scheduling import cron


def instant(zone: str, wall: str) -> datetime:
    """The first instant at which clocks in `zone` show `wall`."""
    return datetime.fromisoformat(wall).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)


def shown(zone: str, fires: list[datetime]) -> list[str]:
    return [f"{fire.astimezone(ZoneInfo(zone)):%m-%d %H:%M %z}" for fire in fires]


def test_next_fire_is_strictly_after_to_the_microsecond() -> None:
    noon = datetime(2026, 5, 4, 12, tzinfo=UTC)
    tick = timedelta(microseconds=1)

    assert cron.next_fire("0 12 * * *", "UTC", noon - tick) == noon
    assert cron.next_fire("0 12 * * *", "UTC", noon) == noon + timedelta(days=1)
    assert cron.next_fire("0 12 * * *", "UTC", noon + tick) == noon + timedelta(days=1)


def test_any_aware_time_is_understood_and_the_answer_is_utc() -> None:
    after = datetime(2026, 5, 4, 23, 30, tzinfo=ZoneInfo("Asia/Tokyo"))

    found = cron.next_fire("0 9 * * *", "America/New_York", after)

    assert found.isoformat() == "2026-05-05T13:00:00+00:00"
    assert found.tzinfo is UTC


def test_a_naive_time_is_refused() -> None:
    with pytest.raises(ValueError, match="aware"):
        cron.next_fire("0 9 * * *", "UTC", datetime(2026, 5, 4))


def test_fires_between_leaves_out_the_start_and_takes_in_the_end() -> None:
    start = datetime(2026, 5, 4, 12, tzinfo=UTC)
    end = start + timedelta(minutes=30)

    found = cron.fires_between("*/10 * * * *", "UTC", start, end, 10)

    assert [fire.minute for fire in found] == [10, 20, 30]
    assert cron.fires_between("*/10 * * * *", "UTC", start, end, 2) == found[:2]
    assert cron.fires_between("*/10 * * * *", "UTC", start, end, 0) == []
    assert cron.fires_between("*/10 * * * *", "UTC", end, start, 10) == []


# Clock changes. Each row: what runs over about a day and a half around the change.


@pytest.mark.parametrize(
    ("zone", "expression", "after", "expected"),
    [
        # 02:00 -> 03:00
        ("America/New_York", "30 2 * * *", "2026-03-07 12:00", ["03-08 03:00 -0400", "03-09 02:30 -0400"]),
        ("America/New_York", "0 2 * * *", "2026-03-07 12:00", ["03-08 03:00 -0400", "03-09 02:00 -0400"]),
        ("America/New_York", "0 3 * * *", "2026-03-07 12:00", ["03-08 03:00 -0400", "03-09 03:00 -0400"]),
        ("America/New_York", "0,20,40 2 * * *", "2026-03-07 12:00", ["03-08 03:00 -0400", "03-09 02:00 -0400"]),
        ("America/New_York", "0 2,3 * * *", "2026-03-07 12:00", ["03-08 03:00 -0400", "03-09 02:00 -0400"]),
        (
            "America/New_York",
            "30 1-3 * * *",
            "2026-03-07 12:00",
            ["03-08 01:30 -0500", "03-08 03:00 -0400", "03-08 03:30 -0400", "03-09 01:30 -0400"],
        ),
        (
            "America/New_York",
            "*/15 * * * *",
            "2026-03-08 01:30",
            ["03-08 01:45 -0500", "03-08 03:00 -0400", "03-08 03:15 -0400"],
        ),
        ("America/New_York", "30 * * * *", "2026-03-08 00:45", ["03-08 01:30 -0500", "03-08 03:30 -0400"]),
        ("America/New_York", "0 */2 * * *", "2026-03-07 23:00", ["03-08 00:00 -0500", "03-08 04:00 -0400"]),
        ("America/New_York", "*/30 2 * * *", "2026-03-07 12:00", ["03-09 02:00 -0400", "03-09 02:30 -0400"]),
        ("Europe/Berlin", "30 2 * * *", "2026-03-28 12:00", ["03-29 03:00 +0200", "03-30 02:30 +0200"]),
        ("Europe/London", "30 1 * * *", "2026-03-28 12:00", ["03-29 02:00 +0100", "03-30 01:30 +0100"]),
        ("Australia/Sydney", "30 2 * * *", "2026-10-03 12:00", ["10-04 03:00 +1100", "10-05 02:30 +1100"]),
        ("Africa/Casablanca", "30 2 * * *", "2026-03-21 12:00", ["03-22 03:00 +0100", "03-23 02:30 +0100"]),
        # 02:00 -> 02:30
        ("Australia/Lord_Howe", "15 2 * * *", "2026-10-03 12:00", ["10-04 02:30 +1100", "10-05 02:15 +1100"]),
        ("Australia/Lord_Howe", "45 2 * * *", "2026-10-03 12:00", ["10-04 02:45 +1100", "10-05 02:45 +1100"]),
        (
            "Australia/Lord_Howe",
            "*/20 * * * *",
            "2026-10-04 01:30",
            ["10-04 01:40 +1030", "10-04 02:40 +1100", "10-04 03:00 +1100"],
        ),
        # 02:45 -> 03:45
        ("Pacific/Chatham", "0 3 * * *", "2026-09-26 12:00", ["09-27 03:45 +1345", "09-28 03:00 +1345"]),
        ("Pacific/Chatham", "0 * * * *", "2026-09-27 01:30", ["09-27 02:00 +1245", "09-27 04:00 +1345"]),
        # 00:00 -> 01:00
        ("America/Sao_Paulo", "0 0 * * *", "2018-11-03 12:00", ["11-04 01:00 -0200", "11-05 00:00 -0200"]),
        ("America/Sao_Paulo", "0 0 4 11 *", "2018-11-03 12:00", ["11-04 01:00 -0200", "11-04 00:00 -0300"]),
        ("Africa/Cairo", "30 0 * * *", "2024-04-25 12:00", ["04-26 01:00 +0300", "04-27 00:30 +0300"]),
        ("Africa/Cairo", "0 0 * * 5", "2024-04-25 12:00", ["04-26 01:00 +0300", "05-03 00:00 +0300"]),
        ("Asia/Beirut", "@daily", "2024-03-30 12:00", ["03-31 01:00 +0300", "04-01 00:00 +0300"]),
        ("Asia/Beirut", "@hourly", "2024-03-30 22:30", ["03-30 23:00 +0200", "03-31 01:00 +0300"]),
        ("America/Havana", "15,45 0 * * *", "2026-03-07 12:00", ["03-08 01:00 -0400", "03-09 00:15 -0400"]),
        ("America/Santiago", "59 0 * * *", "2026-09-05 12:00", ["09-06 01:00 -0300", "09-07 00:59 -0300"]),
        ("Atlantic/Azores", "0 0 * * *", "2026-03-28 12:00", ["03-29 01:00 +0000", "03-30 00:00 +0000"]),
        ("Asia/Tehran", "0 0 * * *", "2021-03-21 12:00", ["03-22 01:00 +0430", "03-23 00:00 +0430"]),
        # 00:01 -> 01:01
        ("America/St_Johns", "0,30 0 * * *", "2010-03-13 12:00", ["03-14 00:00 -0330", "03-14 01:01 -0230"]),
        # 01:00 -> 03:00
        ("Antarctica/Troll", "30 1,2 * * *", "2026-03-28 12:00", ["03-29 03:00 +0200", "03-30 01:30 +0200"]),
        ("Antarctica/Troll", "*/30 * * * *", "2026-03-29 00:15", ["03-29 00:30 +0000", "03-29 03:00 +0200"]),
        # 30 December does not take place
        (
            "Pacific/Apia",
            "0 9 * * *",
            "2011-12-29 08:00",
            ["12-29 09:00 -1000", "12-31 00:00 +1400", "12-31 09:00 +1400"],
        ),
        ("Pacific/Apia", "* 9 30 12 *", "2011-12-29 08:00", ["12-30 09:00 +1400"]),
        ("Pacific/Apia", "0 */8 * * *", "2011-12-29 12:00", ["12-29 16:00 -1000", "12-31 00:00 +1400"]),
    ],
    ids=lambda value: value if isinstance(value, str) and value[:1] != "2" else "",
)
def test_times_in_a_gap(zone: str, expression: str, after: str, expected: list[str]) -> None:
    found = cron.preview(expression, zone, instant(zone, after), len(expected))

    assert shown(zone, found) == expected


@pytest.mark.parametrize(
    ("zone", "expression", "after", "expected"),
    [
        # 02:00 -> 01:00
        ("America/New_York", "30 1 * * *", "2026-10-31 12:00", ["11-01 01:30 -0400", "11-02 01:30 -0500"]),
        ("America/New_York", "0 1 * * *", "2026-10-31 12:00", ["11-01 01:00 -0400", "11-02 01:00 -0500"]),
        ("America/New_York", "0 2 * * *", "2026-10-31 12:00", ["11-01 02:00 -0500", "11-02 02:00 -0500"]),
        (
            "America/New_York",
            "0,30 1 * * *",
            "2026-10-31 12:00",
            ["11-01 01:00 -0400", "11-01 01:30 -0400", "11-02 01:00 -0500"],
        ),
        (
            "America/New_York",
            "30 1-3 * * *",
            "2026-10-31 12:00",
            ["11-01 01:30 -0400", "11-01 02:30 -0500", "11-01 03:30 -0500", "11-02 01:30 -0500"],
        ),
        (
            "America/New_York",
            "*/15 * * * *",
            "2026-11-01 00:45",
            [f"11-01 01:{minute} {offset}" for offset in ("-0400", "-0500") for minute in ("00", "15", "30", "45")]
            + ["11-01 02:00 -0500"],
        ),
        (
            "America/New_York",
            "30 * * * *",
            "2026-11-01 00:45",
            ["11-01 01:30 -0400", "11-01 01:30 -0500", "11-01 02:30 -0500"],
        ),
        ("America/New_York", "0 */2 * * *", "2026-11-01 00:00", ["11-01 02:00 -0500", "11-01 04:00 -0500"]),
        ("America/New_York", "5 */1 1 11 *", "2026-11-01 01:01", ["11-01 01:05 -0400", "11-01 01:05 -0500"]),
        ("Europe/Berlin", "30 2 * * *", "2026-10-24 12:00", ["10-25 02:30 +0200", "10-26 02:30 +0100"]),
        ("Europe/London", "30 1 * * *", "2026-10-24 12:00", ["10-25 01:30 +0100", "10-26 01:30 +0000"]),
        ("Australia/Sydney", "30 2 * * *", "2026-04-04 12:00", ["04-05 02:30 +1100", "04-06 02:30 +1000"]),
        ("Africa/Casablanca", "30 2 * * *", "2026-02-14 12:00", ["02-15 02:30 +0100", "02-16 02:30 +0000"]),
        # 02:00 -> 01:30
        ("Australia/Lord_Howe", "45 1 * * *", "2026-04-04 12:00", ["04-05 01:45 +1100", "04-06 01:45 +1030"]),
        ("Australia/Lord_Howe", "15 1 * * *", "2026-04-04 12:00", ["04-05 01:15 +1100", "04-06 01:15 +1030"]),
        (
            "Australia/Lord_Howe",
            "*/20 * * * *",
            "2026-04-05 01:10",
            ["04-05 01:20 +1100", "04-05 01:40 +1100", "04-05 01:40 +1030", "04-05 02:00 +1030"],
        ),
        # 03:45 -> 02:45
        ("Pacific/Chatham", "0 3 * * *", "2026-04-04 12:00", ["04-05 03:00 +1345", "04-06 03:00 +1245"]),
        (
            "Pacific/Chatham",
            "30 * * * *",
            "2026-04-05 03:00",
            ["04-05 03:30 +1345", "04-05 03:30 +1245", "04-05 04:30 +1245"],
        ),
        # 24:00 -> 23:00 of the same day
        ("America/Sao_Paulo", "30 23 * * *", "2018-02-17 12:00", ["02-17 23:30 -0200", "02-18 23:30 -0300"]),
        ("America/Sao_Paulo", "0 0 * * *", "2018-02-17 12:00", ["02-18 00:00 -0300", "02-19 00:00 -0300"]),
        (
            "America/Sao_Paulo",
            "*/30 * 17 2 *",
            "2018-02-17 22:30",
            ["02-17 23:00 -0200", "02-17 23:30 -0200", "02-17 23:00 -0300", "02-17 23:30 -0300", "02-17 00:00 -0300"],
        ),
        ("Africa/Cairo", "0,30 23 * * 4", "2024-10-31 23:15", ["10-31 23:30 +0300", "11-07 23:00 +0200"]),
        ("Asia/Beirut", "@daily", "2024-10-26 12:00", ["10-27 00:00 +0200", "10-28 00:00 +0200"]),
        (
            "Asia/Beirut",
            "@hourly",
            "2024-10-26 22:00",
            ["10-26 23:00 +0300", "10-26 23:00 +0200", "10-27 00:00 +0200"],
        ),
        ("America/Santiago", "30 23 * * *", "2026-04-04 12:00", ["04-04 23:30 -0300", "04-05 23:30 -0400"]),
        ("Asia/Tehran", "30 23 * * *", "2021-09-21 12:00", ["09-21 23:30 +0430", "09-22 23:30 +0330"]),
        # 01:00 -> 00:00
        ("America/Havana", "0 0 * * *", "2026-10-31 12:00", ["11-01 00:00 -0400", "11-02 00:00 -0500"]),
        ("Atlantic/Azores", "@daily", "2026-10-24 12:00", ["10-25 00:00 +0000", "10-26 00:00 -0100"]),
        # 00:01 -> 23:01 of the day before
        ("America/St_Johns", "0 0 * * *", "2010-11-06 12:00", ["11-07 00:00 -0230", "11-08 00:00 -0330"]),
        (
            "America/St_Johns",
            "30 * * * *",
            "2010-11-06 23:00",
            ["11-06 23:30 -0230", "11-06 23:30 -0330", "11-07 00:30 -0330"],
        ),
        # 03:00 -> 01:00
        (
            "Antarctica/Troll",
            "30 1,2 * * *",
            "2026-10-24 12:00",
            ["10-25 01:30 +0200", "10-25 02:30 +0200", "10-26 01:30 +0000"],
        ),
        (
            "Antarctica/Troll",
            "45 * * * *",
            "2026-10-25 01:00",
            ["10-25 01:45 +0200", "10-25 02:45 +0200", "10-25 01:45 +0000", "10-25 02:45 +0000", "10-25 03:45 +0000"],
        ),
        # 24:00 -> 23:00 as the zone itself moves
        ("America/Scoresbysund", "30 23 * * *", "2024-10-26 12:00", ["10-26 23:30 -0100", "10-27 23:30 -0200"]),
    ],
    ids=lambda value: value if isinstance(value, str) and value[:1] != "2" else "",
)
def test_times_that_come_twice(zone: str, expression: str, after: str, expected: list[str]) -> None:
    found = cron.preview(expression, zone, instant(zone, after), len(expected))

    assert shown(zone, found) == expected


@pytest.mark.parametrize("expression", ["30 1 * * *", "0-59 1 * * *"])
def test_a_fixed_time_asked_for_during_its_second_pass_waits_for_the_next_day(expression: str) -> None:
    second_pass = datetime(2026, 11, 1, 6, 10, tzinfo=UTC)  # 01:10 -0500

    found = cron.next_fire(expression, "America/New_York", second_pass)

    assert found.astimezone(ZoneInfo("America/New_York")).day == 2


def test_a_wildcard_asked_for_during_the_second_pass_keeps_its_beat() -> None:
    second_pass = datetime(2026, 11, 1, 6, 10, tzinfo=UTC)  # 01:10 -0500

    found = cron.next_fire("*/15 * * * *", "America/New_York", second_pass)

    assert found == datetime(2026, 11, 1, 6, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "zone", "after", "sentences"),
    [
        (
            "30 2 * * *",
            "America/New_York",
            "2027-01-01",
            ["On 2027-03-14 02:30 does not exist in America/New_York; the run starts at 03:00."],
        ),
        (
            "30 1 * * *",
            "America/New_York",
            "2026-06-01",
            ["On 2026-11-01 01:30 comes twice in America/New_York; only the first time runs."],
        ),
        (
            "*/15 * * * *",
            "Europe/Berlin",
            "2026-01-01",
            [
                "On 2026-03-29 02:00, 02:15, 02:30 and 02:45 do not exist in Europe/Berlin; nothing runs instead.",
                "On 2026-10-25 02:00, 02:15, 02:30 and 02:45 come twice in Europe/Berlin; both times run.",
            ],
        ),
        (
            "0,30 2 * * *",
            "Europe/Berlin",
            "2026-01-01",
            [
                "On 2026-03-29 02:00 and 02:30 do not exist in Europe/Berlin; one run starts at 03:00.",
                "On 2026-10-25 02:00 and 02:30 come twice in Europe/Berlin; only the first time runs.",
            ],
        ),
        (
            "*/5 2 * * *",
            "Europe/Berlin",
            "2026-06-01",
            ["On 2026-10-25 02:00, 02:05 … 02:55 come twice in Europe/Berlin; both times run."],
        ),
        (
            "0 9 * * *",
            "Pacific/Apia",
            "2011-12-01",
            ["On 2011-12-30 09:00 does not exist in Pacific/Apia; the run starts at 00:00 on 2011-12-31."],
        ),
        ("30 12 * * *", "Europe/Berlin", "2026-01-01", []),
        ("30 2 * * *", "UTC", "2026-01-01", []),
    ],
)
def test_clock_changes_that_touch_a_run_are_announced(
    expression: str, zone: str, after: str, sentences: list[str]
) -> None:
    found = cron.dst_warnings(expression, zone, instant(zone, after), timedelta(days=300))

    assert found == sentences
