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
from recovery.models import DeadLetter, Intervention
from recovery.records import By
from recovery.retries import Changes
from scheduling.models import Task, TaskStatus
from tests.factories import NOW, make_attempt, make_dead_letter, make_policy, make_schedule, make_task

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
    assert (
        "disk &lt;n&gt; full exit code 3 · python:sleep · newest entry Resubmit 2… Show entries 2 1 5 h ago"
        in text_of(response)
    )
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


# --- the page of one --------------------------------------------------------------------------------------------


def verb(row: DeadLetter, name: str) -> str:
    return reverse(f"admin:recovery_deadletter_{name}", args=(row.pk,))


def buttons(response: Any) -> list[str]:
    text = response.content.decode()
    return re.findall(r'(?:formaction|class="k1-button[^"]*" href)="/admin/recovery/deadletter/\d+/(\w+)/"', text)


def typed(**fields: Any) -> dict[str, Any]:
    """Return what the form of an entry of python:sleep sends when nothing was changed in it."""
    return {"parameters": '{"seconds": 1}', "timeout": "1 h", "retry_policy": "", "reason": ""} | fields


def test_the_page_tells_what_failed_and_what_was_tried(admin_client: Client) -> None:
    schedule = make_schedule(task_id="nightly")
    letter = dead(
        task_id="job",
        schedule=schedule,
        parameters={"seconds": 1, "zone": "eu"},
        circuit_breaker="api",
        attempt=2,
        error_message="disk full\nTraceback: line 2",
        error_code=28,
    )
    make_attempt(letter.task, outcome="failed", error="first", exit_code=28, duration_ms=4200, output_bytes=1500)
    make_attempt(letter.task, fence=2, number=2, outcome="timeout", error="second", exit_code=124)

    with CaptureQueriesContext(connection) as captured:
        response = admin_client.get(page_of(letter))

    text, page = text_of(response), response.content.decode()
    for fact in (
        "job pending disk full Traceback: line 2",
        "Exit code 28",
        "Schedule nightly",
        "Breaker api",
        "Attempts spent 2, policy standard",
        "Timeout 1 h",
        "2 timeout",
        "4.2 s 28 first 1.5 kB",
        "&quot;zone&quot;: &quot;eu&quot;",
        f"Id {letter.dlq_id}",
    ):
        assert fact in text
    assert f'href="{page_of(letter.task)}?run=2#output"' in page
    assert "Resubmissions" not in text
    assert len(captured) <= 8  # session, user, hold, entry, breaker, attempts, interventions, tasks of the chain


def test_a_chain_is_told_from_the_first_failure_to_the_last_task(admin_client: Client) -> None:
    first = dead(task_id="job")
    second = make_dead_letter(resubmitted(first), previous_dlq_id=first.dlq_id)
    Task.objects.filter(pk=second.task_id).update(status=TaskStatus.FAILED, finished_at=NOW)
    last = resubmitted(second)

    for letter in (first, second):
        page = admin_client.get(page_of(letter))
        chain = page.content.decode().partition('id="chain"')[2].partition("</section>")[0]
        links = re.findall(r"<(?:b|a href=\"([^\"]+)\")>(job[\w-]*)</", chain)

        assert [name for _, name in links] == ["job", "job-retry-1", "job-retry-2"]
        assert links[2][0] == page_of(last)
        assert [address for address, _ in links if not address] == [""]
        assert page_of(second if letter == first else first) in [address for address, _ in links]


def test_what_was_changed_is_told_with_who_and_why(admin_client: Client) -> None:
    letter = dead(parameters={"seconds": 1})
    dead_letters.resubmit(letter, Changes({"seconds": 2, "timeout_ms": 5000}, "aggressive"), ANA, now=NOW)

    text = text_of(admin_client.get(page_of(letter)))

    assert "seconds 1 → 2 timeout_ms not there → 5000 Retry policy: standard → aggressive" in text
    assert "by ana: disk mended" in text
    assert "Resubmit made" in text.partition("Interventions")[2]


