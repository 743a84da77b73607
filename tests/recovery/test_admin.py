"""The buttons on a task's page: shown where they can do something, open to those who may, and true to what they say."""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.messages import get_messages
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from recovery import interventions
from recovery.models import Breaker, Intervention
from recovery.records import By
from scheduling.models import GateKind, Task, TaskStatus
from tests.factories import NOW, make_dead_letter, make_gate, make_task

pytestmark = pytest.mark.django_db

RECORD = reverse("admin:recovery_intervention_changelist")


def page_of(task: Task) -> str:
    return reverse("admin:scheduling_task_change", args=(task.pk,))


def button(task: Task, verb: str) -> str:
    return reverse("admin:scheduling_task_do", args=(task.pk, verb))


def buttons(response: Any) -> list[str]:
    return re.findall(r'formaction="/admin/scheduling/task/\d+/do/(\w+)/"', response.content.decode())


def said(response: Any) -> list[str]:
    return [str(message) for message in get_messages(response.wsgi_request)]


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        (TaskStatus.QUEUED, ["pause", "skip", "cancel", "priority"]),
        (TaskStatus.PAUSED, ["resume", "skip", "cancel", "priority"]),
        (TaskStatus.EXECUTING, ["pause", "skip", "cancel"]),
        (TaskStatus.BLOCKED, ["skip", "cancel", "priority"]),
        (TaskStatus.FAILED, ["retry"]),
    ],
)
def test_a_page_has_the_buttons_that_its_state_allows(
    admin_client: Client, status: TaskStatus, shown: list[str]
) -> None:
    assert buttons(admin_client.get(page_of(make_task(status=status)))) == shown


def test_a_failed_task_leads_to_its_dead_letter(admin_client: Client, operator: Callable[..., Client]) -> None:
    letter = make_dead_letter(make_task(status=TaskStatus.FAILED))
    address = reverse("admin:recovery_deadletter_change", args=(letter.pk,))

    page = admin_client.get(page_of(letter.task)).content.decode()
    of_others = operator("view_task").get(page_of(letter.task)).content.decode()

    assert re.search(rf'<dt>Dead letter</dt><dd><a href="{address}">.*pending', page)
    assert ("Dead letter" in of_others, address in of_others) == (True, False)
    assert "<dt>Dead letter" not in admin_client.get(page_of(make_task(status=TaskStatus.FAILED))).content.decode()


@pytest.mark.parametrize(
    ("verb", "before", "after", "text"),
    [
        ("pause", TaskStatus.QUEUED, TaskStatus.PAUSED, "Paused job."),
        ("resume", TaskStatus.PAUSED, TaskStatus.SCHEDULED, "Resumed job."),
        ("skip", TaskStatus.QUEUED, TaskStatus.SKIPPED, "Skipped job."),
        ("cancel", TaskStatus.QUEUED, TaskStatus.CANCELLED, "Cancelled job."),
        (
            "cancel",
            TaskStatus.EXECUTING,
            TaskStatus.EXECUTING,
            "Ending job: its worker sees to it within seconds.",
        ),
    ],
)
def test_a_button_does_what_it_says(
    operator: Callable[..., Client], verb: str, before: TaskStatus, after: TaskStatus, text: str
) -> None:
    task = make_task(task_id="job", status=before, due_at=timezone.now() + timedelta(hours=1))

    response = operator("view_task", "change_task").post(button(task, verb), {"reason": " why not "})

    row = Intervention.objects.get()
    assert (response.status_code, response["Location"]) == (302, page_of(task))
    assert said(response) == [text]
    assert Task.objects.get().status == after
    assert (row.action, row.performed_by, row.reason) == (verb, "ana", "why not")


@pytest.mark.parametrize(("length", "minutes"), [("15 min", 15), ("1 h", 60), ("4 h", 240)])
def test_a_pause_may_end_by_itself(admin_client: Client, length: str, minutes: int) -> None:
    task = make_task(task_id="job")
    assert f'<option value="{length}">' in admin_client.get(page_of(task)).content.decode()

    response = admin_client.post(button(task, "pause"), {"length": length})

    task.refresh_from_db()
    assert task.paused_at is not None and task.paused_until is not None
    assert task.paused_until - task.paused_at == timedelta(minutes=minutes)
    end = f"{task.paused_until:%Y-%m-%d %H:%M:%S} UTC"
    assert said(response) == [f"Paused job until {end}."]
    page = admin_client.get(page_of(task)).content.decode()
    assert "<dt>Paused until</dt>" in page
    assert f"until: – → {end}" in page


