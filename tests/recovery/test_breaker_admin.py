"""Breakers on the console: the list says how each stands, the page lets those who may change that."""

import re
from collections.abc import Callable
from datetime import timedelta
from itertools import cycle
from typing import Any

import pytest
from django.contrib.messages import get_messages
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from recovery import admin_words as words
from recovery import breakers
from recovery.breaker_rules import Pin, State
from recovery.models import Breaker, Intervention
from recovery.records import By
from scheduling.models import GateKind, Task, TaskStatus
from tests.factories import NOW, make_dead_letter, make_gate, make_schedule, make_task

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
    row = make_breaker("api", State.OPEN, window="sfff", open_until=timezone.now() + timedelta(hours=5, seconds=30))
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
    assert probes[0].startswith("in 5 h")
    assert probes[1:] == ["–", "probing 1 of 3 succeeded", "not before a reset"]


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
    assert words.count(number, 10_000) == said


# --- the page of one --------------------------------------------------------------------------------------------


def page_of(row: Breaker) -> str:
    return reverse("admin:recovery_breaker_change", args=(row.pk,))


def verb(row: Breaker, name: str) -> str:
    return reverse(f"admin:recovery_breaker_{name}", args=(row.pk,))


def buttons(response: Any) -> list[str]:
    text = response.content.decode()
    return re.findall(r'(?:formaction|class="k1-button[^"]*" href)="/admin/recovery/breaker/\d+/(\w+)/"', text)


def said(response: Any) -> list[tuple[str, str]]:
    return [
        (message.level_tag, re.sub(r"<[^>]+>", "", str(message))) for message in get_messages(response.wsgi_request)
    ]


def test_the_page_tells_the_facts_and_what_is_affected(admin_client: Client) -> None:
    row = make_breaker("api", State.OPEN, window="sff", openings=2, open_until=timezone.now() + MINUTE)
    task = parked(row)
    schedule = make_schedule(circuit_breaker="api", enabled=False)
    other = make_schedule(circuit_breaker="mail")

    response = admin_client.get(page_of(row))

    text = text_of(response)
    for fact in ("api open", "Failed calls 2/3", "Next probe in", "1 task", "Held by nobody", "Opened in a row 2"):
        assert fact in text
    assert task.task_id in text
    assert f"{schedule.task_id} disabled" in text
    assert other.task_id not in text
    assert 'aria-label="The last 3 calls, newest at the right: 2 failed"' in response.content.decode()


def test_who_holds_it_is_told_with_the_reason(admin_client: Client) -> None:
    row = make_breaker("api", State.OPEN, pin=Pin.OPEN, pinned_by="ana", pin_reason="they move house", pinned_until=NOW)

    assert "ana, open until 2026-03-04 05:06:07 UTC: they move house" in text_of(admin_client.get(page_of(row)))


def test_dead_letters_of_its_tasks_are_a_press_away(admin_client: Client, operator: Callable[..., Client]) -> None:
    row = make_breaker("api", State.OPEN)
    none = text_of(admin_client.get(page_of(row)))
    for _ in range(2):
        make_dead_letter(make_task(status=TaskStatus.FAILED, circuit_breaker="api"))

    page = admin_client.get(page_of(row)).content.decode()
    of_others = operator("view_breaker").get(page_of(row)).content.decode()

    assert "Dead letters none pending" in none
    assert f'href="{reverse("admin:recovery_deadletter_changelist")}?breaker=api">2 pending<' in page
    assert f'href="{reverse("admin:recovery_redrive_plan")}?breaker=api">Resubmit 2…<' in page
    assert "/deadletter/" not in of_others


def test_schedules_and_tasks_are_shown_so_far_and_no_further(admin_client: Client) -> None:
    row = make_breaker("api", State.OPEN)
    for number in range(25):
        parked(row, task_id=f"t{number:02}", priority=1 + number % 10)
        make_schedule(task_id=f"s{number:02}", circuit_breaker="api")

    with CaptureQueriesContext(connection) as captured:
        response = admin_client.get(page_of(row))

    text = text_of(response)
    assert ("s19" in text, "s20" in text, "these are the first 20" in text) == (True, False, True)
    assert response.context["tasks"][0].task_id == "t09"
    assert len(response.context["tasks"]) == 10
    assert "All 25" in text
    # session, user, hold, row, schedules, tasks, waiting, dead letters, two of interventions
    assert len(captured) <= 10


