"""The arithmetic of attempts: what answers count as, waits, Retry-After, the breaker, giving up, the pace."""

import random
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from tests.factories import NOW
from webhooks import rules
from webhooks.rules import Code

SECOND, MINUTE, HOUR, DAY = (timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1))


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (100, Code.UNAVAILABLE),
        (200, Code.DELIVERED),
        (204, Code.DELIVERED),
        (299, Code.DELIVERED),
        (300, Code.REDIRECT),
        (301, Code.REDIRECT),
        (399, Code.REDIRECT),
        (400, Code.REFUSED),
        (401, Code.REFUSED),
        (404, Code.REFUSED),
        (409, Code.REFUSED),
        (410, Code.GONE),
        (429, Code.THROTTLED),
        (499, Code.REFUSED),
        (500, Code.UNAVAILABLE),
        (503, Code.UNAVAILABLE),
        (999, Code.UNAVAILABLE),
    ],
)
def test_an_answer_counts_as(status: int, code: Code) -> None:
    assert rules.code_of(status) is code


class Chance(random.Random):
    """Always the same number."""

    def __init__(self, number: float) -> None:
        self._number = number
        super().__init__()

    def random(self) -> float:
        return self._number


@pytest.mark.parametrize(
    ("retry", "multiplier", "seconds"),
    [
        (1, 2, 5),
        (2, 2, 10),
        (3, 2, 20),
        (4, 2, 40),
        (1, 1, 5),
        (9, 1, 5),
        (2, 10, 50),
        (3, 1.5, 11.25),
        (8, 2, 640),
        (9, 2, 900),
        (100, 2, 900),
        (100, 10, 900),
        (5000, 10, 900),
    ],
)
def test_the_wait_before_a_retry_grows_to_a_quarter_of_an_hour(retry: int, multiplier: float, seconds: float) -> None:
    assert rules.wait_before(retry, multiplier, Chance(0.5)) == timedelta(seconds=seconds)


def test_every_wait_is_within_a_fifth_of_what_the_policy_says() -> None:
    chance = random.Random(20_260_304)

    for _ in range(2000):
        retry, multiplier = chance.randint(1, 101), chance.uniform(1, 10)
        nominal = rules.wait_before(retry, multiplier, Chance(0.5))
        wait = rules.wait_before(retry, multiplier, chance)

        assert nominal * 0.8 <= wait <= nominal * 1.2
        assert rules.FIRST_WAIT * 0.8 <= wait <= rules.LONGEST_WAIT * 1.2


def test_waits_differ_from_each_other() -> None:
    chance = random.Random(1)

    assert len({rules.wait_before(1, 2, chance) for _ in range(100)}) > 90


@pytest.mark.parametrize(
    ("text", "wait"),
    [
        pytest.param("0", timedelta(0), id="at once"),
        pytest.param("120", 2 * MINUTE, id="seconds"),
        pytest.param("  7\t", 7 * SECOND, id="blanks around"),
        pytest.param("3600", HOUR, id="an hour"),
        pytest.param("3601", HOUR, id="over an hour"),
        pytest.param("315360000", HOUR, id="ten years"),
        pytest.param("9" * 5000, HOUR, id="a number without end"),
        pytest.param("00000000000000000005", 5 * SECOND, id="leading zeros"),
        pytest.param(format_datetime(NOW.replace(microsecond=0) + MINUTE, usegmt=True), MINUTE, id="a date"),
        pytest.param("Wednesday, 04-Mar-26 05:07:07 GMT", MINUTE, id="an old form of a date"),
        pytest.param("Wed, 04 Mar 2026 07:07:07 +0200", MINUTE, id="a date of another zone"),
        pytest.param("Tue, 03 Mar 2026 05:06:07 GMT", timedelta(0), id="a date in the past"),
        pytest.param("Thu, 04 Mar 2036 05:06:07 GMT", HOUR, id="a date in ten years"),
        pytest.param("Fri, 31 Dec 9999 23:59:59 GMT", HOUR, id="the last date there is"),
        pytest.param(None, None, id="no header"),
        pytest.param("", None, id="nothing"),
        pytest.param("soon", None, id="a word"),
        pytest.param("-5", None, id="less than nothing"),
        pytest.param("1.5", None, id="a fraction"),
        pytest.param("1e3", None, id="an exponent"),
        pytest.param("0x10", None, id="another base"),
        pytest.param("٣", None, id="a digit of another script"),
        pytest.param("5, 10", None, id="two"),
        pytest.param("Wed, 04 Mar 2026 05:07:07 -0000", None, id="a date without a zone"),
        pytest.param("Wed, 45 Mar 2026 05:07:07 GMT", None, id="a date that is none"),
        pytest.param("Wed, 04 Mar 99999 05:07:07 GMT", None, id="a year that is none"),
        pytest.param("\0", None, id="NUL"),
    ],
)
def test_retry_after_asks_for(text: str | None, wait: timedelta | None) -> None:
    assert rules.retry_after(text, now=NOW.replace(microsecond=0)) == wait