def test_a_pause_of_another_length_is_refused(admin_client: Client) -> None:
    response = admin_client.post(button(make_task(task_id="job"), "pause"), {"length": "9 h"})

    assert said(response) == ["Left job as it is. Choose how long it is paused."]
    assert not Intervention.objects.exists()


def test_a_retry_leads_to_the_new_task(admin_client: Client) -> None:
    task = make_task(task_id="job", status=TaskStatus.FAILED)

    response = admin_client.post(button(task, "retry"))

    made = Task.objects.get(task_id="job-retry-1")
    assert response["Location"] == page_of(made)
    assert said(response) == ["Queued job-retry-1, a retry of job."]


def test_priority_is_chosen(admin_client: Client) -> None:
    task = make_task(task_id="job")

    response = admin_client.post(button(task, "priority"), {"priority": "9"})

    assert said(response) == ["Priority of job is 9 now."]
    assert Task.objects.get().priority == 9


def test_a_reason_is_taken_as_text(admin_client: Client) -> None:
    admin_client.post(button(make_task(), "pause"), {"reason": "a\0b <b>" + "x" * 600})

    assert Intervention.objects.get().reason == "ab <b>" + "x" * 494


@pytest.mark.parametrize("chosen", ["", "0", "11", "-1", "high", "9" * 5000])
def test_no_priority_is_none(admin_client: Client, chosen: str) -> None:
    task = make_task(task_id="job")

    response = admin_client.post(button(task, "priority"), {"priority": chosen})

    assert said(response) == ["Left job as it is. Choose a priority from 1 to 10."]
    assert not Intervention.objects.exists()


def test_a_button_that_comes_too_late_says_why(admin_client: Client) -> None:
    task = make_task(task_id="job", status=TaskStatus.COMPLETED)

    response = admin_client.post(button(task, "cancel"))

    assert response["Location"] == page_of(task)
    assert said(response) == ["Left job as it is. It has ended: completed."]


def test_who_may_only_look_has_no_buttons(operator: Callable[..., Client]) -> None:
    task = make_task()
    client = operator("view_task")

    page, pressed = client.get(page_of(task)), client.post(button(task, "pause"))

    assert (page.status_code, buttons(page), pressed.status_code) == (200, [], 403)
    assert not Intervention.objects.exists()


def test_the_same_person_may_not_do_it_through_the_api_either(operator: Callable[..., Client]) -> None:
    task = make_task(task_id="job")
    client = operator("view_task")

    assert client.get("/api/v2/tasks/job").status_code == 200
    assert client.post("/api/v2/tasks/job/cancel", content_type="application/json").status_code == 403
    assert Task.objects.get(pk=task.pk).status == TaskStatus.QUEUED


def test_who_may_press_the_buttons_may_do_it_through_the_api(operator: Callable[..., Client]) -> None:
    make_task(task_id="job")

    pressed = operator("view_task", "change_task").post("/api/v2/tasks/job/cancel", content_type="application/json")

    assert pressed.status_code == 202


def test_the_page_leads_to_the_breaker_that_the_task_names(admin_client: Client) -> None:
    task = make_task(circuit_breaker="api")
    fact = re.compile(r"<dt>Breaker</dt><dd>(.*?)</dd>")

    def shown(task: Task) -> list[str]:
        return fact.findall(admin_client.get(page_of(task)).content.decode())

    assert shown(task) == ["api"]
    row = Breaker.objects.create(
        breaker_id="api", state="OPEN", gate=make_gate(kind=GateKind.BREAKER, closed=True), changed_at=NOW
    )
    (linked,) = shown(task)
    assert f'<a href="{reverse("admin:recovery_breaker_change", args=(row.pk,))}">api</a>' in linked
    assert "switch-open" in linked
    assert shown(make_task()) == []


def test_a_link_does_nothing(admin_client: Client) -> None:
    task = make_task()

    assert admin_client.get(button(task, "cancel")).status_code == 405
    assert admin_client.post(button(task, "explode")).status_code == 404
    assert Task.objects.get().status == TaskStatus.QUEUED


def test_the_page_and_the_record_tell_what_was_done(admin_client: Client) -> None:
    task = make_task(task_id="job")
    interventions.pause(task, By("ana", "the disk is full"), now=NOW)

    for address in (page_of(task), RECORD, f"{RECORD}?task=job", f"{RECORD}?who=ana"):
        text = admin_client.get(address).content.decode()

        assert "status: queued → paused" in text
        assert "the disk is full" in text
    for address in (f"{RECORD}?task=other", f"{RECORD}?who=ben"):
        assert "the disk is full" not in admin_client.get(address).content.decode()
