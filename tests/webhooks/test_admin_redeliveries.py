"""Redeliveries on the console: counted before they are begun, followed to their end."""

import re
from collections.abc import Callable
from datetime import UTC, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from k1node.clock import KINDS
from k1node.events import log
from k1node.operations import jobs
from k1node.operations.models import Operation
from tests.factories import make_delivery, make_webhook
from tests.pages import said, text_of
from tests.webhooks import redelivering
from webhooks import redelivery
from webhooks.admin import redeliveries
from webhooks.models import Delivery, Webhook

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)
Operator = Callable[..., Client]


def failed(webhook: Webhook, count: int = 1, hours: float = 0.5) -> list[Delivery]:
    at = timezone.now() - hours * HOUR
    return [make_delivery(webhook, state="failed", created_at=at, finished_at=at) for _ in range(count)]


def plan(row: Webhook, mode: str = "failed") -> str:
    return reverse("admin:webhooks_redelivery_plan", args=(row.pk, mode))


def counted(response: Any, **fields: str) -> dict[str, str]:
    """Return what the form sends that a page of a plan shows."""
    form = response.context["form"]
    return {"since": form["since"].value(), "until": form["until"].value(), "per_second": ""} | fields


def page_of(job: Operation) -> str:
    return reverse("admin:webhooks_redelivery", args=(job.operation_id,))


def verb(job: Operation, name: str) -> str:
    return reverse("admin:webhooks_redelivery_do", args=(job.operation_id, name))


def tend() -> None:
    jobs.tend(KINDS, now=timezone.now() + timedelta(seconds=1))


def begun(row: Webhook) -> Operation:
    now = timezone.now()
    job, _ = redelivering.recover(row, since=now - 24 * HOUR, by="ana", now=now)
    return job


def buttons(response: Any) -> list[str]:
    return re.findall(r'formaction="/admin/webhooks/webhook/redeliveries/[\w-]+/(\w+)/"', response.content.decode())


# --- asking -----------------------------------------------------------------------------------------------------


def test_a_look_counts_and_writes_nothing(admin_client: Client) -> None:
    row = make_webhook()
    failed(row, 3)
    failed(row, 2, hours=30)

    page = text_of(admin_client.get(plan(row)))

    assert "3 deliveries were given up from" in page
    assert "Redeliver 3" in page
    assert not Operation.objects.exists()


def test_what_it_counts_first_is_the_time_in_which_the_webhook_fails(admin_client: Client) -> None:
    row = make_webhook(failures=9, failing_since=timezone.now() - 31 * HOUR)
    failed(row, 2, hours=30)

    response = admin_client.get(plan(row))

    assert "2 deliveries were given up" in text_of(response)
    assert "since it began to fail" in text_of(response)


@pytest.mark.parametrize(("asked", "number"), [("1h", 1), ("6h", 2), ("1d", 3), ("7d", 4), ("trouble", None)])
def test_a_span_is_chosen(admin_client: Client, asked: str, number: int | None) -> None:
    row = make_webhook()
    for hours in (0.5, 3, 12, 50):
        failed(row, hours=hours)

    response = admin_client.get(plan(row), {"span": asked})

    assert response.context["number"] == (number or 0)
    assert list(response.context["span"].errors) == ([] if number else ["span"])


def test_a_moment_is_typed_in_utc(admin_client: Client) -> None:
    row = make_webhook()
    failed(row, hours=3)
    failed(row, hours=8)
    since, until = ((timezone.now() - hours * HOUR).astimezone(UTC) for hours in (9, 5))
    asked = {"span": "from", "since": f"{since:%Y-%m-%dT%H:%M:%S}", "until": f"{until:%Y-%m-%dT%H:%M}"}

    response = admin_client.get(plan(row), asked)

    assert (response.context["number"], list(response.context["span"].errors)) == (1, [])


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"span": "from"}, "since"),
        ({"span": "from", "since": "soon"}, "since"),
        ({"span": "from", "since": "2999-01-01T00:00"}, "since"),
        ({"span": "from", "since": "2026-01-02T00:00", "until": "2026-01-01T00:00"}, "until"),
        ({"span": "x"}, "span"),
        ({"span": "1d", "since": "2026-01-01T00:00"}, "span"),
        ({"span": "1d", "until": "2026-01-01T00:00"}, "span"),
    ],
)
def test_what_cannot_be_is_refused_at_its_field(admin_client: Client, asked: dict[str, str], field: str) -> None:
    response = admin_client.get(plan(make_webhook()), asked)

    assert list(response.context["span"].errors) == [field]
    assert response.context["form"] is None
    assert "What comes again Choose a time, and it is counted." in text_of(response)


