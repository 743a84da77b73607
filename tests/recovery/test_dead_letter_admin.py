"""Dead letters on the console: entries and groups, the page of one, and what may be done to one and to many."""

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

from recovery import dead_letters
from recovery.models import DeadLetter
from recovery.records import By
from recovery.retries import Changes
from scheduling.models import Task, TaskStatus
from tests.factories import NOW, make_dead_letter, make_schedule, make_task

pytestmark = pytest.mark.django_db

LIST = reverse("admin:recovery_deadletter_changelist")
GROUPS = reverse("admin:recovery_deadletter_groups")
ANA = By("ana", "disk mended")
HOUR = timedelta(hours=1)
Status = DeadLetter.Status


def dead(**fields: Any) -> DeadLetter:
    """Return the pending entry of a task that has failed; what an entry and a task both have goes to both."""
    of_letter = {name: fields.pop(name) for name in ("error_message", "error_code", "failed_at") if name in fields}
    return make_dead_letter(make_task(**{"status": TaskStatus.FAILED} | fields), **of_letter)


def resubmitted(letter: DeadLetter) -> Task:
    return dead_letters.resubmit(letter, Changes(), ANA, now=NOW)


def text_of(response: Any) -> str:
    """Return the words of a page's main part, without its markup."""
    main = response.content.decode().partition("<main")[2]
    return " ".join(re.sub(r"<[^>]+>", " ", main).split())


def cells(response: Any, column: str) -> list[str]:
    found = re.findall(rf'<t[dh] class="field-{column}[^"]*">(.*?)</t[dh]>', response.content.decode(), re.DOTALL)
    return [" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in found]


def said(response: Any) -> list[tuple[str, str]]:
    return [
        (message.level_tag, re.sub(r"<[^>]+>", "", str(message))) for message in get_messages(response.wsgi_request)
    ]


def page_of(row: Any) -> str:
    return reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_change", args=(row.pk,))


# --- the list ---------------------------------------------------------------------------------------------------


def test_the_list_says_what_failed_when_and_what_became_of_it(admin_client: Client) -> None:
    schedule = make_schedule(task_id="nightly")
    dead(task_id="old", failed_at=timezone.now() - 30 * HOUR)
    dead(
        task_id="nightly-1",
        schedule=schedule,
        handler="bash ops/agents/fail.sh",
        error_message="disk 7 full\nTraceback",
        error_code=28,
        failed_at=timezone.now() - 5 * HOUR,
    )
    done = dead(task_id="mended")
    new = resubmitted(done)

    page = admin_client.get(LIST)
    every = admin_client.get(LIST, {"state": "all"})

    assert cells(page, "what") == ["nightly-1", "old"]
    assert cells(page, "error")[0] == "disk 7 full exit code 28"
    assert cells(page, "runs") == ["bash ops/agents/fail.sh nightly", "python:sleep"]
    assert re.fullmatch(r"5 h ago \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", cells(page, "failed")[0])
    assert cells(page, "state") == ["pending", "pending"]
    assert (cells(every, "state")[0], cells(every, "done_again")[0]) == ("resubmitted", "mended-retry-1 queued")
    assert page_of(new) in every.content.decode()
    assert 'k1-badge k1-dead"><svg' in page.content.decode()


def test_an_empty_list_says_what_a_dead_letter_is(admin_client: Client) -> None:
    for address in (LIST, GROUPS):
        page = text_of(admin_client.get(address))

        assert "No dead letter is pending. A task that has failed and is not tried again leaves one here" in page
    assert "No dead letter" not in text_of(admin_client.get(LIST, {"task": "none"}))


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        pytest.param({}, ["c", "b", "a"], id="pending"),
        pytest.param({"state": "nonsense"}, ["c", "b", "a"], id="nonsense"),
        pytest.param({"state": "archived"}, ["d"], id="archived"),
        pytest.param({"state": "all"}, ["d", "c", "b", "a"], id="all"),
        pytest.param({"task": "a"}, ["a"], id="task"),
        pytest.param({"task": "nightly"}, ["b", "a"], id="all runs of a schedule"),
        pytest.param({"task": "none"}, [], id="no such task"),
        pytest.param({"handler": "python:other"}, ["c"], id="handler"),
        pytest.param({"breaker": "api"}, ["b"], id="breaker"),
        pytest.param({"breaker": "api", "state": "all"}, ["d", "b"], id="breaker in any state"),
        pytest.param({"breaker": "api", "handler": "python:other", "state": "all"}, [], id="breaker and handler"),
        pytest.param({"breaker": "api", "handler": "python:sleep"}, ["b"], id="two that fit"),
    ],
)
def test_the_list_is_filtered(admin_client: Client, asked: dict[str, str], names: list[str]) -> None:
    schedule = make_schedule(task_id="nightly")
    dead(task_id="a", schedule=schedule)
    dead(task_id="b", schedule=schedule, circuit_breaker="api")
    dead(task_id="c", handler="python:other")
    dead_letters.archive([dead(task_id="d", circuit_breaker="api")], ANA, now=NOW)

    assert cells(admin_client.get(LIST, asked), "what") == names