@pytest.mark.parametrize(
    ("status", "shown"),
    [(Status.PENDING, ["resubmit", "archive"]), (Status.ARCHIVED, ["unarchive"]), (Status.RESUBMITTED, [])],
)
def test_the_page_has_the_buttons_that_its_state_allows(admin_client: Client, status: Status, shown: list[str]) -> None:
    assert buttons(admin_client.get(page_of(make_dead_letter(status=status)))) == shown


def test_who_may_only_look_has_no_buttons_and_changes_nothing(operator: Callable[..., Client]) -> None:
    letter = dead()
    client = operator("view_deadletter", "change_task")

    page = client.get(page_of(letter))

    assert (page.status_code, buttons(page), "<form" in page.content.decode().partition("<main")[2]) == (200, [], False)
    for name in ("resubmit", "archive", "unarchive"):
        assert client.post(verb(letter, name), typed()).status_code == 403
    assert client.get(verb(letter, "resubmit")).status_code == 403
    assert not Intervention.objects.exists()


def test_a_link_does_nothing_and_neither_does_a_forged_form(operator: Callable[..., Client]) -> None:
    letter = dead()
    client = operator("change_deadletter")
    forged = Client(enforce_csrf_checks=True)
    forged.cookies = client.cookies

    assert client.get(verb(letter, "resubmit")).status_code == 200
    for name in ("archive", "unarchive"):
        assert client.get(verb(letter, name)).status_code == 405
    for name in ("resubmit", "archive", "unarchive"):
        assert forged.post(verb(letter, name), typed()).status_code == 403
    assert not Intervention.objects.exists()


def test_an_entry_is_archived_and_put_back(operator: Callable[..., Client]) -> None:
    letter = dead()
    client = operator("change_deadletter")

    archived = client.post(verb(letter, "archive"), {"reason": " known\0 "})

    letter.refresh_from_db()
    assert (archived["Location"], said(archived)) == (
        page_of(letter),
        [("info", "Archived it: nothing is to be done.")],
    )
    assert (letter.status, letter.resolved_by, letter.reason) == ("archived", "ana", "known")
    back = client.post(verb(letter, "unarchive"))
    letter.refresh_from_db()
    assert (letter.status, said(back)[-1]) == ("pending", ("info", "Unarchived it: pending again."))


def test_what_is_refused_says_why(admin_client: Client) -> None:
    letter = dead()
    resubmitted(letter)

    response = admin_client.post(verb(letter, "archive"), follow=True)

    assert f'class="warning">Left {letter.dlq_id} as it is. Only what is pending' in response.content.decode()


# --- resubmitting one -------------------------------------------------------------------------------------------


def test_the_form_begins_with_what_the_task_had(admin_client: Client) -> None:
    letter = dead(parameters={"seconds": 1}, timeout_ms=90_000, retry_policy_id="aggressive")
    make_policy(name="old", retired=True)

    form = admin_client.get(verb(letter, "resubmit")).context["form"]

    assert {field.name: field.value() for field in form} == {
        "parameters": '{\n  "seconds": 1\n}',
        "timeout": "1 min 30 s",
        "retry_policy": None,
        "reason": None,
    }
    assert form.fields["retry_policy"].choices[0] == ("", "as it was: aggressive")
    assert "old" not in dict(form.fields["retry_policy"].choices)


