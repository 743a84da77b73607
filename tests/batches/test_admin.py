"""Batches on the console: what goes on in a sentence, what has failed, the tasks, the verbs, and who may do what."""

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

from batches import failures, progress, steering, submission
from batches.admin import members
from batches.models import Batch
from k1node.audit.models import AuditRecord
from k1node.operations.models import Operation
from recovery import holds
from recovery.records import By
from scheduling.models import Gate, Task, TaskStatus
from tests.batches.running import ANA, FAILED, claim, clock, settle, submit, work
from tests.factories import NOW, make_batch, make_task
from tests.pages import said, text_of

pytestmark = pytest.mark.django_db

LIST = reverse("admin:batches_batch_changelist")
INDEX = reverse("admin:index")
NOW_VERBS = ("pause", "resume")
ASK_VERBS = ("cancel", "retry", "close")
HOUR = timedelta(hours=1)
Operator = Callable[..., Client]


def page_of(row: Batch) -> str:
    return reverse("admin:batches_batch_change", args=(row.pk,))


def verb(row: Batch, name: str) -> str:
    return reverse(f"admin:batches_batch_{name}", args=(row.pk,))


def sentence(client: Client, row: Batch) -> str:
    """Return what the page says is going on, with its tone."""
    context = client.get(page_of(row)).context
    return f"{context['tone']}: {context['said']}"


def offered(response: Any) -> set[str]:
    """Return the verbs that a page has buttons for."""
    return set(re.findall(r'"/admin/batches/batch/\d+/(\w+)/"', response.content.decode())) - {"change"}


def listed(response: Any) -> list[str]:
    """Return the ids of the tasks that a page of a batch lists."""
    return [task.task_id for task in response.context["page"].rows]


def fresh(row: Batch) -> Batch:
    return Batch.objects.select_related("gate").get(pk=row.pk)


def failed_tasks(row: Batch, *errors: str, code: int = 1) -> list[Task]:
    """Make failed members of a batch's gate, which is told of them."""
    tasks = [
        make_task(gate=row.gate, status=TaskStatus.FAILED, exit_code=code, last_error=error, handler="python:export")
        for error in errors
    ]
    Gate.objects.filter(pk=row.gate_id).update(failed=Task.objects.filter(gate=row.gate_id, status="failed").count())
    Batch.objects.filter(pk=row.pk).update(total=Task.objects.filter(gate=row.gate_id).count())
    return tasks


# --- the list ---------------------------------------------------------------------------------------------------


def test_the_list_says_how_far_each_is(admin_client: Client) -> None:
    make_batch(batch_id="half", completed=40, failed=2, waiting=58, started_at=NOW, created_by="ana", max_concurrent=4)
    make_batch(batch_id="done", completed=3, ended_at=NOW, ended_as="completed")

    response = admin_client.get(LIST)

    page = text_of(response)
    assert "half 100 tasks, 4 at a time in progress 42 of 100 ended, 2 failed ana" in page
    assert "done 3 tasks completed 3 of 3 ended" in page
    assert 'aria-label="Of 100 tasks: 40 completed, 2 failed, 58 waiting"' in response.content.decode()


def test_the_list_says_about_when_a_batch_ends_at_its_pace(admin_client: Client) -> None:
    now = timezone.now()
    make_batch(completed=50, waiting=50, started_at=now - HOUR, paced_at=now - HOUR)
    make_batch(completed=5, waiting=95, started_at=now - HOUR, paced_at=now - HOUR)
    make_batch(completed=50, waiting=50, started_at=now - HOUR, paced_at=now - HOUR, open=True)

    rows = admin_client.get(LIST).context["cl"].result_list

    assert [row.ends_at is not None for row in rows] == [False, False, True]
    assert abs(rows[2].ends_at - now - HOUR) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({"status": "paused"}, ["b"]),
        ({"status": "failed"}, ["c"]),
        ({"status": "submitted"}, ["a"]),
        ({"by": "ben"}, ["b"]),
        ({"q": "A"}, ["a"]),
        ({"status": "nonsense"}, ["c", "b", "a"]),
    ],
)
def test_the_list_is_filtered(admin_client: Client, query: dict[str, str], names: list[str]) -> None:
    make_batch(batch_id="a", waiting=1)
    make_batch(batch_id="b", waiting=1, paused_at=NOW, paused_by="ana", created_by="ben")
    make_batch(batch_id="c", failed=1, ended_at=NOW, ended_as="failed")

    response = admin_client.get(LIST, query, follow=True)

    assert [row.batch_id for row in response.context["cl"].result_list] == names


