"""The hold: nothing starts until it ends."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from k1node.events.models import Event
from recovery import holds
from recovery.holds import HoldRefuses
from recovery.models import Hold, Intervention
from recovery.records import By
from scheduling import claims, parking
from tests.databases import Rival, only_postgresql, only_sqlite
from tests.factories import NOW, make_task

pytestmark = pytest.mark.django_db
ANA, BEN = By("ana", "disk full"), By("ben")
MINUTE = timedelta(minutes=1)


def take() -> list[str]:
    with transaction.atomic():
        return [claim.task_id for claim in claims.claim(owner="me", now=NOW, window=9, choose=len)]


def test_nothing_is_claimed_until_it_is_released() -> None:
    task = make_task()

    holds.hold(ANA, now=NOW)
    assert not claims.is_waiting()
    assert take() == []
    holds.release(BEN, now=NOW + MINUTE)

    assert claims.is_waiting()
    assert take() == [task.task_id]
    ended = Hold.objects.get()
    assert (ended.created_by, ended.reason, ended.ended_by, ended.ended_at) == ("ana", "disk full", "ben", NOW + MINUTE)
    assert list(Event.objects.order_by("pk").values_list("name", flat=True)) == ["hold.started", "hold.ended"]
    assert list(Intervention.objects.order_by("pk").values_list("action", "performed_by", "reason")) == [
        ("hold", "ana", "disk full"),
        ("release", "ben", ""),
    ]


def test_the_clock_ends_it_when_its_time_is_over() -> None:
    make_task()
    holds.hold(ANA, until=NOW + MINUTE, now=NOW)

    assert not holds.end_overdue(now=NOW + MINUTE - timedelta(seconds=1))
    assert take() == []
    assert holds.end_overdue(now=NOW + MINUTE)
    assert not holds.end_overdue(now=NOW + MINUTE)

    assert len(take()) == 1
    assert Hold.objects.get().ended_by == "clock"


@only_sqlite
def test_looking_for_it_is_a_look_into_its_index() -> None:
    with CaptureQueriesContext(connection) as captured:
        assert holds.current() is None

    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {captured[0]['sql']}")
        plan = " ".join(str(row) for row in cursor.fetchall())
    assert "hold_once" in plan


def test_one_without_an_end_is_never_ended_by_the_clock() -> None:
    holds.hold(ANA, now=NOW)

    assert not holds.end_overdue(now=NOW + timedelta(days=999))


def test_there_is_one_at_a_time_and_the_refusal_changes_nothing() -> None:
    with pytest.raises(HoldRefuses, match="Nothing is held"):
        holds.release(ANA, now=NOW)
    holds.hold(ANA, now=NOW)
    make_task()

    with pytest.raises(HoldRefuses, match="by ana"):
        holds.hold(BEN, now=NOW)

    assert take() == []
    assert Hold.objects.count() == 1
    holds.release(ANA, now=NOW)
    with pytest.raises(HoldRefuses, match="Nothing is held"):
        holds.release(BEN, now=NOW)
    assert len(take()) == 1


def test_a_rival_that_has_ended_it_and_holds_anew_keeps_its_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    holds.hold(ANA, until=NOW + MINUTE, now=NOW)
    make_task()
    done: list[bool] = []
    real = parking.set_hold

    def rival_first(*, closed: bool) -> None:
        if not done:
            done.append(True)
            holds.release(BEN, now=NOW)
            holds.hold(BEN, now=NOW)
        real(closed=closed)

    monkeypatch.setattr(parking, "set_hold", rival_first)

    assert not holds.end_overdue(now=NOW + MINUTE)

    assert take() == []
    current = holds.current()
    assert current is not None
    assert current.created_by == "ben"


@pytest.mark.django_db(transaction=True)
@only_postgresql
def test_a_claim_that_has_looked_already_takes_nothing_once_it_is_held(rival: Rival) -> None:
    make_task()
    held: list[Hold] = []

    def before_the_claim(execute: Any, statement: str, *rest: Any) -> Any:
        if statement.startswith("UPDATE scheduling_task SET status = 'executing'") and not held:
            held.append(rival.do(holds.hold, ANA, now=NOW))
        return execute(statement, *rest)

    with connection.execute_wrapper(before_the_claim):
        taken = take()

    assert (len(held), taken) == (1, [])
