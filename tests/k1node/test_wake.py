"""Telling pushers of new work: a word that is taken back must not keep the next one from being said."""

from collections.abc import Iterator

import psycopg
import pytest
from django.db import connection, transaction

from k1node.lib import wake
from tests.databases import Rival, only_postgresql

pytestmark = [pytest.mark.django_db(transaction=True), only_postgresql]


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection]:
    monkeypatch.setattr(wake, "_told_at", 0.0)
    reach = connection.get_connection_params()
    with psycopg.connect(
        host=reach["host"], port=reach["port"], user=reach["user"], dbname=reach["dbname"], autocommit=True
    ) as session:
        session.execute(f"LISTEN {wake.CHANNEL}")
        yield session


def heard(listener: psycopg.Connection) -> int:
    return len(list(listener.notifies(timeout=0.3)))


def test_a_commit_that_told_is_heard_and_the_next_one_need_not_tell(listener: psycopg.Connection) -> None:
    for _ in range(2):
        with transaction.atomic():
            wake.tell()

    assert heard(listener) == 1


def test_after_a_rollback_the_next_commit_tells(listener: psycopg.Connection) -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        wake.tell()
        _ = 1 / 0
    with transaction.atomic():
        wake.tell()

    assert heard(listener) == 1


def test_a_commit_does_not_rely_on_a_transaction_that_goes_on(listener: psycopg.Connection, rival: Rival) -> None:
    with transaction.atomic():
        wake.tell()

        def other() -> None:
            with transaction.atomic():
                wake.tell()

        rival.do(other)
        assert heard(listener) == 1