def test_a_list_of_many_needs_no_more_queries(admin_client: Client) -> None:
    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            admin_client.get(LIST)
        return len(captured)

    make_batch(waiting=1)
    few = queries()
    for _ in range(30):
        make_batch(completed=30, waiting=3, started_at=NOW, paced_at=NOW)

    assert queries() == few


def test_a_failure_among_thousands_is_seen_in_the_bar(admin_client: Client) -> None:
    row = make_batch(completed=9_999, failed=1, ended_at=NOW, ended_as="completed_with_failures")

    page = admin_client.get(page_of(row)).content.decode()

    widths = re.findall(r'class="k1-part-(\w+)" x="[\d.]+%" y="\d+" width="([\d.]+)%"', page)
    assert widths == [("completed", "99.20"), ("failed", "0.80")]


# --- what is going on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"waiting": 3}, "off: Nothing has started yet, 3 tasks wait."),
        ({"open": True}, "off: Nothing is in it yet. It is open: it waits for tasks."),
        (
            {"completed": 4, "failed": 1, "waiting": 5, "started_at": NOW},
            "run: 5 of 10 tasks have ended, 1 of them failed. Nothing of it runs at the moment, 5 tasks wait.",
        ),
        (
            {"completed": 1, "open": True, "started_at": NOW},
            "warn: All of the 1 task that it has by now have ended. It ends once it is closed.",
        ),
        (
            {"completed": 2, "ended_at": NOW + HOUR, "started_at": NOW, "ended_as": "completed"},
            "ok: All of its 2 tasks have completed. It took 1 h.",
        ),
        (
            {"completed": 2, "skipped": 1, "ended_at": NOW, "ended_as": "completed"},
            "ok: It has ended: 2 completed, 1 skipped.",
        ),
        (
            {"completed": 2, "failed": 1, "ended_at": NOW, "ended_as": "completed_with_failures"},
            "warn: It has ended, but not with all it had to do: 2 completed, 1 failed.",
        ),
        (
            {"failed": 3, "ended_at": NOW, "ended_as": "failed"},
            "bad: It has failed, for none of its tasks has completed: 3 failed.",
        ),
        (
            {"completed": 1, "failed": 1, "cancelled": 8, "fail_fast": True, "ended_at": NOW, "ended_as": "failed"},
            "bad: It has failed, because a task has: 1 completed, 1 failed, 8 cancelled.",
        ),
        (
            {
                "completed": 1,
                "cancelled": 2,
                "cancelled_at": NOW,
                "cancelled_by": "ana",
                "cancel_reason": "wrong month",
                "ended_at": NOW,
                "ended_as": "cancelled",
            },
            "off: ana has cancelled it: wrong month. In the end: 1 completed, 2 cancelled.",
        ),
    ],
)
def test_a_sentence_says_what_is_going_on(admin_client: Client, fields: dict[str, Any], expected: str) -> None:
    assert sentence(admin_client, make_batch(**fields)) == expected


def test_a_paused_batch_says_by_whom_and_why(admin_client: Client) -> None:
    batch = submit(3, max_concurrent=1)
    claim()
    steering.pause(batch, By("ben", "the disk is full."), now=timezone.now() - timedelta(hours=3))

    found = sentence(admin_client, batch)

    assert found.startswith("pause: ben has paused it, 3 h ago, saying: the disk is full. Nothing further starts.")
    assert found.endswith(" 1 task runs, and may finish. 2 tasks wait until somebody resumes it.")


def test_a_batch_that_is_being_cancelled_says_so(admin_client: Client) -> None:
    batch = submit(3, max_concurrent=1)
    task = Task.objects.order_by("pk")[0]
    claim()
    Task.objects.filter(pk=task.pk).update(started_at=NOW)

    steering.cancel(batch, ANA, now=NOW)

    assert sentence(admin_client, batch) == "off: ana has cancelled it. 1 task runs, and is being ended."


