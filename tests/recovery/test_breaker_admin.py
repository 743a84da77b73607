"""Breakers on the console: the list says how each stands, the page lets those who may change that."""

import re
from datetime import timedelta
from itertools import cycle
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from recovery import admin_words as words
from recovery.breaker_rules import Pin, State
from recovery.models import Breaker
from scheduling.models import GateKind, Task, TaskStatus
from tests.factories import NOW, make_gate, make_schedule, make_task

pytestmark = pytest.mark.django_db

LIST = reverse("admin:recovery_breaker_changelist")
MINUTE = timedelta(minutes=1)


def make_breaker(name: str = "api", state: State = State.CLOSED, **fields: Any) -> Breaker:
    """Return a breaker with its door, which stands as the state says."""
    gate = make_gate(kind=GateKind.BREAKER, key=name, closed=state is not State.CLOSED, generation=3)
    defaults = {"gate": gate, "generation": 3, "changed_at": NOW}
    return Breaker.objects.create(breaker_id=name, state=state, **defaults | fields)


def parked(row: Breaker, **fields: Any) -> Task:
    """Return a task that waits behind a breaker."""
    return make_task(
        **{"status": TaskStatus.BLOCKED, "blocked_on": row.gate, "circuit_breaker": row.breaker_id} | fields
    )


def text_of(response: Any) -> str:
    """Return the words of a page's main part, without its markup."""
    main = response.content.decode().partition("<main")[2]
    return " ".join(re.sub(r"<[^>]+>", " ", main).split())


def cells(response: Any, column: str) -> list[str]:
    found = re.findall(rf'<t[dh] class="field-{column}[^"]*">(.*?)</t[dh]>', response.content.decode(), re.DOTALL)
    return [" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in found]


# --- the list ---------------------------------------------------------------------------------------------------


def test_the_list_says_how_each_breaker_stands(admin_client: Client) -> None:
    row = make_breaker("api", State.OPEN, window="sfff", open_until=timezone.now() + timedelta(minutes=5, seconds=1))
    make_breaker("mail", window="ssss")
    make_breaker("pay", State.HALF_OPEN, successes=1, permits=3)
    make_breaker("sms", State.OPEN, pin=Pin.OPEN, pinned_by="ana", pin_reason="they move house")
    parked(row)
    parked(row)
    make_schedule(circuit_breaker="api")
    make_schedule(task_id="mail", circuit_breaker="default")
    make_schedule(task_id="other", circuit_breaker="default")

    page = admin_client.get(LIST)

    assert cells(page, "breaker") == ["api", "mail", "pay", "sms"]
    assert cells(page, "state_now") == ["open", "closed", "half-open", "open"]
    assert cells(page, "failed") == ["3/4", "0/4", "–", "–"]
    assert cells(page, "waiting") == ["2", "0", "0", "0"]
    assert cells(page, "schedules") == ["1", "1", "0", "0"]
    assert cells(page, "held") == ["–", "–", "–", "ana, open until it is reset: they move house"]
    probes = cells(page, "next_probe")
    assert probes[0].startswith("in 5 min")
    assert probes[1:] == ["–", "probing now 1 of 3 succeeded", "not before a reset"]


def test_a_closed_breaker_looks_good_and_a_closed_gate_does_not(admin_client: Client) -> None:
    make_breaker("api")
    make_breaker("mail", State.OPEN)

    of_breakers = admin_client.get(LIST).content.decode()
    of_gates = admin_client.get(reverse("admin:scheduling_gate_changelist")).content.decode()

    badges = r'k1-badge k1-(\w+)"><svg[^>]*><use href="[^#]*#([\w-]+)"></use></svg>([\w-]+)'
    assert re.findall(badges, of_breakers) == [("ok", "switch-closed", "closed"), ("bad", "switch-open", "open")]
    assert re.findall(badges, of_gates) == [("bad", "gate", "closed"), ("ok", "tick", "open")]


def test_an_empty_list_says_where_breakers_come_from(admin_client: Client) -> None:
    nothing = "No breaker yet. One appears when a schedule or task names it."

    assert nothing in text_of(admin_client.get(LIST))
    assert nothing not in text_of(admin_client.get(LIST, {"state": "open"}))
    make_breaker()
    assert nothing not in text_of(admin_client.get(LIST))


def test_the_list_costs_as_many_queries_whatever_it_holds(admin_client: Client) -> None:
    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            admin_client.get(LIST)
        return len(captured)

    first = make_breaker("a", State.OPEN)
    parked(first)
    few = queries()
    states = cycle(State)
    for number in range(60):
        row = make_breaker(f"b{number}", next(states), open_until=NOW)
        make_schedule(circuit_breaker=row.breaker_id)
        if row.state != State.CLOSED:
            parked(row)

    assert queries() == few
    assert few <= 7  # session, user, hold, rows, waiting, schedules


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ({"state": "open"}, ["api", "sms"]),
        ({"state": "half-open"}, ["pay"]),
        ({"state": "closed"}, ["mail"]),
        ({"state": "held"}, ["sms"]),
        ({"state": "ajar"}, ["api", "mail", "pay", "sms"]),
        ({"q": "a"}, ["api", "mail", "pay"]),
    ],
)
def test_the_list_is_filtered(admin_client: Client, asked: dict[str, str], names: list[str]) -> None:
    make_breaker("api", State.OPEN)
    make_breaker("mail")
    make_breaker("pay", State.HALF_OPEN)
    make_breaker("sms", State.OPEN, pin=Pin.OPEN)

    assert cells(admin_client.get(LIST, asked), "breaker") == names


def test_the_list_is_paged_by_name(admin_client: Client) -> None:
    for number in range(60):
        make_breaker(f"b{number:02}")

    first = admin_client.get(LIST)
    second = admin_client.get(LIST + first.context["cl"].older)

    assert cells(first, "breaker") + cells(second, "breaker") == [f"b{number:02}" for number in range(60)]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"state": State.CLOSED, "pin": Pin.CLOSED}, "–"),
        ({"state": State.OPEN, "open_until": NOW}, "due now"),
        ({"state": State.OPEN, "open_until": None}, "due now"),
        ({"state": State.OPEN, "pin": Pin.OPEN, "pinned_until": NOW - MINUTE}, "due now"),
        ({"state": State.OPEN, "pin": Pin.OPEN}, "not before a reset"),
    ],
)
def test_when_it_probes_in_words(fields: dict[str, Any], said: str) -> None:
    assert words.next_probe(Breaker(**fields), NOW) == said


@pytest.mark.parametrize(("number", "said"), [(0, "0"), (9_999, "9,999"), (10_000, "10,000"), (10_001, "10,000+")])
def test_tasks_are_counted_so_far(number: int, said: str) -> None:
    assert words.count(number) == said
