"""Claiming deliveries, and giving them back without a result."""

import json
import threading
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from tests.databases import Rival, only_postgresql, only_sqlite
from tests.factories import NOW, SECRET, make_delivery, make_message, make_webhook
from webhooks import delivery, results, rules
from webhooks.delivery import Job
from webhooks.models import Attempt, Delivery, Message, Webhook
from webhooks.rules import Code, Result

pytestmark = pytest.mark.django_db

LEASE = timedelta(seconds=45)
SECOND = timedelta(seconds=1)
State = Delivery.State


def claim(limit: int = 100, *, owner: str = "node:1:1", now: datetime = NOW, kept: int = 0) -> list[Job]:
    return delivery.claim(owner, limit=limit, lease=LEASE, now=now, kept=kept)


def pending(webhook: Webhook, count: int, **fields: Any) -> list[Delivery]:
    return [make_delivery(webhook, **fields) for _ in range(count)]


def shares(jobs: list[Job]) -> Counter[int]:
    return Counter(job.webhook for job in jobs)


def test_a_claim_gives_all_that_an_attempt_needs() -> None:
    webhook = make_webhook(headers={"X-Team": "ops"}, url="https://receiver.example/a")
    message = make_message(event="task.failed", data='{"b":1,"a":"é"}', occurred_at=NOW - SECOND)
    row = make_delivery(webhook, message, attempts=2, spent=1)

    (job,) = claim()

    assert job == Job(
        delivery=row.pk,
        delivery_id=row.delivery_id,
        attempt=3,
        webhook=webhook.pk,
        webhook_id=webhook.webhook_id,
        url="https://receiver.example/a",
        message_id=message.message_id,
        event="task.failed",
        occurred_at=NOW - SECOND,
        data='{"b":1,"a":"é"}',
        keys=(SECRET,),
        headers={"X-Team": "ops"},
        is_test=False,
    )
    row.refresh_from_db()
    assert (row.state, row.owner, row.lease_expires_at, row.attempts, row.spent) == (
        *("sending", "node:1:1", NOW + LEASE),
        *(3, 1),
    )
    attempt = Attempt.objects.get()
    assert (attempt.delivery, attempt.number, attempt.started_at, attempt.outcome, attempt.url) == (
        *(row, 3, NOW),
        *("sending", "https://receiver.example/a"),
    )
    assert (attempt.finished_at, attempt.request_headers) == (None, {})


def test_a_job_that_is_logged_shows_no_secret() -> None:
    make_delivery(make_webhook(headers={"X-Key": "hush"}))

    (job,) = claim()

    assert SECRET not in repr(job) and "hush" not in repr(job)


def test_during_a_rotation_both_secrets_sign_and_after_it_the_new_one() -> None:
    webhook = make_webhook(next_secret="whsec_" + "A" * 43 + "=", rotates_at=NOW)
    pending(webhook, 2, due_at=NOW - SECOND)

    (before,) = claim(1, now=NOW - timedelta(microseconds=1))
    (after,) = claim(1)

    assert before.keys == (SECRET, "whsec_" + "A" * 43 + "=")
    assert after.keys == before.keys[1:]


@pytest.mark.parametrize("field", ["secret", "headers"])
def test_what_cannot_be_read_is_told_by_having_no_keys(field: str) -> None:
    webhook = make_webhook(headers={"X-Team": "ops"})
    Webhook.objects.update(**{field: "gAAAA"})
    make_delivery(webhook)

    (job,) = claim()

    assert (job.keys, job.headers) == ((), {})


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"due_at": NOW + SECOND}, id="not due"),
        pytest.param({"state": State.SENDING}, id="being sent"),
        pytest.param({"state": State.DELIVERED}, id="delivered"),
        pytest.param({"state": State.FAILED}, id="failed"),
        pytest.param({"state": State.CANCELLED}, id="cancelled"),
    ],
)
def test_only_what_is_due_is_claimed(fields: dict[str, Any]) -> None:
    make_delivery(make_webhook(), **fields)

    assert claim() == []


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"active": False}, id="not active"),
        pytest.param({"active": False, "deleted_at": NOW}, id="deleted"),
        pytest.param({"deleted_at": NOW}, id="deleted, whatever else"),
        pytest.param({"open_until": NOW + SECOND, "failures": 5}, id="open breaker"),
        pytest.param({"paced_until": NOW + SECOND}, id="told to wait"),
    ],
)
def test_webhooks_that_must_not_be_sent_to_wait(fields: dict[str, Any]) -> None:
    make_delivery(make_webhook(**fields))
    make_delivery(make_webhook())

    assert len(claim()) == 1