def test_a_batch_that_fails_fast_says_that_nothing_further_starts(admin_client: Client) -> None:
    batch = submit(5, max_concurrent=2, fail_fast=True)
    first, second = claim(2)
    Task.objects.filter(pk=second.id).update(started_at=NOW)
    settle([first], FAILED)

    found = sentence(admin_client, batch)

    assert found == (
        "bad: A task has failed for good, so nothing further starts. 4 of 5 tasks have ended, 1 of them failed."
        " 1 task runs, and may finish."
    )


def test_it_says_why_nothing_runs(admin_client: Client) -> None:
    batch = submit(2)
    assert "The first of them, t0: " in sentence(admin_client, batch)  # no node is there

    holds.hold(By("ben", "moving house"), now=NOW)

    found = sentence(admin_client, batch)
    assert found.startswith("warn: Nothing has started yet, 2 tasks wait. The first of them, t0: ")
    assert "moving house" in found


def test_what_is_due_later_is_no_trouble(admin_client: Client) -> None:
    later = (timezone.now() + 2 * HOUR).isoformat()
    tasks = [{"task_id": "t0", "handler": "python:noop", "delay_until": later}]
    batch = submission.submit(tasks, by="ana", now=timezone.now())

    found = sentence(admin_client, batch)

    assert found.startswith("off: Nothing has started yet, 1 task waits. The first of them, t0: It is due at ")


def test_the_options_stand_there_in_words(admin_client: Client) -> None:
    one = make_batch(parallel=False, fail_fast=True, waiting=1)
    other = make_batch(max_concurrent=1_500, fail_fast=True, fail_fast_running="cancel", waiting=1)
    plain = make_batch(waiting=1, open=True)

    texts = [text_of(admin_client.get(page_of(row))) for row in (one, other, plain)]

    assert "One by one, in the order in which they were given" in texts[0] and "what runs may finish" in texts[0]
    assert "At most 1,500 at the same time" in texts[1] and "what runs is ended, too" in texts[1]
    assert "As many at the same time as the nodes have room for" in texts[2] and "The others go on" in texts[2]
    assert "It is open: more may be added" in texts[2] and "not before it is closed" in texts[2]


def test_a_page_is_kept_up_to_date_until_the_batch_has_ended(admin_client: Client) -> None:
    going, ended = make_batch(waiting=1), make_batch(completed=1, ended_at=NOW, ended_as="completed")

    assert "data-refresh" in admin_client.get(page_of(going)).content.decode()
    assert "data-refresh" not in admin_client.get(page_of(ended)).content.decode()


def test_a_batch_that_is_not_there_is_not_found(admin_client: Client) -> None:
    addresses = [reverse("admin:batches_batch_change", args=("x",)), reverse("admin:batches_batch_cancel", args=(7,))]

    assert [admin_client.get(address).status_code for address in addresses] == [404, 404]


# --- what has failed --------------------------------------------------------------------------------------------


def test_failures_are_grouped_by_error_the_largest_group_first(admin_client: Client) -> None:
    batch = make_batch()
    failed_tasks(batch, "no such host 10.0.0.1")
    newest = failed_tasks(batch, "line 7 is bad", "line 8 is bad\nand more", "line 9 is bad")[-1]
    failed_tasks(batch, "line 7 is bad", code=2)

    response = admin_client.get(page_of(batch))

    groups = [(group.line, group.code, group.count) for group in response.context["failures"].groups]
    assert groups == [("line <n> is bad", 1, 3), ("line <n> is bad", 2, 1), ("no such host <address>", 1, 1)]
    assert f'href="{reverse("admin:scheduling_task_change", args=(newest.pk,))}"' in response.content.decode()
    assert "exit code 1 · python:export" in text_of(response)


def test_a_bounded_number_of_failures_is_looked_at_and_the_page_says_so(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "LOOKED_AT", 3)
    monkeypatch.setattr(failures, "GROUPS_MOST", 2)
    batch = make_batch()
    failed_tasks(batch, "old", "a", "b", "c")

    response = admin_client.get(page_of(batch))

    assert [group.line for group in response.context["failures"].groups] == ["c", "b"]
    assert "What has failed the newest 3" in text_of(response)
    assert "There are more errors: these are the 2 most frequent." in text_of(response)


def test_without_failures_nothing_is_looked_for() -> None:
    batch, found = progress.read(make_batch(completed=3))

    with CaptureQueriesContext(connection) as captured:
        assert failures.grouped(batch, found).groups == []
        assert failures.retryable(batch, found) == 0

    assert not captured.captured_queries


