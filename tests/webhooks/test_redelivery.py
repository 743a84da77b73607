"""Deliveries that are sent again: one, all that failed, a whole period."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from k1node.audit.models import AuditRecord
from k1node.clock import KINDS
from k1node.events import log, periods
from k1node.events.models import Event
from k1node.lib.errors import Conflict, FieldInvalid
from k1node.operations import jobs
from k1node.operations.models import Operation
from tests.databases import Rival, only_postgresql
from tests.factories import NOW, make_delivery, make_message, make_webhook
from tests.webhooks import redelivering
from webhooks import redelivery
from webhooks.models import Delivery, Message, Webhook
from webhooks.redelivery import (
    DeliveryUnderWay,
    Mode,
    NothingToRedeliver,
    TooManyRedeliveries,
    WebhookGone,
    WebhookNotActive,
)

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)
LATER = NOW + HOUR
AGAIN = partial(redelivery.redeliver, by="ana", now=LATER)


def failed(webhook: Webhook, count: int = 1, **fields: Any) -> list[Delivery]:
    return [make_delivery(webhook, **{"state": "failed"} | fields) for _ in range(count)]


def happened(*names: str, minutes: int = 0, **data: Any) -> list[int]:
    """Put events into the log; return their keys."""
    for name in names:
        log.publish(name, {"task_id": "task-1", **data}, now=NOW + timedelta(minutes=minutes))
    return list(Event.objects.order_by("-pk").values_list("pk", flat=True)[: len(names)])[::-1]


def recover(webhook: Webhook, **how: Any) -> Operation:
    asked: dict[str, Any] = {"since": NOW, "by": "ana", "now": LATER} | how
    job, _ = redelivering.recover(webhook, **asked)
    return job


def resend(webhook: Webhook, **how: Any) -> Operation:
    asked: dict[str, Any] = {"since": NOW, "by": "ana", "now": LATER} | how
    job, _ = redelivering.resend(webhook, **asked)
    return job


def tend(seconds: float = 0, times: int = 3) -> None:
    for _ in range(times):
        jobs.tend(KINDS, now=LATER + timedelta(seconds=seconds))


def told(job: Operation) -> tuple[str, int, int, int]:
    job.refresh_from_db()
    return job.state, job.done, job.refused, job.total


def notes(job: Operation) -> dict[int, str]:
    return dict(job.items.exclude(note="").values_list("subject", "note"))


def names_of_events() -> list[str]:
    return list(Event.objects.filter(name__startswith="redelivery.").order_by("pk").values_list("name", flat=True))


# --- one --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["delivered", "failed", "cancelled"])
def test_one_that_has_ended_is_due_again_with_its_id_and_all_its_tries(state: str) -> None:
    row = make_delivery(state=state, attempts=4, spent=4, last_error="refused", last_status=500)

    again = AGAIN(row)

    assert (again.pk, again.delivery_id, again.state, again.spent, again.attempts) == (
        row.pk,
        row.delivery_id,
        "pending",
        0,
        4,
    )
    assert (again.due_at, again.finished_at, again.redelivered_by) == (LATER, None, "ana")


def test_the_audit_log_has_who_did_it() -> None:
    row = make_delivery(state="failed")

    AGAIN(row)

    record = AuditRecord.objects.get()
    assert (record.action, record.target) == ("delivery.redelivered", f"delivery:{row.delivery_id}")
    assert record.before == {"state": "failed"}
    assert record.after is not None and record.after["webhook_id"] == row.webhook.webhook_id


@pytest.mark.parametrize("state", ["pending", "sending"])
def test_one_that_is_on_its_way_is_left_alone(state: str) -> None:
    row = make_delivery(state=state)

    with pytest.raises(DeliveryUnderWay, match=f"It is {state}"):
        AGAIN(row)

    row.refresh_from_db()
    assert (row.state, row.redelivered_by) == (state, "")
    assert not AuditRecord.objects.exists()


@pytest.mark.parametrize(
    ("fields", "error"),
    [({"deleted_at": NOW, "active": False}, WebhookGone), ({"active": False}, WebhookNotActive)],
    ids=["deleted", "not active"],
)
def test_nothing_is_sent_again_to_a_webhook_that_takes_nothing(fields: dict[str, Any], error: type[Conflict]) -> None:
    row = make_delivery(make_webhook(**fields), state="failed")

    with pytest.raises(error):
        AGAIN(row)

    row.refresh_from_db()
    assert row.state == "failed"


def test_a_test_is_sent_again_to_a_webhook_that_is_not_active() -> None:
    row = make_delivery(make_webhook(active=False), state="failed", is_test=True)

    assert AGAIN(row).state == "pending"


def test_what_has_changed_since_it_was_read_counts() -> None:
    row = make_delivery(state="failed")
    Delivery.objects.filter(pk=row.pk).update(state="pending", finished_at=None)

    with pytest.raises(DeliveryUnderWay):
        AGAIN(row)


# --- all that failed --------------------------------------------------------------------------------------------


def test_all_that_failed_since_a_moment_is_pending_again() -> None:
    webhook = make_webhook()
    old, *new = failed(webhook, finished_at=NOW - HOUR), *failed(webhook, 2)
    other, sent = make_delivery(state="failed"), make_delivery(webhook, state="delivered")

    job = recover(webhook)
    tend()

    assert told(job) == ("completed", 2, 0, 2)
    assert set(Delivery.objects.filter(state="pending").values_list("pk", flat=True)) == {row.pk for row in new}
    assert {row.redelivered_by for row in Delivery.objects.filter(state="pending")} == {"ana"}
    assert {row.state for row in (*old, other)} == {"failed"} and sent.state == "delivered"
    assert job.operation_id.startswith("redelivery-")
    assert names_of_events() == ["redelivery.started", "redelivery.completed"]
    assert redelivery.outcomes(job) == {"pending": 2}


def test_tests_that_failed_are_not_among_them() -> None:
    webhook = make_webhook()
    failed(webhook, is_test=True)

    with pytest.raises(NothingToRedeliver):
        recover(webhook)


def test_only_until_a_moment_and_only_some_events() -> None:
    webhook = make_webhook()
    wanted = make_delivery(webhook, make_message(event="task.failed"), state="failed")
    failed(webhook)
    make_delivery(webhook, make_message(event="task.failed"), state="failed", finished_at=NOW + HOUR / 2)

    job = recover(webhook, until=NOW + HOUR / 2, events=["task.failed"])

    assert list(job.items.values_list("subject", flat=True)) == [wanted.pk]


def test_what_has_changed_since_the_set_was_frozen_is_left_alone_and_named() -> None:
    webhook = make_webhook()
    fine, sending, sent, gone = failed(webhook, 4)
    job = recover(webhook)
    Delivery.objects.filter(pk=sending.pk).update(state="sending", finished_at=None, lease_expires_at=LATER)
    Delivery.objects.filter(pk=sent.pk).update(state="delivered")
    key = gone.pk
    gone.delete()

    tend()

    assert told(job) == ("completed", 1, 3, 4)
    assert notes(job) == {
        sending.pk: redelivery.UNDER_WAY,
        sent.pk: "It is delivered by now",
        key: redelivery.GONE,
    }
    fine.refresh_from_db()
    assert fine.state == "pending"
    assert redelivery.refusals(job) == {
        redelivery.UNDER_WAY: 1,
        "It is delivered by now": 1,
        redelivery.GONE: 1,
    }


def test_more_than_a_job_may_have_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MOST", 2)
    webhook = make_webhook()
    failed(webhook, 3)

    job, is_capped = redelivering.recover(webhook, since=NOW, by="ana", now=LATER)

    assert (job.total, is_capped) == (2, True)


def test_no_more_a_second_than_wanted() -> None:
    webhook = make_webhook()
    failed(webhook, 6)
    job = recover(webhook, per_second=4)

    seen = []
    for quarters in range(7):
        tend(quarters / 4, times=2)
        seen.append(told(job)[1])

    assert seen == [1, 2, 3, 4, 5, 6, 6]


@pytest.mark.parametrize(
    ("change", "why"),
    [({"active": False}, redelivery.NOT_ACTIVE), ({"active": False, "deleted_at": NOW}, redelivery.DELETED)],
    ids=["not active", "deleted"],
)
def test_it_stops_when_the_webhook_takes_nothing_any_more(change: dict[str, Any], why: str) -> None:
    webhook = make_webhook()
    failed(webhook)
    job = recover(webhook)
    Webhook.objects.filter(pk=webhook.pk).update(**change)

    tend()

    assert told(job)[:2] == ("stopped", 0)
    assert job.said == why


def test_one_that_has_stopped_goes_on_when_the_webhook_is_active_again() -> None:
    webhook = make_webhook()
    failed(webhook)
    job = recover(webhook)
    Webhook.objects.filter(pk=webhook.pk).update(active=False)
    tend()
    Webhook.objects.filter(pk=webhook.pk).update(active=True)

    redelivery.start(job.operation_id, by="ana", now=LATER)
    tend()

    assert told(job)[:2] == ("completed", 1)


def test_one_is_stopped_and_cancelled_by_hand() -> None:
    webhook = make_webhook()
    failed(webhook)
    job = recover(webhook)

    redelivery.stop(job.operation_id, by="ben", now=LATER)
    redelivery.cancel(job.operation_id, by="ben", now=LATER)
    tend()

    assert told(job)[:2] == ("cancelled", 0)
    assert names_of_events() == ["redelivery.started", "redelivery.stopped", "redelivery.cancelled"]


@pytest.mark.parametrize(
    ("fields", "error"),
    [({"active": False}, WebhookNotActive), ({"active": False, "deleted_at": NOW}, WebhookGone)],
    ids=["not active", "deleted"],
)
@pytest.mark.parametrize("begin", [recover, resend])
def test_none_begins_for_a_webhook_that_takes_nothing(
    begin: Callable[..., Operation], fields: dict[str, Any], error: type[Conflict]
) -> None:
    with pytest.raises(error):
        begin(make_webhook(**fields))

    assert not Operation.objects.exists()


def test_a_webhook_has_only_so_many_that_have_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redelivery, "MOST_OPEN", 2)
    webhook, other = make_webhook(), make_webhook()
    failed(webhook), failed(other)
    first = recover(webhook)
    redelivery.stop(recover(webhook).operation_id, by="ben", now=LATER)

    with pytest.raises(TooManyRedeliveries):
        recover(webhook)

    assert recover(other).state == "running"
    redelivery.cancel(first.operation_id, by="ben", now=LATER)
    assert recover(webhook).state == "running"


def test_only_so_many_run_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redelivery, "MOST_RUNNING", 2)
    webhooks = [make_webhook() for _ in range(3)]
    for webhook in webhooks:
        failed(webhook)
    recover(webhooks[0]), recover(webhooks[1])

    with pytest.raises(TooManyRedeliveries):
        recover(webhooks[2])

    # It stops, for its webhook is gone, and stands in nobody's way.
    Webhook.objects.filter(pk=webhooks[0].pk).update(active=False, deleted_at=NOW)
    tend(times=1)
    assert recover(webhooks[2]).state == "running"


@pytest.mark.parametrize(
    ("how", "field"),
    [
        ({"since": LATER}, "since"),
        ({"until": NOW}, "until"),
        ({"events": ["task.vanished"]}, "events.0"),
        ({"events": ["task.failed", "hold.ended"]}, "events.1"),
    ],
    ids=["in the future", "backwards", "no event", "not wanted"],
)
@pytest.mark.parametrize("begin", [recover, resend])
def test_what_cannot_be_asked_for_is_refused_at_its_field(
    begin: Callable[..., Operation], how: dict[str, Any], field: str
) -> None:
    with pytest.raises(FieldInvalid) as refused:
        begin(make_webhook(events=["task.failed"]), **how)

    assert [detail.field for detail in refused.value.details] == [field]


def test_a_step_costs_as_many_queries_for_many_as_for_one() -> None:
    def cost(number: int) -> int:
        webhook = make_webhook()
        failed(webhook, number)
        recover(webhook)
        with CaptureQueriesContext(connection) as captured:
            tend(times=1)
        return len(captured)

    assert cost(1) == cost(50)


# --- a period ---------------------------------------------------------------------------------------------------


def test_a_period_brings_every_event_that_the_webhook_wants() -> None:
    webhook = make_webhook(events=["task.failed", "task.completed"])
    keys = happened("task.failed", "task.started", "task.completed")
    happened("task.failed", minutes=30)

    job = resend(webhook, until=NOW + HOUR / 2)
    tend()

    assert told(job) == ("completed", 2, 0, 2)
    rows = list(Delivery.objects.select_related("message").order_by("pk"))
    assert [(row.event, row.state, row.message.event_pk) for row in rows] == [
        ("task.failed", "pending", keys[0]),
        ("task.completed", "pending", keys[2]),
    ]
    assert [row.message.data for row in rows] == ['{"task_id":"task-1"}'] * 2
    assert {row.message.occurred_at for row in rows} == {NOW}
    assert all(row.delivery_id.startswith("wh-dlv-") and row.redelivered_by == "ana" for row in rows)
    assert all(row.message.message_id.startswith("wh-evt-") for row in rows)


def test_what_it_had_already_comes_under_the_same_ids() -> None:
    webhook = make_webhook()
    (key,) = happened("task.failed")
    before = make_delivery(webhook, make_message(event="task.failed", event_pk=key), state="delivered")

    job = resend(webhook)
    tend()

    assert told(job) == ("completed", 1, 0, 1)
    after = Delivery.objects.get()
    assert (after.delivery_id, after.message, after.state) == (before.delivery_id, before.message, "pending")
    assert Message.objects.count() == 1


def test_a_message_of_another_webhook_is_the_same_message() -> None:
    (key,) = happened("task.failed")
    known = make_message(event="task.failed", event_pk=key)
    make_delivery(make_webhook(), known, state="delivered")
    webhook = make_webhook()

    resend(webhook)
    tend()

    assert Delivery.objects.get(webhook=webhook).message == known


def test_what_is_on_its_way_is_left_alone() -> None:
    webhook = make_webhook()
    pending, sending = happened("task.failed", "task.failed")
    make_delivery(webhook, make_message(event_pk=pending))
    make_delivery(webhook, make_message(event_pk=sending), state="sending")

    job = resend(webhook)
    tend()

    assert told(job) == ("completed", 0, 2, 2)
    assert notes(job) == {pending: redelivery.UNDER_WAY, sending: redelivery.UNDER_WAY}


def test_an_event_the_log_has_no_more_comes_from_its_message_or_is_refused() -> None:
    webhook = make_webhook()
    kept, lost = happened("task.failed", "task.failed")
    message = make_message(event="task.failed", event_pk=kept)
    job = resend(webhook)
    Event.objects.filter(pk__in=[kept, lost]).delete()

    tend()

    assert told(job) == ("completed", 1, 1, 2)
    assert notes(job) == {lost: redelivery.GONE}
    assert Delivery.objects.get().message == message


def test_a_webhook_is_not_told_of_itself() -> None:
    webhook = make_webhook()
    about: dict[str, Any] = {"webhook_id": webhook.webhook_id}
    own, kept = happened("webhook.failing", "webhook.disabled", **about)
    (other,) = happened("webhook.failing", webhook_id="wh-other")
    make_message(event="webhook.disabled", event_pk=kept, data=json.dumps(about))
    job = resend(webhook)
    Event.objects.filter(pk=kept).delete()

    tend()

    assert told(job) == ("completed", 1, 2, 3)
    assert notes(job) == {own: redelivery.ABOUT_ITSELF, kept: redelivery.ABOUT_ITSELF}
    assert Delivery.objects.get().message.event_pk == other


def test_events_of_the_same_moment_on_two_steps_are_each_sent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "AT_ONCE", 2)
    webhook = make_webhook()
    happened(*["task.failed"] * 5)

    job = resend(webhook)
    tend(times=4)

    assert told(job) == ("completed", 5, 0, 5)
    assert Delivery.objects.count() == 5


def test_a_period_costs_as_many_queries_for_many_as_for_one() -> None:
    def cost(number: int) -> int:
        webhook = make_webhook(events=["task.failed"])
        happened(*["task.failed"] * number)
        resend(webhook)
        with CaptureQueriesContext(connection) as captured:
            tend(times=1)
        return len(captured)

    assert cost(1) == cost(50)


def test_counting_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redelivery, "COUNT_MOST", 2)
    webhook = make_webhook()
    happened(*["task.failed"] * 5)

    assert redelivery.count(webhook, redelivery.checked(webhook, Mode.PERIOD, since=NOW, now=LATER)) == 3


def test_a_period_is_found_though_ids_and_moments_are_not_quite_in_order() -> None:
    minutes = [-60, -20, 0, -1, 5, 30, 29, 31, 59, 60, 90]
    for minute in minutes:
        log.publish("task.failed", {"minute": minute}, now=NOW + timedelta(minutes=minute))
    Event.objects.filter(data__minute=5).delete()

    found = [row.data["minute"] for row in periods.between(NOW, NOW + HOUR, None)]
    narrow = [row.data["minute"] for row in periods.between(NOW, NOW + HOUR / 2, ["task.failed"])]
    beyond = list(periods.between(NOW + timedelta(days=1), NOW + timedelta(days=2), None))

    assert (found, narrow, beyond) == ([0, 30, 29, 31, 59], [0, 29], [])


def test_an_empty_log_has_nothing_of_any_period() -> None:
    assert list(periods.between(NOW, LATER, None)) == []


def test_the_period_of_a_long_log_is_found_without_reading_it_all() -> None:
    for minute in range(0, 6000, 60):
        happened("task.failed", minutes=minute)

    with CaptureQueriesContext(connection) as captured:
        found = list(periods.between(NOW + 40 * HOUR, NOW + 42 * HOUR, None))

    assert len(found) == 2
    assert len(captured) < 40


@pytest.mark.parametrize(
    ("since", "until"),
    [(datetime.min.replace(tzinfo=UTC), LATER), (NOW, datetime.max.replace(tzinfo=UTC))],
    ids=["from the first moment there is", "until the last"],
)
def test_a_period_may_be_as_long_as_time_itself(since: datetime, until: datetime) -> None:
    (key,) = happened("task.failed")

    assert [row.pk for row in periods.between(since, until, None)] == [key]


# --- rivals -----------------------------------------------------------------------------------------------------


@only_postgresql
@pytest.mark.django_db(transaction=True)
def test_who_makes_the_same_delivery_at_the_same_moment_is_waited_for(rival: Rival) -> None:
    webhook = make_webhook()
    (key,) = happened("task.failed")
    job = resend(webhook)

    with transaction.atomic():
        theirs = make_delivery(webhook, make_message(event="task.failed", event_pk=key))
        going = rival.start(tend, times=1)
        with pytest.raises(TimeoutError):
            going.result(0.2)
    going.result(10)

    assert told(job) == ("completed", 1, 0, 1)
    assert Delivery.objects.get().delivery_id == theirs.delivery_id


@only_postgresql
@pytest.mark.django_db(transaction=True)
def test_who_deletes_the_webhook_at_the_same_moment_is_waited_for(rival: Rival) -> None:
    row = make_delivery(state="failed")

    with transaction.atomic():
        Webhook.objects.filter(pk=row.webhook_id).update(active=False, deleted_at=NOW)
        going = rival.start(AGAIN, row)
        with pytest.raises(TimeoutError):
            going.result(0.2)

    with pytest.raises(WebhookGone):
        going.result(10)
