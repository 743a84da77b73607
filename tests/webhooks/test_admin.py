"""Webhooks on the console: what is wrong in a sentence, the verbs, the forms, and who may do what."""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from k1node.audit.models import AuditRecord
from tests.factories import NOW, make_delivery, make_delivery_attempt, make_webhook
from tests.pages import said, text_of
from webhooks import counts, signing, signing_secrets
from webhooks.models import Delivery, Webhook

pytestmark = pytest.mark.django_db

LIST = reverse("admin:webhooks_webhook_changelist")
ADD = reverse("admin:webhooks_webhook_add")
MINUTE = timedelta(minutes=1)
Operator = Callable[..., Client]


def page_of(row: Webhook) -> str:
    return reverse("admin:webhooks_webhook_change", args=(row.pk,))


def verb(row: Webhook, name: str) -> str:
    return reverse(f"admin:webhooks_webhook_{name}", args=(row.pk,))


def typed(**fields: Any) -> dict[str, Any]:
    """Return what the form sends that adds a webhook."""
    return {
        "name": "billing",
        "url": "https://billing.example/hooks",
        "events": ["task.failed", "task.completed"],
        "max_retries": "3",
        "backoff_multiplier": "2",
        "max_in_flight": "4",
        "per_second": "",
        "headers": "",
        "active": "on",
    } | fields


# --- the list ---------------------------------------------------------------------------------------------------


def test_the_list_says_how_each_is_doing(admin_client: Client) -> None:
    now = timezone.now()
    make_webhook(name="fine", last_success_at=now)
    make_webhook(name="shaky", failures=2)
    make_webhook(name="broken", failures=9, open_until=now + 4 * MINUTE, last_failure_at=now, last_error="disk <full>")
    make_webhook(name="gone", active=False, disabled_at=now, disabled_reason="Nothing has arrived for 5 days")
    make_webhook(name="resting", active=False, events=["task.failed"])
    make_delivery(Webhook.objects.get(name="broken"))

    page = text_of(admin_client.get(LIST))

    assert re.search(r"fine receiver.example active now", page)
    assert "shaky receiver.example active the last 2 attempts failed" in page
    assert re.search(r"broken receiver.example failing next try in [34] min( \d+ s)? – now disk &lt;full&gt; 1", page)
    assert "gone receiver.example disabled by the node: nothing has arrived for 5 days" in page
    assert "resting receiver.example paused – – 0 task.failed" in page


@pytest.mark.parametrize(
    ("state", "names"),
    [("failing", ["broken"]), ("disabled", ["gone"]), ("paused", ["resting"]), ("active", ["fine"]), ("x", None)],
)
def test_the_list_is_filtered_by_state(admin_client: Client, state: str, names: list[str] | None) -> None:
    make_webhook(name="fine")
    make_webhook(name="broken", failures=9)
    make_webhook(name="gone", active=False, disabled_at=NOW)
    make_webhook(name="resting", active=False)

    rows = admin_client.get(LIST, {"state": state}).context["cl"].result_list

    assert [row.name for row in rows] == (["resting", "gone", "broken", "fine"] if names is None else names)


def test_deleted_ones_are_not_there(admin_client: Client) -> None:
    row = make_webhook(active=False, deleted_at=NOW)

    assert not admin_client.get(LIST).context["cl"].result_list
    assert [admin_client.get(address).status_code for address in (page_of(row), verb(row, "edit"))] == [404, 404]
    assert admin_client.post(verb(row, "enable")).status_code == 404


def test_what_waits_is_counted_so_far(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "MOST", 2)
    monkeypatch.setattr("webhooks.admin.words.count.__defaults__", (2,))
    row = make_webhook()
    for _ in range(5):
        make_delivery(row)
    make_delivery(row, state="sending")

    assert counts.waiting([row.pk]) == {row.pk: counts.Waiting(3, 1)}
    assert " 2+ " in text_of(admin_client.get(LIST))


def test_nothing_waits_for_none() -> None:
    assert counts.waiting([]) == {}


