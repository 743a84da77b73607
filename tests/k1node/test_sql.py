"""Statements over many rows, moments and repeated transactions, on both databases."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from django.db import IntegrityError, OperationalError, connection, transaction

from k1node.events.models import Event
from k1node.lib import sql
from scheduling.models import Gate, RetryPolicy
from tests.databases import ON_POSTGRESQL, Rival, only_postgresql, only_sqlite
from tests.factories import make_gate

EVENT_COLUMNS = {"name": "text", "occurred_at": "timestamptz", "data": "jsonb"}
GATE_COLUMNS = {"key": "text", "limit": "int", "waiting": "int", "id": "bigint"}

MOMENTS = [
    pytest.param(datetime(2026, 3, 4, 5, 6, 7, 890123, tzinfo=UTC), id="microseconds"),
    pytest.param(datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC), id="no microseconds"),
    pytest.param(datetime(2026, 3, 4, tzinfo=UTC), id="midnight"),
    pytest.param(datetime(2026, 3, 4, 5, 6, 7, 100, tzinfo=UTC), id="leading zeros"),
    pytest.param(datetime(1970, 1, 1, tzinfo=UTC), id="the epoch"),
    pytest.param(datetime(2026, 3, 4, 1, 0, tzinfo=timezone(timedelta(hours=5, minutes=45))), id="another zone"),
]


@pytest.mark.django_db
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_moment_written_by_raw_sql_is_the_same_for_raw_sql_and_for_models(moment: datetime) -> None:
    sql.insert_many("events_event", EVENT_COLUMNS, [("a", sql.stored(moment), "{}")])

    with connection.cursor() as cursor:
        cursor.execute("SELECT occurred_at FROM events_event")
        read = sql.moment(cursor.fetchone()[0])
    assert (read, Event.objects.get().occurred_at) == (moment, moment)
    assert read is not None
    assert read.utcoffset() == timedelta(0)


@pytest.mark.django_db
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_moment_written_by_a_model_is_found_by_raw_sql(moment: datetime) -> None:
    Event.objects.create(name="a", occurred_at=moment, data={})

    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT count(*) FROM events_event WHERE occurred_at = {sql.moment_mark()}", [sql.stored(moment)]
        )
        assert cursor.fetchone() == (1,)


@pytest.mark.django_db
def test_moments_with_and_without_microseconds_keep_their_order() -> None:
    whole = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
    moments = [whole + timedelta(microseconds=shift) for shift in (-1_000_000, -1, 0, 1, 999_999, 1_000_000)]
    rows = [(str(place), sql.stored(moment), "{}") for place, moment in enumerate(moments)]

    sql.insert_many("events_event", EVENT_COLUMNS, rows[::-1])

    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM events_event ORDER BY occurred_at")
        assert [name for (name,) in cursor.fetchall()] == list("012345")


@pytest.mark.django_db
def test_no_moment_stays_none() -> None:
    assert (sql.stored(None), sql.moment(None)) == (None, None)


@pytest.mark.django_db
def test_many_rows_are_inserted_in_their_order_with_odd_text_and_nulls(now: datetime) -> None:
    texts = ["plain", "100%", "%s", "it's", "{a,b}", 'with "quotes"', "back\\slash", "NULL", "é🙂", ""]
    rows = [(text, sql.stored(now), '{"a": null}') for text in texts]

    sql.insert_many("events_event", EVENT_COLUMNS, rows)

    assert list(Event.objects.order_by("id").values_list("name", flat=True)) == texts
    assert Event.objects.filter(data={"a": None}).count() == len(texts)


@pytest.mark.django_db
def test_many_rows_cost_one_statement(django_assert_num_queries: Callable[[int], Any], now: datetime) -> None:
    rows = [(str(number), sql.stored(now), "{}") for number in range(500)]

    with django_assert_num_queries(1):
        sql.insert_many("events_event", EVENT_COLUMNS, rows)

    assert Event.objects.count() == 500


@pytest.mark.django_db
def test_rows_of_unequal_length_are_refused() -> None:
    with pytest.raises((ValueError, Exception)), transaction.atomic():
        sql.insert_many("events_event", EVENT_COLUMNS, [("a", None, "{}"), ("b", None)])

    assert not Event.objects.exists()


@pytest.mark.django_db
def test_no_rows_cost_no_statement(django_assert_num_queries: Callable[[int], Any]) -> None:
    with django_assert_num_queries(0):
        sql.insert_many("events_event", EVENT_COLUMNS, [])
        sql.update_many("scheduling_gate", GATE_COLUMNS, [])


@pytest.mark.django_db
def test_many_rows_are_updated_each_with_its_own_values() -> None:
    first, second, other = make_gate(limit=1), make_gate(limit=2), make_gate(key="other", waiting=9)

    sql.update_many("scheduling_gate", GATE_COLUMNS, [("a", None, 10, first.pk), ("b", 7, 20, second.pk)])

    assert list(Gate.objects.order_by("id").values_list("key", "limit", "waiting")) == [
        ("a", None, 10),
        ("b", 7, 20),
        (other.key, None, 9),
    ]


@pytest.mark.django_db
def test_more_of_the_set_clause_applies_to_all_updated_rows() -> None:
    first, second = make_gate(failed=1), make_gate(failed=5)

    sql.update_many(
        "scheduling_gate",
        {"waiting": "int", "id": "bigint"},
        [(10, first.pk), (20, second.pk)],
        also="failed = failed + 1, closed = true",
    )

    assert list(Gate.objects.order_by("id").values_list("waiting", "failed", "closed")) == [
        (10, 2, True),
        (20, 6, True),
    ]


@pytest.mark.django_db
def test_an_id_without_a_row_updates_nothing() -> None:
    gate = make_gate()

    sql.update_many("scheduling_gate", GATE_COLUMNS, [("a", 1, 1, gate.pk + 1000)])

    assert not Gate.objects.filter(key="a").exists()


@pytest.mark.django_db
def test_rows_are_found_among_ids() -> None:
    gates = [make_gate() for _ in range(3)]
    among, values = sql.among([gates[0].pk, gates[2].pk])

    with connection.cursor() as cursor:
        cursor.execute(f"SELECT id FROM scheduling_gate WHERE id {among} ORDER BY id", values)
        found = [row[0] for row in cursor.fetchall()]

    assert found == [gates[0].pk, gates[2].pk]


# --- transactions that are run again ---------------------------------------------------------------------------------


def raise_retryable() -> None:
    """Fail as the database would for a reason that another try may cure."""
    if not ON_POSTGRESQL:
        raise OperationalError("database is locked")
    with connection.cursor() as cursor:
        cursor.execute("DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END $$")


@pytest.mark.django_db(transaction=True)
def test_a_retryable_failure_is_tried_again_from_the_start() -> None:
    tries = []

    def work() -> str:
        tries.append(1)
        RetryPolicy.objects.create(name="new")
        if len(tries) < 3:
            raise_retryable()
        return "done"

    assert sql.in_transaction(work) == "done"
    assert len(tries) == 3
    assert RetryPolicy.objects.filter(name="new").count() == 1


@pytest.mark.django_db(transaction=True)
def test_the_third_failure_is_the_last() -> None:
    tries = []

    def work() -> None:
        tries.append(1)
        RetryPolicy.objects.create(name="new")
        raise_retryable()

    with pytest.raises(OperationalError):
        sql.in_transaction(work)

    assert len(tries) == sql.TRIES
    assert not RetryPolicy.objects.filter(name="new").exists()


def lose_the_connection() -> None:
    raise OperationalError("the connection is lost")


def break_a_constraint() -> None:
    RetryPolicy.objects.create(name="standard")


def fail_otherwise() -> None:
    raise ZeroDivisionError


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("fail", "error"),
    [
        (lose_the_connection, OperationalError),
        (break_a_constraint, IntegrityError),
        (fail_otherwise, ZeroDivisionError),
    ],
)
def test_any_other_failure_is_not_tried_again(fail: Callable[[], None], error: type[Exception]) -> None:
    tries = []

    def work() -> None:
        tries.append(1)
        fail()

    with pytest.raises(error):
        sql.in_transaction(work)

    assert len(tries) == 1


@pytest.mark.django_db(transaction=True)
def test_inside_a_transaction_nothing_is_tried_again() -> None:
    tries = []

    def work() -> None:
        tries.append(1)
        raise_retryable()

    with pytest.raises(OperationalError), transaction.atomic():
        sql.in_transaction(work)

    assert len(tries) == 1


@only_postgresql
@pytest.mark.django_db(transaction=True)
def test_both_sides_of_a_real_deadlock_get_through(rival: Rival) -> None:
    first, second = make_gate(), make_gate()
    both_hold_one = threading.Barrier(2)
    tries = []

    def take(*gates: Gate) -> None:
        def work() -> None:
            tries.append(1)
            for gate in gates:
                Gate.objects.select_for_update().get(pk=gate.pk)
                if len(tries) <= 2 and gate == gates[0]:
                    both_hold_one.wait(5)
            with connection.cursor() as cursor:
                cursor.execute("UPDATE scheduling_gate SET waiting = waiting + 1")

        sql.in_transaction(work)

    theirs = rival.start(take, second, first)
    take(first, second)
    theirs.result(10)

    assert len(tries) >= 3
    assert set(Gate.objects.values_list("waiting", flat=True)) == {2}


@only_postgresql
@pytest.mark.django_db(transaction=True)
def test_a_real_serialization_failure_is_tried_again(rival: Rival) -> None:
    gate = make_gate(waiting=1)
    tries = []

    def work() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        seen = Gate.objects.get(pk=gate.pk).waiting
        tries.append(seen)
        if len(tries) == 1:
            rival.execute("UPDATE scheduling_gate SET waiting = 10")
        Gate.objects.filter(pk=gate.pk).update(waiting=seen + 1)

    sql.in_transaction(work)

    gate.refresh_from_db()
    assert (tries, gate.waiting) == ([1, 10], 11)


@only_sqlite
@pytest.mark.django_db(transaction=True)
def test_a_database_locked_by_another_program_is_tried_again(rival: Rival) -> None:
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA busy_timeout = 1")
    rival.execute("BEGIN IMMEDIATE")  # behind the write lock's back

    with pytest.raises(OperationalError, match="locked") as caught:
        sql.in_transaction(lambda: None)

    assert sql.is_retryable(caught.value)
    rival.execute("ROLLBACK")
    assert sql.in_transaction(lambda: "done") == "done"
    connection.close()


@pytest.mark.django_db(transaction=True)
def test_rows_that_a_rival_has_locked_are_skipped(rival: Rival) -> None:
    mine, theirs = make_gate(), make_gate()
    query = f"SELECT id FROM scheduling_gate ORDER BY id{sql.skip_locked()}"

    def choose() -> list[int]:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(query)
            return [pk for (pk,) in cursor.fetchall()]

    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"SELECT id FROM scheduling_gate WHERE id = {mine.pk}{sql.for_update()}")
        choice = rival.start(choose)
        seen = choice.result(5) if ON_POSTGRESQL else None

    # SQLite's writers wait for each other as a whole.
    assert (seen or choice.result(5)) == ([theirs.pk] if ON_POSTGRESQL else [mine.pk, theirs.pk])