def test_a_press_begins_what_the_page_has_counted(operator: Operator) -> None:
    row = make_webhook()
    failed(row, 2)
    client = operator("change_webhook", "view_webhook")
    form = counted(client.get(plan(row)), per_second="7")
    failed(row, 1, hours=-1)  # given up after the page was made

    response = client.post(plan(row), form)

    job = Operation.objects.get()
    assert response["Location"] == page_of(job)
    assert (job.state, job.total, job.per_second, job.created_by) == ("running", 2, 7, "ana")
    assert (job.arguments["mode"], job.selection["since"]) == ("failed", form["since"])
    assert said(response)[0][0] == "info"


def test_a_period_is_sent_again(admin_client: Client) -> None:
    row = make_webhook(events=["task.failed"])
    for name in ("task.failed", "task.failed", "task.completed"):
        log.publish(name, {}, now=timezone.now() - HOUR)

    response = admin_client.get(plan(row, "period"))
    admin_client.post(plan(row, "period"), counted(response))
    tend()

    assert "2 events that it wants happened from" in text_of(response) and "Send 2 again" in text_of(response)
    assert (Operation.objects.get().done, Delivery.objects.count()) == (2, 2)


@pytest.mark.parametrize(("number", "begins"), [("", False), ("2", False), ("3", True), (" 3 ", True)])
def test_a_large_number_is_typed_in_first(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch, number: str, begins: bool
) -> None:
    monkeypatch.setattr(redeliveries, "TYPED_ABOVE", 2)
    row = make_webhook()
    failed(row, 3)
    page = admin_client.get(plan(row))

    response = admin_client.post(plan(row), counted(page, number=number))

    assert "Type 3 to mean all of them" in text_of(page)
    assert Operation.objects.exists() == begins
    assert said(response)[0][0] == ("info" if begins else "warning")


def test_more_than_is_counted_is_said_and_so_is_more_than_a_job_may_have(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redelivery, "COUNT_MOST", 2)
    monkeypatch.setattr(jobs, "MOST", 2)
    row = make_webhook()
    failed(row, 4)

    page = admin_client.get(plan(row))
    response = admin_client.post(plan(row), counted(page))

    assert "2+ deliveries were given up" in text_of(page)
    assert [level for level, _ in said(response)] == ["info", "warning"]
    assert Operation.objects.get().total == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"per_second": "0"},
        {"per_second": "10001"},
        {"since": "soon"},
        {"since": "0001-01-01T00:00:00+23:59"},
        {"until": "2026-01-01T00:00:00+00:00"},
    ],
    ids=["too slow", "too fast", "no moment", "before all time", "backwards"],
)
def test_a_form_that_cannot_be_begins_nothing(admin_client: Client, fields: dict[str, str]) -> None:
    row = make_webhook()
    failed(row)

    response = admin_client.post(plan(row), counted(admin_client.get(plan(row)), **fields))

    assert (response.status_code, list(response.context["form"].errors)) == (200, list(fields))
    assert not Operation.objects.exists()


def test_nothing_that_fits_has_no_button(admin_client: Client) -> None:
    page = text_of(admin_client.get(plan(make_webhook())))

    assert "No delivery was given up from" in page
    assert "Redeliver 0" not in page


def test_what_has_changed_meanwhile_is_said(admin_client: Client) -> None:
    row = make_webhook()
    failed(row)
    form = counted(admin_client.get(plan(row)))
    Webhook.objects.update(active=False)

    response = admin_client.post(plan(row), form)

    assert said(response) == [("warning", "Not begun. The webhook is not active: enable it first.")]
    assert "is not active. Enable it first." in text_of(response)


def test_an_unknown_webhook_or_button_is_not_found(admin_client: Client) -> None:
    row = make_webhook()

    assert admin_client.get(plan(row, "all")).status_code == 404
    assert admin_client.get(plan(Webhook(pk=999))).status_code == 404


# --- progress ---------------------------------------------------------------------------------------------------


def test_progress_says_how_many_and_what_has_become_of_them(admin_client: Client) -> None:
    row = make_webhook(name="billing")
    one, two, three = failed(row, 3)
    job = begun(row)
    Delivery.objects.filter(pk=three.pk).update(state="delivered")
    tend()
    Delivery.objects.filter(pk=one.pk).update(state="delivered", finished_at=timezone.now())

    response = admin_client.get(page_of(job))

    text = text_of(response)
    assert "completed Done 2 Left alone 1 Remaining 0 Of 3" in text.replace("completed  ", "completed ")
    assert "delivered 1 pending 1" in text
    assert "It is delivered by now 1" in text
    assert "3 deliveries that were given up" in text
    assert 'aria-label="2 done and 1 refused of 3"' in response.content.decode()
    assert buttons(response) == []
    assert two.pk