def test_the_list_costs_the_same_for_many(admin_client: Client) -> None:
    seen = []
    for _ in range(2):
        for _ in range(5):
            make_delivery()
        with CaptureQueriesContext(connection) as captured:
            admin_client.get(LIST)
        seen.append(len(captured))

    assert seen[0] == seen[1]
    assert seen[0] <= 6  # session, user, hold, rows, counts and their order


# --- the page of one --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        ({"last_success_at": 0}, "All is well: the last delivery arrived now."),
        ({}, "No event has been sent to it yet: send a test."),
        (
            {"last_failure_at": -2, "last_error": "The answer was 503"},
            "Nothing has arrived since it failed 2 min ago. The last error: The answer was 503. The next event tries"
            " it, or a test.",
        ),
        (
            {"last_success_at": -60, "last_failure_at": -2, "last_error": "The answer was 503"},
            "Nothing has arrived since it failed 2 min ago.",
        ),
        ({"last_success_at": -2, "last_failure_at": -60}, "All is well: the last delivery arrived 2 min ago."),
        (
            {"failures": 2, "last_error": "503"},
            "The last 2 attempts failed. The last error: 503. They are tried again.",
        ),
        (
            {"failures": 9, "failing_since": -130, "open_until": 4, "last_error": "The answer was 503."},
            "Nothing has arrived for 2 h 10 min. The last error: The answer was 503. One delivery tries in 4 min;"
            " when it arrives the others follow.",
        ),
        (
            {"failures": 9, "failing_since": -1, "open_until": -1},
            "Nothing has arrived for 1 min. One delivery tries now;",
        ),
        ({"active": False}, "Paused: nothing is sent, and events that happen meanwhile are not kept for it."),
        (
            {"active": False, "disabled_at": -60, "disabled_reason": "It answered 410 Gone: it wants no more"},
            "The node disabled it 1 h ago: it answered 410 Gone: it wants no more. Nothing is sent until somebody"
            " enables it.",
        ),
        (
            {"paced_until": 5},
            "It has asked for a pause, or has had all that its rate allows: the next is sent in 5 min.",
        ),
    ],
    ids=[
        "well",
        "new",
        "enabled",
        "enabled again",
        "recovered",
        "shaky",
        "failing",
        "probing",
        "paused",
        "disabled",
        "throttled",
    ],
)
def test_the_page_says_in_a_sentence_what_is_wrong(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], verdict: str
) -> None:
    monkeypatch.setattr("webhooks.admin.webhooks.database_now", lambda: NOW)
    moments = {
        name: NOW + value * MINUTE
        for name, value in fields.items()
        if name.endswith(("_at", "_since", "_until")) and isinstance(value, int)
    }

    page = text_of(admin_client.get(page_of(make_webhook(**fields | moments))))

    assert verdict in re.sub(r" ([.;:])", r"\1", page)


def test_the_page_says_how_many_wait(admin_client: Client) -> None:
    row = make_webhook(active=False)
    make_delivery(row)

    assert "not kept for it. 1 delivery waits." in text_of(admin_client.get(page_of(row)))


def test_the_page_shows_what_is_tried_next_and_what_has_ended(admin_client: Client) -> None:
    row = make_webhook()
    for number in range(20):
        make_delivery(row, due_at=NOW + number * MINUTE)
    failed = make_delivery(row, state="failed", attempts=2, spent=2)
    make_delivery_attempt(failed, number=1, error="first")
    make_delivery_attempt(failed, number=2, outcome="timeout", status=None, error="It took 10 s", total_ms=10_000)
    make_delivery(row, state="sending")

    response = admin_client.get(page_of(row))

    lines = response.context["deliveries"]
    assert [line[0].state for line in lines] == ["pending"] * 6 + ["sending", "failed"]
    assert [line[0].due_at for line in lines[:6]] == [NOW + number * MINUTE for number in range(6)]
    text = text_of(response)
    assert "failed 2 took too long It took 10 s 10 s –" in text
    assert "first" not in text


def test_the_page_costs_the_same_for_many(admin_client: Client) -> None:
    row = make_webhook()
    seen = []
    for count in (1, 30):
        for _ in range(count):
            make_delivery_attempt(make_delivery(row, state="failed"))
        with CaptureQueriesContext(connection) as captured:
            admin_client.get(page_of(row))
        seen.append(len(captured))

    assert seen[0] == seen[1]
    assert seen[0] <= 9  # session, user, webhook, counts, deliveries and their keys, attempts, jobs, hold


