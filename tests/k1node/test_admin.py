"""The console as a whole: every page opens with rows on it, shows text as text, and lets nobody do too much."""

import re
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.contrib.messages import get_messages
from django.db import models
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from oauth2_provider import models as oauth

from batches.models import Batch
from k1node.access import keys
from k1node.access.models import ApiKey, DeniedToken, RefreshToken, TokenFamily
from k1node.api.models import IdempotentAnswer
from k1node.audit import trail
from k1node.audit.models import AuditBlock, AuditPruning, AuditRecord, AuditRefusal
from k1node.events import log
from k1node.events.models import Event
from k1node.lib.admin_display import duration, relative, size
from k1node.operations import jobs
from k1node.operations.models import Item, Operation
from recovery.models import (
    Breaker,
    DeadLetter,
    FailingSchedule,
    Hold,
    Intervention,
    NoticeMail,
    NoticeReader,
    NoticeRule,
)
from scheduling.models import (
    Attempt,
    Gate,
    GateKind,
    GateTally,
    MinuteCounter,
    Node,
    OutputChunk,
    RetryPolicy,
    Schedule,
    ScheduleTally,
    Slot,
    Task,
    TaskStatus,
)
from tests.factories import (
    NOW,
    make_attempt,
    make_batch,
    make_dead_letter,
    make_delivery,
    make_delivery_attempt,
    make_gate,
    make_message,
    make_schedule,
    make_task,
    make_webhook,
)
from webhooks import models as webhooks

HOSTILE = "<script>alert(1)</script>"
SHOWN_HOSTILE = "&lt;script&gt;alert(1)&lt;/script&gt;"

pytestmark = pytest.mark.django_db


