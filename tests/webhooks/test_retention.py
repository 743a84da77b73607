"""Old deliveries and deleted webhooks go, in pieces; what is young, waits or is under way stays."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from k1node import tidying
from k1node.events import log
from k1node.events.models import Event
from k1node.lib import sql
from tests.databases import Rival, only_postgresql
from tests.factories import NOW, make_delivery, make_message, make_webhook
from webhooks import fanout, retention
from webhooks.models import Attempt, Delivery, Message, Webhook

pytestmark = pytest.mark.django_db

DAY = timedelta(days=1)
BEFORE = NOW - 14 * DAY
OLD = BEFORE - timedelta(seconds=1)
State = Delivery.State


def prune(now: datetime = NOW) -> int:
    return retention.prune(BEFORE, now=now)


def make_tried(*args: Any, **fields: Any) -> Delivery:
    row = make_delivery(*args, **fields)
    Attempt.objects.create(delivery=row, number=1, started_at=NOW, url="https://receiver.example/")
    return row


@pytest.mark.parametrize("state", [State.DELIVERED, State.FAILED, State.CANCELLED])
def test_old_deliveries_go_with_their_attempts_and_messages(state: State) -> None:
    make_tried(state=state, finished_at=OLD)
    young = make_tried(state=state, finished_at=BEFORE)

    assert prune() == 1

    assert list(Delivery.objects.all()) == [young]
    assert list(Message.objects.all()) == [young.message]
    assert [attempt.delivery for attempt in Attempt.objects.all()] == [young]


@pytest.mark.parametrize("state", [State.PENDING, State.SENDING])
def test_what_has_not_ended_stays_however_old(state: State) -> None:
    make_delivery(state=state, due_at=OLD, created_at=OLD)

    assert prune() == 0
    assert Message.objects.exists()


def test_a_message_stays_as_long_as_one_of_its_deliveries() -> None:
    message = make_message()
    first, second = (make_delivery(message=message, state=State.DELIVERED, finished_at=at) for at in (OLD, NOW))

    prune()
    assert list(Message.objects.all()) == [message]

    Delivery.objects.update(finished_at=OLD)
    prune()
    assert not Message.objects.exists()
    assert first.pk != second.pk


def test_a_deleted_webhook_goes_with_all_it_had_once_nothing_is_under_way() -> None:
    deleted, kept = make_webhook(active=False, deleted_at=NOW - DAY), make_webhook()
    message = make_message()
    for state in (State.PENDING, State.FAILED, State.DELIVERED):
        make_tried(deleted, state=state)
    make_tried(deleted, message)
    make_tried(kept, message)
    sending = make_tried(deleted, state=State.SENDING)

    assert prune() == 4
    assert set(Webhook.objects.all()) == {deleted, kept}
    assert list(Delivery.objects.filter(webhook=deleted)) == [sending]

    Delivery.objects.filter(pk=sending.pk).update(state=State.CANCELLED, lease_expires_at=None, finished_at=NOW)
    assert prune() == 2
    assert list(Webhook.objects.all()) == [kept]
    assert list(Message.objects.all()) == [message]
    assert Attempt.objects.count() == 1


def test_a_webhook_that_was_deleted_this_minute_is_left_to_the_next_call() -> None:
    make_webhook(active=False, deleted_at=NOW - retention.SETTLED)

    assert prune() == 0
    assert prune(NOW + timedelta(seconds=1)) == 1


def test_webhooks_that_are_only_not_active_stay() -> None:
    make_delivery(make_webhook(active=False, disabled_at=OLD))

    assert prune() == 0
    assert Webhook.objects.exists()


def test_pruning_works_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "MOST_BATCHES", 2)
    monkeypatch.setattr(retention, "BATCH", 2)
    monkeypatch.setattr(retention, "_OLD", retention._OLD.replace("LIMIT 500", "LIMIT 2"))
    for _ in range(5):
        make_delivery(state=State.DELIVERED, finished_at=OLD)

    assert [prune(), prune(), prune()] == [4, 1, 0]


@only_postgresql
def test_of_a_deleted_webhook_only_its_own_deliveries_are_read() -> None:
    deleted, other = make_webhook(deleted_at=NOW - DAY, active=False), make_webhook()
    for webhook, count in ((deleted, 2000), (other, 3000)):
        messages = Message.objects.bulk_create(
            Message(message_id=f"wh-evt-{webhook.pk}-{number}", event="task.completed", occurred_at=NOW, data="{}")
            for number in range(count)
        )
        Delivery.objects.bulk_create(
            Delivery(delivery_id=f"wh-dlv-{message.pk}", webhook=webhook, message=message, due_at=NOW, created_at=NOW)
            for message in messages
        )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
        with CaptureQueriesContext(connection) as queries:
            prune()
        asked = [query["sql"] for query in queries if "webhook_id" in query["sql"] and "LIMIT" in query["sql"]]
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {asked[0]}")
        plan = cursor.fetchone()[0][0]["Plan"]

    removed = 0
    while plan:
        removed += plan.get("Rows Removed by Filter", 0)
        plan = plan.get("Plans", [None])[0]
    assert removed == 0


def test_the_clock_keeps_deliveries_for_as_long_as_the_setting_says(settings: Any) -> None:
    settings.K1NODE_KEEP_DELIVERY_DAYS = 3
    make_delivery(state=State.DELIVERED, finished_at=NOW - 4 * DAY)
    kept = make_delivery(state=State.DELIVERED, finished_at=NOW - 2 * DAY)

    tidying.prune(now=NOW)

    assert list(Delivery.objects.all()) == [kept]


@only_postgresql
@pytest.mark.django_db(transaction=True)
def test_a_delivery_that_is_redelivered_at_this_moment_stays(rival: Rival) -> None:
    row = make_delivery(state=State.FAILED, finished_at=OLD)

    with transaction.atomic():
        Delivery.objects.filter(pk=row.pk).update(state=State.PENDING, finished_at=None)
        assert rival.do(prune) == 0

    row.refresh_from_db()
    assert row.state == "pending"


@only_postgresql
@pytest.mark.django_db(transaction=True)
def test_two_who_delete_the_last_two_deliveries_of_a_message_leave_no_message(rival: Rival) -> None:
    message = make_message()
    for _ in range(2):
        make_delivery(message=message, state=State.DELIVERED, finished_at=OLD)
    one = retention._OLD.replace("LIMIT 500", "LIMIT 1")

    with transaction.atomic():
        retention._delete_deliveries(one, [BEFORE])
        waiting = rival.start(lambda: sql.in_transaction(lambda: retention._delete_deliveries(one, [BEFORE])))
        # It waits for the message.
        with pytest.raises(TimeoutError):
            waiting.result(0.2)
    waiting.result(10)

    assert not Delivery.objects.exists()
    assert not Message.objects.exists()


@pytest.mark.django_db(transaction=True)  # readers of the log see what is committed
def test_events_that_no_sender_has_come_to_stay_however_old_they_are() -> None:
    with transaction.atomic():
        fanout.begin()
        webhook = make_webhook(events=["schedule.deleted"])
    log.publish("schedule.deleted", {"task_id": "backup"}, now=NOW)
    much_later = NOW + timedelta(days=365)

    tidying.prune(now=much_later)
    assert Event.objects.count() == 1

    fanout.advance(now=much_later)
    tidying.prune(now=much_later)
    assert not Event.objects.exists()
    assert Delivery.objects.get().webhook == webhook


def test_while_nobody_waits_for_events_old_ones_go() -> None:
    make_webhook(active=False)
    log.publish("schedule.deleted", {"task_id": "backup"}, now=NOW)

    tidying.prune(now=NOW + timedelta(days=365))

    assert not Event.objects.exists()