def test_a_retry_is_about_what_was_cancelled_because_of_a_failure_too() -> None:
    batch = submit(5, max_concurrent=1, fail_fast=True)
    work(1)
    work(1, FAILED)

    row, found = progress.read(batch)

    assert failures.retryable(row, found) == 4
    assert steering.retry_failed(batch, ANA, now=NOW).total == 4


# --- the tasks --------------------------------------------------------------------------------------------------


def test_tasks_are_paged_by_key_both_ways_in_their_order(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "SIZE", 2)
    batch = submit(5)
    make_task()  # of no batch

    first = admin_client.get(page_of(batch))
    second = admin_client.get(first.context["older"])
    third = admin_client.get(second.context["older"])
    back = admin_client.get(third.context["newer"])
    top = admin_client.get(back.context["newer"])

    pages = [listed(each) for each in (first, second, third, back, top)]
    assert pages == [["t0", "t1"], ["t2", "t3"], ["t4"], ["t2", "t3"], ["t0", "t1"]]
    assert (first.context["newer"], third.context["older"], top.context["newer"]) == (None, None, None)


def test_tasks_are_chosen_by_state(admin_client: Client) -> None:
    batch = submit(6, max_concurrent=3)
    work(1)
    work(1, FAILED)
    held = claim(2)
    Task.objects.filter(pk=held[1].id).update(started_at=None)  # its worker comes to it later

    def of(state: str) -> list[str]:
        return listed(admin_client.get(page_of(batch), {"tasks": state}))

    assert {state: of(state) for state in members.STATES} == {
        "all": ["t0", "t1", "t2", "t3", "t4", "t5"],
        "completed": ["t0"],
        "failed": ["t1"],
        "skipped": [],
        "cancelled": [],
        "running": ["t2"],
        "waiting": ["t3", "t4", "t5"],
    }
    assert of("nonsense") == of("all")


def test_a_search_by_state_looks_at_a_window_and_goes_on_from_there(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "WINDOW", 2)
    batch = submit(5)
    Task.objects.filter(task_id="t4").update(status="failed")

    pages = [admin_client.get(page_of(batch), {"tasks": "failed"})]
    while address := pages[-1].context["older"]:
        pages.append(admin_client.get(address))

    assert [listed(page) for page in pages] == [[], [], ["t4"]]
    assert "None among the 2 tasks that were looked at." in text_of(pages[0])
    assert listed(admin_client.get(pages[2].context["newer"])) == []


@pytest.mark.parametrize("key", ["x", "-1", "9" * 40, "1;DROP TABLE"])
def test_nonsense_in_place_of_a_key_is_no_error(admin_client: Client, key: str) -> None:
    batch = submit(2)

    for name in ("after", "before"):
        assert admin_client.get(page_of(batch), {"tasks": "failed", name: key}).status_code == 200


def test_ten_thousand_tasks_cost_no_more_queries_than_ten(admin_client: Client) -> None:
    def queries(row: Batch) -> int:
        for state in members.STATES:
            with CaptureQueriesContext(connection) as captured:
                admin_client.get(page_of(row), {"tasks": state})
            counts.append(len(captured))
        return max(counts[-len(members.STATES) :])

    counts: list[int] = []
    many = [{"task_id": f"m{number}", "handler": "python:noop"} for number in range(10_000)]
    options = submission.Options(max_concurrent=20)
    small = submission.submit(many[:10], options=options, by="ana", now=NOW)
    few = queries(small)
    large = submission.submit(
        [{**each, "task_id": f"n{place}"} for place, each in enumerate(many)], options=options, by="ana", now=NOW
    )

    assert queries(large) <= few + 1  # of the window that is full
    assert few <= 25


# --- the verbs --------------------------------------------------------------------------------------------------


def test_a_batch_is_paused_and_resumed(operator: Operator) -> None:
    batch = submit(3)
    client = operator("change_batch")

    paused = client.post(verb(batch, "pause"), {"reason": "the disk"})
    was = fresh(batch)
    resumed = client.post(verb(batch, "resume"))

    assert (paused["Location"], was.paused_by, was.gate.closed) == (page_of(batch), "ana", True)
    assert said(paused) == [
        ("info", "Paused b. What runs may finish; nothing further starts until somebody resumes it.")
    ]
    assert said(resumed)[-1] == ("info", "Resumed b. It goes on.")
    assert fresh(batch).paused_at is None
    assert AuditRecord.objects.get(action="batch.paused").reason == "the disk"