@pytest.fixture
def rows() -> dict[type[models.Model], models.Model]:
    """Return a row of every model, with markup wherever a caller can put text."""
    schedule = make_schedule(task_name=HOSTILE, handler=f"bash {HOSTILE}", last_error=HOSTILE)
    gate = make_gate(key=HOSTILE)
    task = make_task(
        handler=f"bash {HOSTILE}",
        task_name=HOSTILE,
        parameters={HOSTILE: HOSTILE},
        schedule=schedule,
        gate=gate,
        status=TaskStatus.FAILED,
        last_error=HOSTILE,
        fence=1,
    )
    log.publish(HOSTILE, {"text": HOSTILE}, now=NOW)
    given = {HOSTILE: HOSTILE}
    operation = jobs.plan("redrive", [1], arguments=given, selection=given, pace=jobs.Pace(), by=HOSTILE, now=NOW)
    key, _ = keys.issue(HOSTILE, ["scheduler:read"])
    return {
        Schedule: schedule,
        Task: task,
        Attempt: make_attempt(task, outcome="failed", error=HOSTILE, value={"html": HOSTILE}, output_bytes=25),
        OutputChunk: OutputChunk.objects.create(task=task, fence=1, position=0, stream="stdout", data=HOSTILE.encode()),
        Slot: Slot.objects.create(
            schedule=schedule,
            due_at=NOW,
            last_due_at=NOW,
            outcome=Slot.Outcome.FIRED,
            reason=HOSTILE,
            task=task,
            recorded_at=NOW,
        ),
        Gate: gate,
        Intervention: Intervention.objects.create(
            task=task,
            action="pause",
            reason=HOSTILE,
            performed_by=HOSTILE,
            before={},
            after={HOSTILE: 1},
            created_at=NOW,
        ),
        Breaker: Breaker.objects.create(
            breaker_id=HOSTILE, gate=make_gate(kind=GateKind.BREAKER), changed_at=NOW, pinned_by=HOSTILE
        ),
        DeadLetter: make_dead_letter(task, error_message=HOSTILE, created_by=HOSTILE),
        Operation: operation,
        Item: operation.items.get(),
        Hold: Hold.objects.create(reason=HOSTILE, created_by=HOSTILE, since=NOW),
        NoticeRule: (
            rule := NoticeRule.objects.create(
                name=HOSTILE, addresses=["ana@example.org"], schedule=schedule, last_error=HOSTILE
            )
        ),
        NoticeMail: NoticeMail.objects.create(
            rule=rule,
            rule_name=HOSTILE,
            counts={"failed": 1},
            samples=[
                {
                    "kind": "failed",
                    "at": NOW.isoformat(),
                    "subject": HOSTILE,
                    "schedule": HOSTILE,
                    "text": HOSTILE,
                    "task": task.pk,
                }
            ],
            began_at=NOW,
            ended_at=NOW,
            due_at=NOW,
        ),
        NoticeReader: NoticeReader.objects.create(owner=HOSTILE),
        FailingSchedule: FailingSchedule.objects.create(schedule=schedule, task=task, failed_at=NOW),
        RetryPolicy: RetryPolicy.objects.get(pk="standard"),
        Node: Node.objects.create(node_id=uuid.uuid4(), hostname=HOSTILE, started_at=NOW, beat_at=NOW),
        MinuteCounter: MinuteCounter.objects.create(minute=NOW, policy="standard", worker=HOSTILE),
        ScheduleTally: ScheduleTally.objects.create(schedule=schedule, shard=0, completed=2),
        GateTally: GateTally.objects.create(gate=make_gate(kind=GateKind.BATCH), worker=HOSTILE, completed=2),
        Event: Event.objects.get(),
        ApiKey: key,
        IdempotentAnswer: IdempotentAnswer.objects.create(
            identity="0" * 64, asked_by=HOSTILE, path=HOSTILE, status=201, body=HOSTILE.encode(), created_at=NOW
        ),
        AuditRecord: AuditRecord.objects.create(
            at=NOW, action=HOSTILE[:60], actor=HOSTILE, actor_name=HOSTILE, target=HOSTILE, reason=HOSTILE, after=given
        ),
        AuditBlock: AuditBlock.objects.create(number=1, last_xid=0, last_id=1, count=1, hash=HOSTILE, sealed_at=NOW),
        AuditRefusal: AuditRefusal.objects.create(
            minute=NOW, action=HOSTILE, address=HOSTILE, reason=HOSTILE, first_at=NOW, last_at=NOW
        ),
        AuditPruning: AuditPruning.objects.create(through=1),
        TokenFamily: (
            family := TokenFamily.objects.create(key=key, created_at=NOW, expires_at=NOW, revoked_reason=HOSTILE)
        ),
        RefreshToken: RefreshToken.objects.create(
            family=family, digest="0" * 64, scopes=[HOSTILE], created_at=NOW, expires_at=NOW
        ),
        DeniedToken: DeniedToken.objects.create(issuer=HOSTILE, jti=HOSTILE, denied_at=NOW, expires_at=NOW),
        **app_rows(),
        **webhook_rows(),
        **batch_rows(),
        User: User.objects.create_user("other", first_name=HOSTILE),
    }


def batch_rows() -> dict[type[models.Model], models.Model]:
    """Return an open batch that is paused, with a task that has failed as one worker has counted."""
    batch = make_batch(
        batch_id=HOSTILE,
        open=True,
        total=1,
        defaults={HOSTILE: HOSTILE},
        owner=HOSTILE,
        created_by=HOSTILE,
        paused_at=NOW,
        paused_by=HOSTILE,
    )
    make_task(gate=batch.gate, task_id=HOSTILE, handler=HOSTILE, status=TaskStatus.FAILED, last_error=HOSTILE)
    GateTally.objects.create(gate=batch.gate, worker=HOSTILE, failed=1)
    trail.record("batch.paused", f"batch:{HOSTILE}", reason=HOSTILE, by=HOSTILE, now=NOW)
    return {Batch: batch}