def test_the_oldest_of_a_webhook_goes_first() -> None:
    webhook = make_webhook(max_in_flight=3)
    due = [NOW - SECOND, NOW - 3 * SECOND, NOW, NOW - 2 * SECOND, NOW - 3 * SECOND]
    rows = [make_delivery(webhook, due_at=at) for at in due]

    assert {job.delivery for job in claim()} == {rows[1].pk, rows[4].pk, rows[3].pk}


def test_no_webhook_has_more_under_way_than_it_may() -> None:
    webhook = make_webhook(max_in_flight=3)
    make_delivery(webhook, state=State.SENDING)
    pending(webhook, 5)

    assert len(claim()) == 2
    assert claim() == []
    Delivery.objects.filter(state=State.SENDING).order_by("pk")[0].delete()
    assert len(claim()) == 1


def test_free_places_go_to_the_webhooks_with_the_fewest_under_way() -> None:
    slow, busy, idle = (make_webhook(max_in_flight=8) for _ in range(3))
    for webhook, sending in ((slow, 6), (busy, 2)):
        for _ in range(sending):
            make_delivery(webhook, state=State.SENDING)
    for webhook in (slow, busy, idle):
        pending(webhook, 8)

    assert shares(claim(2)) == {idle.pk: 2}
    assert shares(claim(4)) == {idle.pk: 2, busy.pk: 2}
    assert shares(claim(7)) == {idle.pk: 3, busy.pk: 3, slow.pk: 1}


def test_each_of_many_webhooks_gets_its_turn() -> None:
    webhooks = [make_webhook() for _ in range(6)]
    for webhook in webhooks:
        pending(webhook, 4)

    got = [shares(claim(3)) for _ in range(2)]

    # The second time those that had nothing the first time.
    assert sum(got, Counter()) == dict.fromkeys((webhook.pk for webhook in webhooks), 1)


def test_a_rate_holds_over_claims() -> None:
    webhook = make_webhook(per_second=2, max_in_flight=32)
    pending(webhook, 10)

    counts = [len(claim(now=NOW + wait * SECOND / 4)) for wait in range(9)]

    # A second's worth at once, then one each half second.
    assert counts == [2, 0, 1, 0, 1, 0, 1, 0, 1]


def test_a_webhook_without_a_rate_is_not_written_by_a_claim() -> None:
    pending(make_webhook(), 3)

    with CaptureQueriesContext(connection) as queries:
        claim()

    assert not [query for query in queries if query["sql"].startswith('UPDATE "webhooks_webhook"')]


def test_when_a_breaker_may_close_one_request_tries_it() -> None:
    webhook = make_webhook(failures=rules.OPEN_AFTER, open_until=NOW)
    pending(webhook, 3)

    (probe,) = claim()

    assert probe.is_probe
    assert claim() == []


def test_what_is_under_way_from_before_keeps_the_probe_waiting() -> None:
    webhook = make_webhook(failures=rules.OPEN_AFTER, open_until=NOW - SECOND)
    make_delivery(webhook, state=State.SENDING)
    make_delivery(webhook)

    assert claim() == []


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="active"),
        pytest.param({"active": False}, id="not active"),
        pytest.param({"active": False, "disabled_at": NOW}, id="given up"),
        pytest.param({"failures": 7, "open_until": NOW + SECOND}, id="open breaker"),
        pytest.param({"paced_until": NOW + SECOND, "per_second": 1}, id="told to wait"),
    ],
)
def test_a_test_goes_at_once_and_before_all_others(fields: dict[str, Any]) -> None:
    webhook = make_webhook(**fields)
    pending(webhook, 3, due_at=NOW - SECOND)
    test = make_delivery(webhook, is_test=True)

    (job,) = claim(1)

    assert (job.delivery, job.is_test, job.is_probe) == (test.pk, True, False)
    webhook.refresh_from_db()
    assert webhook.paced_until == fields.get("paced_until")