def test_a_webhook_is_found_by_the_name_the_api_has_for_it(admin_client: Client) -> None:
    row = make_webhook()

    response = admin_client.get(reverse("admin:webhooks_webhook_named", args=(row.webhook_id,)))

    assert response["Location"] == page_of(row)
    assert admin_client.get(reverse("admin:webhooks_webhook_named", args=("wh-none",))).status_code == 404


@pytest.mark.parametrize("address", [f"{LIST}x/change/", f"{LIST}999/change/", f"{LIST}{'9' * 30}/change/"])
def test_one_that_is_not_there_is_not_found(admin_client: Client, address: str) -> None:
    assert admin_client.get(address).status_code == 404


def test_no_page_shows_a_secret(admin_client: Client) -> None:
    row = make_webhook(headers={"Authorization": "Bearer hush"})
    secret = signing_secrets.unsealed(row, "secret")

    for address in (LIST, page_of(row), verb(row, "edit"), verb(row, "rotate")):
        page = admin_client.get(address).content.decode()
        assert secret not in page and "hush" not in page and row.secret not in page


# --- verbs ------------------------------------------------------------------------------------------------------


def test_a_test_is_sent(operator: Operator) -> None:
    row = make_webhook()

    response = operator("change_webhook", "view_delivery").post(verb(row, "test"), {"event": "task.failed"})

    sent = Delivery.objects.get()
    assert (sent.is_test, sent.event, response["Location"]) == (True, "task.failed", page_of(row))
    assert reverse("admin:webhooks_delivery_change", args=(sent.pk,)) in said(response)[0][1]


def test_an_event_that_is_none_is_refused_in_words(admin_client: Client) -> None:
    row = make_webhook()

    assert said(admin_client.post(verb(row, "test"), {"event": "task.vanished"})) == [
        ("warning", f"Left {row} as it is. Unknown event &#x27;task.vanished&#x27;.")
    ]


def test_a_disabled_one_is_enabled_and_what_it_missed_is_offered(admin_client: Client) -> None:
    row = make_webhook(active=False, disabled_at=NOW, disabled_reason="x", failing_since=NOW - 60 * MINUTE, failures=9)

    response = admin_client.post(verb(row, "enable"))

    row.refresh_from_db()
    assert (row.active, row.failures, row.disabled_at) == (True, 0, None)
    ((level, text),) = said(response)
    assert level == "info" and f"Enabled {row}" in text
    links = re.findall(r'href="([^"]+)"', text.replace("&amp;", "&"))
    assert [re.sub(r"^.*/redeliver/", "", link) for link in links] == [
        "failed/?span=from&since=2026-03-04T04%3A06%3A07",
        "period/?span=from&since=2026-03-04T05%3A06%3A07",
    ]
    assert [admin_client.get(link).context["wanted"] is not None for link in links] == [True, True]


def test_one_is_paused(admin_client: Client) -> None:
    row = make_webhook()

    response = admin_client.post(verb(row, "pause"))

    row.refresh_from_db()
    assert (row.active, row.disabled_at, said(response)[0][0]) == (False, None, "info")
    assert "Enable again" in text_of(admin_client.get(page_of(row)))


@pytest.mark.parametrize(
    ("fields", "there", "missing"),
    [
        ({}, {"Pause", "Redeliver what failed"}, {"Enable again", "Try now"}),
        ({"failures": 1}, {"Try now", "Pause"}, {"Enable again"}),
        ({"active": False}, {"Enable again"}, {"Pause", "Redeliver what failed", "Send a period"}),
    ],
    ids=["active", "failing", "paused"],
)
def test_only_verbs_that_would_do_something_are_there(
    admin_client: Client, fields: dict[str, Any], there: set[str], missing: set[str]
) -> None:
    page = admin_client.get(page_of(make_webhook(**fields))).content.decode()

    buttons = re.findall(r'class="k1-button[^>]*>([^<]+)<', page)
    assert {words for words in there | missing if any(text.startswith(words) for text in buttons)} == there