def test_the_tasks_behind_it_have_a_list_of_their_own(admin_client: Client) -> None:
    row, other = make_breaker("api", State.OPEN), make_breaker("mail", State.OPEN)
    schedule = make_schedule()
    late = parked(row, task_id="late", priority=2)
    urgent = parked(row, task_id="urgent", priority=9, schedule=schedule)
    parked(other)
    make_task(circuit_breaker="api")
    tasks = reverse("admin:scheduling_task_changelist")

    def shown(**asked: str) -> list[int]:
        return [task.pk for task in admin_client.get(tasks, asked).context["cl"].result_list]

    assert f'href="{tasks}?behind=api"' in admin_client.get(page_of(row)).content.decode()
    assert shown(behind="api") == [urgent.pk, late.pk]
    assert shown(behind="api", status="blocked") == [urgent.pk, late.pk]
    assert shown(behind="api", status="queued") == []
    assert shown(behind="api", schedule=schedule.task_id) == [urgent.pk]
    assert shown(behind="api", q="la") == [late.pk]
    assert shown(behind="nobody") == []


def test_the_newest_interventions_are_told(admin_client: Client) -> None:
    row = make_breaker("api")
    make_breaker("mail")
    for number in range(22):
        breakers.configure("api", {"probes": number + 4}, By("ben", f"try {number}"), now=NOW)
    breakers.open_("api", By("ana", "it is down"), until=NOW + MINUTE, now=NOW)
    breakers.open_("mail", By("cleo", "not this one"), now=NOW)

    text = text_of(admin_client.get(page_of(row)))

    assert "ana Open state: CLOSED → OPEN, held: – → open, until: – → 2026-03-04 05:07:07 UTC it is down" in text
    assert ("probes: 24 → 25 try 21" in text, "6 → 7 try 3" in text, "5 → 6 try 2" in text) == (True, True, False)
    assert "not this one" not in text


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({}, ["open", "close"]),
        ({"window": "sf"}, ["reset", "open", "close"]),
        ({"state": State.OPEN}, ["probe", "reset", "open", "close"]),
        ({"state": State.HALF_OPEN}, ["reset", "open", "close"]),
        ({"state": State.OPEN, "pin": Pin.OPEN}, ["reset", "open", "close"]),
    ],
)
def test_the_page_has_the_buttons_that_can_do_something(
    admin_client: Client, fields: dict[str, Any], shown: list[str]
) -> None:
    assert buttons(admin_client.get(page_of(make_breaker(**fields)))) == shown


def test_who_may_only_look_has_no_buttons(operator: Callable[..., Client]) -> None:
    row = make_breaker(state=State.OPEN)
    client = operator("view_breaker", "change_task")

    page = client.get(page_of(row))

    assert (page.status_code, buttons(page), "<form" in page.content.decode().partition("<main")[2]) == (200, [], False)
    assert "Open for 1 min" in text_of(page)
    for name in ("probe", "reset", "open", "close", "settings"):
        assert client.post(verb(row, name), {"until": "1 h"}).status_code == 403
    assert client.get(verb(row, "open")).status_code == 403
    assert not Intervention.objects.exists()


def test_a_link_does_nothing_and_neither_does_a_forged_form(operator: Callable[..., Client]) -> None:
    row = make_breaker(state=State.OPEN, window="f")
    client = operator("view_breaker", "change_breaker")
    forged = Client(enforce_csrf_checks=True)
    forged.cookies = client.cookies

    for name in ("probe", "reset", "settings"):
        assert client.get(verb(row, name)).status_code == 405
    for name in ("probe", "reset", "open", "close", "settings"):
        assert forged.post(verb(row, name), {"until": "1 h"}).status_code == 403
    for name in ("open", "close"):
        assert client.get(verb(row, name)).status_code == 200
    assert not Intervention.objects.exists()


def test_reset_closes_it_as_new(operator: Callable[..., Client]) -> None:
    row = make_breaker(state=State.OPEN, window="fff", pin=Pin.OPEN)

    response = operator("change_breaker").post(verb(row, "reset"), {"reason": " it is back\0 "})

    row.refresh_from_db()
    done = Intervention.objects.get()
    assert response["Location"] == page_of(row)
    assert said(response) == [("info", "Reset api: it is closed, and its window is empty.")]
    assert (row.state, row.pin, row.window, row.gate.closed) == (State.CLOSED, "", "", False)
    assert (done.action, done.performed_by, done.reason) == ("reset", "ana", "it is back")


