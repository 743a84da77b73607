"""From events to deliveries: each once for everybody who wants it, whatever rivals do between two steps."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from k1node.events import log
from tests.databases import Rival, only_postgresql
from tests.factories import NOW, make_webhook
from webhooks import fanout
from webhooks.models import Delivery, FanoutCursor, Message, Webhook

# The reader of the log sees only what is committed.
pytestmark = pytest.mark.django_db(transaction=True)


def activate(**fields: Any) -> Webhook:
    with transaction.atomic():
        fanout.begin()
        return make_webhook(**fields)


def publish(name: str = "task.completed", **data: Any) -> None:
    log.publish(name, data, now=NOW)


def advance() -> None:
    while fanout.advance(now=NOW):
        pass


def made() -> list[tuple[str, str]]:
    rows = Delivery.objects.order_by("pk").values_list("webhook__webhook_id", "event")
    return [(webhook_id, event) for webhook_id, event in rows]


def test_an_event_becomes_one_message_and_a_delivery_for_each_who_wants_it() -> None:
    first, second = activate(events=["task.completed"]), activate(events=["*"])
    activate(events=["task.failed"])
    log.publish("task.completed", {"task_id": "é", "n": 1.5}, now=NOW - timedelta(minutes=1))

    advance()

    message = Message.objects.get()
    assert (message.event, message.occurred_at, message.data) == (
        "task.completed",
        NOW - timedelta(minutes=1),
        '{"n":1.5,"task_id":"é"}' if connection.vendor == "postgresql" else '{"task_id":"é","n":1.5}',
    )
    assert message.message_id.startswith("wh-evt-") and "." not in message.message_id
    deliveries = Delivery.objects.order_by("pk")
    assert [delivery.webhook_id for delivery in deliveries] == [first.pk, second.pk]
    for delivery in deliveries:
        assert delivery.message == message
        assert delivery.delivery_id.startswith("wh-dlv-")
        assert (delivery.state, delivery.due_at, delivery.created_at, delivery.attempts, delivery.spent) == (
            *("pending", NOW, NOW),
            *(0, 0),
        )


def test_each_event_is_fanned_out_once_and_in_order() -> None:
    webhook = activate(events=["*"])
    for name in ("task.started", "task.completed", "task.failed"):
        publish(name)

    advance()
    advance()

    assert made() == [(webhook.webhook_id, name) for name in ("task.started", "task.completed", "task.failed")]


def test_the_first_webhook_begins_at_the_end_of_the_log() -> None:
    publish("task.failed")

    webhook = activate()
    publish("task.completed")
    advance()

    assert made() == [(webhook.webhook_id, "task.completed")]


def test_while_nobody_was_active_nothing_is_made_up_for() -> None:
    webhook = activate()
    publish("task.started")
    advance()
    Webhook.objects.update(active=False)
    publish("task.failed")
    advance()
    with transaction.atomic():
        fanout.begin()
        Webhook.objects.update(active=True)
    publish("task.completed")

    advance()

    assert made() == [(webhook.webhook_id, "task.started"), (webhook.webhook_id, "task.completed")]


def test_one_more_webhook_does_not_move_the_cursor_of_the_others() -> None:
    first = activate()
    publish("task.completed")
    activate(events=["task.failed"])

    advance()

    assert made() == [(first.webhook_id, "task.completed")]


@pytest.mark.parametrize(
    "fields", [{"active": False}, {"active": False, "deleted_at": NOW}, {"active": False, "disabled_at": NOW}]
)
def test_webhooks_that_are_not_active_get_nothing(fields: dict[str, Any]) -> None:
    first = activate()
    make_webhook(**fields)
    publish()

    advance()

    assert made() == [(first.webhook_id, "task.completed")]


@pytest.mark.parametrize("name", ["webhook.failing", "webhook.disabled"])
def test_a_webhook_is_told_of_others_but_never_of_itself(name: str) -> None:
    first, second = activate(), activate(events=[name])
    publish(name, webhook_id=first.webhook_id)
    publish(name, webhook_id=second.webhook_id)

    advance()

    assert made() == [(second.webhook_id, name), (first.webhook_id, name)]


def test_without_anything_new_nothing_is_written() -> None:
    activate()
    publish()
    advance()

    with CaptureQueriesContext(
        connection,
    ) as queries:
        assert not fanout.advance(now=NOW)

    assert len(queries) == 3
    assert all(query["sql"].lstrip("(").startswith("SELECT") for query in queries)


def test_without_an_active_webhook_only_that_is_asked() -> None:
    publish()

    with CaptureQueriesContext(connection) as queries:
        assert not fanout.advance(now=NOW)

    assert len(queries) == 1


def test_a_cursor_that_is_missing_is_made_at_the_end() -> None:
    webhook = make_webhook()
    publish("task.failed")

    advance()
    publish("task.completed")
    advance()

    assert made() == [(webhook.webhook_id, "task.completed")]


def test_what_one_transaction_makes_is_bounded_and_nothing_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "MOST", 5)
    monkeypatch.setattr(fanout, "PAGE", 4)
    for _ in range(2):
        activate()
    for _ in range(9):
        publish()

    steps = [0]
    while fanout.advance(now=NOW):
        steps.append(Delivery.objects.count())

    assert steps == [0, 4, 8, 12, 16, 18]


def test_one_event_of_more_webhooks_than_the_bound_is_made_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "MOST", 2)
    for _ in range(5):
        activate()
    publish()

    fanout.advance(now=NOW)

    assert Delivery.objects.count() == 5


def test_events_nobody_wants_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "PAGE", 3)
    activate(events=["task.failed"])
    for _ in range(7):
        publish("task.completed")
    publish("task.failed")

    advance()

    assert Message.objects.count() == Delivery.objects.count() == 1
    assert not fanout.advance(now=NOW)


def test_what_a_redelivery_has_made_already_stays_as_it_is() -> None:
    webhook, other = activate(), activate()
    publish()
    (event,) = log.read_after(log.Cursor())
    fanout.make([(event, [webhook.pk])], now=NOW)
    Delivery.objects.update(attempts=3)

    advance()

    assert Message.objects.count() == 1
    assert list(Delivery.objects.order_by("pk").values_list("webhook_id", "attempts")) == [
        (webhook.pk, 3),
        (other.pk, 0),
    ]


def test_a_crash_before_the_commit_repeats_all_of_it() -> None:
    activate()
    publish()

    with pytest.raises(ZeroDivisionError), transaction.atomic():
        fanout._advance(NOW)
        raise ZeroDivisionError
    nothing = Message.objects.count()
    advance()

    assert (nothing, Message.objects.count(), Delivery.objects.count()) == (0, 1, 1)


def test_a_message_that_is_made_again_has_the_id_it_had() -> None:
    activate()
    start = FanoutCursor.objects.get()
    for _ in range(2):
        log.publish("task.completed", {"task_id": "task-1"}, now=NOW)
    advance()
    before = list(Message.objects.order_by("event_pk").values_list("event_pk", "message_id"))

    # As after a loss of power: what was committed last is gone, though it was sent already.
    Delivery.objects.all().delete()
    Message.objects.all().delete()
    FanoutCursor.objects.update(cursor_xid=start.cursor_xid, cursor_id=start.cursor_id)
    advance()

    assert list(Message.objects.order_by("event_pk").values_list("event_pk", "message_id")) == before
    assert len({message_id for _, message_id in before}) == 2


def test_a_rival_that_has_fanned_out_since_the_look_leaves_nothing_to_do(rival: Rival) -> None:
    activate()
    publish()
    assert rival.do(fanout.advance, now=NOW)

    assert not fanout._advance(NOW)
    assert Delivery.objects.count() == 1


@only_postgresql
def test_while_a_rival_is_at_it_nobody_waits(rival: Rival) -> None:
    activate()
    publish()

    with transaction.atomic():
        fanout._advance(NOW)
        theirs = rival.do(fanout.advance, now=NOW)

    assert theirs is False
    assert Delivery.objects.count() == 1


@only_postgresql
def test_an_event_whose_transaction_commits_late_is_not_stepped_over(rival: Rival) -> None:
    webhook = activate()
    rival.execute("BEGIN")
    rival.execute("INSERT INTO events_event (name, occurred_at, data) VALUES ('task.failed', now(), '{}')")
    publish("task.completed")

    advance()
    before = made()
    rival.execute("COMMIT")
    advance()

    assert before == []
    assert made() == [(webhook.webhook_id, "task.failed"), (webhook.webhook_id, "task.completed")]


@only_postgresql
def test_a_webhook_that_became_active_between_two_looks_gets_what_came_after_it(
    rival: Rival, monkeypatch: pytest.MonkeyPatch
) -> None:
    activate(events=["task.failed"])
    publish("task.failed")
    read = log.read_named

    def late(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(log, "read_named", read)
        rival.do(activate_rival)
        return read(*args, **kwargs)

    def activate_rival() -> None:
        make_webhook(webhook_id="wh-late", events=["task.completed"])
        log.publish("task.completed", {}, now=NOW)

    monkeypatch.setattr(log, "read_named", late)
    advance()

    assert ("wh-late", "task.completed") in made()


@only_postgresql
def test_two_who_make_the_first_webhook_at_once_agree_on_the_beginning(rival: Rival) -> None:
    def second() -> None:
        with transaction.atomic():
            fanout.begin()
            make_webhook(webhook_id="wh-2")

    with transaction.atomic():
        fanout.begin()
        make_webhook(webhook_id="wh-1")
        waiting = rival.start(second)
        # Of what the first one was active for, the second must not skip anything.
        log.publish("task.completed", {}, now=NOW)
    waiting.result(10)
    advance()

    assert ("wh-1", "task.completed") in made()
    assert FanoutCursor.objects.count() == 1
