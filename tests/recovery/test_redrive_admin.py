"""Redrives on the console: a look writes nothing, the plan shows what it would do, its page follows it to the end."""

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

from k1node.clock import KINDS
from k1node.operations import jobs
from k1node.operations.models import Operation
from recovery import dead_letters, redrive_admin, redrives
from recovery.dead_letters import Wanted
from recovery.models import DeadLetter
from recovery.records import By
from recovery.retries import Changes
from scheduling.models import Task, TaskStatus
from tests.factories import NOW, make_dead_letter, make_schedule, make_task

pytestmark = pytest.mark.django_db

PLAN = reverse("admin:recovery_redrive_plan")
ANA = By("ana", "disk mended")
SECOND = timedelta(seconds=1)


def dead(count: int = 1, **fields: Any) -> list[DeadLetter]:
    of_letter = {name: fields.pop(name) for name in ("error_message", "error_code") if name in fields}
    return [make_dead_letter(make_task(**{"status": TaskStatus.FAILED} | fields), **of_letter) for _ in range(count)]


def typed(**fields: Any) -> dict[str, Any]:
    """Return what the form sends when nothing was changed in it."""
    usual = {"parameters": "{}", "timeout": "", "retry_policy": "", "per_second": "", "first": "5", "reason": ""}
    return usual | {"stop_when_open": "on"} | fields


def planned(changes: Changes = Changes(), **how: Any) -> Operation:  # noqa: B008
    job, _ = redrives.plan(Wanted(), changes, ANA, now=timezone.now(), **how)
    return job


def begun(**how: Any) -> Operation:
    job = redrives.start(planned(**how).operation_id, ANA, now=timezone.now())
    tend()
    return Operation.objects.get(pk=job.pk)


def tend() -> None:
    jobs.tend(KINDS, now=timezone.now() + SECOND)


def page_of(job: Operation) -> str:
    return reverse("admin:recovery_redrive", args=(job.operation_id,))


def verb(job: Operation, name: str) -> str:
    return reverse("admin:recovery_redrive_do", args=(job.operation_id, name))


def text_of(response: Any) -> str:
    main = response.content.decode().partition("<main")[2]
    return " ".join(re.sub(r"<[^>]+>", " ", main).split())


def buttons(response: Any) -> list[str]:
    return re.findall(r'formaction="/admin/recovery/deadletter/redrives/[\w-]+/(\w+)/"', response.content.decode())


def said(response: Any) -> list[tuple[str, str]]:
    return [(message.level_tag, str(message)) for message in get_messages(response.wsgi_request)]


# --- where one begins -------------------------------------------------------------------------------------------


def test_lists_and_groups_lead_to_the_page_that_asks(operator: Callable[..., Client]) -> None:
    letter = dead(2, circuit_breaker="api")[0]
    client = operator("change_deadletter")
    entries, groups = reverse("admin:recovery_deadletter_changelist"), reverse("admin:recovery_deadletter_groups")

    def leads(address: str, **asked: str) -> str:
        return str(client.get(address, asked).content.decode())

    assert f'href="{PLAN}">Resubmit all…<' in leads(entries)
    assert f'href="{PLAN}?breaker=api">Resubmit all that match…<' in leads(entries, breaker="api")
    assert PLAN not in leads(entries, breaker="api", state="archived")
    assert f'href="{PLAN}?fingerprint={letter.fingerprint}">Resubmit 2…<' in leads(groups)


def test_who_may_only_look_is_led_to_no_redrive(operator: Callable[..., Client]) -> None:
    dead()
    job = planned()
    client = operator("view_deadletter")

    for address in (reverse("admin:recovery_deadletter_changelist"), reverse("admin:recovery_deadletter_groups")):
        assert PLAN not in client.get(address).content.decode()
    assert (client.get(PLAN).status_code, client.post(PLAN, typed()).status_code) == (403, 403)
    page = client.get(page_of(job))
    assert (page.status_code, buttons(page)) == (200, [])
    assert [client.post(verb(job, name)).status_code for name in ("start", "cancel")] == [403, 403]
    job.refresh_from_db()
    assert (job.state, Operation.objects.count()) == ("planned", 1)


# --- asking -----------------------------------------------------------------------------------------------------


def test_a_look_says_how_many_match_and_writes_nothing(admin_client: Client) -> None:
    dead(3, circuit_breaker="api", parameters={"seconds": 1})
    dead(2)

    page = admin_client.get(PLAN, {"breaker": "api"})
    every = admin_client.get(PLAN)

    assert "Resubmit 3 dead letters" in text_of(page)
    assert "Pending entries with breaker api . 3 match now." in text_of(page)
    assert "&quot;seconds&quot;: 1" in text_of(page)
    assert "All pending entries. 5 match now." in text_of(every)
    assert not Operation.objects.exists()