def webhook_rows() -> dict[type[models.Model], models.Model]:
    """Return a webhook that fails, and what was sent to it."""
    webhook = make_webhook(
        name=HOSTILE,
        url=f"https://receiver.example/{HOSTILE}",
        events=[HOSTILE],
        header_names=[HOSTILE],
        created_by=HOSTILE,
        failures=9,
        failing_since=NOW,
        last_failure_at=NOW,
        last_error=HOSTILE,
    )
    message = make_message(event=HOSTILE, data=f'{{"text":"{HOSTILE}"}}')
    delivery = make_delivery(webhook, message, state="failed", attempts=1, last_error=HOSTILE, redelivered_by=HOSTILE)
    attempt = make_delivery_attempt(
        delivery,
        outcome="refused",
        error=HOSTILE,
        url=webhook.url,
        address=HOSTILE,
        allowed_by=HOSTILE,
        total_ms=5,
        request_headers={HOSTILE: HOSTILE},
        response_headers={HOSTILE: HOSTILE},
        response_body=HOSTILE,
    )
    return {
        webhooks.Webhook: webhook,
        webhooks.Message: message,
        webhooks.Delivery: delivery,
        webhooks.Attempt: attempt,
        webhooks.FanoutCursor: webhooks.FanoutCursor.objects.create(),
    }


def app_rows() -> dict[type[models.Model], models.Model]:
    """Return an application and what it was given."""
    ends = timezone.now() + timedelta(hours=1)
    application = oauth.Application.objects.create(name=HOSTILE, redirect_uris=HOSTILE, authorization_grant_type="x")
    person = User.objects.create_user(f"{HOSTILE}@apps")
    common = {"application": application, "user": person}
    access = oauth.AccessToken.objects.create(token="a" * 30, expires=ends, scope=HOSTILE, **common)
    return {
        oauth.Application: application,
        oauth.AccessToken: access,
        oauth.RefreshToken: oauth.RefreshToken.objects.create(token="r" * 30, access_token=access, **common),
        oauth.Grant: oauth.Grant.objects.create(
            code="g" * 30, expires=ends, redirect_uri=HOSTILE, scope=HOSTILE, **common
        ),
    }