@pytest.mark.parametrize(
    ("fields", "changed", "timeout_ms", "policy"),
    [
        pytest.param({}, {}, 3_600_000, "standard", id="nothing"),
        pytest.param(
            {"parameters": '{"seconds": 2}'},
            {"parameters": {"seconds": 2}},
            3_600_000,
            "standard",
            id="a parameter",
        ),
        pytest.param(
            {"timeout": "2 h", "retry_policy": "aggressive"},
            {"parameters": {"timeout_ms": 7_200_000}, "retry_policy": "aggressive"},
            7_200_000,
            "aggressive",
            id="timeout and policy",
        ),
        pytest.param(
            {"parameters": '{"seconds": 1, "timeout_ms": 5000}'},
            {"parameters": {"timeout_ms": 5000}},
            5000,
            "standard",
            id="timeout among the parameters",
        ),
    ],
)
def test_resubmitting_keeps_what_was_not_changed(
    operator: Callable[..., Client], fields: dict[str, str], changed: dict[str, Any], timeout_ms: int, policy: str
) -> None:
    letter = dead(task_id="job", parameters={"seconds": 1})

    response = operator("change_deadletter").post(verb(letter, "resubmit"), typed(reason="mended", **fields))

    letter.refresh_from_db()
    made = Task.objects.get(task_id="job-retry-1")
    assert (response["Location"], said(response)) == (
        page_of(letter),
        [("info", "Queued job-retry-1: it does job again.")],
    )
    assert (letter.changes, letter.reason, letter.resolved_by) == (changed, "mended", "ana")
    assert (made.timeout_ms, made.retry_policy_id) == (timeout_ms, policy)


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        pytest.param({"parameters": "{"}, "parameters", "Is not JSON: line 1", id="no JSON"),
        pytest.param({"parameters": "[1]"}, "parameters", "Must be an object", id="no object"),
        pytest.param({"parameters": '{"seconds": "\\u0000"}'}, "parameters", "NUL", id="NUL"),
        pytest.param({"parameters": '{"a": 1, "a": 2}'}, "parameters", "", id="twice"),
        pytest.param({"parameters": "{}"}, "parameters", "seconds: cannot be taken away", id="taken away"),
        pytest.param({"parameters": '{"seconds": "long"}'}, "parameters", "seconds", id="refused by the handler"),
        pytest.param({"parameters": '{"seconds": 1, "x": 1}'}, "parameters", "x: ", id="unknown to the handler"),
        pytest.param(
            {"parameters": '{"seconds": 1, "timeout_ms": "soon"}'}, "parameters", "timeout_ms", id="timeout as text"
        ),
        pytest.param({"timeout": "soon"}, "timeout", "Is not a length of time", id="timeout"),
        pytest.param({"timeout": "60 d"}, "timeout", "Must be from", id="too long"),
        pytest.param({"retry_policy": "never"}, "retry_policy", "", id="policy"),
        pytest.param({"reason": "x" * 501}, "reason", "", id="reason"),
    ],
)
def test_what_cannot_be_is_refused_at_its_field_and_nothing_typed_is_lost(
    admin_client: Client, fields: dict[str, str], field: str, words: str
) -> None:
    letter = dead(parameters={"seconds": 1})
    given = typed(**{"reason": "mended", **fields})

    response = admin_client.post(verb(letter, "resubmit"), given)

    form = response.context["form"]
    letter.refresh_from_db()
    assert list(form.errors) == [field]
    assert words in " ".join(form.errors[field])
    assert f'id="id_{field}_error"' in response.content.decode()
    assert {each.name: each.value() for each in form} == given
    assert letter.status == Status.PENDING


def test_an_entry_that_is_resubmitted_meanwhile_is_not_done_twice(admin_client: Client) -> None:
    letter = dead(parameters={"seconds": 1})
    resubmitted(letter)

    response = admin_client.post(verb(letter, "resubmit"), typed(parameters='{"seconds": 3}', reason="mended"))

    page = response.content.decode()
    assert "has been resubmitted already" in page
    assert ("&quot;seconds&quot;: 3" in page, 'value="mended"' in page) == (True, True)
    assert Task.objects.count() == 2


@pytest.mark.parametrize("name", ["change", "resubmit", "archive", "unarchive"])
def test_an_entry_that_is_gone_is_not_found(admin_client: Client, name: str) -> None:
    letter = dead()
    letter.delete()
    address = reverse(f"admin:recovery_deadletter_{name}", args=(99,))

    assert (admin_client.get(address) if name == "change" else admin_client.post(address)).status_code == 404


# --- several at once --------------------------------------------------------------------------------------------


def several(name: str, letters: list[DeadLetter]) -> str:
    ids = ",".join(str(letter.pk) for letter in letters)
    return reverse("admin:recovery_deadletter_several", args=(name,), query={"ids": ids})


def selected(name: str, letters: list[DeadLetter]) -> dict[str, Any]:
    return {"action": f"{name}_selected", "_selected_action": [letter.pk for letter in letters]}


def states(letters: list[DeadLetter]) -> list[str]:
    return [DeadLetter.objects.get(pk=letter.pk).status for letter in letters]


