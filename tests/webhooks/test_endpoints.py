"""What people do to webhooks: who may say what, and what each act leaves."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import orjson
import pytest
from django.db import transaction
from pytest_django import Settings

from k1node.audit.models import AuditRecord
from k1node.events import log
from k1node.events.catalogue import EVENTS
from k1node.lib.errors import FieldInvalid, NotFound
from tests import event_shapes
from tests.databases import Rival, only_postgresql
from tests.factories import NOW, SECRET, make_delivery, make_webhook
from webhooks import endpoints, rules, signing, signing_secrets
from webhooks.endpoints import State
from webhooks.models import Delivery, FanoutCursor, Message, Webhook

pytestmark = pytest.mark.django_db

LATER = NOW + timedelta(minutes=1)
NEXT = "whsec_HxwdHhsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA="
LAST = "whsec_" + "A" * 43 + "="
FIELDS = {"name": "billing", "url": "https://receiver.example/hook", "events": ["task.completed"]}
FAILING: dict[str, Any] = {
    "failures": 7,
    "failing_since": NOW - timedelta(days=4),
    "exhausted": 99,
    "open_until": NOW + timedelta(minutes=9),
    "paced_until": NOW + timedelta(minutes=9),
}
DISABLED: dict[str, Any] = FAILING | {
    "active": False,
    "disabled_at": NOW,
    "disabled_reason": "Nothing has arrived for 5 days",
}


def create(**fields: Any) -> tuple[Webhook, str]:
    return endpoints.create(FIELDS | fields, by="ana", now=NOW)


def change(webhook: Webhook, **changes: Any) -> Webhook:
    return endpoints.change(webhook, changes, by="ben", now=LATER)


def keys(webhook: Webhook, now: Any = NOW) -> tuple[str, ...]:
    webhook.refresh_from_db()
    return signing_secrets.keys(webhook, now=now)


def health(webhook: Webhook) -> dict[str, Any]:
    webhook.refresh_from_db()
    return {name: getattr(webhook, name) for name in FAILING}


WELL: dict[str, Any] = {"failures": 0, "failing_since": None, "exhausted": 0, "open_until": None, "paced_until": None}


# --- making -----------------------------------------------------------------------------------------------------


def test_a_new_webhook_has_a_secret_that_the_row_does_not_show(settings: Settings) -> None:
    settings.WEBHOOK_MAX_RETRIES = 5

    webhook, secret = create(headers={"Authorization": "Bearer abc"})

    webhook.refresh_from_db()
    assert signing.is_secret(secret)
    assert (webhook.secret_hint, keys(webhook)) == (secret[-4:], (secret,))
    assert signing_secrets.headers(webhook) == {"Authorization": "Bearer abc"}
    assert not any(text in str(vars(webhook)) for text in (secret, "Bearer abc"))
    assert (webhook.max_retries, webhook.backoff_multiplier, webhook.max_in_flight) == (5, 2, 4)
    assert (webhook.created_by, webhook.created_at, webhook.header_names) == ("ana", NOW, ["Authorization"])


def test_a_secret_of_the_caller_is_taken() -> None:
    webhook, secret = create(secret=SECRET)

    assert (secret, keys(webhook)) == (SECRET, (SECRET,))


def test_the_audit_log_has_every_act_and_no_secret() -> None:
    webhook, secret = create(headers={"Authorization": "Bearer abc"})
    change(webhook, name="crm", headers={"X-Key": "def"})
    _, second = endpoints.rotate_secret(webhook, by="ben", now=LATER)
    endpoints.finish_rotation(webhook, by="ben", now=LATER)
    endpoints.enable(webhook, by="ben", now=LATER)
    endpoints.send_test(webhook, by="ben", now=LATER)
    endpoints.delete(webhook, by="ben", now=LATER)

    rows = list(AuditRecord.objects.order_by("pk"))
    assert [row.action.partition(".")[2] for row in rows] == [
        *("created", "updated", "rotated", "rotation_finished", "enabled", "tested", "deleted")
    ]
    assert {row.target for row in rows} == {f"webhook:{webhook.webhook_id}"}
    assert (rows[1].before, rows[1].after) == (
        {"name": "billing", "header_names": ["Authorization"]},
        {"name": "crm", "header_names": ["X-Key"], "headers": "set"},
    )
    told = str([(row.before, row.after, row.reason) for row in rows])
    assert not any(text in told for text in (secret, second, "Bearer abc", "def"))


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        pytest.param({"name": ""}, "name", "Must be 1 to 100 printable characters", id="no name"),
        pytest.param({"name": "a\u202eb"}, "name", "Must be 1 to 100 printable characters", id="invisible"),
        pytest.param({"name": "a" * 101}, "name", "Must be 1 to 100 printable characters", id="long name"),
        pytest.param({"url": "ftp://a.example"}, "url", "The scheme ftp cannot be sent to", id="scheme"),
        pytest.param({"url": "https://169.254.169.254/"}, "url", "169.254.169.254 is an address", id="metadata"),
        pytest.param({"events": []}, "events", "At least one event is needed", id="no event"),
        pytest.param({"events": ["*", "task.failed"]}, "events", '"*" stands alone', id="all and one"),
        pytest.param({"events": ["task.complete"]}, "events", "Unknown event 'task.complete'", id="unknown"),
        pytest.param({"events": ["webhook.test"]}, "events", "Unknown event 'webhook.test'", id="the test"),
        pytest.param({"secret": "mysecret"}, "secret", "Must be whsec_ and the base64", id="secret"),
        pytest.param({"secret": "whsec_" + "A" * 20}, "secret", "Must be whsec_ and the base64", id="short secret"),
        pytest.param({"max_retries": 101}, "max_retries", "Must be from 0 to 100", id="retries"),
        pytest.param({"backoff_multiplier": 0.5}, "backoff_multiplier", "Must be from 1 to 10", id="multiplier"),
        pytest.param({"max_in_flight": 33}, "max_in_flight", "Must be from 1 to 32", id="in flight"),
        pytest.param({"per_second": 0}, "per_second", "Must be from 1 to 1,000", id="rate"),
        pytest.param({"headers": {"a b": "c"}}, "headers", "'a b' is not the name of a header", id="header name"),
        pytest.param({"headers": {"X-A": "b\r\nX-B: c"}}, "headers", "The value of X-A must be", id="two headers"),
        pytest.param({"headers": {"X-A": 1}}, "headers", "The value of X-A must be", id="a number"),
        pytest.param({"headers": {"Host": "x"}}, "headers", "Host is set by the node", id="Host"),
        pytest.param({"headers": {"X-K1node-Event": "x"}}, "headers", "X-K1node-Event is set by", id="ours"),
        pytest.param({"headers": {"Webhook-Id": "x"}}, "headers", "Webhook-Id is set by", id="the standard's"),
        pytest.param({"headers": {"X-A": "b", "x-a": "c"}}, "headers", "x-a is there twice", id="twice"),
        pytest.param({"headers": {f"X-{n}": "x" for n in range(21)}}, "headers", "Must be at most 20", id="many"),
        pytest.param({"headers": {"X-A": "b" * 4097}}, "headers", "Must be at most 4,096 bytes", id="large"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(endpoints.WebhookInvalid) as refused:
        create(**fields)

    (detail,) = refused.value.details
    assert detail.field == field
    assert detail.message.startswith(message)
    assert not Webhook.objects.exists()


def test_the_value_of_a_header_is_not_repeated_in_an_error() -> None:
    with pytest.raises(endpoints.WebhookInvalid) as refused:
        create(headers={"X-A": "very secret\x07", "Host": "very secret"})

    assert "very secret" not in str(refused.value.details)


def test_an_event_that_is_nearly_right_is_suggested() -> None:
    with pytest.raises(endpoints.WebhookInvalid) as refused:
        create(events=["task.complete", "nothing.like.it"])

    assert [detail.suggestion for detail in refused.value.details] == [
        "Did you mean task.completed?",
        "GET /api/v2/webhooks/event-types lists them",
    ]


def test_an_event_named_twice_is_kept_once() -> None:
    webhook, _ = create(events=["task.failed", "task.completed", "task.failed"])

    assert webhook.events == ["task.failed", "task.completed"]


def test_there_are_at_most_a_thousand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "MOST", 2)
    first, _ = create()
    create()

    with pytest.raises(endpoints.TooManyWebhooks):
        create()
    endpoints.delete(first, by="ana", now=NOW)
    create()

    assert endpoints.present().count() == 2


@only_postgresql
@pytest.mark.django_db(transaction=True)
def test_two_nodes_cannot_both_make_the_last_one(monkeypatch: pytest.MonkeyPatch, rival: Rival) -> None:
    monkeypatch.setattr(endpoints, "MOST", 1)

    with transaction.atomic():
        create()
        other = rival.start(create)
        assert not other.done()

    with pytest.raises(endpoints.TooManyWebhooks):
        other.result(10)


# --- where the first one begins -----------------------------------------------------------------------------------


def publish(number: int) -> None:
    with transaction.atomic():
        log.publish("task.started", {"task_id": f"task-{number}", "status": "executing"}, now=NOW)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda webhook: create(), id="made"),
        pytest.param(lambda webhook: change(webhook, active=True), id="active again"),
        pytest.param(lambda webhook: endpoints.enable(webhook, by="ben", now=LATER), id="enabled"),
    ],
)
def test_the_first_active_webhook_gets_what_happens_from_then_on(act: Callable[[Webhook], object]) -> None:
    sleeping = make_webhook(active=False)
    publish(1)
    end = log.end()

    act(sleeping)
    publish(2)

    cursor = FanoutCursor.objects.get()
    assert (cursor.cursor_xid, cursor.cursor_id) == (end.xid, end.id)


# --- changing -----------------------------------------------------------------------------------------------------


def test_a_change_leaves_the_rest() -> None:
    webhook, secret = create(headers={"X-A": "b"}, max_retries=7)

    changed = change(webhook, per_second=5)

    assert (changed.per_second, changed.max_retries, changed.name) == (5, 7, "billing")
    assert (changed.updated_at, changed.created_at) == (LATER, NOW)
    assert (keys(webhook), signing_secrets.headers(webhook)) == ((secret,), {"X-A": "b"})


def test_headers_are_changed_as_a_whole_and_taken_away() -> None:
    webhook, _ = create(headers={"X-A": "b"})

    change(webhook, headers={"X-C": "d"})
    webhook.refresh_from_db()
    assert (signing_secrets.headers(webhook), webhook.header_names) == ({"X-C": "d"}, ["X-C"])
    change(webhook, headers={})

    webhook.refresh_from_db()
    assert (webhook.headers, webhook.header_names) == ("", [])


@pytest.mark.parametrize(
    "url",
    [
        "https://elsewhere.example/hook",
        "https://receiver.example:8443/hook",
        "https://receiver.example.elsewhere.example/hook",
    ],
    ids=["host", "port", "suffix"],
)
def test_headers_do_not_follow_to_another_address_by_themselves(url: str) -> None:
    webhook, _ = create(headers={"Authorization": "Bearer abc"})

    with pytest.raises(FieldInvalid) as refused:
        change(webhook, url=url)

    assert [detail.field for detail in refused.value.details] == ["headers"]
    webhook.refresh_from_db()
    assert webhook.url == FIELDS["url"]


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer xyz"}])
def test_an_address_is_changed_with_its_headers(headers: dict[str, str]) -> None:
    webhook, _ = create(headers={"Authorization": "Bearer abc"})

    change(webhook, url="https://elsewhere.example/hook", headers=headers)

    webhook.refresh_from_db()
    assert (webhook.url, signing_secrets.headers(webhook)) == ("https://elsewhere.example/hook", headers)


@pytest.mark.parametrize("url", ["https://receiver.example/another?path", "HTTPS://RECEIVER.example:443/hook"])
def test_headers_stay_with_another_path_at_the_same_place(url: str) -> None:
    webhook, _ = create(headers={"Authorization": "Bearer abc"})

    change(webhook, url=url)

    webhook.refresh_from_db()
    assert signing_secrets.headers(webhook) == {"Authorization": "Bearer abc"}


def test_a_change_that_changes_nothing_writes_nothing() -> None:
    webhook, _ = create()

    assert change(webhook, name="billing").updated_at == NOW
    assert AuditRecord.objects.count() == 1


def test_a_change_does_not_undo_what_the_machine_has_found_meanwhile() -> None:
    webhook = make_webhook()
    Webhook.objects.update(last_error="Timeout", failures=3)

    change(webhook, name="crm")

    webhook.refresh_from_db()
    assert (webhook.last_error, webhook.failures, webhook.name) == ("Timeout", 3, "crm")


def test_a_wrong_change_changes_nothing() -> None:
    webhook, _ = create()

    with pytest.raises(endpoints.WebhookInvalid):
        change(webhook, name="crm", url="https://127.0.0.1/")

    webhook.refresh_from_db()
    assert webhook.name == "billing"


@pytest.mark.parametrize("active", [True, False])
def test_another_address_starts_without_the_failures_of_the_old_one(active: bool) -> None:
    webhook = make_webhook(**DISABLED | {"active": active})

    change(webhook, url="https://other.example/hook")

    assert health(webhook) == WELL | {"paced_until": FAILING["paced_until"]}
    assert (webhook.active, webhook.disabled_at) == (active, NOW)


def test_what_becomes_active_starts_afresh() -> None:
    webhook = make_webhook(**DISABLED)

    change(webhook, active=True)

    assert health(webhook) == WELL
    assert (webhook.active, webhook.disabled_at, webhook.disabled_reason) == (True, None, "")


def test_pausing_keeps_what_waits_and_how_it_was_doing() -> None:
    webhook = make_webhook(**FAILING)
    delivery = make_delivery(webhook)

    change(webhook, active=False)

    delivery.refresh_from_db()
    assert (delivery.state, health(webhook)) == ("pending", FAILING)
    assert endpoints.state(webhook) is State.PAUSED


@pytest.mark.parametrize("fields", [DISABLED, FAILING, {"active": False}])
def test_enabling_makes_it_as_if_it_had_never_failed(fields: dict[str, Any]) -> None:
    webhook = make_webhook(**fields)

    endpoints.enable(webhook, by="ben", now=LATER)

    assert health(webhook) == WELL
    assert (webhook.active, webhook.disabled_at, webhook.disabled_reason) == (True, None, "")
    assert endpoints.state(webhook) is State.ACTIVE


def test_each_state_is_told_and_found() -> None:
    rows = {
        State.ACTIVE: make_webhook(failures=rules.OPEN_AFTER - 1),
        State.FAILING: make_webhook(failures=rules.OPEN_AFTER),
        State.PAUSED: make_webhook(active=False, failures=9),
        State.DISABLED: make_webhook(**DISABLED),
    }
    make_webhook(active=False, deleted_at=NOW)

    for each, row in rows.items():
        assert endpoints.state(row) is each
        assert list(endpoints.in_state(endpoints.present(), each)) == [row]


# --- deleting -----------------------------------------------------------------------------------------------------


def test_a_deleted_webhook_has_no_secrets_any_more() -> None:
    webhook = make_webhook(next_secret=NEXT, headers={"X-A": "b"}, rotates_at=LATER)

    endpoints.delete(webhook, by="ben", now=LATER)

    webhook.refresh_from_db()
    assert (webhook.active, webhook.deleted_at) == (False, LATER)
    assert (webhook.secret, webhook.next_secret, webhook.headers, webhook.rotates_at) == ("", "", "", None)


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda webhook: change(webhook, active=True), id="change"),
        pytest.param(lambda webhook: endpoints.enable(webhook, by="", now=LATER), id="enable"),
        pytest.param(lambda webhook: endpoints.rotate_secret(webhook, by="", now=LATER), id="rotate"),
        pytest.param(lambda webhook: endpoints.finish_rotation(webhook, by="", now=LATER), id="finish"),
        pytest.param(lambda webhook: endpoints.send_test(webhook, by="", now=LATER), id="test"),
        pytest.param(lambda webhook: endpoints.delete(webhook, by="", now=LATER), id="delete"),
    ],
)
def test_what_was_deleted_meanwhile_is_not_found(act: Callable[[Webhook], object]) -> None:
    webhook = make_webhook()
    endpoints.delete(Webhook.objects.get(), by="ben", now=LATER)

    with pytest.raises(NotFound):
        act(webhook)


# --- rotating -----------------------------------------------------------------------------------------------------


def test_both_secrets_sign_until_the_overlap_is_over() -> None:
    webhook, old = create()

    found, new = endpoints.rotate_secret(webhook, by="ben", now=NOW)

    assert (found.secret_hint, found.next_secret_hint) == (old[-4:], new[-4:])
    assert found.rotates_at == NOW + timedelta(hours=24)
    assert keys(webhook, NOW + timedelta(hours=24) - timedelta(microseconds=1)) == (old, new)
    assert keys(webhook, NOW + timedelta(hours=24)) == (new,)


def test_without_an_overlap_the_old_secret_ends_at_once() -> None:
    webhook, _ = create()

    endpoints.rotate_secret(webhook, secret=NEXT, overlap=timedelta(), by="ben", now=NOW)

    assert keys(webhook) == (NEXT,)
    assert (webhook.secret_hint, webhook.next_secret, webhook.rotates_at) == (NEXT[-4:], "", None)


@pytest.mark.parametrize("hours", [1, 48])
def test_a_second_rotation_ends_the_oldest_secret(hours: int) -> None:
    webhook, _ = create()
    endpoints.rotate_secret(webhook, secret=NEXT, by="ben", now=NOW)
    then = NOW + timedelta(hours=hours)

    endpoints.rotate_secret(webhook, secret=LAST, by="ben", now=then)

    assert keys(webhook, then) == (NEXT, LAST)
    assert webhook.rotates_at == then + timedelta(hours=24)


def test_a_rotation_is_finished_before_its_time() -> None:
    webhook, _ = create()
    endpoints.rotate_secret(webhook, secret=NEXT, by="ben", now=NOW)

    endpoints.finish_rotation(webhook, by="ben", now=NOW)
    endpoints.finish_rotation(webhook, by="ben", now=NOW)

    assert keys(webhook) == (NEXT,)
    assert AuditRecord.objects.filter(action="webhook.rotation_finished").count() == 1


def test_a_secret_that_cannot_be_read_is_replaced_at_once() -> None:
    webhook = make_webhook(secret=SECRET)
    Webhook.objects.update(secret=signing_secrets.sealed("wh-another", "secret", SECRET))

    endpoints.rotate_secret(webhook, secret=NEXT, by="ben", now=NOW)

    assert keys(webhook) == (NEXT,)


@pytest.mark.parametrize("during", [False, True])
def test_the_secret_there_is_cannot_be_its_own_successor(during: bool) -> None:
    webhook = make_webhook(secret=LAST if during else SECRET, next_secret=SECRET if during else "", rotates_at=LATER)

    with pytest.raises(FieldInvalid):
        endpoints.rotate_secret(webhook, secret=SECRET, by="ben", now=NOW)


@pytest.mark.parametrize("overlap", [timedelta(seconds=-1), timedelta(days=7, seconds=1)])
def test_an_overlap_is_from_nothing_to_seven_days(overlap: timedelta) -> None:
    with pytest.raises(FieldInvalid):
        endpoints.rotate_secret(make_webhook(), overlap=overlap, by="ben", now=NOW)


# --- tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [None, *EVENTS])
def test_a_test_is_a_delivery_of_an_example(event: str | None) -> None:
    webhook = make_webhook(active=False, events=["task.failed"])

    delivery = endpoints.send_test(webhook, event, by="ben", now=LATER)

    message = Message.objects.get()
    assert (delivery.is_test, delivery.state, delivery.due_at) == (True, Delivery.State.PENDING, LATER)
    assert (message.event, message.event_pk) == (event or "webhook.test", None)
    event_shapes.check([(message.event, message.data)])
    if event is None:
        assert orjson.loads(message.data) == {"webhook_id": webhook.webhook_id, "by": "ben"}


def test_tests_do_not_pile_up() -> None:
    webhook = make_webhook()
    for _ in range(endpoints.MOST_TESTS):
        endpoints.send_test(webhook, by="ben", now=NOW)

    with pytest.raises(endpoints.TooManyTests):
        endpoints.send_test(webhook, by="ben", now=NOW)
    Delivery.objects.update(state="delivered", finished_at=NOW)
    endpoints.send_test(webhook, by="ben", now=NOW)


def test_an_unknown_event_is_not_tested() -> None:
    with pytest.raises(FieldInvalid):
        endpoints.send_test(make_webhook(), "task.complete", by="ben", now=NOW)


# --- rivals -------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_a_change_waits_for_who_holds_the_row_and_builds_on_it(rival: Rival) -> None:
    webhook = make_webhook(failures=0)

    with transaction.atomic():
        Webhook.objects.filter(pk=webhook.pk).update(failures=3, name="by another")
        other = rival.start(lambda: change(webhook, per_second=7))
    changed = other.result(10)

    assert (changed.failures, changed.name, changed.per_second) == (3, "by another", 7)