@pytest.fixture
def staff() -> Iterator[Callable[..., Client]]:
    """Return a maker of clients signed in as staff with the named permissions only."""

    def make(*codenames: str) -> Client:
        user = User.objects.create_user("staff", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
        client = Client()
        client.force_login(user)
        return client

    yield make


def registered() -> list[Any]:
    return [pytest.param(model, id=model._meta.label) for model in admin.site._registry]


def list_of(model: type[models.Model]) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")


def page_of(row: models.Model) -> str:
    return reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_change", args=(row.pk,))


def text_of(response: Any) -> str:
    return str(response.content.decode())


def test_every_model_of_the_project_is_registered_and_nothing_of_django_q() -> None:
    ours = {
        model
        for label in ("scheduling", "recovery", "events", "access", "audit", "api", "operations", "webhooks", "batches")
        for model in apps.get_app_config(label).get_models()
    }

    assert set(admin.site._registry) == ours | {
        User,
        oauth.Application,
        oauth.AccessToken,
        oauth.RefreshToken,
        oauth.Grant,
    }


def test_overview_names_the_console_and_leaves_out_what_is_read_elsewhere(admin_client: Client) -> None:
    page = text_of(admin_client.get(reverse("admin:index")))

    assert "<title>Overview | K1.Node</title>" in page
    names = re.findall(r'<li>\s*<a href="/admin/\w+/\w+/">([^<]+)</a>\s*<span', page)
    assert names[:5] == ["Schedules", "Tasks", "Batches", "Breakers", "Dead letters"]
    assert not {"Groups", "Gate tallies", "Output chunks", "Schedule tallys", "Queued tasks"} & set(names)


@pytest.mark.parametrize("model", registered())
def test_every_list_opens_with_rows_and_shows_text_as_text(
    admin_client: Client, rows: dict[Any, Any], model: type[models.Model]
) -> None:
    response = admin_client.get(list_of(model))

    assert response.status_code == 200
    assert response.context["cl"].result_count >= 1
    assert HOSTILE not in text_of(response)


@pytest.mark.parametrize("model", registered())
def test_every_page_opens_and_shows_text_as_text(
    admin_client: Client, rows: dict[Any, Any], model: type[models.Model]
) -> None:
    response = admin_client.get(page_of(rows[model]))

    assert response.status_code == 200
    assert HOSTILE not in text_of(response)


@pytest.mark.parametrize("model", registered())
def test_no_page_has_inline_scripts_or_styles(
    admin_client: Client, rows: dict[Any, Any], model: type[models.Model]
) -> None:
    for address in (list_of(model), page_of(rows[model])):
        page = text_of(admin_client.get(address))

        assert re.findall(r"<script(?![^>]*\ssrc=)[^>]*>|<style|\sstyle=|\son[a-z]+=|javascript:", page) == []


@pytest.mark.parametrize("model", registered())
def test_pages_are_closed_to_staff_without_permission(
    staff: Callable[..., Client], rows: dict[Any, Any], model: type[models.Model]
) -> None:
    client = staff()

    assert client.get(list_of(model)).status_code == 403
    assert client.get(page_of(rows[model])).status_code == 403


MACHINE_WRITTEN = [
    Task,
    Attempt,
    OutputChunk,
    Slot,
    Gate,
    GateTally,
    Node,
    MinuteCounter,
    ScheduleTally,
    Event,
    Intervention,
    Batch,
    Breaker,
    Hold,
    DeadLetter,
    Operation,
    Item,
    NoticeMail,
    NoticeReader,
    FailingSchedule,
    AuditRecord,
    AuditBlock,
    AuditRefusal,
    AuditPruning,
    TokenFamily,
    RefreshToken,
    DeniedToken,
    oauth.AccessToken,
    oauth.RefreshToken,
    oauth.Grant,
    webhooks.Message,
    webhooks.Delivery,
    webhooks.Attempt,
    webhooks.FanoutCursor,
]


@pytest.mark.parametrize("model", MACHINE_WRITTEN)
def test_rows_of_the_machine_can_only_be_read(
    admin_client: Client, rows: dict[Any, Any], model: type[models.Model]
) -> None:
    name = f"{model._meta.app_label}_{model._meta.model_name}"
    before = model.objects.count()  # type: ignore[attr-defined]

    assert admin_client.get(reverse(f"admin:{name}_add")).status_code == 403
    assert (
        admin_client.post(reverse(f"admin:{name}_delete", args=(rows[model].pk,)), {"post": "yes"}).status_code == 403
    )
    admin_client.post(page_of(rows[model]), {"status": "completed", "outcome": "fired"})
    admin_client.post(list_of(model), {"action": "delete_selected", "_selected_action": rows[model].pk, "post": "yes"})
    assert model.objects.count() == before  # type: ignore[attr-defined]


# --- paging -----------------------------------------------------------------------------------------------------


def ids_on(response: Any) -> list[int]:
    return [row.pk for row in response.context["cl"].result_list]


def test_growing_lists_are_paged_by_key_both_ways(admin_client: Client) -> None:
    for number in range(250):
        log.publish("task.completed", {"number": number}, now=NOW)
    newest = Event.objects.order_by("-pk").values_list("pk", flat=True)

    first = admin_client.get(list_of(Event))
    second = admin_client.get(list_of(Event) + first.context["cl"].older)
    third = admin_client.get(list_of(Event) + second.context["cl"].older)
    back = admin_client.get(list_of(Event) + third.context["cl"].newer)

    assert ids_on(first) + ids_on(second) + ids_on(third) == list(newest)
    assert (first.context["cl"].newer, third.context["cl"].older) == (None, None)
    assert ids_on(back) == ids_on(second)
    assert "100 shown of many, newest first" in text_of(first)


def test_first_page_reached_backwards_has_nothing_newer(admin_client: Client) -> None:
    for number in range(150):
        log.publish("task.completed", {"number": number}, now=NOW)
    first = admin_client.get(list_of(Event))
    second = admin_client.get(list_of(Event) + first.context["cl"].older)

    back = admin_client.get(list_of(Event) + second.context["cl"].newer)

    assert ids_on(back) == ids_on(first)
    assert back.context["cl"].newer is None


def test_filter_without_index_looks_at_a_window_and_goes_on_from_there(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("k1node.events.admin.WINDOW", 10)
    log.publish("rare", {}, now=NOW)
    for _ in range(25):
        log.publish("common", {}, now=NOW)

    pages = [admin_client.get(list_of(Event), {"name": "rare"})]
    while older := pages[-1].context["cl"].older:
        pages.append(admin_client.get(list_of(Event) + older))

    assert [len(ids_on(page)) for page in pages] == [0, 0, 1]
    assert "Look further back than the 10 rows searched" in text_of(pages[0])
    newer = admin_client.get(list_of(Event) + pages[-1].context["cl"].newer)
    assert newer.context["cl"].newer is not None


@pytest.mark.parametrize("key", ["x", "1,2", "1;DROP TABLE", "", "9" * 40])
def test_nonsense_in_place_of_a_key_is_no_error(admin_client: Client, key: str) -> None:
    log.publish("task.completed", {}, now=NOW)

    response = admin_client.get(list_of(Event), {"after": key}, follow=True)

    assert response.status_code == 200


@pytest.mark.parametrize(
    "model",
    [
        Task,
        Attempt,
        OutputChunk,
        Slot,
        Gate,
        Event,
        Intervention,
        Batch,
        Breaker,
        Hold,
        DeadLetter,
        Operation,
        NoticeMail,
        oauth.AccessToken,
        oauth.RefreshToken,
    ],
)
def test_growing_lists_never_count_and_never_skip(
    admin_client: Client, rows: dict[Any, Any], model: type[models.Model], django_assert_max_num_queries: Any
) -> None:
    with django_assert_max_num_queries(10) as captured:
        admin_client.get(list_of(model))

    table = model._meta.db_table
    of_table = [query["sql"] for query in captured.captured_queries if f'FROM "{table}"' in query["sql"]]
    assert of_table
    assert not [sql for sql in of_table if "COUNT(" in sql or "OFFSET" in sql or "DISTINCT" in sql]
    assert all("LIMIT" in sql for sql in of_table)


# --- API keys ---------------------------------------------------------------------------------------------------


def test_new_key_is_shown_once_and_kept_nowhere(admin_client: Client) -> None:
    data = {"name": "billing", "scopes": ["scheduler:read"], "requests_per_hour": "500"}

    created = admin_client.post(reverse("admin:access_apikey_add"), data)
    first = text_of(admin_client.get(created["Location"]))
    second = text_of(admin_client.get(created["Location"]))

    found = re.search(r"sk-k1n_[0-9A-Za-z]{46}", first)
    assert found
    assert "kept nowhere" in first
    assert "sk-k1n_" not in second
    key = keys.verify(found.group())
    assert key is not None
    assert (key.name, key.scopes, key.requests_per_hour) == ("billing", ("scheduler:read",), 500)
    assert found.group() not in str(list(ApiKey.objects.values_list()))


@pytest.mark.parametrize(
    ("data", "field"),
    [
        pytest.param({"name": "", "scopes": ["admin"]}, "name", id="no name"),
        pytest.param({"name": "a\tb", "scopes": ["admin"]}, "name", id="control character"),
        pytest.param({"name": "a"}, "scopes", id="no scope"),
        pytest.param({"name": "a", "scopes": ["root"]}, "scopes", id="unknown scope"),
        pytest.param({"name": "a", "scopes": ["admin"], "requests_per_hour": "0"}, "requests_per_hour", id="limit"),
        pytest.param(
            {"name": "a", "scopes": ["admin"], "expires_at_0": "2020-01-01", "expires_at_1": "00:00"},
            "expires_at",
            id="expired already",
        ),
    ],
)
def test_key_that_cannot_be_is_refused_at_its_field(admin_client: Client, data: dict[str, Any], field: str) -> None:
    response = admin_client.post(reverse("admin:access_apikey_add"), data)

    assert list(response.context["adminform"].form.errors) == [field]
    assert not ApiKey.objects.exists()


def test_nobody_makes_or_replaces_a_key_that_may_more_than_they_may(client: Client) -> None:
    ana = User.objects.create_user("ana", is_staff=True)
    names = ("view_task", "add_apikey", "change_apikey", "view_apikey")
    ana.user_permissions.set(Permission.objects.filter(codename__in=names))
    client.force_login(ana)
    (strong, _), (weak, _) = keys.issue("a", ["admin"]), keys.issue("b", ["scheduler:read"])
    rotate = {key.pk: reverse("admin:access_apikey_rotate", args=(key.pk,)) for key in (strong, weak)}

    refused = client.post(reverse("admin:access_apikey_add"), {"name": "c", "scopes": ["admin"]})
    made = client.post(reverse("admin:access_apikey_add"), {"name": "c", "scopes": ["dashboard:read"]})

    assert list(refused.context["adminform"].form.errors) == ["scopes"]
    assert made.status_code == 302
    assert client.post(rotate[strong.pk], {"overlap": "86400"}).status_code == 403
    assert client.post(rotate[weak.pk], {"overlap": "86400"}).status_code == 302
    assert ApiKey.objects.count() == 4


def test_existing_key_cannot_be_edited_or_deleted(admin_client: Client) -> None:
    key, text = keys.issue("billing", ["scheduler:read"])

    page = text_of(admin_client.get(page_of(key)))
    admin_client.post(page_of(key), {"name": "other", "digest": "0" * 64, "scopes": ["admin"]})
    deleted = admin_client.post(reverse("admin:access_apikey_delete", args=(key.pk,)), {"post": "yes"})

    assert key.digest not in page
    assert 'name="_save"' not in page
    assert deleted.status_code == 403
    assert keys.verify(text) is not None
    assert ApiKey.objects.get().scopes == ["scheduler:read"]


def test_revoking_says_what_was_done_and_what_was_not(admin_client: Client) -> None:
    key, text = keys.issue("billing", ["scheduler:read"])
    old, _ = keys.issue("old", ["scheduler:read"])
    keys.revoke(old, reason="lost")

    response = admin_client.post(list_of(ApiKey), {"action": "revoke", "_selected_action": [key.pk, old.pk]})

    assert [str(message) for message in get_messages(response.wsgi_request)] == [
        f"Revoked 1: {key}",
        "Skipped 1: revoked before",
    ]
    assert keys.verify(text) is None


def test_revoking_needs_the_permission_to_change(staff: Callable[..., Client]) -> None:
    key, text = keys.issue("billing", ["scheduler:read"])
    client = staff("view_apikey")

    client.post(list_of(ApiKey), {"action": "revoke", "_selected_action": [key.pk]})

    assert keys.verify(text) is not None


def test_a_key_is_tied_to_networks_on_the_console(admin_client: Client) -> None:
    data = {"name": "billing", "scopes": ["scheduler:read"], "allowed_cidrs": "10.0.0.0/8\n192.0.2.7, 2001:db8::/32"}

    refused = admin_client.post(reverse("admin:access_apikey_add"), data | {"allowed_cidrs": "10.0.0.1/8"})
    admin_client.post(reverse("admin:access_apikey_add"), data)

    key = ApiKey.objects.get()
    assert list(refused.context["adminform"].form.errors) == ["allowed_cidrs"]
    assert (key.allowed_cidrs, key.created_by) == (["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"], "admin")


def test_a_key_is_replaced_on_its_page(admin_client: Client) -> None:
    key, text = keys.issue("billing", ["scheduler:read"])
    address = reverse("admin:access_apikey_rotate", args=(key.pk,))

    assert f'href="{address}"' in text_of(admin_client.get(page_of(key)))
    assert "How long the old key stays valid" in text_of(admin_client.get(address))
    done = admin_client.post(address, {"overlap": "3600"}, follow=True)

    found = re.search(r"sk-k1n_[0-9A-Za-z]{46}", text_of(done))
    assert found and keys.verify(found.group()) and keys.verify(text)
    new = ApiKey.objects.exclude(pk=key.pk).get()
    assert (new.created_by, done.redirect_chain[-1][0]) == ("admin", page_of(new))
    old = text_of(admin_client.get(page_of(key)))
    assert "rotated, valid until" in old and page_of(new) in old
    assert f'href="{address}"' not in old
    again = admin_client.post(address, {"overlap": "3600"}, follow=True)
    assert "rotated already" in text_of(again)
    assert ApiKey.objects.count() == 2


def test_a_key_is_revoked_on_its_page_with_a_reason(admin_client: Client) -> None:
    key, text = keys.issue("billing", ["scheduler:read"])
    address = reverse("admin:access_apikey_revoke", args=(key.pk,))

    done = admin_client.post(address, {"reason": "leaked"}, follow=True)

    assert "Revoked billing" in text_of(done) and "leaked" in text_of(done)
    assert keys.verify(text) is None
    assert "was revoked before" in text_of(admin_client.post(address, {"reason": ""}, follow=True))


def test_replacing_and_revoking_need_the_permission_to_change(staff: Callable[..., Client]) -> None:
    key, text = keys.issue("billing", ["scheduler:read"])
    client = staff("view_apikey")

    for verb in ("rotate", "revoke"):
        address = reverse(f"admin:access_apikey_{verb}", args=(key.pk,))
        assert client.get(address).status_code == 403
        assert client.post(address, {"overlap": "0"}).status_code == 403
        assert address not in text_of(client.get(page_of(key)))
    assert keys.verify(text) is not None


def test_a_key_that_is_not_there_cannot_be_replaced(admin_client: Client) -> None:
    assert admin_client.get(reverse("admin:access_apikey_rotate", args=(7,))).status_code == 404


# --- words ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ms", "words"),
    [
        (None, "–"),
        (0, "0 ms"),
        (850, "850 ms"),
        (4200, "4.2 s"),
        (5000, "5 s"),
        (59_999, "60 s"),
        (190_000, "3 min 10 s"),
        (3_600_000, "1 h"),
        (3_605_000, "1 h"),
        (183_600_000, "2 d 3 h"),
    ],
)
def test_length_of_time_in_words(ms: int | None, words: str) -> None:
    assert duration(ms) == words


@pytest.mark.parametrize(("seconds", "words"), [(0, "now"), (180, "in 3 min"), (-180, "3 min ago"), (-0.2, "now")])
def test_moment_in_words(seconds: float, words: str) -> None:
    assert relative(NOW + timedelta(seconds=seconds), NOW) == words


@pytest.mark.parametrize(
    ("count", "words"), [(1, "1 byte"), (999, "999 bytes"), (1500, "1.5 kB"), (2_500_000, "2.5 MB")]
)
def test_number_of_bytes_in_words(count: int, words: str) -> None:
    assert size(count) == words


def test_silent_node_is_told_from_a_live_one(admin_client: Client) -> None:
    now = timezone.now()
    fields = {"started_at": NOW, "beat_at": now + timedelta(hours=1)}
    Node.objects.create(node_id=uuid.uuid4(), hostname="a", workers_beat_at=now + timedelta(hours=1), **fields)
    Node.objects.create(node_id=uuid.uuid4(), hostname="b", **fields)
    Node.objects.create(node_id=uuid.uuid4(), hostname="c", started_at=NOW, beat_at=NOW)
    Node.objects.create(node_id=uuid.uuid4(), hostname="d", started_at=NOW, beat_at=NOW, lost_at=NOW)
    Node.objects.create(node_id=uuid.uuid4(), hostname="e", started_at=NOW, beat_at=NOW, stopped_at=NOW)

    page = text_of(admin_client.get(list_of(Node)))

    assert re.findall(r"</svg>([a-z ]+)</span>", page) == ["live", "workers silent", "silent", "lost", "stopped"]


def test_rows_of_a_deleted_schedule_stay_on_their_lists(admin_client: Client) -> None:
    make_task(schedule_id=99)
    make_gate(kind=GateKind.OVERLAP, key="99")
    Slot.objects.create(schedule_id=99, due_at=NOW, last_due_at=NOW, outcome="fired", task_id=77, recorded_at=NOW)

    pages = [text_of(admin_client.get(list_of(model))) for model in (Task, Slot, Gate)]

    assert ["#99, deleted" in page for page in pages] == [True, True, True]
    assert "pruned" in pages[1]