@pytest.mark.parametrize("name", ["resubmit", "archive", "unarchive"])
def test_selected_entries_are_named_and_asked_about(operator: Callable[..., Client], name: str) -> None:
    status = Status.ARCHIVED if name == "unarchive" else Status.PENDING
    letters = [make_dead_letter(status=status) for _ in range(22)]
    client = operator("change_deadletter")

    response = client.post(f"{LIST}?state=all", selected(name, letters))
    page = text_of(client.get(response["Location"]))

    assert response["Location"] == several(name, letters)
    assert f"{name.capitalize()} 22 entries" in page
    assert (letters[0].task.task_id in page, "and 2 more" in page) == (True, True)
    assert set(states(letters)) == {status}


def test_selected_entries_are_archived_with_one_reason_and_can_be_put_back(operator: Callable[..., Client]) -> None:
    letters = [dead(), dead()]
    client = operator("change_deadletter")

    response = client.post(several("archive", letters), {"reason": "known"})

    assert (response["Location"], states(letters)) == (LIST, ["archived"] * 2)
    assert said(response) == [("info", "Archived 2 entries: nothing is to be done. Undo…")]
    assert {row.reason for row in Intervention.objects.all()} == {"known"}
    client.post(several("unarchive", letters), {"reason": ""})
    assert states(letters) == ["pending"] * 2


def test_selected_entries_are_resubmitted_with_changes(admin_client: Client) -> None:
    letters = [dead(task_id="a", parameters={"seconds": 1}), dead(task_id="b", parameters={"seconds": 2})]

    response = admin_client.post(
        several("resubmit", letters), {"parameters": '{"seconds": 3}', "timeout": "2 h", "retry_policy": ""}
    )

    made = Task.objects.filter(task_id__endswith="-retry-1")
    assert said(response) == [("info", "Resubmitted 2 entries: a-retry-1, b-retry-1.")]
    assert {(task.parameters["seconds"], task.timeout_ms) for task in made} == {(3, 7_200_000)}


def test_one_that_cannot_be_leaves_all_as_they_are(admin_client: Client) -> None:
    done, letter = dead(), dead()
    resubmitted(done)

    for name in ("archive", "resubmit"):
        response = admin_client.post(several(name, [done, letter]), {"reason": "why <b>", "parameters": "{}"})

        page = response.content.decode()
        assert "Left all of them as they are. " in page
        assert 'class="warning">' in page
        assert 'value="why &lt;b&gt;"' in page
    assert states([done, letter]) == ["resubmitted", "pending"]
    assert Task.objects.count() == 3


def test_what_fits_no_task_is_refused_at_its_field(admin_client: Client) -> None:
    letters = [dead(), dead(handler="python:none")]

    at_field = admin_client.post(several("resubmit", letters), {"parameters": '{"timeout_ms": "x"}'})
    at_all = admin_client.post(several("resubmit", letters), {"parameters": "{}"})

    assert list(at_field.context["form"].errors) == ["parameters"]
    assert "none" in str(at_all.context["form"].errors)
    assert Task.objects.count() == 2


def test_several_need_the_permission_and_entries_that_are_there(operator: Callable[..., Client]) -> None:
    letters = [dead(), dead()]
    client = operator("view_deadletter")

    client.post(LIST, selected("archive", letters))

    assert "_selected_action" not in client.get(LIST).content.decode()
    assert client.get(several("archive", letters)).status_code == 403
    assert client.post(several("archive", letters)).status_code == 403
    assert states(letters) == ["pending"] * 2


@pytest.mark.parametrize("address", [several("archive", []), several("archive", []) + "x,-1", several("delete", [])])
def test_nothing_chosen_is_not_found(admin_client: Client, address: str) -> None:
    assert admin_client.get(address).status_code == 404


@pytest.mark.parametrize("text", ["'; --", "%", "x" * 5000])
@pytest.mark.parametrize("name", ["task", "handler", "breaker", "fingerprint"])
def test_nonsense_in_a_filter_is_no_error(admin_client: Client, name: str, text: str) -> None:
    dead()

    assert admin_client.get(LIST, {name: text}).status_code == 200
    assert admin_client.get(reverse("admin:recovery_redrive_plan"), {name: text}).status_code == 200