def test_a_batch_is_cancelled_after_a_question_and_with_a_reason(operator: Operator) -> None:
    batch = submit(3)
    client = operator("change_batch")

    asked = client.get(verb(batch, "cancel"))
    done = client.post(verb(batch, "cancel"), {"reason": "wrong month", "shown": "3"})

    assert "3 tasks wait and are cancelled at once. It takes no more tasks." in text_of(asked)
    assert "Cancel 3 tasks" in text_of(asked)
    assert said(done) == [("info", "Cancelled b. What waited is cancelled; what runs is ended within seconds.")]
    row = fresh(batch)
    assert (row.cancelled_by, row.cancel_reason, row.gate.cancelled) == ("ana", "wrong month", 3)


def test_many_are_cancelled_only_by_whoever_types_their_number(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batches.admin.forms.TYPED_ABOVE", 2)
    batch = submit(3)
    address = verb(batch, "cancel")

    asked = admin_client.get(address)
    refused = admin_client.post(address, {"shown": "3", "number": "2"})
    evaded = admin_client.post(address, {"shown": "1", "number": ""})
    assert fresh(batch).cancelled_at is None
    work(1)  # meanwhile
    done = admin_client.post(address, {"shown": "3", "number": "3"})

    assert "Type 3 to mean all of them" in text_of(asked)
    assert "Type 3: so many tasks it is about." in text_of(refused)
    assert evaded.status_code == 200
    assert done.status_code == 302
    assert fresh(batch).cancelled_at is not None


def test_what_failed_is_retried_after_a_page_that_says_how_many(operator: Operator) -> None:
    batch = submit(4)
    work(2, FAILED)
    work(2)
    clock()
    client = operator("change_batch")

    page = client.get(page_of(batch))
    asked = client.get(verb(batch, "retry"))
    done = client.post(verb(batch, "retry"), {"reason": "mended"})
    going = sentence(client, batch)
    clock(now=timezone.now() + HOUR)

    assert "Retry 2 that failed…" in text_of(page)
    assert "2 tasks that failed: each is done again as a new task" in text_of(asked)
    assert "The batch goes on in a new round" in text_of(asked)
    assert said(done) == [("info", "Retries 2 tasks of b. It begins within a second; this page follows it.")]
    assert going == "run: What had failed is retried: 0 of 2 tasks so far."
    assert Operation.objects.get().reason == "mended"
    record = AuditRecord.objects.get(action="batch.retried")
    assert (record.target, record.reason, record.after["tasks"]) == ("batch:b", "mended", 2)  # type: ignore[index]
    assert (fresh(batch).gate.failed, fresh(batch).round) == (0, 2)


def test_an_open_batch_is_closed(operator: Operator) -> None:
    batch = submit(1, is_open=True)
    client = operator("change_batch")

    asked = client.get(verb(batch, "close"))
    done = client.post(verb(batch, "close"))

    assert "It takes no more tasks: whoever still adds some is refused." in text_of(asked)
    assert said(done) == [("info", "Closed b. It ends once the tasks that it has have ended.")]
    assert not fresh(batch).open


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("pause", "It has ended: completed"),
        ("resume", "It is not paused"),
        ("cancel", "It has ended: completed"),
        ("retry", "None of its tasks has failed"),
        ("close", "It is closed already"),
    ],
)
def test_what_a_verb_refuses_is_said_and_changes_nothing(admin_client: Client, name: str, why: str) -> None:
    batch = submit(1)
    work(1)
    clock()
    before = Batch.objects.filter(pk=batch.pk).values().get()

    response = admin_client.post(verb(batch, name))

    assert response["Location"] == page_of(batch)
    assert said(response) == [("warning", f"Left b as it is. {why}.")]
    assert Batch.objects.filter(pk=batch.pk).values().get() == before


def test_a_page_offers_what_can_be_done(admin_client: Client) -> None:
    going, opened = make_batch(waiting=1), make_batch(waiting=1, open=True)
    paused = make_batch(waiting=1, paused_at=NOW)
    failed = make_batch(failed=1, ended_at=NOW, ended_as="failed")
    done = make_batch(completed=1, ended_at=NOW, ended_as="completed")
    ending = make_batch(waiting=1, failed=1, cancelled_at=NOW)

    found = [offered(admin_client.get(page_of(row))) for row in (going, opened, paused, failed, done, ending)]

    assert found == [
        {"pause", "cancel"},
        {"pause", "cancel", "close"},
        {"resume", "cancel"},
        {"retry"},
        set(),
        set(),
    ]