def test_no_retry_after_gives_an_error_or_a_wait_that_is_out_of_bounds() -> None:
    chance = random.Random(4)
    words = [
        "Wed,",
        "04",
        "Mar",
        "2026",
        "99999999999",
        "05:06:07",
        "25:61:61",
        "GMT",
        "+9999",
        "-0000",
        ":",
        "é",
        "\0",
    ]

    for _ in range(2000):
        text = " ".join(chance.choices(words, k=chance.randint(0, 8)))
        wait = rules.retry_after(text, now=NOW)

        assert wait is None or timedelta(0) <= wait <= HOUR


@pytest.mark.parametrize(
    ("failures", "opened"),
    [
        (0, timedelta(0)),
        (4, timedelta(0)),
        (5, 30 * SECOND),
        (6, MINUTE),
        (7, 2 * MINUTE),
        (9, 8 * MINUTE),
        (10, 15 * MINUTE),
        (4_000_000_000, 15 * MINUTE),
    ],
)
def test_the_breaker_opens_for_longer_with_each_failure(failures: int, opened: timedelta) -> None:
    assert rules.open_for(failures) == opened


@pytest.mark.parametrize(
    ("code", "exhausted", "failing_since", "reason"),
    [
        pytest.param(Code.GONE, 0, None, "It answered 410 Gone: it wants no more", id="gone"),
        pytest.param(Code.TIMEOUT, 99, NOW, "", id="not yet"),
        pytest.param(Code.TIMEOUT, 100, NOW, "100 deliveries in a row were given up", id="a hundred"),
        pytest.param(Code.TIMEOUT, 0, NOW - 5 * DAY + SECOND, "", id="not quite five days"),
        pytest.param(Code.TIMEOUT, 0, NOW - 5 * DAY, "Nothing has arrived for 5 days", id="five days"),
        pytest.param(Code.REFUSED, 0, None, "", id="a first failure"),
    ],
)
def test_a_webhook_is_given_up(code: Code, exhausted: int, failing_since: datetime | None, reason: str) -> None:
    assert rules.why_give_up(code, exhausted=exhausted, failing_since=failing_since, now=NOW) == reason


@pytest.mark.parametrize("per_second", [1, 2, 3, 7, 10, 60, 999, 1000])
def test_at_once_go_as_many_as_in_a_second_and_then_one_after_another(per_second: int) -> None:
    gap = SECOND / per_second
    paced = rules.paced(per_second, None, per_second, now=NOW)

    assert rules.allowed(per_second, None, now=NOW) == per_second
    assert rules.allowed(per_second, paced, now=NOW) == 0
    assert rules.allowed(per_second, paced, now=NOW + gap) == 1
    assert rules.allowed(per_second, paced, now=NOW + DAY) == per_second


def test_no_more_go_in_the_long_run_than_the_rate_says() -> None:
    chance = random.Random(9)

    for per_second in (1, 3, 7, 50, 1000):
        now, paced, sent = datetime(2026, 1, 1, tzinfo=UTC), None, 0
        began = now
        for _ in range(500):
            take = min(chance.randint(0, 40), rules.allowed(per_second, paced, now=now))
            paced = rules.paced(per_second, paced, take, now=now)
            sent += take
            now += timedelta(milliseconds=chance.randint(0, 300))

        # A burst of a second, and the gap is rounded to microseconds.
        assert sent <= ((now - began).total_seconds() + 1) * per_second * 1.001 + 1


def test_without_a_rate_only_what_was_asked_for_holds_up() -> None:
    assert rules.allowed(None, None, now=NOW) == rules.UNPACED
    assert rules.allowed(None, NOW, now=NOW) == rules.UNPACED
    assert rules.allowed(None, NOW + SECOND, now=NOW) == 0
    assert rules.paced(None, NOW + SECOND, 7, now=NOW) == NOW + SECOND
    assert rules.paced(5, NOW, 0, now=NOW) == NOW