def test_entries_are_counted_so_far(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "COUNT_MOST", 2)
    dead(4)

    assert "Resubmit 2+ dead letters" in text_of(admin_client.get(PLAN))


@pytest.mark.parametrize("asked", [{"task": "nightly"}, {"handler": "python:sleep"}, {"breaker": "api"}, {}])
def test_a_press_freezes_the_set_and_resubmits_nothing(operator: Callable[..., Client], asked: dict[str, str]) -> None:
    letters = dead(2, schedule=make_schedule(task_id="nightly"), circuit_breaker="api")
    form = typed(
        parameters='{"seconds": 2}', timeout="2 h", retry_policy="aggressive", per_second="7", first="3", reason="why"
    )

    response = operator("change_deadletter").post(reverse("admin:recovery_redrive_plan", query=asked), form)

    job = Operation.objects.get()
    assert response["Location"] == page_of(job)
    assert (job.state, job.total, job.per_second, job.first) == ("planned", 2, 7, 3)
    assert (job.created_by, job.reason) == ("ana", "why")
    assert job.arguments == {
        "parameters": {"seconds": 2, "timeout_ms": 7_200_000},
        "retry_policy": "aggressive",
        "stop_when_breaker_opens": True,
    }
    assert [item.subject for item in job.items.order_by("position")] == [letter.pk for letter in letters]
    assert Task.objects.count() == 2


def test_a_box_that_is_not_ticked_lets_it_go_on(admin_client: Client) -> None:
    dead()
    form = typed()
    del form["stop_when_open"]

    admin_client.post(PLAN, form)

    assert Operation.objects.get().arguments == {"stop_when_breaker_opens": False}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"parameters": "{"}, "parameters"),
        ({"parameters": '{"timeout_ms": "x"}'}, "parameters"),
        ({"timeout": "soon"}, "timeout"),
        ({"timeout": "1 h", "parameters": '{"timeout_ms": 5}'}, "timeout"),
        ({"retry_policy": "never"}, "retry_policy"),
        ({"per_second": "0"}, "per_second"),
        ({"per_second": "10001"}, "per_second"),
        ({"first": "-1"}, "first"),
        ({"first": "1001"}, "first"),
        ({"reason": "x" * 501}, "reason"),
    ],
)
def test_what_cannot_be_is_refused_at_its_field_and_nothing_typed_is_lost(
    admin_client: Client, fields: dict[str, str], field: str
) -> None:
    dead()
    given = typed(**{"reason": "mended", **fields})

    response = admin_client.post(PLAN, given)

    form = response.context["form"]
    assert list(form.errors) == [field]
    assert f'id="id_{field}_error"' in response.content.decode()
    assert {each.name: each.value() for each in form} == given | {"stop_when_open": True}
    assert not Operation.objects.exists()


def test_nothing_that_fits_is_said(admin_client: Client) -> None:
    response = admin_client.post(reverse("admin:recovery_redrive_plan", query={"breaker": "api"}), typed(reason="why"))

    page = response.content.decode()
    assert 'class="warning">No pending dead letter fits.' in page
    assert 'value="why"' in page


