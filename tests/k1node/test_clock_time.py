"""The database's time, as a node carries it on between two questions."""

import time

import pytest

from k1node.lib import clock_time
from tests.databases import only_postgresql

pytestmark = pytest.mark.django_db


@only_postgresql
def test_time_goes_on_while_the_machine_is_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock_time, "_offset", None)  # or the question of another test is half a minute old
    before = clock_time.database_now()
    suspended = 30.0
    # Linux: the monotonic clock stands still in a suspend, that of the boot time goes on.
    real = time.clock_gettime
    monkeypatch.setattr(
        time,
        "clock_gettime",
        lambda clock: real(clock) + (suspended if clock == time.CLOCK_BOOTTIME else 0.0),
    )

    after = clock_time.database_now()

    assert (after - before).total_seconds() == pytest.approx(suspended, abs=5)


@only_postgresql
def test_the_database_is_asked_once_a_minute(django_assert_num_queries: object) -> None:
    clock_time.database_now()
    with django_assert_num_queries(0):  # type: ignore[operator]
        clock_time.database_now()


def test_the_present_time_can_be_had_without_a_question() -> None:
    known = clock_time.database_now()

    assert abs((clock_time.carried_now() - known).total_seconds()) < 5
