"""The event log's one reader: in order, page by page, and never past a commit that is still to come."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection, transaction

from k1node.events import log
from k1node.events.log import Cursor
from k1node.events.models import Event
from tests.databases import Rival, only_postgresql

# On PostgreSQL a reader sees nothing of the transaction it runs in, nor of any that is still open.
pytestmark = pytest.mark.django_db(transaction=True)

NOW = datetime(2026, 3, 4, 5, 6, 7, 890123, tzinfo=UTC)


def publish(*names: str) -> None:
    with transaction.atomic():
        log.publish_many([(name, {}) for name in names], now=NOW)


def names(events: list[log.LoggedEvent]) -> list[str]:
    return [event.name for event in events]


def test_an_event_is_read_as_it_was_published(now: datetime) -> None:
    data = {"text": "it's 100% é🙂", "none": None, "deep": {"list": [1, 2.5, True]}}

    log.publish("task.completed", data, now=now)

    (event,) = log.read_after(Cursor())
    assert (event.name, event.data, event.occurred_at) == ("task.completed", data, now)


def test_a_moment_without_microseconds_is_read_as_it_was_published() -> None:
    moment = datetime(2026, 3, 4, tzinfo=UTC)

    log.publish("a", {}, now=moment)

    assert log.read_after(Cursor())[0].occurred_at == moment


def test_an_empty_log_has_nothing_to_read() -> None:
    assert log.read_after(Cursor()) == []
    assert log.read_after(log.end()) == []


def test_publishing_nothing_writes_nothing(django_assert_num_queries: Callable[[int], Any], now: datetime) -> None:
    with django_assert_num_queries(0):
        log.publish_many([], now=now)


def test_pages_follow_each_other_without_gap_or_overlap() -> None:
    for number in range(5):
        publish(f"{number}a", f"{number}b", f"{number}c")

    cursor, pages = Cursor(), []
    while page := log.read_after(cursor, limit=4):
        pages.append(names(page))
        cursor = page[-1].cursor

    assert [len(page) for page in pages] == [4, 4, 4, 3]
    assert sum(pages, []) == [f"{number}{letter}" for number in range(5) for letter in "abc"]


def test_cursors_rise_in_the_order_of_reading() -> None:
    publish("a", "b")
    publish("c")

    cursors = [event.cursor for event in log.read_after(Cursor())]

    assert cursors == sorted(set(cursors))
    assert len(cursors) == 3


def test_a_follower_that_starts_at_the_end_sees_only_what_comes() -> None:
    publish("old")
    end = log.end()

    publish("new")

    assert names(log.read_after(end)) == ["new"]


def test_what_was_pruned_does_not_disturb_a_follower() -> None:
    publish("old", "older")
    end = log.end()
    Event.objects.all().delete()

    publish("new")

    assert names(log.read_after(end)) == ["new"]


def test_a_fact_of_a_transaction_that_fails_never_happened(now: datetime) -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        log.publish("a", {}, now=now)
        raise ZeroDivisionError

    publish("b")

    assert names(log.read_after(Cursor())) == ["b"]


def test_a_follower_of_some_names_passes_the_others_over() -> None:
    publish("a", "b", "a")
    publish("b", "c")

    cursor, pages = Cursor(), []
    while True:
        events, end = log.read_named(cursor, ["a", "c"], limit=2)
        if end == cursor:
            break
        pages.append(names(events))
        cursor = end

    assert pages == [["a"], ["a"], ["c"]]
    assert cursor == log.end()
    assert log.read_named(cursor, ["a"]) == ([], cursor)


def test_a_follower_of_some_names_reads_what_all_would() -> None:
    publish("a", "b")
    publish("a")

    events, end = log.read_named(Cursor(), {"a", "b"})

    assert events == log.read_after(Cursor())
    assert end == events[-1].cursor


@only_postgresql
def test_a_follower_of_some_names_does_not_step_over_a_late_commit(rival: Rival) -> None:
    with transaction.atomic():
        log.publish("late", {}, now=NOW)  # takes the lower id
        rival.do(publish, "early")
        seen, cursor = rival.do(log.read_named, Cursor(), ["late", "early"])

    after, _ = log.read_named(cursor, ["late", "early"])
    assert names(seen) + names(after) == ["late", "early"]


@only_postgresql
def test_a_late_commit_is_not_stepped_over(rival: Rival) -> None:
    with transaction.atomic():
        log.publish("late", {}, now=NOW)  # takes the lower id
        rival.do(publish, "early")

        seen = rival.do(log.read_after, Cursor())
        last_id = rival.do(lambda: Event.objects.order_by("-id").values_list("id", flat=True)[0])

    cursor = seen[-1].cursor if seen else Cursor()
    assert names(seen) + names(log.read_after(cursor)) == ["late", "early"]
    # A reader that only remembers an id would have lost it.
    assert not Event.objects.filter(id__gt=last_id).exists()


@only_postgresql
def test_a_late_commit_with_the_higher_id_and_the_lower_transaction_is_not_stepped_over(rival: Rival) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT pg_current_xact_id()")  # begins first…
        rival.do(publish, "early")
        log.publish("late", {}, now=NOW)  # …and writes last
        seen = rival.do(log.read_after, Cursor())

    after = log.read_after(seen[-1].cursor if seen else Cursor())
    assert sorted(names(seen) + names(after)) == ["early", "late"]


@only_postgresql
def test_the_end_lies_before_a_commit_that_is_still_to_come(rival: Rival) -> None:
    publish("old")
    with transaction.atomic():
        log.publish("late", {}, now=NOW)
        rival.do(publish, "early")
        end = rival.do(log.end)

    assert names(log.read_after(end)) == ["late", "early"]


@only_postgresql
def test_readers_do_not_wait_for_writers(rival: Rival) -> None:
    publish("old")
    with transaction.atomic():
        log.publish("open", {}, now=NOW)

        assert names(rival.do(log.read_after, Cursor())) == ["old"]


def test_a_follower_beside_busy_writers_sees_every_event_once(now: datetime) -> None:
    def write(letter: str) -> None:
        for number in range(20):
            with transaction.atomic():
                log.publish(f"{letter}{number}a", {}, now=now)
                log.publish(f"{letter}{number}b", {}, now=now + timedelta(microseconds=1))

    writers = {letter: Rival() for letter in "xyz"}
    running = [writer.start(write, letter) for letter, writer in writers.items()]
    cursor, seen = Cursor(), []
    while True:
        finished = all(work.done() for work in running)
        page = log.read_after(cursor, limit=7)
        seen += names(page)
        cursor = page[-1].cursor if page else cursor
        if finished and not page:
            break

    for work in running:
        work.result(5)
    for writer in writers.values():
        writer.close()
    assert sorted(seen) == sorted(
        f"{letter}{number}{part}" for letter in "xyz" for number in range(20) for part in "ab"
    )