def test_the_history_says_who_did_what_and_why(admin_client: Client) -> None:
    batch = submit(3)
    steering.pause(batch, By("ben", "the disk"), now=NOW)
    steering.resume(batch, By("ana"), now=NOW)

    acts = admin_client.get(page_of(batch)).context["acts"]

    assert [(act.record.actor_name, act.done, act.changed, act.record.reason) for act in acts] == [
        ("ana", "Resumed", "", ""),
        ("ben", "Paused", "", "the disk"),
        ("ana", "Submitted", "3 tasks", ""),
    ]


# --- who may ----------------------------------------------------------------------------------------------------


def test_whoever_may_look_may_only_look(operator: Operator) -> None:
    batch = submit(2, is_open=True)
    work(1, FAILED)
    client = operator("view_batch")

    response = client.get(page_of(batch))

    assert response.status_code == client.get(LIST).status_code == 200
    assert offered(response) == set()
    assert "page" not in response.context  # tasks are another permission
    assert "/admin/scheduling/task/" not in response.content.decode()
    assert [client.post(verb(batch, name)).status_code for name in (*NOW_VERBS, *ASK_VERBS)] == [403] * 5
    assert [client.get(verb(batch, name)).status_code for name in ASK_VERBS] == [403] * 3
    assert listed(operator("view_batch", "view_task").get(page_of(batch))) == ["t0", "t1"]
    row = fresh(batch)
    assert row.open and row.paused_at is None and row.cancelled_at is None and not row.retry_job


def test_a_link_does_nothing_and_neither_does_a_forged_form(operator: Operator) -> None:
    batch = submit(2, is_open=True)
    client = operator("change_batch")
    forged = Client(enforce_csrf_checks=True)
    forged.cookies = client.cookies

    assert [client.get(verb(batch, name)).status_code for name in NOW_VERBS] == [405] * 2
    assert [client.get(verb(batch, name)).status_code for name in ASK_VERBS] == [200] * 3
    assert [forged.post(verb(batch, name)).status_code for name in (*NOW_VERBS, *ASK_VERBS)] == [403] * 5
    row = fresh(batch)
    assert row.open and row.paused_at is None and row.cancelled_at is None


# --- the page of a task, and the overview -----------------------------------------------------------------------


def test_a_task_names_its_batch(operator: Operator) -> None:
    batch = submit(1)
    address = reverse("admin:scheduling_task_change", args=(Task.objects.get().pk,))

    assert f'href="{page_of(batch)}"' in operator("view_task", "view_batch").get(address).content.decode()
    assert page_of(batch) not in operator("view_task").get(address).content.decode()


def test_the_overview_names_batches_that_need_a_person(admin_client: Client) -> None:
    now = timezone.now()
    make_batch(batch_id="fine", waiting=1)
    make_batch(batch_id="just-paused", waiting=1, paused_at=now)
    make_batch(batch_id="forgotten", waiting=1, paused_at=now - 3 * HOUR, paused_by="ben")
    make_batch(batch_id="broken", failed=2, completed=1, ended_at=now - HOUR, ended_as="failed")
    make_batch(batch_id="long-ago", failed=2, ended_at=now - 48 * HOUR, ended_as="failed")

    needs = text_of(admin_client.get(INDEX)).partition("Needs you now")[2].partition("Operate")[0]

    assert "failed broken batch · 1 h ago · 2 of 3 tasks failed" in needs
    assert "paused forgotten batch · 3 h ago by ben" in needs
    assert not [name for name in ("fine", "just-paused", "long-ago") if name in needs]


def test_the_overview_names_a_few_and_links_to_the_others(
    admin_client: Client, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batches.templatetags.batches_console.MOST", 1)
    for _ in range(2):
        make_batch(failed=1, ended_at=timezone.now(), ended_as="failed")

    page = admin_client.get(INDEX)

    assert "And more batches that are failed" in text_of(page)
    assert f'href="{LIST}?status=failed"' in page.content.decode()
    assert "batch" not in text_of(operator("view_deadletter").get(INDEX))