def test_tests_take_places_too_and_go_to_no_deleted_webhook() -> None:
    webhook, deleted = make_webhook(max_in_flight=2), make_webhook(active=False, deleted_at=NOW)
    pending(webhook, 3, is_test=True)
    pending(webhook, 3)
    make_delivery(deleted, is_test=True)

    jobs = claim()

    assert [(job.webhook, job.is_test) for job in jobs] == [(webhook.pk, True)] * 2


@pytest.mark.parametrize("limit", [0, -1])
def test_a_sender_without_a_free_place_asks_for_nothing(limit: int, django_assert_num_queries: Any) -> None:
    make_delivery()

    with django_assert_num_queries(0):
        assert claim(limit) == []


def test_a_claim_of_fifty_takes_few_statements() -> None:
    for _ in range(25):
        pending(make_webhook(), 2)

    with CaptureQueriesContext(connection) as queries:
        jobs = claim(50)

    assert len(jobs) == 50
    # Two looks; savepoint; lock, places, tests, the due ones; take, read, attempts; savepoint.
    assert len(queries) == 11


def test_a_claim_that_finds_nothing_only_looks() -> None:
    make_delivery(make_webhook(), due_at=NOW + SECOND)

    with CaptureQueriesContext(connection) as queries:
        claim()

    assert len(queries) == 2


# --- rivals -----------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_a_rival_that_has_claimed_since_the_look_leaves_only_the_rest(rival: Rival) -> None:
    webhook = make_webhook(max_in_flight=4)
    pending(webhook, 6)
    candidates = delivery._candidates(100, NOW)

    theirs = rival.do(claim, 3, owner="other:1:1")
    with transaction.atomic():
        taken, _ = delivery._claim("node:1:1", candidates, 100, LEASE, NOW)

    assert len(theirs) == 3
    assert len(taken) == 1
    assert {row[0] for row in taken}.isdisjoint({job.delivery for job in theirs})


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"active": False}, id="paused"),
        pytest.param({"active": False, "deleted_at": NOW}, id="deleted"),
        pytest.param({"open_until": NOW + SECOND, "failures": 5}, id="its breaker opened"),
        pytest.param({"paced_until": NOW + SECOND}, id="told to wait"),
    ],
)
def test_a_webhook_that_changed_since_the_look_is_left_alone(rival: Rival, change: dict[str, Any]) -> None:
    pending(make_webhook(), 2)
    candidates = delivery._candidates(100, NOW)

    rival.do(lambda: Webhook.objects.update(**change))
    with transaction.atomic():
        taken, _ = delivery._claim("node:1:1", candidates, 100, LEASE, NOW)

    assert taken == []


@only_postgresql
@pytest.mark.django_db(transaction=True)
def test_a_webhook_that_a_rival_has_locked_is_passed_over(rival: Rival) -> None:
    held, free = make_webhook(), make_webhook()
    for webhook in (held, free):
        make_delivery(webhook)
    rival.execute("BEGIN")
    rival.execute("SELECT id FROM webhooks_webhook WHERE id = %s FOR NO KEY UPDATE", [held.pk])

    jobs = claim()
    rival.execute("COMMIT")

    assert [job.webhook for job in jobs] == [free.pk]


@only_postgresql
@pytest.mark.django_db(transaction=True)
def test_a_fan_out_under_way_holds_up_no_claim(rival: Rival) -> None:
    webhook, message = make_webhook(), make_message()
    make_delivery(webhook)
    rival.execute("BEGIN")
    rival.do(lambda: make_delivery(webhook, message))

    jobs = claim()
    rival.execute("COMMIT")

    assert len(jobs) == 1


@only_postgresql
@pytest.mark.django_db(transaction=True)
def test_claimers_at_the_same_moment_share_without_a_conflict() -> None:
    webhooks = [make_webhook(max_in_flight=3) for _ in range(5)]
    for webhook in webhooks:
        pending(webhook, 8)
    got: list[Job] = []
    start = threading.Barrier(4)

    def work(number: int) -> None:
        start.wait(10)
        for _ in range(6):
            got.extend(claim(4, owner=f"node-{number}:1:1"))
        connection.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    got += claim()

    assert len({job.delivery for job in got}) == len(got)
    assert shares(got) == dict.fromkeys((webhook.pk for webhook in webhooks), 3)
    assert Attempt.objects.count() == len(got)