def test_a_running_one_keeps_itself_up_to_date_with_a_script_and_without(admin_client: Client) -> None:
    row = make_webhook()
    failed(row)
    job = begun(row)

    page = admin_client.get(page_of(job)).content.decode()

    assert 'data-refresh="3000"' in page
    assert '<noscript><meta http-equiv="refresh" content="5"></noscript>' in page
    assert re.findall(r"<script(?![^>]*\ssrc=)[^>]*>|<style|\sstyle=|\son[a-z]+=|javascript:", page) == []


def test_one_whose_deliveries_have_all_ended_stands_still(admin_client: Client) -> None:
    row = make_webhook()
    failed(row)
    job = begun(row)
    tend()
    assert "data-refresh" in admin_client.get(page_of(job)).content.decode()
    Delivery.objects.update(state="delivered", finished_at=timezone.now())

    assert "data-refresh" not in admin_client.get(page_of(job)).content.decode()


def test_one_is_stopped_goes_on_and_is_cancelled(operator: Operator) -> None:
    row = make_webhook()
    failed(row)
    job = begun(row)
    client = operator("change_webhook", "view_webhook")

    seen = []
    for name in ("stop", "stop", "start", "cancel"):
        response = client.post(verb(job, name))
        job.refresh_from_db()
        seen.append((name, job.state, said(response)[-1][0], buttons(client.get(page_of(job)))))

    assert seen == [
        ("stop", "stopped", "info", ["start", "cancel"]),
        ("stop", "stopped", "warning", ["start", "cancel"]),
        ("start", "running", "info", ["stop", "cancel"]),
        ("cancel", "cancelled", "info", []),
    ]


def test_one_that_has_stopped_by_itself_says_why(admin_client: Client) -> None:
    row = make_webhook()
    failed(row)
    job = begun(row)
    Webhook.objects.update(active=False)
    tend()

    assert "stopped The webhook is not active: enable it first" in text_of(admin_client.get(page_of(job)))


def test_one_of_a_deleted_webhook_is_still_shown(admin_client: Client) -> None:
    row = make_webhook()
    failed(row)
    job = begun(row)
    Delivery.objects.all().delete()
    row.delete()

    assert f"{job.selection['webhook_id']} deleted" in text_of(admin_client.get(page_of(job)))


def test_progress_costs_as_many_queries_however_many_there_are(admin_client: Client) -> None:
    seen = []
    for count in (1, 50):
        row = make_webhook()
        failed(row, count + 1)
        job = begun(row)
        Delivery.objects.filter(webhook=row).order_by("pk").first().delete()  # type: ignore[union-attr]
        tend()
        with CaptureQueriesContext(connection) as captured:
            admin_client.get(page_of(job))
        seen.append(len(captured))

    assert seen[0] == seen[1]
    assert seen[0] <= 7  # session, user, job, webhook, states, reasons, hold


def test_the_list_of_jobs_and_the_page_of_the_webhook_lead_to_it(admin_client: Client) -> None:
    row = make_webhook()
    failed(row)
    job = begun(row)

    jobs_page = admin_client.get(reverse("admin:operations_operation_changelist")).content.decode()
    webhook_page = admin_client.get(reverse("admin:webhooks_webhook_change", args=(row.pk,))).content.decode()

    assert f'<a href="{page_of(job)}">{job.operation_id}</a>' in jobs_page
    assert f'<a href="{page_of(job)}">' in webhook_page


def test_one_that_is_gone_and_an_unknown_verb_are_not_found(admin_client: Client) -> None:
    row = make_webhook()
    failed(row)

    assert admin_client.get(reverse("admin:webhooks_redelivery", args=("redelivery-none",))).status_code == 404
    assert admin_client.post(verb(begun(row), "delete")).status_code == 404


# --- who may do what --------------------------------------------------------------------------------------------


def test_who_may_only_look_begins_and_stops_nothing(operator: Operator) -> None:
    row = make_webhook()
    failed(row)
    job = begun(row)
    client = operator("view_webhook")

    assert [client.get(plan(row)).status_code, client.post(plan(row), {}).status_code] == [403, 403]
    assert [client.post(verb(job, name)).status_code for name in ("start", "stop", "cancel")] == [403] * 3
    response = client.get(page_of(job))
    assert (response.status_code, buttons(response)) == (200, [])
    assert operator().get(page_of(job)).status_code == 403


def test_a_link_begins_nothing_and_neither_does_a_forged_form(operator: Operator) -> None:
    row = make_webhook()
    failed(row)
    job = begun(row)
    client = operator("change_webhook")
    forged = Client(enforce_csrf_checks=True)
    forged.cookies = client.cookies

    assert client.get(verb(job, "cancel")).status_code == 405
    assert [forged.post(address).status_code for address in (plan(row), verb(job, "cancel"))] == [403, 403]
    job.refresh_from_db()
    assert (job.state, Operation.objects.count()) == ("running", 1)
