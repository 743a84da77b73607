"""The hold on the console: a banner on every page, a page that begins it, a button that releases it."""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.messages import get_messages
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from recovery import holds
from recovery.models import Hold, Intervention
from recovery.records import By
from scheduling import claims
from tests.factories import NOW, make_gate, make_schedule, make_task

pytestmark = pytest.mark.django_db

INDEX = reverse("admin:index")
START = reverse("admin:recovery_hold_start")
RELEASE = reverse("admin:recovery_hold_release")
MINUTE = timedelta(minutes=1)


def banner(response: Any) -> str:
    """Return the words of the banner, empty without one."""
    found = re.search(r'<section class="k1-hold".*?</section>', response.content.decode(), re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", found.group()).split()) if found else ""


def said(response: Any) -> list[tuple[str, str]]:
    return [(message.level_tag, str(message)) for message in get_messages(response.wsgi_request)]


def pages() -> list[str]:
    """Return an address of every kind of page; the task has ended, for why another waits is a question of its own."""
    task, schedule, gate = make_task(status="completed"), make_schedule(), make_gate()
    return [
        INDEX,
        reverse("admin:app_list", args=("recovery",)),
        reverse("admin:scheduling_task_changelist"),
        reverse("admin:scheduling_schedule_changelist"),
        reverse("admin:recovery_breaker_changelist"),
        reverse("admin:recovery_hold_changelist"),
        reverse("admin:scheduling_task_change", args=(task.pk,)),
        reverse("admin:scheduling_schedule_change", args=(schedule.pk,)),
        reverse("admin:scheduling_schedule_delete", args=(schedule.pk,)),
        reverse("admin:scheduling_gate_change", args=(gate.pk,)),
        reverse("admin:access_apikey_add"),
        reverse("admin:password_change"),
        START,
    ]


def test_every_page_says_that_everything_is_held(admin_client: Client) -> None:
    addresses = pages()
    assert [banner(admin_client.get(address)) for address in addresses] == [""] * len(addresses)
    until = timezone.now() + timedelta(hours=2, seconds=30)
    holds.hold(By("ana", "the database moves"), until=until, now=timezone.now() - 60 * MINUTE)

    for address in addresses:
        text = banner(admin_client.get(address))

        assert text.startswith("Everything is held: nothing starts. Since 1 h ago by ana, until ")
        assert f"until {until:%Y-%m-%d %H:%M:%S} UTC ( in 2 h ): the database moves Release" in text


def test_one_without_an_end_says_so_and_its_reason_is_text(admin_client: Client) -> None:
    holds.hold(By("<b>ana</b>", "<script>alert(1)</script>"), now=NOW)

    response = admin_client.get(INDEX)

    assert "until somebody releases it" in banner(response)
    assert "<script>alert" not in response.content.decode()
    assert "<b>ana" not in response.content.decode()


def test_nobody_reads_it_who_has_not_signed_in(client: Client) -> None:
    holds.hold(By("ana", "the database moves"), now=NOW)

    assert "held" not in client.get(reverse("admin:login")).content.decode()


@pytest.mark.parametrize("is_held", [False, True])
def test_it_costs_a_page_one_query(admin_client: Client, is_held: bool) -> None:
    if is_held:
        holds.hold(By("ana"), now=NOW)

    for address in pages():
        with CaptureQueriesContext(connection) as captured:
            admin_client.get(address)

        asked = [query["sql"] for query in captured if '"recovery_hold"."ended_at" IS NULL' in query["sql"]]
        assert (address, len(asked)) == (address, 1)


def test_who_may_not_change_it_reads_it_and_has_no_button(operator: Callable[..., Client]) -> None:
    client = operator("view_task", "view_hold")

    assert "Hold everything…" not in client.get(INDEX).content.decode()
    for address in (START, RELEASE):
        assert client.post(address, {"until": "1 h"}).status_code == 403
    assert client.get(START).status_code == 403
    holds.hold(By("ben"), now=NOW)
    page = client.get(INDEX)

    assert "by ben" in banner(page)
    assert "Release" not in banner(page)
    assert client.post(RELEASE).status_code == 403
    assert holds.current() is not None


def test_a_link_does_nothing_and_neither_does_a_forged_form(operator: Callable[..., Client]) -> None:
    client = operator("change_hold")
    forged = Client(enforce_csrf_checks=True)
    forged.cookies = client.cookies
    holds.hold(By("ben"), now=NOW)

    assert client.get(RELEASE).status_code == 405
    assert forged.post(RELEASE).status_code == 403
    assert forged.post(START, {"until": "1 h"}).status_code == 403
    assert Intervention.objects.count() == 1


@pytest.mark.parametrize(
    ("chosen", "length"), [("15 min", 15 * MINUTE), ("1 h", 60 * MINUTE), ("4 h", 240 * MINUTE), ("no end", None)]
)
def test_everything_is_held_as_asked(operator: Callable[..., Client], chosen: str, length: timedelta | None) -> None:
    make_task()
    client = operator("change_hold")

    assert f'href="{START}"' in client.get(INDEX).content.decode()
    assert "Hold everything</button>" in client.get(START).content.decode()
    response = client.post(START, {"until": chosen, "reason": "the database moves"})

    row, done = Hold.objects.get(), Intervention.objects.get()
    assert response["Location"] == INDEX
    assert said(response) == [("info", "Nothing starts from now on, on any node. What runs, runs on.")]
    assert (row.created_by, row.reason, row.until and row.until - row.since) == ("ana", "the database moves", length)
    assert (done.action, done.performed_by) == ("hold", "ana")
    assert not claims.is_waiting()
    assert f'href="{START}"' not in client.get(INDEX).content.decode()


@pytest.mark.parametrize(
    ("data", "field"),
    [({}, "until"), ({"until": "2 years"}, "until"), ({"until": "1 h", "reason": "x" * 501}, "reason")],
)
def test_without_an_answer_it_asks_again(admin_client: Client, data: dict[str, str], field: str) -> None:
    response = admin_client.post(START, data)

    assert list(response.context["form"].errors) == [field]
    assert holds.current() is None


def test_a_second_hold_is_refused_with_the_reason(admin_client: Client) -> None:
    holds.hold(By("ben"), now=NOW)

    response = admin_client.post(START, {"until": "1 h"})

    assert said(response) == [("warning", "Left the hold as it is. Everything is held already, by ben.")]


@pytest.mark.parametrize(
    ("back", "leads_to"),
    [
        ("/admin/scheduling/task/?status=queued", "/admin/scheduling/task/?status=queued"),
        ("https://elsewhere.example/", INDEX),
        ("//elsewhere.example/", INDEX),
        ("javascript:alert(1)", INDEX),
        ("", INDEX),
    ],
)
def test_release_leads_back_to_the_page_it_was_pressed_on(
    operator: Callable[..., Client], back: str, leads_to: str
) -> None:
    holds.hold(By("ben", "the database moves"), now=NOW)

    response = operator("change_hold").post(RELEASE, {"back": back})

    row = Hold.objects.get()
    assert response["Location"] == leads_to
    assert said(response) == [("info", "Released what ben held: tasks start again.")]
    assert row.ended_by == "ana"


def test_the_banner_remembers_the_page_it_is_on(admin_client: Client) -> None:
    holds.hold(By("ben"), now=NOW)

    page = admin_client.get(reverse("admin:scheduling_task_changelist"), {"status": "queued"}).content.decode()

    assert 'name="back" value="/admin/scheduling/task/?status=queued"' in page


def test_a_release_that_comes_too_late_says_so(admin_client: Client) -> None:
    response = admin_client.post(RELEASE)

    assert said(response) == [("warning", "Left the hold as it is. Nothing is held.")]


def test_no_page_has_inline_scripts_or_styles(admin_client: Client) -> None:
    asked = admin_client.get(START).content.decode()
    holds.hold(By("ben"), now=NOW)

    for page in (asked, admin_client.get(INDEX).content.decode()):
        assert re.findall(r"<script(?![^>]*\ssrc=)[^>]*>|<style|\sstyle=|\son[a-z]+=|javascript:", page) == []
