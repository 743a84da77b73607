"""Retry policies: what two people do at the same moment, and the console, which records what the API records."""

from typing import Any

import pytest
from django.contrib.messages import get_messages
from django.test import Client
from django.urls import reverse

from k1node.events import log
from k1node.lib.errors import InvalidRequest
from recovery import policies
from recovery.models import Intervention
from recovery.policies import PolicyNameTaken, PolicyRefuses
from recovery.records import By
from scheduling import schedules
from scheduling.models import RetryPolicy, Schedule
from tests.databases import Rival, only_postgresql
from tests.factories import NOW, make_policy, make_schedule

pytestmark = pytest.mark.django_db
ANA = By("ana", "too eager")
LIST = reverse("admin:scheduling_retrypolicy_changelist")
RULE = {"task_id": "backup", "handler": "python:noop", "schedule_type": "cron", "schedule_expr": "* * * * *"}


def said(response: Any) -> list[str]:
    return [str(message) for message in get_messages(response.wsgi_request)]


def form(**fields: str) -> dict[str, str]:
    return {
        "max_attempts": "4",
        "first_wait_ms": "30 s",
        "multiplier": "2",
        "cap_ms": "15 min",
        "jitter": "full",
        "deadline_ms": "",
    } | fields


def test_figures_that_only_contradict_what_is_stored_are_refused() -> None:
    make_policy(name="gentle", first_wait_ms=5000, cap_ms=6000)

    with pytest.raises(InvalidRequest) as caught:
        policies.configure("gentle", {"cap_ms": 4999}, ANA, now=NOW)

    assert caught.value.details[0].suggestion == "Use 5000 or more"


def test_a_change_of_a_retired_one_is_for_its_tasks() -> None:
    make_policy(name="gentle", retired=True)

    row = policies.configure("gentle", {"max_attempts": 2}, ANA, now=NOW)

    assert (row.max_attempts, row.retired) == (2, True)


def test_only_a_retired_one_is_restored() -> None:
    with pytest.raises(PolicyRefuses, match="not retired"):
        policies.restore("standard", ANA, now=NOW)


def test_a_schedule_is_not_moved_to_a_retired_one() -> None:
    make_policy(name="gentle", retired=True)
    schedule = make_schedule()

    with pytest.raises(InvalidRequest) as caught:
        schedules.update(schedule, {"retry_policy": "gentle"}, "ana", now=NOW)

    assert caught.value.details[0].message == "The retry policy 'gentle' is retired"


def test_of_two_with_one_name_one_is_made() -> None:
    policies.create("gentle", {}, ANA, now=NOW)

    with pytest.raises(PolicyNameTaken, match="gentle"):
        policies.create("gentle", {"max_attempts": 2}, ANA, now=NOW)

    assert Intervention.objects.count() == 1
    assert RetryPolicy.objects.get(pk="gentle").max_attempts == 5


@only_postgresql
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("verb", ["create", "update"])
def test_a_schedule_and_a_retirement_do_not_pass_each_other(
    rival: Rival, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    make_policy(name="gentle")
    existing = make_schedule()
    publish, others = log.publish, []

    def overtaken(*args: Any, **kwargs: Any) -> None:
        others.append(rival.start(policies.retire, "gentle", ANA, now=NOW))
        publish(*args, **kwargs)

    monkeypatch.setattr(log, "publish", overtaken)

    if verb == "create":
        schedules.create({**RULE, "retry_policy": "gentle"}, "ana", now=NOW)
    else:
        schedules.update(existing, {"retry_policy": "gentle"}, "ana", now=NOW)

    with pytest.raises(PolicyRefuses, match="names it"):
        others[0].result(10)
    assert not RetryPolicy.objects.get(pk="gentle").retired


# --- the console ------------------------------------------------------------------------------------------------


def test_the_console_records_a_new_one(admin_client: Client) -> None:
    admin_client.post(reverse("admin:scheduling_retrypolicy_add"), form(name="gentle"))

    row = Intervention.objects.get()
    assert (row.action, row.policy, row.performed_by, row.before) == ("configure", "gentle", "admin", {})
    assert (row.after["max_attempts"], row.after["deadline_ms"]) == (4, None)
    assert RetryPolicy.objects.get(pk="gentle").cap_ms == 900_000


def test_the_console_records_a_change(admin_client: Client) -> None:
    response = admin_client.post(reverse("admin:scheduling_retrypolicy_change", args=("standard",)), form())

    assert response.status_code == 302
    row = Intervention.objects.get()
    assert {name for name in row.after if row.before[name] != row.after[name]} == {"max_attempts"}
    page = admin_client.get(reverse("admin:recovery_intervention_changelist")).content.decode()
    assert "retry policy standard" in page
    assert "max_attempts: 5 → 4" in page


def test_the_console_retires_and_restores(admin_client: Client) -> None:
    make_policy(name="gentle")
    chosen = {"_selected_action": ["gentle", "standard"]}

    retired = admin_client.post(LIST, chosen | {"action": "retire"})
    assert '<option value="gentle">' not in admin_client.get(reverse("admin:scheduling_schedule_add")).content.decode()
    assert "retired" in admin_client.get(LIST).content.decode()
    restored = admin_client.post(LIST, chosen | {"action": "restore"})

    assert said(retired) == [
        "Retired gentle.",
        "Left standard as it is. It is built in and cannot be retired; its figures can be changed.",
    ]
    assert said(restored)[-2:] == ["Restored gentle.", "Left standard as it is. It is not retired."]
    assert not Schedule.objects.exists()