def test_a_new_secret_is_shown_once_with_what_signs_until_when(admin_client: Client) -> None:
    row = make_webhook()
    old = signing_secrets.unsealed(row, "secret")

    response = admin_client.post(verb(row, "rotate"), {"overlap": "3600", "secret": ""}, follow=True)

    row.refresh_from_db()
    new = signing_secrets.unsealed(row, "next_secret")
    page = response.content.decode()
    assert f'<code class="k1-secret">{new}</code>' in page and old not in page
    assert "the old secret signs X-K1Node-Signature and the new one X-K1Node-Signature-Next" in page
    assert f"…{row.secret_hint} and …{row.next_secret_hint} both sign until" in text_of(response)
    assert new not in admin_client.get(page_of(row)).content.decode()


def test_a_rotation_without_overlap_ends_the_old_one_at_once(admin_client: Client) -> None:
    row = make_webhook()

    response = admin_client.post(verb(row, "rotate"), {"overlap": "0", "secret": ""}, follow=True)

    row.refresh_from_db()
    assert (row.next_secret, "It alone signs from now on." in response.content.decode()) == ("", True)


def test_a_rotation_is_finished_before_its_time(admin_client: Client) -> None:
    row = make_webhook()
    given = signing.new_secret()
    admin_client.post(verb(row, "rotate"), {"overlap": "86400", "secret": given})

    asked = text_of(admin_client.get(verb(row, "rotate")))
    admin_client.post(verb(row, "finish"))

    row.refresh_from_db()
    assert f"A rotation is under way. The secret that ends with …{given[-4:]} takes over at once" in asked
    assert (signing_secrets.unsealed(row, "secret"), row.next_secret) == (given, "")


@pytest.mark.parametrize(
    ("fields", "field"), [({"overlap": "5"}, "overlap"), ({"overlap": "0", "secret": "whsec_short"}, "secret")]
)
def test_a_rotation_that_cannot_be_is_refused_at_its_field(
    admin_client: Client, fields: dict[str, str], field: str
) -> None:
    row = make_webhook()
    before = row.secret

    response = admin_client.post(verb(row, "rotate"), fields)

    row.refresh_from_db()
    assert (list(response.context["form"].errors), row.secret) == ([field], before)


def test_one_is_deleted_after_a_page_that_says_what_becomes_of_it(operator: Operator) -> None:
    row = make_webhook()
    make_delivery(row)
    client = operator("delete_webhook", "view_webhook")

    asked = text_of(client.get(verb(row, "end")))
    response = client.post(verb(row, "end"))

    row.refresh_from_db()
    assert "1 delivery waits and will not be sent" in asked
    assert (row.deleted_at is not None, row.secret, response["Location"]) == (True, "", LIST)


def test_the_admins_own_ways_to_change_and_delete_are_shut(admin_client: Client) -> None:
    row = make_webhook()

    assert (
        admin_client.post(reverse("admin:webhooks_webhook_delete", args=(row.pk,)), {"post": "yes"}).status_code == 403
    )
    admin_client.post(page_of(row), {"name": "other"})
    admin_client.post(LIST, {"action": "delete_selected", "_selected_action": row.pk, "post": "yes"})
    row.refresh_from_db()
    assert row.name != "other" and row.deleted_at is None


# --- the forms --------------------------------------------------------------------------------------------------


def test_one_is_added_and_its_secret_shown_once(operator: Operator) -> None:
    fields = typed(headers="Authorization: Bearer hush\n\nX-Team: a: b", per_second="20")

    response = operator("add_webhook", "view_webhook").post(ADD, fields, follow=True)

    row = Webhook.objects.get()
    assert response.redirect_chain == [(page_of(row), 302)]
    assert (row.name, row.events, row.per_second) == ("billing", ["task.failed", "task.completed"], 20)
    assert (row.active, row.created_by) == (True, "ana")
    assert signing_secrets.headers(row) == {"Authorization": "Bearer hush", "X-Team": "a: b"}
    assert f'<code class="k1-secret">{signing_secrets.unsealed(row, "secret")}</code>' in response.content.decode()
    assert AuditRecord.objects.filter(action="webhook.created").exists()