def test_probe_lets_the_first_task_try(admin_client: Client) -> None:
    row = make_breaker(state=State.OPEN, open_until=timezone.now() + MINUTE)
    parked(row)
    first = parked(row, task_id="first", priority=9)

    response = admin_client.post(verb(row, "probe"))

    row.refresh_from_db()
    first.refresh_from_db()
    assert said(response) == [("info", "first tries now.")]
    assert (row.state, first.status, first.permit) == (State.HALF_OPEN, TaskStatus.QUEUED, row.generation)


def test_what_is_refused_says_why(admin_client: Client) -> None:
    row = make_breaker(state=State.OPEN, open_until=timezone.now() + MINUTE)

    response = admin_client.post(verb(row, "probe"), follow=True)

    assert 'class="warning">Left api as it is. No task waits behind it that could try.' in response.content.decode()
    assert not Intervention.objects.exists()


@pytest.mark.parametrize(
    ("name", "state", "pin", "words"),
    [("open", State.OPEN, Pin.OPEN, "open"), ("close", State.CLOSED, Pin.CLOSED, "closed")],
)
@pytest.mark.parametrize(("chosen", "hours"), [("1 h", 1), ("4 h", 4), ("no end", None)])
def test_forcing_is_asked_about_and_done(
    operator: Callable[..., Client], name: str, state: State, pin: Pin, words: str, chosen: str, hours: int | None
) -> None:
    row = make_breaker(state=State.OPEN, window="fff")
    parked(row)
    client = operator("view_breaker", "change_breaker")

    asked = client.get(verb(row, name))
    response = client.post(verb(row, name), {"until": chosen, "reason": "maintenance"})

    row.refresh_from_db()
    assert f"Force {words}" in text_of(asked)
    assert ("Nothing protects what it calls any more." in text_of(asked)) == (name == "close")
    assert ("1 task that waits behind it goes" in text_of(asked)) == (name == "close")
    assert (row.state, row.pin, row.pinned_by, row.pin_reason) == (state, pin, "ana", "maintenance")
    ((level, text),) = said(response)
    assert (level, text.startswith(f"Held api {words} until ")) == ("info", True)
    if hours is None:
        assert (row.pinned_until, text) == (None, f"Held api {words} until somebody resets it.")
    else:
        assert row.pinned_until is not None
        assert abs(row.pinned_until - timezone.now() - timedelta(hours=hours)) < MINUTE


@pytest.mark.parametrize(
    ("data", "field"),
    [({}, "until"), ({"until": "2 years"}, "until"), ({"until": "1 h", "reason": "x" * 501}, "reason")],
)
def test_forcing_without_an_answer_asks_again(admin_client: Client, data: dict[str, str], field: str) -> None:
    row = make_breaker()

    response = admin_client.post(verb(row, "open"), data)

    assert list(response.context["form"].errors) == [field]
    assert f'id="id_{field}_error"' in response.content.decode()
    assert not Intervention.objects.exists()


# --- settings ---------------------------------------------------------------------------------------------------

AS_IT_IS = {
    "window_size": "20",
    "min_calls": "5",
    "failure_percent": "50",
    "open_ms": "1 min",
    "open_cap_ms": "15 min",
    "probes": "3",
}


def test_settings_are_shown_as_they_are_and_changed_as_said(operator: Callable[..., Client]) -> None:
    row = make_breaker(window="s" * 15)
    client = operator("view_breaker", "change_breaker")

    form = client.get(page_of(row)).context["form"]
    response = client.post(
        verb(row, "settings"), AS_IT_IS | {"window_size": "10", "open_ms": "1 min 30 s", "reason": "it is slow"}
    )

    row.refresh_from_db()
    done = Intervention.objects.get()
    assert {field.name: str(field.value()) for field in form} == AS_IT_IS
    assert (row.window_size, row.open_ms, row.probes, row.window) == (10, 90_000, 3, "s" * 10)
    assert (done.action, done.performed_by, done.reason) == ("configure", "ana", "it is slow")
    assert said(response) == [("info", "Changed the settings of api; they hold from the next result on.")]


def test_settings_of_somebody_else_are_not_put_back(admin_client: Client) -> None:
    row = make_breaker()
    breakers.configure("api", {"probes": 7}, By("ben"), now=NOW)
    form_of_before = AS_IT_IS | {"min_calls": "6", "probes": "7"}

    admin_client.post(verb(row, "settings"), form_of_before)

    row.refresh_from_db()
    assert (row.probes, row.min_calls) == (7, 6)