def test_entries_of_one_error_are_found_by_its_fingerprint(admin_client: Client) -> None:
    letter = dead(task_id="a", error_message="disk 1 full")
    dead(task_id="b", error_message="disk 2 full")
    dead(task_id="c", error_message="no route")

    assert cells(admin_client.get(LIST, {"fingerprint": letter.fingerprint}), "what") == ["b", "a"]


@pytest.mark.parametrize("asked", [{}, {"handler": "python:sleep"}, {"state": "all", "handler": "python:sleep"}])
def test_the_list_is_paged_by_key(admin_client: Client, asked: dict[str, str]) -> None:
    letters = [dead(task_id=f"t{number:02}") for number in range(60)]
    if asked.get("state"):
        dead_letters.archive(letters[:20], ANA, now=NOW)

    first = admin_client.get(LIST, asked)
    second = admin_client.get(LIST + first.context["cl"].older)

    shown = cells(first, "what") + cells(second, "what")
    assert sorted(shown) == [f"t{number:02}" for number in range(60)]
    assert (len(cells(first, "what")), second.context["cl"].older) == (50, None)


def test_the_list_costs_as_many_queries_whatever_it_holds(admin_client: Client) -> None:
    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            admin_client.get(LIST, {"state": "all"})
        return len(captured)

    dead(schedule=make_schedule())
    few = queries()
    for number in range(60):
        letter = dead(schedule=make_schedule())
        if number % 2:
            resubmitted(letter)

    assert queries() == few
    assert few <= 6  # session, user, hold, rows, tasks, schedules


# --- by error ---------------------------------------------------------------------------------------------------


def test_groups_tell_how_many_since_when_and_where_to_look(admin_client: Client) -> None:
    now = timezone.now()
    schedule = make_schedule(task_id="nightly")
    letter = dead(error_message="disk 1 full", failed_at=now - 5 * HOUR, schedule=schedule)
    newest = dead(error_message="disk 2 full", failed_at=now)
    dead(error_message="no route", error_code=7)
    dead_letters.archive([dead(error_message="disk 3 full")], ANA, now=NOW)

    response = admin_client.get(GROUPS)

    page = response.content.decode()
    assert "disk &lt;n&gt; full exit code 3 · python:sleep · newest entry 2 1 5 h ago" in text_of(response)
    assert f'href="{LIST}?fingerprint={letter.fingerprint}"' in page
    assert f'href="{LIST}?task=nightly"' in page
    example = admin_client.get(reverse("admin:recovery_deadletter_named", args=(newest.dlq_id,)))
    assert example["Location"] == page_of(newest)
    assert [group["count"] for group in response.context["groups"]] == [2, 1]


def test_groups_cost_as_many_queries_however_many_there_are(admin_client: Client) -> None:
    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            admin_client.get(GROUPS)
        return len(captured)

    dead(schedule=make_schedule())
    few = queries()
    for number in range(30):
        dead(error_code=number, schedule=make_schedule())

    assert queries() == few
    assert few <= 7  # session, user, hold, groups, their examples, two of schedules


def test_what_is_gone_is_not_found(admin_client: Client) -> None:
    assert admin_client.get(reverse("admin:recovery_deadletter_named", args=("dlq-x-1",))).status_code == 404


def test_the_views_are_closed_without_permission(operator: Callable[..., Client]) -> None:
    letter = dead()
    client = operator("view_task")

    for address in (LIST, GROUPS, reverse("admin:recovery_deadletter_named", args=(letter.dlq_id,))):
        assert client.get(address).status_code == 403
