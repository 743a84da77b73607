"""The overview begins with what needs a person: breakers not closed, a hold, dead letters, stopped redrives."""

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

from k1node.operations.models import Operation
from recovery import holds
from recovery.breaker_rules import Pin, State
from recovery.models import Breaker, DeadLetter
from recovery.records import By
from recovery.templatetags import recovery_console
from scheduling.models import GateKind, TaskStatus
from tests.databases import only_sqlite
from tests.factories import NOW, make_dead_letter, make_gate, make_task

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

    (only,) = needs(admin_client.get(INDEX))
    assert only == (
        "Needs you now Nothing: no breaker is open, no task has died in the last 15 minutes, no batch has failed lately"
        " or is paused for long, every webhook receives, and nothing is held."
    )


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
    # session, user, hold, breakers, what waits, dead letters, webhooks, redrives, recent actions
    assert (queries(), one) == (one, 11)


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


# --- dead letters and redrives ----------------------------------------------------------------------------------


def dead(minutes: int, **fields: Any) -> DeadLetter:
    return make_dead_letter(failed_at=timezone.now() - timedelta(minutes=minutes), **fields)


def test_what_has_died_lately_is_one_line(operator: Callable[..., Client]) -> None:
    client = operator("view_deadletter")
    letter = dead(14, error_message="disk 1 full")
    dead(16)
    dead(1, status=DeadLetter.Status.ARCHIVED)

    one = client.get(INDEX)
    dead(1, error_message="disk 2 full")
    two = client.get(INDEX)
    dead(1, error_message="no route")
    three = client.get(INDEX)

    assert needs(one) == ["dead 1 dead letter in the last 15 min · 1 error"]
    assert needs(two) == ["dead 2 dead letters in the last 15 min · 1 error"]
    assert needs(three) == ["dead 3 dead letters in the last 15 min · 2 errors"]
    entries = reverse("admin:recovery_deadletter_changelist", query={"fingerprint": letter.fingerprint})
    assert f'href="{entries}"' in two.content.decode()
    assert f'href="{reverse("admin:recovery_deadletter_groups")}"' in three.content.decode()


def test_what_has_died_is_counted_so_far(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery_console, "COUNT_MOST", 2)
    for _ in range(4):
        dead(1)

    assert needs(admin_client.get(INDEX)) == ["dead 2+ dead letters in the last 15 min · 1 error"]


@only_sqlite  # PostgreSQL chooses by statistics
def test_what_has_died_lately_is_found_by_its_index(admin_client: Client) -> None:
    with CaptureQueriesContext(connection) as captured:
        admin_client.get(INDEX)
    (query,) = [each["sql"] for each in captured.captured_queries if 'FROM "recovery_deadletter"' in each["sql"]]

    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {query}")
        plan = " ".join(str(row) for row in cursor.fetchall())

    assert "LIMIT 1001" in query
    assert "letter_failed" in plan
    assert "TEMP B-TREE" not in plan


def test_a_redrive_that_has_stopped_is_told_until_it_goes_on(admin_client: Client) -> None:
    for state in Operation.State:
        Operation.objects.create(
            operation_id=f"redrive-{state}",
            kind="redrive",
            state=state,
            created_by="ana",
            created_at=NOW,
            said="The breaker 'api' is open",
            next_at=NOW if state == Operation.State.RUNNING else None,
        )

    page = admin_client.get(INDEX)

    assert needs(page) == ["stopped redrive-stopped The breaker &#x27;api&#x27; is open"]
    assert f'href="{reverse("admin:recovery_redrive", args=("redrive-stopped",))}"' in page.content.decode()


def test_each_sees_what_they_may(operator: Callable[..., Client]) -> None:
    make_breaker("api")
    dead(1)

    assert [line.split()[0] for line in needs(operator("view_breaker").get(INDEX))] == ["open"]