def test_nothing_changed_is_nothing_done(admin_client: Client) -> None:
    row = make_breaker()

    response = admin_client.post(verb(row, "settings"), AS_IT_IS)

    assert said(response) == [("info", "The settings of api are as they were.")]
    assert not Intervention.objects.exists()


WRONG = [
    ({"window_size": 0}, "window_size"),
    ({"window_size": 1001}, "window_size"),
    ({"min_calls": 0}, "min_calls"),
    ({"min_calls": 21}, "min_calls"),
    ({"window_size": 4}, "min_calls"),
    ({"failure_percent": 0}, "failure_percent"),
    ({"failure_percent": 101}, "failure_percent"),
    ({"open_ms": 99}, "open_ms"),
    ({"open_ms": 30 * 86_400_000 + 1}, "open_ms"),
    ({"open_cap_ms": 99}, "open_cap_ms"),
    ({"open_cap_ms": 59_999}, "open_cap_ms"),
    ({"open_ms": 900_001}, "open_cap_ms"),
    ({"probes": 0}, "probes"),
    ({"probes": 101}, "probes"),
]
RIGHT = [
    {"window_size": 1000, "min_calls": 1000},
    {"window_size": 1, "min_calls": 1},
    {"min_calls": 20},
    {"failure_percent": 1},
    {"failure_percent": 100},
    {"open_ms": 100, "open_cap_ms": 100},
    {"open_ms": 30 * 86_400_000, "open_cap_ms": 30 * 86_400_000},
    {"probes": 100},
]


def typed(values: dict[str, int]) -> dict[str, str]:
    return AS_IT_IS | {name: f"{value} ms" if name.endswith("_ms") else str(value) for name, value in values.items()}


@pytest.mark.parametrize(("values", "field"), WRONG)
def test_what_the_api_refuses_is_refused_at_its_field(
    admin_client: Client, api_client: Callable[..., Any], values: dict[str, int], field: str
) -> None:
    row = make_breaker()

    over_api = api_client("error-recovery:admin").patch("/api/v2/circuit-breaker/api", values, format="json")
    response = admin_client.post(verb(row, "settings"), typed(values))

    assert (over_api.status_code, over_api.json()["error"]["details"][0]["field"]) == (400, field)
    assert list(response.context["form"].errors) == [field]
    page = response.content.decode()
    assert (f'id="id_{field}_error"' in page, "Nothing was changed." in page) == (True, True)
    assert not Intervention.objects.exists()


@pytest.mark.parametrize("values", RIGHT)
def test_what_the_api_takes_is_taken(
    admin_client: Client, api_client: Callable[..., Any], values: dict[str, int]
) -> None:
    row, other = make_breaker("api"), make_breaker("mail")

    over_api = api_client("error-recovery:admin").patch("/api/v2/circuit-breaker/mail", values, format="json")
    admin_client.post(verb(row, "settings"), typed(values))

    row.refresh_from_db()
    other.refresh_from_db()
    assert over_api.status_code == 200
    assert {name: getattr(row, name) for name in values} == values == {name: getattr(other, name) for name in values}


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "9" * 400, "<script>", "\0"])
@pytest.mark.parametrize("field", list(AS_IT_IS))
def test_nonsense_is_no_setting(admin_client: Client, field: str, text: str) -> None:
    row = make_breaker()

    response = admin_client.post(verb(row, "settings"), AS_IT_IS | {field: text})

    assert field in response.context["form"].errors
    assert "<script>" not in response.content.decode()
    assert not Intervention.objects.exists()


@pytest.mark.parametrize("name", ["change", "probe", "reset", "open", "close", "settings"])
def test_a_breaker_that_is_gone_is_not_found(admin_client: Client, name: str) -> None:
    row = make_breaker()
    breakers.delete("api", By("ana"), now=NOW)

    assert admin_client.post(verb(row, name), {"until": "1 h"}).status_code == 404


def test_no_page_of_a_breaker_has_inline_scripts_or_styles(admin_client: Client) -> None:
    row = make_breaker(state=State.OPEN, window="sf", pin_reason="<b>")
    parked(row)

    pages = [admin_client.get(page_of(row)), admin_client.get(verb(row, "open")), admin_client.get(verb(row, "close"))]
    pages.append(admin_client.post(verb(row, "settings"), {}))

    for page in pages:
        text = page.content.decode()
        assert re.findall(r"<script(?![^>]*\ssrc=)[^>]*>|<style|\sstyle=|\son[a-z]+=|javascript:", text) == []