def test_more_than_a_job_may_have_is_said(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MOST", 2)
    dead(3)

    response = admin_client.post(PLAN, typed())

    assert said(response)[0][0] == "warning"
    assert Operation.objects.get().total == 2


# --- the plan ---------------------------------------------------------------------------------------------------


def test_the_plan_shows_what_becomes_of_the_first(admin_client: Client) -> None:
    dead(1, task_id="good", parameters={"seconds": 1, "zone": "eu"}, handler="bash ops/agents/greet.sh")
    dead(1, task_id="lame", handler="python:none")
    dead(5)
    job = planned(Changes({"seconds": 2, "timeout_ms": 7_200_000}, "aggressive"), pace=jobs.Pace(7, 3))

    response = admin_client.get(page_of(job))

    text = text_of(response)
    assert "Resubmit 7 entries planned" in text
    assert "timeout 1 h → 2 h seconds 1 → 2 retry policy standard → aggressive" in text
    assert "zone" not in text
    assert "lame Would be refused." in text
    for fact in ("7 a second", "3, the rest only if all of them complete", "it stops", "Reason disk mended"):
        assert fact in text
    assert len(response.context["sample"]) == 5
    assert buttons(response) == ["start", "cancel"]
    assert "Start 7" in text


def test_the_plan_of_one_costs_as_many_queries_as_that_of_many(admin_client: Client) -> None:
    def queries(job: Operation) -> int:
        with CaptureQueriesContext(connection) as captured:
            admin_client.get(page_of(job))
        return len(captured)

    dead()
    few = queries(planned())
    dead(30)

    assert queries(planned()) == few
    assert few <= 6  # session, user, hold, job, items, entries


def test_a_plan_is_started(operator: Callable[..., Client]) -> None:
    dead(2)
    job = planned()

    response = operator("change_deadletter").post(verb(job, "start"))
    tend()

    job.refresh_from_db()
    assert (response["Location"], said(response)[0][0]) == (page_of(job), "info")
    assert (job.state, job.done) == ("completed", 2)


def test_a_plan_is_cancelled(admin_client: Client) -> None:
    dead()
    job = planned()

    admin_client.post(verb(job, "cancel"))

    job.refresh_from_db()
    assert (job.state, Task.objects.count()) == ("cancelled", 1)


def test_a_plan_is_made_anew_with_what_was_typed(admin_client: Client) -> None:
    dead(2, circuit_breaker="api")
    wanted, changes = Wanted(circuit_breaker="api"), Changes({"keep": 7}, "aggressive")
    job, _ = redrives.plan(wanted, changes, ANA, pace=jobs.Pace(7, 3), now=timezone.now())
    again = reverse("admin:recovery_redrive_plan", query={"breaker": "api", "again": job.operation_id})

    assert f'href="{again.replace("&", "&amp;")}">Change…<' in admin_client.get(page_of(job)).content.decode()
    form = admin_client.get(again).context["form"]
    admin_client.post(again, typed(parameters="{}"))

    assert {field.name: field.value() for field in form} == {
        "parameters": '{\n  "keep": 7\n}',
        "timeout": None,
        "retry_policy": "aggressive",
        "per_second": 7,
        "first": 3,
        "stop_when_open": True,
        "reason": "disk mended",
    }
    assert list(Operation.objects.order_by("pk").values_list("state", flat=True)) == ["cancelled", "planned"]


def test_a_plan_that_this_page_cannot_say_is_not_changed_here(admin_client: Client) -> None:
    dead(2)
    job, _ = redrives.plan(Wanted(until=timezone.now()), Changes(), ANA, now=timezone.now())

    assert "Change…" not in text_of(admin_client.get(page_of(job)))


@pytest.mark.parametrize(("number", "state"), [("", "planned"), ("2", "planned"), ("3", "running"), ("3 ", "running")])
def test_a_large_number_is_typed_in_before_it_begins(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch, number: str, state: str
) -> None:
    monkeypatch.setattr(redrive_admin, "TYPED_ABOVE", 2)
    dead(3)
    job = planned()

    asked = text_of(admin_client.get(page_of(job)))
    response = admin_client.post(verb(job, "start"), {"number": number})

    job.refresh_from_db()
    assert "Type 3 to mean all of them" in asked
    assert (job.state, said(response)[0][0]) == (state, "info" if state == "running" else "warning")


def test_a_second_press_is_refused_with_the_reason(admin_client: Client) -> None:
    dead()
    job = planned()
    admin_client.post(verb(job, "start"))

    response = admin_client.post(verb(job, "start"), follow=True)

    assert f"Left {job.operation_id} as it is. It is running." in text_of(response) + response.content.decode()


def test_a_link_starts_nothing_and_neither_does_a_forged_form(operator: Callable[..., Client]) -> None:
    dead()
    job = planned()
    client = operator("change_deadletter")
    forged = Client(enforce_csrf_checks=True)
    forged.cookies = client.cookies

    assert [client.get(verb(job, name)).status_code for name in ("start", "cancel")] == [405, 405]
    assert [forged.post(address, typed()).status_code for address in (verb(job, "start"), PLAN)] == [403, 403]
    job.refresh_from_db()
    assert (job.state, Operation.objects.count()) == ("planned", 1)


# --- progress ---------------------------------------------------------------------------------------------------


def test_progress_says_how_many_and_what_became_of_the_first(admin_client: Client) -> None:
    letters = dead(8)
    job = planned()
    dead_letters.archive(letters[6:], ANA, now=NOW)
    redrives.start(job.operation_id, ANA, now=timezone.now())
    tend()
    Task.objects.filter(task_id=f"{letters[0].task.task_id}-retry-1").update(
        status=TaskStatus.COMPLETED, finished_at=NOW
    )

    response = admin_client.get(page_of(job))

    text, page = text_of(response), response.content.decode()
    assert "completed Done 6 Refused 2 Remaining 0 Of 8" in text
    assert "The new tasks completed 1 queued 5 The first 5" in text
    assert 'aria-label="6 done and 2 refused of 8"' in page
    assert '<rect class="k1-progress-done" x="0" y="0" width="750" height="12">' in page
    assert f"{letters[0].task.task_id} {letters[0].task.task_id}-retry-1 completed" in text
    assert f"{letters[6].dlq_id} is archived. Unarchive it first" in text.partition("Refused 2 in all")[2]
    assert buttons(response) == []


def test_refused_entries_are_paged(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redrive_admin, "REFUSED_AT_ONCE", 2)
    dead(5, handler="python:none")
    job = begun()

    seen: list[int] = []
    address = page_of(job)
    for _ in range(3):
        response = admin_client.get(address)
        seen += [each.item.position for each in response.context["refused"]]
        address = f"{page_of(job)}?after={response.context['more_refused']}"

    assert (seen, response.context["more_refused"]) == ([1, 2, 3, 4, 5], None)
    assert admin_client.get(f"{page_of(job)}?after=nonsense").status_code == 200


def test_a_running_one_keeps_itself_up_to_date_with_a_script_and_without(admin_client: Client) -> None:
    dead(3)
    job = begun(pace=jobs.Pace(first=2))
    tend()

    running = admin_client.get(page_of(job))

    page = running.content.decode()
    assert "running Waiting for 2 of the first 2" in text_of(running)
    assert 'data-refresh="3000"' in page
    assert '<noscript><meta http-equiv="refresh" content="5"></noscript>' in page
    assert '<script type="module" src="/static/k1/refresh.js"></script>' in page
    assert re.findall(r"<script(?![^>]*\ssrc=)[^>]*>|<style|\sstyle=|\son[a-z]+=|javascript:", page) == []
    assert buttons(running) == ["stop", "cancel"]
    live = re.findall(r'<\w+ id="(\w+)"[^>]* data-live|<\w+ class="k1-second" id="(\w+)" data-live', page)
    assert {first or second for first, second in live} == {
        "verbs",
        "state",
        "numbers",
        "times",
        "outcomes",
        "first",
        "refused",
    }


def test_one_whose_tasks_have_all_ended_stands_still(admin_client: Client) -> None:
    dead(2)
    job = begun()
    assert "data-refresh" in admin_client.get(page_of(job)).content.decode()
    Task.objects.update(status=TaskStatus.COMPLETED, finished_at=NOW)

    page = admin_client.get(page_of(job)).content.decode()

    assert ("data-refresh" in page, "refresh.js" in page, "http-equiv" in page) == (False, False, False)


def test_a_stopped_one_says_why_and_goes_on_at_a_press(admin_client: Client) -> None:
    dead(3)
    job = begun(pace=jobs.Pace(first=1))
    Task.objects.filter(task_id__endswith="-retry-1").update(status=TaskStatus.FAILED, finished_at=NOW)
    tend()

    stopped = admin_client.get(page_of(job))
    admin_client.post(verb(job, "start"))
    tend()

    job.refresh_from_db()
    assert "stopped 1 of the first 1 did not succeed" in text_of(stopped)
    assert buttons(stopped) == ["start", "cancel"]
    assert (job.state, job.done) == ("completed", 3)


def test_a_running_one_is_stopped_for_good(admin_client: Client) -> None:
    dead(3)
    job = begun(pace=jobs.Pace(first=1))

    response = admin_client.post(verb(job, "cancel"), follow=True)

    job.refresh_from_db()
    assert (job.state, job.done) == ("cancelled", 1)
    assert "What is done stays done" in response.content.decode()
    assert buttons(response) == []


def test_progress_costs_as_many_queries_however_many_there_are(admin_client: Client) -> None:
    def queries(job: Operation) -> int:
        with CaptureQueriesContext(connection) as captured:
            admin_client.get(page_of(job))
        return len(captured)

    dead(1)
    dead(1, handler="python:none")
    few = queries(begun())
    dead(30)
    dead(30, handler="python:none")

    assert queries(begun()) == few
    assert few <= 13  # session, user, hold, job, states, and three or four each of the first and of the refused


@pytest.mark.parametrize("name", ["", "start", "cancel"])
def test_a_redrive_that_is_gone_is_not_found(admin_client: Client, name: str) -> None:
    address = f"{reverse('admin:recovery_redrive', args=('redrive-none',))}{name}{'/' if name else ''}"

    assert (admin_client.post(address) if name else admin_client.get(address)).status_code == 404


def test_an_unknown_verb_is_not_found(admin_client: Client) -> None:
    dead()

    assert admin_client.post(verb(planned(), "delete")).status_code == 404


def test_the_list_of_jobs_leads_to_the_pages_of_redrives(admin_client: Client) -> None:
    dead()
    job = planned()

    page = admin_client.get(reverse("admin:operations_operation_changelist")).content.decode()

    assert f'<a href="{page_of(job)}">{job.operation_id}</a>' in page
