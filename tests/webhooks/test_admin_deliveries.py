"""The log of deliveries on the console, the page of one, and sending again from there."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from tests.factories import NOW, make_delivery, make_delivery_attempt, make_message, make_webhook
from tests.pages import said, text_of
from webhooks.admin import deliveries, words
from webhooks.models import Attempt, Delivery
from webhooks.rules import Code

pytestmark = pytest.mark.django_db

LIST = reverse("admin:webhooks_delivery_changelist")
SEVERAL = reverse("admin:webhooks_delivery_several")
Operator = Callable[..., Client]


def page_of(row: Delivery) -> str:
    return reverse("admin:webhooks_delivery_change", args=(row.pk,))


def again(row: Delivery) -> str:
    return reverse("admin:webhooks_delivery_redeliver", args=(row.pk,))


def several(*rows: Delivery) -> str:
    return f"{SEVERAL}?ids={','.join(str(row.pk) for row in rows)}"


def ids_on(response: Any) -> list[int]:
    return [row.pk for row in response.context["cl"].result_list]


# --- the log ----------------------------------------------------------------------------------------------------


def test_the_log_is_filtered_by_webhook_state_and_event(admin_client: Client) -> None:
    one, other = make_webhook(name="billing"), make_webhook()
    failed = make_delivery(one, make_message(event="task.failed"), state="failed")
    sent = make_delivery(one, make_message(event="task.failed"), state="delivered")
    plain = make_delivery(one)
    elsewhere = make_delivery(other, state="failed")

    def found(**asked: str) -> set[int]:
        return set(ids_on(admin_client.get(LIST, asked)))

    assert found() == {failed.pk, sent.pk, plain.pk, elsewhere.pk}
    assert found(webhook=one.webhook_id) == found(webhook="billing") == {failed.pk, sent.pk, plain.pk}
    assert found(webhook="billing", state="failed") == {failed.pk}
    assert found(webhook="billing", event="task.failed") == {failed.pk, sent.pk}
    assert found(webhook="billing", event="task.failed", state="delivered") == {sent.pk}
    assert found(state="failed") == {failed.pk, elsewhere.pk}
    assert found(event="task.completed") == {plain.pk, elsewhere.pk}
    assert found(webhook="nobody") == found(webhook="nobody", event="task.failed") == set()


def test_a_filter_that_no_index_serves_looks_at_a_window(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "WINDOW", 10)
    webhook = make_webhook()
    rare = make_delivery(webhook, make_message(event="task.failed"))
    for _ in range(15):
        make_delivery(webhook)
        make_delivery()

    first = admin_client.get(LIST, {"webhook": webhook.webhook_id, "event": "task.failed"})
    second = admin_client.get(LIST + first.context["cl"].older)

    assert "Look further back than the 10 rows searched" in text_of(first)
    assert (ids_on(first), ids_on(second)) == ([], [rare.pk])


def test_the_log_never_counts_and_costs_the_same_for_many(admin_client: Client) -> None:
    seen = []
    for count in (1, 60):
        for _ in range(count):
            make_delivery(state="failed", last_error="disk full", last_status=500)
        with CaptureQueriesContext(connection) as captured:
            admin_client.get(LIST)
        seen.append(len(captured))
        assert not [each["sql"] for each in captured.captured_queries if "COUNT(" in each["sql"].upper()]

    assert seen[0] == seen[1]
    assert seen[0] <= 4  # session, user, hold, rows


def test_a_retry_is_told_from_what_was_never_tried(admin_client: Client) -> None:
    make_delivery(spent=2, attempts=2, last_error="The answer was 503", last_status=503)

    assert "retrying 503 The answer was 503 2 due now" in text_of(admin_client.get(LIST))


# --- the page of one --------------------------------------------------------------------------------------------


def tried() -> Delivery:
    row = make_delivery(make_webhook(name="billing"), state="failed", attempts=2, spent=2, last_error="It took 10 s")
    make_delivery_attempt(
        row,
        number=1,
        outcome=Code.UNAVAILABLE,
        status=503,
        error="The answer was 503",
        address="203.0.113.7",
        dns_ms=2.0,
        connect_ms=38.0,
        answer_ms=120.0,
        total_ms=200.0,
        request_headers={"webhook-id": "wh-evt-1"},
        response_headers={"Server": "nginx"},
        response_body="database is down",
    )
    make_delivery_attempt(row, number=2, outcome=Code.TIMEOUT, status=None, dns_ms=3.0, total_ms=10_000.0)
    return row


def test_the_page_has_every_attempt_with_its_phases(admin_client: Client) -> None:
    response = admin_client.get(page_of(tried()))

    text = text_of(response)
    assert "task.completed to billing failed It took 10 s Redeliver" in text
    assert "1 unavailable 503 The answer was 503" in text
    assert "200 ms name 2 ms · connect 38 ms · answer 120 ms 203.0.113.7" in text
    assert text.index("took too long") < text.index("unavailable 503")  # the newest first
    bars = re.findall(r'<rect class="k1-phase-(\w+)" x="([\d.]+)" y="0" width="([\d.]+)"', response.content.decode())
    assert bars == [
        ("name", "0.0", "1.0"),
        ("rest", "0.3", "999.7"),
        ("name", "0.0", "1.0"),
        ("connect", "0.2", "3.8"),
        ("answer", "4.0", "12.0"),
        ("rest", "16.0", "4.0"),
    ]


@pytest.mark.parametrize("outcome", [Attempt.SENDING, Attempt.UNKNOWN, *Code])
def test_every_outcome_is_told_in_words(outcome: str) -> None:
    assert words.OUTCOMES[outcome]
    assert words.OUTCOMES[outcome] in words.outcome_badge(Attempt(outcome=outcome))


def test_an_attempt_that_has_not_ended_has_no_bar() -> None:
    row = Attempt(outcome=Attempt.SENDING)

    assert (words.phases(row, words.longest([row])), words.longest([])) == ("–", 0)


def test_what_was_answered_is_for_administrators_as_over_the_api(operator: Operator, admin_client: Client) -> None:
    row = tried()

    seen = operator("view_delivery", "change_webhook").get(page_of(row)).content.decode()
    more = admin_client.get(page_of(row)).content.decode()

    assert [text in seen for text in ("wh-evt-1", "nginx", "database is down")] == [True, False, False]
    assert [text in more for text in ("wh-evt-1", "nginx", "database is down")] == [True, True, True]
    assert "Redeliver" not in text_of(operator("view_delivery").get(page_of(row)))


def test_the_page_costs_the_same_for_many_attempts(admin_client: Client) -> None:
    row = make_delivery(state="failed")
    seen = []
    for numbers in ((1,), range(2, 60)):
        for number in numbers:
            make_delivery_attempt(row, number=number)
        with CaptureQueriesContext(connection) as captured:
            response = admin_client.get(page_of(row))
        seen.append(len(captured))

    assert seen[0] == seen[1]
    assert seen[0] <= 5  # session, user, delivery, attempts, hold
    assert len(response.context["attempts"]) == 50
    assert "the latest 50" in text_of(response)


def test_one_whose_data_is_no_json_is_shown_all_the_same(admin_client: Client) -> None:
    assert "&lt;oops" in admin_client.get(page_of(make_delivery(message=make_message(data="<oops")))).content.decode()


def test_one_is_found_by_the_name_the_api_has_for_it(admin_client: Client) -> None:
    row = make_delivery()

    response = admin_client.get(reverse("admin:webhooks_delivery_named", args=(row.delivery_id,)))

    assert response["Location"] == page_of(row)
    assert admin_client.get(reverse("admin:webhooks_delivery_named", args=("none",))).status_code == 404
    assert admin_client.get(f"{LIST}999/change/").status_code == 404


# --- sending again ----------------------------------------------------------------------------------------------


def test_one_is_sent_again(operator: Operator) -> None:
    row = make_delivery(state="failed")

    response = operator("change_webhook", "view_delivery").post(again(row))

    row.refresh_from_db()
    assert (row.state, row.redelivered_by, response["Location"]) == ("pending", "ana", page_of(row))
    assert said(response) == [("info", "It is sent again, with the same id and all its tries.")]


@pytest.mark.parametrize(
    ("webhook", "state", "text"),
    [
        ({}, "sending", ""),
        ({"active": False}, "failed", "It cannot be sent again: the webhook is not active."),
        ({"active": False, "deleted_at": NOW}, "failed", "It cannot be sent again: the webhook was deleted."),
    ],
    ids=["on its way", "not active", "deleted"],
)
def test_one_that_cannot_be_has_no_button_and_is_refused_in_words(
    admin_client: Client, webhook: dict[str, Any], state: str, text: str
) -> None:
    row = make_delivery(make_webhook(**webhook), state=state)

    response = admin_client.get(page_of(row))

    assert text in text_of(response)
    assert ">Redeliver</button>" not in response.content.decode()
    ((level, refusal),) = said(admin_client.post(again(row)))
    row.refresh_from_db()
    assert (level, refusal.startswith("Left it as it is."), row.state) == ("warning", True, state)


def test_several_are_named_and_each_that_can_be_is_sent_again(operator: Operator) -> None:
    fine, sending, off = make_delivery(state="failed"), make_delivery(state="sending"), make_webhook(active=False)
    resting = make_delivery(off, state="failed")
    client = operator("change_webhook", "view_delivery")

    chosen = client.post(LIST, {"action": "redeliver_selected", "_selected_action": [fine.pk, sending.pk, resting.pk]})
    asked = text_of(client.get(chosen["Location"]))
    response = client.post(chosen["Location"])

    assert "Redeliver 3 deliveries" in asked and f"to {fine.webhook.name}" in asked
    assert [row.state for row in Delivery.objects.order_by("pk")] == ["pending", "sending", "failed"]
    assert said(response) == [
        ("info", "1 delivery sent again, with the same ids and all tries."),
        ("warning", "Left 1 delivery alone. It is sending: it is on its way already."),
        ("warning", "Left 1 delivery alone. The webhook is not active: enable it first."),
    ]


def test_too_many_at_once_are_refused(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "MOST_SELECTED", 1)
    rows = [make_delivery(state="failed") for _ in range(2)]

    response = admin_client.post(LIST, {"action": "redeliver_selected", "_selected_action": [row.pk for row in rows]})

    assert said(response)[0][0] == "warning"
    assert admin_client.get(several(*rows)).status_code == 404


@pytest.mark.parametrize("ids", ["", "x", "999", "1;2"])
def test_several_that_are_not_there_are_not_found(admin_client: Client, ids: str) -> None:
    assert admin_client.get(SEVERAL, {"ids": ids}).status_code == 404


def test_who_may_only_look_sends_nothing(operator: Operator) -> None:
    row = make_delivery(state="failed")
    client = operator("view_delivery")

    assert "redeliver_selected" not in client.get(LIST).content.decode()
    assert [client.post(again(row)).status_code, client.post(several(row)).status_code] == [403, 403]
    row.refresh_from_db()
    assert row.state == "failed"


def test_a_link_sends_nothing_and_neither_does_a_forged_form(operator: Operator) -> None:
    row = make_delivery(state="failed")
    client = operator("change_webhook", "view_delivery")
    forged = Client(enforce_csrf_checks=True)
    forged.cookies = client.cookies

    assert client.get(again(row)).status_code == 405
    assert [forged.post(address).status_code for address in (again(row), several(row))] == [403, 403]
    row.refresh_from_db()
    assert row.state == "failed"