def test_the_last_places_are_for_webhooks_with_nothing_under_way() -> None:
    slow, other, idle = (make_webhook(max_in_flight=32) for _ in range(3))
    for webhook in (slow, other):
        pending(webhook, 10)
        make_delivery(webhook, state=State.SENDING)

    assert shares(claim(4, kept=4)) == {}
    assert sum(shares(claim(4, kept=3)).values()) == 1

    pending(idle, 10)
    assert shares(claim(4, kept=4)) == {idle.pk: 1}
    assert shares(claim(4, kept=4)) == {}
    assert sum(shares(claim(4, kept=0)).values()) == 4


def test_a_lease_begins_when_the_wait_for_the_database_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    make_delivery()
    moments = iter((100.0, 117.5))
    monkeypatch.setattr(delivery, "monotonic", lambda: next(moments))

    claim()

    assert Delivery.objects.get().lease_expires_at == NOW + LEASE + 17 * SECOND


# --- the cost ---------------------------------------------------------------------------------------------------


def many(webhook: Webhook, count: int, state: State) -> None:
    """Make deliveries of `webhook` that wait, or that have ended."""
    messages = Message.objects.bulk_create(
        Message(message_id=f"wh-evt-b{number}", event="task.completed", occurred_at=NOW, data="{}")
        for number in range(count)
    )
    Delivery.objects.bulk_create(
        Delivery(
            delivery_id=f"wh-dlv-b{message.pk}",
            webhook=webhook,
            message=message,
            event="task.completed",
            state=state,
            due_at=NOW - timedelta(hours=1),
            created_at=NOW,
            finished_at=None if state == State.PENDING else NOW,
        )
        for message in messages
    )


@only_sqlite
@pytest.mark.parametrize("state", [State.PENDING, State.DELIVERED])
def test_no_statement_of_a_claim_reads_more_of_a_webhooks_deliveries_than_it_takes(state: State) -> None:
    webhooks = [make_webhook() for _ in range(100)]
    for webhook in webhooks:
        make_delivery(webhook)

    steps(lambda: claim(50))
    few = steps(lambda: claim(50))
    many(webhooks[0], 10_000, state)

    assert steps(lambda: claim(50)) < few * 1.3


@only_sqlite
def test_taking_back_reads_nothing_of_what_is_not_being_sent() -> None:
    many(make_webhook(), 10_000, State.DELIVERED)

    assert steps(lambda: delivery.take_back("node:", owner="node:2:2", now=NOW)) < 10


