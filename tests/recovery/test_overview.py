"""The overview begins with what needs a person: breakers that are not closed, and a hold."""

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

from recovery import holds
from recovery.breaker_rules import Pin, State
from recovery.models import Breaker
from recovery.records import By
from scheduling.models import GateKind, TaskStatus
from tests.factories import NOW, make_gate, make_task

pytestmark = pytest.mark.django_db

INDEX = reverse("admin:index")
HOUR, HALF_A_MINUTE = timedelta(hours=1), timedelta(seconds=30)


def make_breaker(name: str, state: State = State.OPEN, **fields: Any) -> Breaker:
    gate = make_gate(kind=GateKind.BREAKER, key=name, closed=state is not State.CLOSED)
    return Breaker.objects.create(**{"breaker_id": name, "state": state, "gate": gate, "changed_at": NOW} | fields)


def needs(response: Any) -> list[str]:
    """Return the words of what needs a person, one text for each."""
    section = response.content.decode().partition('<h2 id="needs-you">')[2].partition("</section>")[0]
    items = re.findall(r"<li>(.*?)</li>", section, re.DOTALL) or [section]
    return [" ".join(re.sub(r"<[^>]+>", " ", item).split()) for item in items]


def test_breakers_that_are_not_closed_and_the_hold_are_named(admin_client: Client) -> None:
    now = timezone.now()  # hours away from all that is told, whose words stand for a minute
    row = make_breaker("api", open_until=now + 5 * HOUR + HALF_A_MINUTE, changed_at=now - HOUR)
    for _ in range(2):
        make_task(status=TaskStatus.BLOCKED, blocked_on=row.gate)
    make_breaker("geo", State.HALF_OPEN, successes=1, changed_at=now - HOUR)
    make_breaker("sms", pin=Pin.OPEN, pinned_by="ben", changed_at=now - 2 * HOUR)
    make_breaker("mail", State.CLOSED)
    held = holds.hold(By("ana"), now=now - 3 * HOUR)

    response = admin_client.get(INDEX)

    assert needs(response) == [
        "held Everything since 3 h ago by ana",
        "open api since 1 h ago · 2 tasks wait · probes in 5 h",
        "open sms since 2 h ago · 0 tasks wait · no probe before a reset · held by ben",
        "half-open geo since 1 h ago · 0 tasks wait · probing, 1 of 3 succeeded",
    ]
    for page in (("recovery_breaker", row.pk), ("recovery_hold", held.pk)):
        assert f'href="{reverse(f"admin:{page[0]}_change", args=(page[1],))}"' in response.content.decode()


def test_it_says_that_nothing_does(admin_client: Client) -> None:
    make_breaker("mail", State.CLOSED)

    assert needs(admin_client.get(INDEX)) == ["Needs you now Nothing: no breaker is open, and nothing is held."]


def test_twenty_are_named_at_the_same_cost_as_one(admin_client: Client) -> None:
    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            admin_client.get(INDEX)
        return len(captured)

    make_breaker("b0")
    one = queries()
    for number in range(1, 20):
        make_breaker(f"b{number}")
    assert "And more" not in admin_client.get(INDEX).content.decode()
    make_breaker("b20")

    response = admin_client.get(INDEX)

    assert len(needs(response)) == 20
    assert "And more breakers that are open" in response.content.decode()
    assert (queries(), one) == (one, 6)  # session, user, hold, breakers, what waits, recent actions


def test_who_may_not_see_breakers_is_told_of_the_hold_alone(operator: Callable[..., Client]) -> None:
    make_breaker("api")
    client = operator("view_task")

    assert "Needs you now" not in client.get(INDEX).content.decode()
    holds.hold(By("ben"), now=NOW)
    page = client.get(INDEX)

    (only,) = needs(page)
    assert only.startswith("held Everything since")
    assert "/admin/recovery/" not in page.content.decode()


def test_the_page_of_an_app_has_none_of_it(admin_client: Client) -> None:
    make_breaker("api")

    page = admin_client.get(reverse("admin:app_list", args=("recovery",))).content.decode()

    assert "Needs you now" not in page
    assert "Hold everything…" not in page