def test_one_is_added_with_a_secret_of_its_own_for_everything_and_paused(admin_client: Client) -> None:
    secret = signing.new_secret()
    fields = typed(every="on", secret=secret)
    del fields["active"]

    admin_client.post(ADD, fields)

    row = Webhook.objects.get()
    assert (row.events, row.active, signing_secrets.unsealed(row, "secret")) == (["*"], False, secret)


def test_who_may_add_and_no_more_is_shown_the_secret_too(operator: Operator) -> None:
    response = operator("add_webhook").post(ADD, typed(), follow=True)

    assert signing_secrets.unsealed(Webhook.objects.get(), "secret") in response.content.decode()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"url": "http://"}, "url"),
        ({"url": "https://user:password@billing.example/"}, "url"),
        ({"url": "https://169.254.169.254/latest"}, "url"),
        ({"events": []}, "events"),
        ({"events": ["task.vanished"]}, "events"),
        ({"max_retries": "101"}, "max_retries"),
        ({"backoff_multiplier": "0.5"}, "backoff_multiplier"),
        ({"max_in_flight": "0"}, "max_in_flight"),
        ({"per_second": "0"}, "per_second"),
        ({"headers": "no colon"}, "headers"),
        ({"headers": "Host: elsewhere"}, "headers"),
        ({"headers": "X-A: 1\nX-A: 2"}, "headers"),
        ({"headers": "X-A: \x01"}, "headers"),
        ({"secret": "whsec_short"}, "secret"),
    ],
)
def test_what_cannot_be_is_refused_at_its_field_and_nothing_typed_is_lost(
    admin_client: Client, fields: dict[str, Any], field: str
) -> None:
    response = admin_client.post(ADD, typed(**fields))

    form = response.context["form"]
    assert list(form.errors) == [field]
    assert "Nothing was saved." in text_of(response)
    assert form["url"].value() == fields.get("url", "https://billing.example/hooks")
    assert not Webhook.objects.exists()


def test_the_boxes_stand_in_groups_with_what_they_mean(admin_client: Client) -> None:
    groups = dict(admin_client.get(ADD).context["form"].groups())

    assert list(groups)[:4] == ["Tasks", "Schedules", "Breakers", "Dead letters"]
    assert ("task.failed", "A task has failed for good") in [
        (box.data["value"], summary) for box, summary in groups["Tasks"]
    ]


def edited(row: Webhook, **fields: Any) -> dict[str, Any]:
    """Return what the form sends when nothing was changed in it."""
    return (
        typed(name=row.name, url=row.url, events=[], every="on", headers="", per_second=str(row.per_second or ""))
        | fields
    )


def test_only_what_was_changed_is_saved(operator: Operator) -> None:
    row = make_webhook(headers={"X-A": "1"}, per_second=5)
    fields = edited(row, max_in_flight="8")
    Webhook.objects.filter(pk=row.pk).update(per_second=9)
    fields["per_second"] = "9"  # as the page has it that was opened after that

    response = operator("change_webhook").post(verb(row, "edit"), fields)

    row.refresh_from_db()
    assert response["Location"] == page_of(row)
    assert (row.max_in_flight, row.per_second, signing_secrets.headers(row)) == (8, 9, {"X-A": "1"})
    assert AuditRecord.objects.get().after == {"max_in_flight": 8}


def test_events_are_changed_from_all_to_some_and_back(admin_client: Client) -> None:
    row = make_webhook()
    fields = edited(row, events=["task.failed"])
    del fields["every"]

    admin_client.post(verb(row, "edit"), fields)
    row.refresh_from_db()
    some = list(row.events)
    admin_client.post(verb(row, "edit"), edited(row))
    row.refresh_from_db()

    assert (some, row.events) == (["task.failed"], ["*"])


@pytest.mark.parametrize(
    ("fields", "after"),
    [({"headers": "X-B: 2"}, {"X-B": "2"}), ({"no_headers": "on"}, {}), ({}, {"X-A": "1"})],
    ids=["others", "none", "left"],
)
def test_headers_are_replaced_taken_away_or_left(
    admin_client: Client, fields: dict[str, str], after: dict[str, str]
) -> None:
    row = make_webhook(headers={"X-A": "1"})

    admin_client.post(verb(row, "edit"), edited(row, **fields))

    row.refresh_from_db()
    assert (signing_secrets.headers(row), row.header_names) == (after, list(after))