def steps(work: Callable[[], Any]) -> int:
    """Return how many of SQLite's instructions `work` takes, in hundreds; what it does is undone."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1

    with transaction.atomic():
        connection.connection.set_progress_handler(step, 100)
        work()
        connection.connection.set_progress_handler(None, 0)
        transaction.set_rollback(True)
    return count


@only_postgresql
@pytest.mark.parametrize("state", [State.PENDING, State.DELIVERED])
def test_no_statement_of_a_claim_reads_the_whole_table(state: State) -> None:
    webhooks = [make_webhook() for _ in range(100)]
    for webhook in webhooks:
        make_delivery(webhook)
    many(webhooks[0], 10_000, state)

    def rows_read() -> int:
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")
            total = 0
            with CaptureQueriesContext(connection) as queries:
                claim(50)
            asked = [query["sql"] for query in queries if query["sql"].lstrip().startswith(("WITH", "SELECT due"))]
            for statement in asked:
                cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}")
                total += _rows(json.loads(json.dumps(cursor.fetchone()[0]))[0]["Plan"])
        return total

    def _rows(plan: dict[str, Any]) -> int:
        own = (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)) * plan["Actual Loops"]
        inner = sum(_rows(child) for child in plan.get("Plans", []))
        return int(own if plan.get("Relation Name") == "webhooks_delivery" else 0) + inner

    assert rows_read() < 1000


# --- without a result -------------------------------------------------------------------------------------------


def test_what_is_given_back_goes_again_at_once_and_spends_no_try() -> None:
    rows = pending(make_webhook(), 2, spent=1)
    jobs = claim()

    delivery.give_back(jobs[:1], now=NOW + SECOND)

    back = Delivery.objects.get(pk=jobs[0].delivery)
    assert (back.state, back.due_at, back.owner, back.lease_expires_at) == ("pending", NOW + SECOND, "", None)
    assert (back.spent, back.attempts) == (1, 1)
    assert Delivery.objects.get(pk=jobs[1].delivery).state == "sending"
    outcomes = {attempt.delivery_id: (attempt.outcome, attempt.finished_at) for attempt in Attempt.objects.all()}
    assert outcomes == {jobs[0].delivery: ("unknown", NOW + SECOND), jobs[1].delivery: ("sending", None)}
    (again,) = claim(1, now=NOW + SECOND)
    assert again.attempt == 2
    assert again.message_id == jobs[0].message_id
    assert len(rows) == 2


def test_what_another_has_meanwhile_is_not_given_back() -> None:
    make_delivery()
    jobs = claim()
    delivery.give_back(jobs, now=NOW)
    theirs = claim(owner="other:1:1")

    delivery.give_back(jobs, now=NOW)

    row = Delivery.objects.get()
    assert (row.state, row.owner, row.attempts) == ("sending", "other:1:1", theirs[0].attempt)


def test_leases_that_ran_out_are_rescued_and_no_others() -> None:
    old, young = make_delivery(), make_delivery()
    claim(1)
    first = Delivery.objects.get(state=State.SENDING)
    claim(1, now=NOW + SECOND)

    assert delivery.rescue(now=NOW + LEASE) == 0
    assert delivery.rescue(now=NOW + LEASE + SECOND / 2) == 1

    first.refresh_from_db()
    assert first.state == "pending"
    assert Delivery.objects.filter(state=State.SENDING).count() == 1
    assert {old.pk, young.pk} > {first.pk}
    assert sorted(Attempt.objects.values_list("outcome", flat=True)) == ["sending", "unknown"]


def test_a_sender_takes_back_what_those_before_it_on_this_node_had() -> None:
    owners = ["node-a:1:1", "node-a:2:2", "node-ab:1:1", "node-b:1:1", "node-a%:1:1"]
    for owner in owners:
        make_delivery()
        claim(1, owner=owner)

    count = delivery.take_back("node-a:", owner="node-a:2:2", now=NOW)

    assert count == 1
    held = set(Delivery.objects.filter(state=State.SENDING).values_list("owner", flat=True))
    assert held == set(owners) - {"node-a:1:1"}


def without_a_result(times: int, *, now: datetime = NOW) -> None:
    """Claim whatever is due and lose its sender, so many times."""
    for _ in range(times):
        assert claim(now=now)
        delivery.take_back("node:", owner="node:2:2", now=now)


def test_a_delivery_that_ends_its_sender_again_and_again_spends_its_tries() -> None:
    row = make_delivery(make_webhook(max_retries=1))

    without_a_result(delivery.UNKNOWN_MOST)
    row.refresh_from_db()
    assert (row.state, row.spent, row.due_at) == ("pending", 0, NOW)

    without_a_result(1)
    row.refresh_from_db()
    assert (row.state, row.spent, row.finished_at) == ("pending", 1, None)
    assert NOW + 4 * SECOND <= row.due_at <= NOW + 6 * SECOND

    without_a_result(1, now=NOW + 10 * SECOND)
    row.refresh_from_db()
    assert (row.state, row.spent, row.finished_at) == ("failed", 2, NOW + 10 * SECOND)
    assert row.last_error == "Its sender ended 7 times before there was a result"
    assert (row.owner, row.lease_expires_at) == ("", None)
    assert set(Attempt.objects.values_list("outcome", flat=True)) == {"unknown"}
    assert Webhook.objects.get().failures == 0


def test_a_test_that_ends_its_sender_again_and_again_has_failed() -> None:
    row = make_delivery(is_test=True)

    without_a_result(delivery.UNKNOWN_MOST + 1)

    row.refresh_from_db()
    assert (row.state, row.spent) == ("failed", 1)


def test_only_attempts_in_a_row_without_a_result_are_counted() -> None:
    row = make_delivery()
    without_a_result(delivery.UNKNOWN_MOST)
    (job,) = claim()
    results.record([(job, Result(Code.TIMEOUT, NOW))], now=NOW)
    due = NOW + 10 * SECOND

    without_a_result(delivery.UNKNOWN_MOST, now=due)

    row.refresh_from_db()
    assert (row.state, row.spent, row.due_at) == ("pending", 1, due)


def test_giving_back_nothing_asks_nothing(django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(0):
        delivery.give_back([], now=NOW)
