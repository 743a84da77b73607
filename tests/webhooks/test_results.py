"""What a result changes: the attempt, the delivery, how its webhook is doing."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from k1node.audit.models import AuditRecord
from k1node.events.models import Event
from tests.databases import Rival, only_postgresql
from tests.factories import NOW, make_delivery, make_webhook
from webhooks import delivery, results, rules
from webhooks.delivery import Job
from webhooks.models import Attempt, Delivery, Webhook
from webhooks.rules import Code, Result

pytestmark = pytest.mark.django_db

SECOND, MINUTE, HOUR, DAY = (timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1))
LATER = NOW + 2 * SECOND
FAILURES = [code for code in Code if code not in (Code.DELIVERED, Code.GONE, Code.SECRET)]


def claim(limit: int = 100, *, now: datetime = NOW) -> list[Job]:
    return delivery.claim("node:1:1", limit=limit, lease=timedelta(seconds=45), now=now)


def result(code: Code = Code.TIMEOUT, **fields: Any) -> Result:
    return Result(code, **{"finished_at": NOW + SECOND} | fields)


def record(jobs: list[Job], code: Code = Code.TIMEOUT, *, now: datetime = LATER, **fields: Any) -> None:
    results.record([(job, result(code, **fields)) for job in jobs], now=now)


def events() -> list[tuple[str, dict[str, Any]]]:
    return list(Event.objects.order_by("pk").values_list("name", "data"))


def sent(webhook: Webhook | None = None, **fields: Any) -> tuple[Webhook, Delivery, Job]:
    """Return a delivery that is being sent, with its webhook and its job."""
    row = make_delivery(webhook or make_webhook(), **fields)
    (job,) = claim()
    return row.webhook, row, job


# --- a delivery -------------------------------------------------------------------------------------------------


def test_a_delivery_that_arrived_has_ended() -> None:
    webhook, row, job = sent(last_error="Timeout", last_status=500, spent=1)

    record([job], Code.DELIVERED, status=204)

    row.refresh_from_db()
    assert (row.state, row.finished_at, row.spent, row.last_status, row.last_error) == (
        *("delivered", NOW + SECOND),
        *(2, 204, ""),
    )
    assert (row.owner, row.lease_expires_at) == ("", None)
    webhook.refresh_from_db()
    assert (webhook.last_success_at, webhook.failures) == (LATER, 0)


def test_an_attempt_keeps_all_that_was_found_out() -> None:
    _, _, job = sent()

    record(
        [job],
        Code.UNAVAILABLE,
        status=503,
        error="Answered 503",
        address="10.0.0.1",
        allowed_by="10.0.0.0/8",
        dns_ms=1.5,
        connect_ms=20.25,
        answer_ms=3.0,
        total_ms=25.0,
        request_headers={"webhook-id": "wh-evt-1"},
        response_headers={"Server": "é"},
        response_body="no\n",
    )

    row = Attempt.objects.get()
    assert (row.finished_at, row.outcome, row.status, row.error) == (
        *(NOW + SECOND, "unavailable"),
        *(503, "Answered 503"),
    )
    assert (row.address, row.allowed_by) == ("10.0.0.1", "10.0.0.0/8")
    assert (row.dns_ms, row.connect_ms, row.answer_ms, row.total_ms) == (1.5, 20.25, 3.0, 25.0)
    assert (row.request_headers, row.response_headers, row.response_body) == (
        *({"webhook-id": "wh-evt-1"}, {"Server": "é"}),
        "no\n",
    )


@pytest.mark.parametrize("code", FAILURES)
def test_what_failed_is_tried_again_after_a_wait(code: Code) -> None:
    _, row, job = sent()

    record([job], code, error="It went wrong")

    row.refresh_from_db()
    assert (row.state, row.spent, row.last_error, row.finished_at, row.owner) == (
        *("pending", 1, "It went wrong"),
        *(None, ""),
    )
    assert LATER + 4 * SECOND <= row.due_at <= LATER + 6 * SECOND
    assert claim(now=row.due_at)[0].attempt == 2


@pytest.mark.parametrize(("spent", "low", "high"), [(0, 4, 6), (1, 12, 18), (2, 36, 54)])
def test_each_wait_is_that_of_the_webhooks_policy(spent: int, low: int, high: int) -> None:
    _, row, job = sent(make_webhook(backoff_multiplier=3), spent=spent)

    record([job])

    row.refresh_from_db()
    assert LATER + low * SECOND <= row.due_at <= LATER + high * SECOND


@pytest.mark.parametrize(
    ("code", "status", "waits"),
    [(Code.THROTTLED, 429, True), (Code.UNAVAILABLE, 503, True), (Code.UNAVAILABLE, 500, False)],
)
def test_retry_after_holds_for_the_delivery_and_with_429_and_503_for_its_webhook(
    code: Code, status: int, waits: bool
) -> None:
    webhook, row, job = sent()

    record([job], code, status=status, retry_after=MINUTE)

    row.refresh_from_db()
    webhook.refresh_from_db()
    assert row.due_at == LATER + MINUTE
    assert webhook.paced_until == (LATER + MINUTE if waits else None)


def test_a_retry_after_that_is_shorter_than_the_wait_shortens_nothing() -> None:
    webhook, row, job = sent(make_webhook(paced_until=NOW))
    Webhook.objects.update(paced_until=NOW + HOUR)

    record([job], Code.THROTTLED, status=429, retry_after=timedelta(0))

    row.refresh_from_db()
    webhook.refresh_from_db()
    assert row.due_at >= LATER + 4 * SECOND
    assert webhook.paced_until == NOW + HOUR


@pytest.mark.parametrize("retries", [0, 3])
def test_a_delivery_whose_tries_are_used_up_has_failed(retries: int) -> None:
    webhook, row, _ = sent(make_webhook(max_retries=retries))
    delivery.rescue(now=NOW + HOUR)
    now = NOW + HOUR

    for spent in range(1, retries + 2):
        row.refresh_from_db()
        assert (row.state, row.spent) == ("pending", spent - 1)
        now = max(now, row.due_at)
        record(claim(now=now), finished_at=now, now=now)

    row.refresh_from_db()
    webhook.refresh_from_db()
    assert (row.state, row.spent, row.finished_at, webhook.exhausted) == ("failed", retries + 1, now, 1)
    assert claim(now=now + DAY) == []


def test_a_secret_that_cannot_be_read_spends_nothing_and_is_no_failure_of_the_receiver() -> None:
    webhook, row, job = sent(make_webhook(max_retries=0))

    record([job], Code.SECRET, error="The secret cannot be read")

    row.refresh_from_db()
    webhook.refresh_from_db()
    assert (row.state, row.spent, row.due_at) == ("pending", 0, LATER + MINUTE)
    assert (webhook.failures, webhook.failing_since, webhook.exhausted) == (0, None, 0)
    assert (webhook.paced_until, webhook.last_error) == (LATER + MINUTE, "The secret cannot be read")


def test_one_result_counts_once() -> None:
    webhook, row, job = sent()

    results.record([(job, result()), (job, result(Code.DELIVERED, finished_at=LATER))], now=LATER)
    record([job])

    row.refresh_from_db()
    webhook.refresh_from_db()
    assert (row.state, row.spent, webhook.failures) == ("pending", 1, 1)


def test_a_result_that_comes_too_late_changes_the_attempt_alone(caplog: pytest.LogCaptureFixture) -> None:
    webhook, row, job = sent()
    delivery.rescue(now=NOW + HOUR)
    (again,) = claim(now=NOW + HOUR)

    record([job], Code.GONE, status=410)

    row.refresh_from_db()
    webhook.refresh_from_db()
    assert (row.state, row.attempts, row.spent, row.last_status) == ("sending", again.attempt, 0, None)
    assert (webhook.active, webhook.failures, webhook.last_failure_at) == (True, 0, None)
    assert list(Attempt.objects.order_by("number").values_list("outcome", flat=True)) == ["gone", "sending"]
    assert "A result came too late" in caplog.text


def test_the_result_of_a_delivery_that_is_gone_changes_nothing() -> None:
    _, row, job = sent()
    Attempt.objects.all().delete()
    row.delete()

    record([job])

    assert not Delivery.objects.exists()


@pytest.mark.parametrize(("code", "state"), [(Code.DELIVERED, "delivered"), (Code.TIMEOUT, "cancelled")])
def test_of_a_deleted_webhook_nothing_is_sent_again(code: Code, state: str) -> None:
    webhook, row, job = sent()
    Webhook.objects.update(active=False, deleted_at=NOW)

    record([job], code)

    row.refresh_from_db()
    webhook.refresh_from_db()
    assert (row.state, row.finished_at) == (state, NOW + SECOND)
    assert webhook.failures == 0


def test_what_a_paused_webhook_had_under_way_waits_with_the_rest() -> None:
    webhook, row, job = sent()
    Webhook.objects.update(active=False)

    record([job])

    row.refresh_from_db()
    webhook.refresh_from_db()
    assert (row.state, row.spent, webhook.failures) == ("pending", 1, 0)


@pytest.mark.parametrize(
    ("code", "state"), [(Code.DELIVERED, "delivered"), (Code.GONE, "failed"), (Code.DNS, "failed")]
)
def test_a_test_is_sent_once_and_says_nothing_of_its_webhook(code: Code, state: str) -> None:
    webhook = make_webhook(failures=4, exhausted=99, failing_since=NOW - 9 * DAY)
    _, row, job = sent(webhook, is_test=True)

    record([job], code, status=503, retry_after=HOUR)

    row.refresh_from_db()
    assert (row.state, row.finished_at) == (state, NOW + SECOND)
    before = Webhook.objects.filter(pk=webhook.pk).values().get()
    assert (before["failures"], before["exhausted"], before["active"], before["paced_until"]) == (4, 99, True, None)
    assert events() == []


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "é" * 3000])
def test_whatever_a_receiver_sends_can_be_written(text: str) -> None:
    _, row, job = sent()
    fine = make_delivery()
    (other,) = claim()

    hostile = result(
        Code.REFUSED,
        status=99_999,
        error=text,
        address=text,
        allowed_by=text,
        request_headers={text: text},
        response_headers={text: text},
        response_body=text,
    )
    results.record([(job, hostile), (other, result(Code.DELIVERED, status=200))], now=LATER)

    row.refresh_from_db()
    fine.refresh_from_db()
    assert (row.state, row.last_status, fine.state) == ("pending", None, "delivered")
    assert len(row.last_error) <= 500


# --- its webhook ------------------------------------------------------------------------------------------------


def fail(webhook: Webhook, times: int, *, now: datetime = LATER, code: Code = Code.TIMEOUT) -> None:
    """Let so many attempts fail one after another, each sent before the breaker opened."""
    for _ in range(times):
        make_delivery(webhook)
        (job,) = claim()
        record([job], code, now=now)


def test_failures_in_a_row_are_counted_and_end_with_a_success() -> None:
    webhook = make_webhook(exhausted=7)

    fail(webhook, 3)
    webhook.refresh_from_db()
    assert (webhook.failures, webhook.failing_since, webhook.last_failure_at) == (3, LATER, LATER)
    assert (webhook.last_error, webhook.open_until, webhook.exhausted) == ("timeout", None, 7)

    make_delivery(webhook)
    record(claim(), Code.DELIVERED)
    webhook.refresh_from_db()
    assert (webhook.failures, webhook.failing_since, webhook.exhausted, webhook.last_success_at) == (0, None, 0, LATER)


def test_after_enough_failures_the_breaker_opens_and_that_is_said_once() -> None:
    webhook = make_webhook(name="Deploys")

    fail(webhook, rules.OPEN_AFTER)

    webhook.refresh_from_db()
    assert (webhook.failures, webhook.open_until, webhook.active) == (5, LATER + 30 * SECOND, True)
    assert events() == [
        (
            "webhook.failing",
            {
                "webhook_id": webhook.webhook_id,
                "name": "Deploys",
                "failures": 5,
                "failing_since": "2026-03-04T05:06:09.890+00:00",
                "outcome": "timeout",
            },
        )
    ]


def test_what_was_under_way_when_the_breaker_opened_does_not_keep_it_open_longer() -> None:
    webhook = make_webhook(max_in_flight=32)
    for _ in range(32):
        make_delivery(webhook)

    record(claim())

    webhook.refresh_from_db()
    assert (webhook.failures, webhook.open_until) == (5, LATER + 30 * SECOND)
    assert len(events()) == 1


def test_each_probe_that_fails_keeps_the_breaker_open_for_longer_and_is_not_said() -> None:
    webhook = make_webhook()
    fail(webhook, 5)
    now, waits = LATER, []

    for _ in range(7):
        webhook.refresh_from_db()
        assert webhook.open_until is not None
        waits.append((webhook.open_until - now) / SECOND)
        now = webhook.open_until
        make_delivery(webhook, due_at=NOW)
        (probe,) = claim(now=now)
        record([probe], now=now)

    assert waits == [30, 60, 120, 240, 480, 900, 900]
    assert [name for name, _ in events()] == ["webhook.failing"]


def test_a_probe_that_arrives_closes_the_breaker_and_the_next_streak_is_said_again() -> None:
    webhook = make_webhook()
    fail(webhook, 5)
    make_delivery(webhook)
    (probe,) = claim(now=LATER + 30 * SECOND)

    record([probe], Code.DELIVERED)

    webhook.refresh_from_db()
    assert (webhook.failures, webhook.open_until) == (0, None)
    fail(webhook, 5)
    assert [name for name, _ in events()] == ["webhook.failing"] * 2


def test_results_of_one_moment_count_in_the_order_in_which_they_came() -> None:
    webhook = make_webhook(max_in_flight=8)
    for _ in range(6):
        make_delivery(webhook)
    jobs = claim()
    codes = [Code.TIMEOUT, Code.TIMEOUT, Code.TIMEOUT, Code.DELIVERED, Code.TIMEOUT, Code.TIMEOUT]
    reports = [
        (job, result(code, finished_at=NOW + number * SECOND))
        for number, (job, code) in enumerate(zip(jobs, codes, strict=True))
    ]

    results.record(reports[::-1], now=LATER)

    webhook.refresh_from_db()
    assert webhook.failures == 2


def disabled_as(webhook: Webhook, reason: str) -> bool:
    webhook.refresh_from_db()
    last = AuditRecord.objects.filter(action="webhook.disabled").get()
    return (
        not webhook.active
        and (webhook.disabled_at, webhook.disabled_reason, webhook.updated_at) == (LATER, reason, LATER)
        and events()[-1]
        == ("webhook.disabled", {"webhook_id": webhook.webhook_id, "name": webhook.name, "reason": reason})
        and (last.target, last.reason, last.actor) == (f"webhook:{webhook.webhook_id}", reason, "system")
    )


def test_a_receiver_that_is_gone_gets_no_more() -> None:
    webhook, row, job = sent()
    waiting = make_delivery(webhook)

    record([job], Code.GONE, status=410)

    row.refresh_from_db()
    waiting.refresh_from_db()
    assert disabled_as(webhook, "It answered 410 Gone: it wants no more")
    assert (row.state, waiting.state) == ("failed", "pending")
    assert claim(now=NOW + DAY) == []


@pytest.mark.parametrize("code", [Code.GONE, Code.TIMEOUT, Code.DELIVERED])
def test_what_the_address_before_answered_does_not_count_for_the_present_one(code: Code) -> None:
    webhook, row, job = sent(make_webhook(failures=4))
    Webhook.objects.update(url="https://receiver.example/moved")

    record([job], code)

    webhook.refresh_from_db()
    row.refresh_from_db()
    assert (webhook.active, webhook.failures, webhook.open_until) == (True, 4, None)
    assert (row.state, row.spent) == ("delivered" if code is Code.DELIVERED else "pending", 1)


def test_a_webhook_is_given_up_after_a_hundred_deliveries_that_failed_in_a_row() -> None:
    webhook = make_webhook(max_retries=0, exhausted=98)

    fail(webhook, 1)
    webhook.refresh_from_db()
    assert (webhook.active, webhook.exhausted) == (True, 99)
    fail(webhook, 1)

    assert disabled_as(webhook, "100 deliveries in a row were given up")


def test_a_webhook_is_given_up_after_five_days_of_failures() -> None:
    webhook = make_webhook(failures=9, failing_since=LATER - 5 * DAY)

    fail(webhook, 1)

    assert disabled_as(webhook, "Nothing has arrived for 5 days")


def test_two_failures_five_days_apart_are_not_five_days_of_failures() -> None:
    webhook = make_webhook(failures=1, failing_since=LATER - 6 * DAY)

    fail(webhook, 1)

    webhook.refresh_from_db()
    assert webhook.active


def test_a_webhook_is_given_up_once() -> None:
    webhook = make_webhook(max_in_flight=8)
    for _ in range(8):
        make_delivery(webhook)

    record(claim(), Code.GONE)

    assert [name for name, _ in events()] == ["webhook.disabled"]
    assert AuditRecord.objects.count() == 1
    assert set(Delivery.objects.values_list("state", flat=True)) == {"failed"}


# --- the cost, and rivals ---------------------------------------------------------------------------------------


def many(count: int, webhook: Webhook) -> list[Job]:
    for _ in range(count):
        make_delivery(webhook)
    return claim()


def test_successes_of_a_webhook_that_is_well_do_not_write_its_row() -> None:
    webhook = make_webhook(max_in_flight=32, last_success_at=LATER - SECOND)
    jobs = many(32, webhook)

    with CaptureQueriesContext(connection) as queries:
        record(jobs, Code.DELIVERED, status=200)

    # Savepoint; a look at the webhooks; the deliveries and the attempts, each read and written; savepoint.
    assert len(queries) == 7
    webhook.refresh_from_db()
    assert webhook.last_success_at == LATER - SECOND
    assert Delivery.objects.filter(state="delivered").count() == 32


def test_fifty_results_of_all_kinds_take_few_statements() -> None:
    jobs = [job for _ in range(10) for job in many(5, make_webhook(max_in_flight=5))]
    codes = [Code.DELIVERED, Code.TIMEOUT, Code.REFUSED, Code.DNS, Code.THROTTLED]
    reports = [(job, result(codes[number % 5])) for number, job in enumerate(jobs)]

    with CaptureQueriesContext(connection) as queries:
        results.record(reports, now=LATER)

    # As above; the webhooks are locked instead of looked at, and written.
    assert len(queries) == 8


def test_no_results_ask_nothing(django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(0):
        results.record([], now=NOW)


@pytest.mark.django_db(transaction=True)
def test_an_enabling_since_the_claim_is_not_undone(rival: Rival) -> None:
    webhook, _, job = sent(make_webhook(failures=6, open_until=NOW))
    cleared = {"failures": 0, "failing_since": None, "open_until": None, "exhausted": 0}

    rival.do(lambda: Webhook.objects.update(**cleared))
    record([job])

    webhook.refresh_from_db()
    assert (webhook.failures, webhook.open_until) == (1, None)


@only_postgresql
@pytest.mark.django_db(transaction=True)
def test_the_record_waits_for_whoever_changes_the_webhook_and_sees_the_change(rival: Rival) -> None:
    webhook, row, job = sent()

    with transaction.atomic():
        Webhook.objects.select_for_update().get(pk=webhook.pk)
        waiting = rival.start(record, [job])
        Webhook.objects.filter(pk=webhook.pk).update(active=False, deleted_at=NOW)
    waiting.result(10)

    row.refresh_from_db()
    assert row.state == "cancelled"


@only_postgresql
@pytest.mark.django_db(transaction=True)
def test_a_success_of_a_webhook_that_is_well_waits_for_nobody(rival: Rival) -> None:
    webhook, row, job = sent(make_webhook(last_success_at=LATER))

    with transaction.atomic():
        Webhook.objects.select_for_update(no_key=True).get(pk=webhook.pk)
        rival.do(record, [job], Code.DELIVERED)

    row.refresh_from_db()
    assert row.state == "delivered"


def test_a_result_of_another_attempt_is_not_taken_for_this_one() -> None:
    _, row, job = sent()

    record([replace(job, attempt=job.attempt + 1)], Code.DELIVERED)

    row.refresh_from_db()
    assert (row.state, Attempt.objects.get().outcome) == ("sending", "sending")