def test_headers_are_not_taken_away_and_written_at_once(admin_client: Client) -> None:
    row = make_webhook(headers={"X-A": "1"})

    response = admin_client.post(verb(row, "edit"), edited(row, no_headers="on", headers="X-B: 2"))

    assert list(response.context["form"].errors) == ["no_headers"]


def test_another_address_asks_for_the_headers_anew(admin_client: Client) -> None:
    row = make_webhook(headers={"X-A": "1"})

    asked = admin_client.post(verb(row, "edit"), edited(row, url="https://elsewhere.example/hook"))
    done = admin_client.post(verb(row, "edit"), edited(row, url="https://elsewhere.example/hook", no_headers="on"))

    assert asked.context["form"].errors == {
        "headers": ["Must be said again for another address: they were given for the present one."]
    }
    row.refresh_from_db()
    assert (done.status_code, row.url, row.header_names) == (302, "https://elsewhere.example/hook", [])


def test_a_change_that_cannot_be_is_refused_at_its_field(admin_client: Client) -> None:
    row = make_webhook()

    response = admin_client.post(verb(row, "edit"), edited(row, url="ftp://x"))

    assert list(response.context["form"].errors) == ["url"]


# --- who may do what --------------------------------------------------------------------------------------------

NOW_VERBS = ("test", "enable", "pause", "finish")


def test_who_may_only_look_sees_no_button_and_does_nothing(operator: Operator) -> None:
    row = make_webhook()
    make_delivery(row)
    client = operator("view_webhook")

    response = client.get(page_of(row))

    assert response.status_code == 200
    assert "k1-verbs" not in response.content.decode()
    assert response.context["deliveries"] is None  # which is another permission
    assert [client.post(verb(row, name)).status_code for name in (*NOW_VERBS, "rotate", "edit", "end")] == [403] * 7
    assert [client.get(verb(row, name)).status_code for name in ("rotate", "edit", "end")] == [403] * 3
    assert client.get(ADD).status_code == 403
    assert client.post(ADD, typed()).status_code == 403
    row.refresh_from_db()
    assert row.active and Webhook.objects.count() == 1 and Delivery.objects.count() == 1


def test_a_link_does_nothing_and_neither_does_a_forged_form(operator: Operator) -> None:
    row = make_webhook()
    client = operator("change_webhook", "add_webhook", "delete_webhook")
    forged = Client(enforce_csrf_checks=True)
    forged.cookies = client.cookies

    assert [client.get(verb(row, name)).status_code for name in NOW_VERBS] == [405] * 4
    addresses = [ADD, *(verb(row, name) for name in (*NOW_VERBS, "rotate", "edit", "end"))]
    assert [forged.post(address, typed()).status_code for address in addresses] == [403] * 8
    row.refresh_from_db()
    assert row.active and row.deleted_at is None and Webhook.objects.count() == 1


# --- the overview -----------------------------------------------------------------------------------------------


def test_the_overview_names_webhooks_that_need_a_person(admin_client: Client) -> None:
    make_webhook(name="fine")
    make_webhook(name="broken", failures=9, failing_since=timezone.now())
    make_webhook(name="gone", active=False, disabled_at=NOW, disabled_reason="Nothing has arrived for 5 days")
    make_webhook(name="deleted", active=False, disabled_at=NOW, deleted_at=NOW)

    page = text_of(admin_client.get(reverse("admin:index")))

    needs = page.partition("Needs you now")[2].partition("Operate")[0]
    assert [name for name in ("broken", "gone", "fine", "deleted") if name in needs] == ["broken", "gone"]


def test_the_overview_says_when_every_webhook_receives(admin_client: Client, operator: Operator) -> None:
    make_webhook()
    index = reverse("admin:index")

    assert "every webhook receives, and nothing is held." in text_of(admin_client.get(index))
    assert "webhook" not in text_of(operator("view_deadletter").get(index))
