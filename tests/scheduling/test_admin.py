"""Schedules and tasks on the console: what operators see, type and press."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.messages import get_messages
from django.core.exceptions import ValidationError
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from k1node.events.models import Event
from scheduling.admin.fields import JsonObjectField, in_units, parse_duration
from scheduling.models import OutputChunk, RetryPolicy, Schedule, ScheduleTally, Slot, Task, TaskStatus
from tests.factories import NOW, make_attempt, make_schedule, make_task

pytestmark = pytest.mark.django_db

SCHEDULES = reverse("admin:scheduling_schedule_changelist")
TASKS = reverse("admin:scheduling_task_changelist")
ADD = reverse("admin:scheduling_schedule_add")


def page_of(row: Schedule | Task) -> str:
    return reverse(f"admin:scheduling_{row._meta.model_name}_change", args=(row.pk,))


def text_of(response: Any) -> str:
    return str(response.content.decode())


def said(response: Any) -> list[str]:
    """Return the messages of a response, without their markup."""
    return [re.sub(r"<[^>]+>", "", str(message)) for message in get_messages(response.wsgi_request)]


def shown(response: Any) -> list[str]:
    """Return the ids of the rows on a list."""
    return [row.task_id for row in response.context["cl"].result_list]


def filled(**fields: Any) -> dict[str, Any]:
    """Return the form of a usable schedule as a browser sends it."""
    return {
        "task_id": "backup-daily",
        "handler": "python:noop",
        "parameters": "{}",
        "priority": "5",
        "schedule_type": "cron",
        "schedule_expr": "0 2 * * *",
        "timezone": "UTC",
        "event_filter": "{}",
        "enabled": "on",
        "overlap_policy": "",
        "catch_up": "last",
        "catch_up_window_ms": "1 d",
        "catch_up_cap": "100",
        "timeout_ms": "1 h",
        "retry_policy": "standard",
        "jitter_ms": "0 s",
    } | fields


# --- the form of a schedule -------------------------------------------------------------------------------------


def test_new_schedule_goes_through_the_verb(admin_client: Client) -> None:
    response = admin_client.post(ADD, filled(parameters='{"keep": 7}', timeout_ms="1 h 30 min"))

    schedule = Schedule.objects.get()
    assert response.status_code == 302
    assert schedule.next_fire_at is not None
    assert (schedule.parameters, schedule.timeout_ms, schedule.created_by) == ({"keep": 7}, 5_400_000, "admin")
    assert schedule.overlap_policy == "skip"
    assert Event.objects.get().name == "schedule.created"
    assert any(text.startswith("The next slot is ") for text in said(response))


def test_form_begins_with_the_usual_and_needs_only_what_is_new(admin_client: Client) -> None:
    page = admin_client.get(ADD).context["adminform"].form
    usual = {name: page[name].value() for name in page.fields}
    data = {name: value for name, value in usual.items() if value not in (None, False)}

    admin_client.post(ADD, data | {"task_id": "a", "handler": "python:noop", "schedule_expr": "0 2 * * *"})

    schedule, plain = Schedule.objects.get(), Schedule()
    for name in ("priority", "timeout_ms", "catch_up", "catch_up_window_ms", "catch_up_cap", "jitter_ms", "parameters"):
        assert getattr(schedule, name) == getattr(plain, name)
    assert (schedule.retry_policy_id, schedule.overlap_policy, schedule.event_filter) == ("standard", "skip", {})


def test_event_schedule_may_overlap_unless_told_otherwise(admin_client: Client) -> None:
    admin_client.post(ADD, filled(schedule_type="event", schedule_expr="order.*"))

    assert Schedule.objects.get().overlap_policy == "allow"


@pytest.mark.parametrize(
    ("fields", "field", "text"),
    [
        pytest.param({"schedule_expr": "61 * * * *"}, "schedule_expr", "0-59", id="cron"),
        pytest.param({"schedule_expr": "0 0 31 2 *"}, "schedule_expr", "never fires", id="never"),
        pytest.param({"timezone": "Europe/Berln"}, "timezone", "Did you mean Europe/Berlin?", id="zone"),
        pytest.param({"handler": "bash -c ls"}, "handler", "option", id="handler"),
        pytest.param({"handler": "python:nosuch"}, "handler", "Use one of", id="python handler"),
        pytest.param(
            {"handler": "python:sleep", "parameters": '{"nosuch": 1}'},
            "parameters",
            "nosuch",
            id="parameters of it",
        ),
        pytest.param({"parameters": '{"a": 1,}'}, "parameters", "line 1, column 9", id="not JSON"),
        pytest.param({"parameters": "[1]"}, "parameters", "Must be an object", id="not an object"),
        pytest.param({"parameters": '{"a": NaN}'}, "parameters", "NaN is not JSON", id="not a number"),
        pytest.param({"priority": "11"}, "priority", "10", id="priority"),
        pytest.param({"timeout_ms": "90"}, "timeout_ms", "90 of which unit?", id="no unit"),
        pytest.param({"timeout_ms": "31 d"}, "timeout_ms", "Must be from 1 ms to 30 d", id="timeout"),
        pytest.param({"retry_policy": "nosuch"}, "retry_policy", "valid choice", id="policy"),
        pytest.param({"circuit_breaker": "a b"}, "circuit_breaker", "usable name", id="breaker"),
        pytest.param({"task_id": "a b"}, "task_id", "usable id", id="id"),
        pytest.param(
            {"starts_at_0": "2030-01-02", "starts_at_1": "00:00", "ends_at_0": "2030-01-01", "ends_at_1": "00:00"},
            "ends_at",
            "Must be later",
            id="period",
        ),
        pytest.param({"event_filter": '{"a": 1}'}, "event_filter", "Only an event schedule", id="filter"),
    ],
)
def test_what_cannot_be_is_refused_at_its_field(
    admin_client: Client, fields: dict[str, str], field: str, text: str
) -> None:
    response = admin_client.post(ADD, filled(**fields))

    errors = response.context["adminform"].form.errors
    assert list(errors) == [field]
    assert text in " ".join(errors[field])
    assert not Schedule.objects.exists()
    assert not Event.objects.exists()


def test_all_problems_are_shown_at_once_and_what_was_typed_stays(admin_client: Client) -> None:
    response = admin_client.post(ADD, filled(schedule_expr="x", timezone="y", parameters='{"typed": "so"}'))

    assert set(response.context["adminform"].form.errors) == {"schedule_expr", "timezone"}
    assert "{&quot;typed&quot;: &quot;so&quot;}" in text_of(response)


def test_taken_id_is_refused(admin_client: Client) -> None:
    make_task(task_id="backup-daily")

    response = admin_client.post(ADD, filled())

    assert "taken" in " ".join(response.context["adminform"].form.errors["task_id"])


def test_edit_writes_only_what_was_changed_here(admin_client: Client) -> None:
    schedule = make_schedule(task_id="backup-daily", handler="python:noop", schedule_expr="0 2 * * *")
    Schedule.objects.filter(pk=schedule.pk).update(handler="bash gone.sh")  # meanwhile, and its script is gone
    form = filled(handler="bash gone.sh", overlap_policy="skip", schedule_expr="0 3 * * *")

    response = admin_client.post(page_of(schedule), form)

    schedule.refresh_from_db()
    assert response.status_code == 302
    assert (schedule.handler, schedule.schedule_expr) == ("bash gone.sh", "0 3 * * *")
    assert schedule.next_fire_at is not None
    assert Event.objects.get().data["changed"] == ["schedule_expr"]


def test_refused_edit_changes_nothing_and_shows_what_is_stored_beside_it(admin_client: Client) -> None:
    schedule = make_schedule(task_id="backup-daily", handler="python:noop", schedule_expr="0 2 * * *")

    response = admin_client.post(page_of(schedule), filled(overlap_policy="skip", schedule_expr="0 25 * * *"))

    assert response.status_code == 200
    assert list(response.context["adminform"].form.errors) == ["schedule_expr"]
    assert len(response.context["coming"].fires) == 10
    assert Schedule.objects.get().schedule_expr == "0 2 * * *"


def test_id_cannot_be_changed(admin_client: Client) -> None:
    schedule = make_schedule(task_id="backup-daily", handler="python:noop")

    admin_client.post(page_of(schedule), filled(task_id="other", overlap_policy="skip", schedule_expr="*/5 * * * *"))

    assert Schedule.objects.get().task_id == "backup-daily"


def test_deleting_keeps_the_runs(admin_client: Client) -> None:
    schedule = make_schedule()
    ScheduleTally.objects.create(schedule=schedule, shard=0)
    task = make_task(schedule=schedule)

    asked = admin_client.get(reverse("admin:scheduling_schedule_delete", args=(schedule.pk,)))
    admin_client.post(reverse("admin:scheduling_schedule_delete", args=(schedule.pk,)), {"post": "yes"})

    assert "Are you sure" in text_of(asked)
    assert not Schedule.objects.exists()
    assert not ScheduleTally.objects.exists()
    assert Event.objects.get().name == "schedule.deleted"
    assert admin_client.get(page_of(task)).status_code == 200


def test_deleting_several_goes_through_the_verb(admin_client: Client) -> None:
    rows = [make_schedule(), make_schedule()]

    press(admin_client, "delete_selected", *rows, post="yes")

    assert not Schedule.objects.exists()
    assert [event.name for event in Event.objects.all()] == ["schedule.deleted"] * 2


def test_those_who_may_only_look_see_no_form(operator: Callable[..., Client]) -> None:
    schedule = make_schedule()
    client = operator("view_schedule")

    page = text_of(client.get(page_of(schedule)))
    client.post(page_of(schedule), filled(overlap_policy="skip", priority="9"))

    assert 'name="_save"' not in page
    assert "Run now" not in page
    assert Schedule.objects.get().priority == 5


# --- the page of a schedule -------------------------------------------------------------------------------------


def test_page_shows_coming_slots_in_both_times_and_those_left_out(admin_client: Client) -> None:
    schedule = make_schedule(schedule_expr="0 2 * * *", timezone="Asia/Tokyo", skip_next=True)

    response = admin_client.get(page_of(schedule))

    fires = response.context["coming"].fires
    assert [fire.left_out for fire in fires] == ["to be skipped"] + [""] * 9
    assert {fire.local[11:] for fire in fires} == {"02:00:00 JST"}
    assert {fire.at.astimezone(UTC).hour for fire in fires} == {17}
    assert "17:00:00 UTC" in text_of(response)


def test_page_shows_the_ledger_and_the_runs(admin_client: Client) -> None:
    schedule = make_schedule()
    task = make_task(schedule=schedule, status=TaskStatus.FAILED, exit_code=3, last_error="disk full")
    Slot.objects.create(schedule=schedule, due_at=NOW, last_due_at=NOW, outcome="fired", task=task, recorded_at=NOW)
    later = NOW + timedelta(hours=1)
    Slot.objects.create(
        schedule=schedule,
        due_at=later,
        last_due_at=later + timedelta(hours=4),
        count=5,
        outcome="missed",
        reason="no clock ran",
        recorded_at=NOW,
    )

    page = text_of(admin_client.get(page_of(schedule)))

    assert "disk full" in page
    assert "5 slots" in page
    assert "no clock ran" in page
    assert "2026-03-04 05:06:07 UTC" in page


def test_page_of_a_schedule_whose_expression_cannot_be_read_still_opens(admin_client: Client) -> None:
    schedule = make_schedule(schedule_expr="nonsense", last_error="ScheduleExpressionInvalid: it")

    page = text_of(admin_client.get(page_of(schedule)))

    assert "The expression cannot be read" in page
    assert "The clock cannot fire it." in page


def test_page_of_a_schedule_asks_a_fixed_number_of_questions(
    admin_client: Client, django_assert_num_queries: Any
) -> None:
    schedule = make_schedule()
    for number in range(5):
        task = make_task(schedule=schedule)
        Slot.objects.create(
            schedule=schedule,
            due_at=NOW + timedelta(minutes=number),
            last_due_at=NOW,
            outcome="fired",
            task=task,
            recorded_at=NOW,
        )

    admin_client.get(page_of(schedule))  # what Django looks up once in a process

    # Session, user, hold, schedule twice (form and stored), policies, ledger, runs, statistics.
    with django_assert_num_queries(9):
        admin_client.get(page_of(schedule))


# --- the list of schedules --------------------------------------------------------------------------------------


def test_list_says_how_each_schedule_stands(admin_client: Client) -> None:
    now = timezone.now()
    make_schedule(task_id="a", next_fire_at=now + timedelta(hours=2))
    make_schedule(task_id="b", enabled=False)
    make_schedule(task_id="c", paused_until=now + timedelta(hours=1), pause_reason="moving house")
    make_schedule(task_id="d", last_error="HandlerNotAllowed: gone")
    make_schedule(task_id="e", ends_at=now - timedelta(hours=1))

    page = text_of(admin_client.get(SCHEDULES))

    states = ["enabled", "disabled", "paused", "cannot fire", "ended"]
    assert re.findall(r"</svg>([a-z ]+)</span>", page) == states
    assert "moving house" in page
    assert "Every 5 minutes" in page


def test_last_run_links_to_its_task(admin_client: Client) -> None:
    schedule = make_schedule()
    make_task(schedule=schedule, status=TaskStatus.COMPLETED)
    latest = make_task(schedule=schedule, status=TaskStatus.FAILED, started_at=NOW)
    ScheduleTally.objects.create(schedule=schedule, shard=0, completed=3, failed=1)
    ScheduleTally.objects.create(schedule=schedule, shard=1, completed=2)

    page = text_of(admin_client.get(SCHEDULES))

    assert f'<a href="{page_of(latest)}" title="{latest.task_id}">' in page
    assert ">6</a>" in page


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"q": "back"}, ["backup"]),
        ({"q": "ops/agents"}, ["export"]),
        ({"state": "paused"}, ["paused"]),
        ({"state": "broken"}, ["broken"]),
        ({"state": "skipping"}, ["skipping"]),
        ({"schedule_type__exact": "event"}, ["export"]),
        ({"enabled__exact": "0"}, ["backup"]),
    ],
)
def test_schedules_are_found_by_id_handler_and_state(
    admin_client: Client, query: dict[str, str], found: list[str]
) -> None:
    make_schedule(task_id="backup", enabled=False)
    make_schedule(task_id="export", handler="bash ops/agents/x.sh", schedule_type="event", schedule_expr="x")
    make_schedule(task_id="paused", paused_until=timezone.now() + timedelta(hours=1))
    make_schedule(task_id="broken", last_error="no")
    make_schedule(task_id="skipping", skip_next=True)

    response = admin_client.get(SCHEDULES, query)

    assert shown(response) == found


@pytest.mark.parametrize("count", [1, 20])
def test_list_of_schedules_asks_a_fixed_number_of_questions(
    admin_client: Client, django_assert_num_queries: Any, count: int
) -> None:
    for _ in range(count):
        schedule = make_schedule()
        make_task(schedule=schedule)
        ScheduleTally.objects.create(schedule=schedule, shard=0)

    # Session, user, hold, count, rows, newest tasks, those tasks, statistics.
    with django_assert_num_queries(8):
        admin_client.get(SCHEDULES)


# --- verbs ------------------------------------------------------------------------------------------------------


def press(client: Client, action: str, *rows: Schedule, **more: Any) -> Any:
    return client.post(SCHEDULES, {"action": action, "_selected_action": [row.pk for row in rows], **more})


def test_run_now_queues_a_run_and_says_why_another_was_left_out(admin_client: Client) -> None:
    free = make_schedule(task_id="free", handler="python:noop", enabled=False)
    busy = make_schedule(task_id="busy", handler="python:noop")
    make_task(schedule=busy, status=TaskStatus.EXECUTING)
    gone = make_schedule(task_id="gone", handler="bash ops/nosuch.sh")

    response = press(admin_client, "run_now", free, busy, gone)

    task = Task.objects.get(schedule=free)
    done, skipped = said(response)
    assert (task.status, task.created_by) == (TaskStatus.QUEUED, "admin")
    assert done == f"Queued 1: {task.task_id}"
    assert skipped.startswith("Skipped 2: busy (Not run, overlap: an earlier run has not ended), gone (")


@pytest.mark.parametrize(
    ("action", "before", "after", "done", "skipped"),
    [
        ("enable", {"enabled": False}, {"enabled": True}, "Enabled 1: a", "Skipped 1: b (already enabled)"),
        ("disable", {"enabled": True}, {"enabled": False}, "Disabled 1: a", "Skipped 1: b (already disabled)"),
        (
            "skip_next",
            {"skip_next": False},
            {"skip_next": True},
            "Will leave out the next run of 1: a",
            "Skipped 1: b (to be left out already)",
        ),
    ],
)
def test_verbs_change_those_that_need_it_and_say_so(
    admin_client: Client, action: str, before: dict[str, Any], after: dict[str, Any], done: str, skipped: str
) -> None:
    rows = [make_schedule(task_id="a", **before), make_schedule(task_id="b", **after)]

    response = press(admin_client, action, *rows)

    assert said(response) == [done, skipped]
    assert Schedule.objects.filter(**after).count() == 2
    assert Event.objects.get().data["by"] == "admin"


def test_pause_and_resume(admin_client: Client) -> None:
    schedule = make_schedule(task_id="a")

    press(admin_client, "pause", schedule)
    schedule.refresh_from_db()
    until = schedule.paused_until
    press(admin_client, "resume", schedule)
    schedule.refresh_from_db()

    assert until is not None
    assert timedelta(minutes=59) < until - timezone.now() < timedelta(minutes=61)
    assert (schedule.paused_until, schedule.pause_reason) == (None, "")


def test_enabling_computes_the_next_slot(admin_client: Client) -> None:
    schedule = make_schedule(enabled=False)

    press(admin_client, "enable", schedule)

    schedule.refresh_from_db()
    assert schedule.next_fire_at is not None


def test_button_on_the_page_leads_back_to_it(admin_client: Client) -> None:
    schedule = make_schedule()

    response = press(admin_client, "disable", schedule, from_page=schedule.pk, index="0")

    assert response["Location"] == page_of(schedule)


@pytest.mark.parametrize("action", ["run_now", "enable", "disable", "pause", "resume", "skip_next", "delete_selected"])
def test_verbs_need_their_permission(operator: Callable[..., Client], action: str) -> None:
    schedule = make_schedule(handler="python:noop", enabled=False)

    press(operator("view_schedule"), action, schedule, post="yes")

    assert not Task.objects.exists()
    assert not Event.objects.exists()
    assert Schedule.objects.get().updated_at == schedule.updated_at


# --- the list of tasks ------------------------------------------------------------------------------------------


def test_tasks_are_found_by_status_as_people_see_it(admin_client: Client) -> None:
    for status in TaskStatus:
        make_task(task_id=f"t-{status}", status=status)
    make_task(task_id="t-held", status=TaskStatus.EXECUTING, paused_at=NOW)

    found = {str(status): shown(admin_client.get(TASKS, {"status": status})) for status in TaskStatus}

    assert found.pop("paused") == ["t-held", "t-paused"]
    assert found == {str(status): [f"t-{status}"] for status in TaskStatus if status != TaskStatus.PAUSED}


def test_queued_tasks_are_listed_in_the_order_they_will_start_over_pages(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduling.admin.tasks.TaskAdmin.list_per_page", 2)
    for priority, minutes in ((5, 3), (9, 1), (5, 1), (9, 1), (5, 1), (1, 0), (5, 2)):
        make_task(priority=priority, due_at=NOW + timedelta(minutes=minutes), status=TaskStatus.QUEUED)
    expected = list(Task.objects.order_by("-priority", "due_at", "pk").values_list("task_id", flat=True))

    pages = [admin_client.get(TASKS, {"status": "queued"})]
    while older := pages[-1].context["cl"].older:
        pages.append(admin_client.get(TASKS + older))
    back = admin_client.get(TASKS + pages[-1].context["cl"].newer)

    assert [row for page in pages for row in shown(page)] == expected
    assert shown(back) == shown(pages[-2])
    assert "in the order they will start" in text_of(pages[0])


def test_tasks_are_found_by_schedule(admin_client: Client) -> None:
    schedule = make_schedule(task_id="backup")
    make_task(task_id="mine", schedule=schedule)
    make_task(task_id="failed", schedule=schedule, status=TaskStatus.FAILED)
    make_task(task_id="orphan", schedule_id=999)
    make_task(task_id="other")

    assert shown(admin_client.get(TASKS, {"schedule": "backup"})) == ["failed", "mine"]
    assert shown(admin_client.get(TASKS, {"schedule": "backup", "status": "failed"})) == ["failed"]
    assert shown(admin_client.get(TASKS, {"schedule": "999"})) == ["orphan"]
    assert shown(admin_client.get(TASKS, {"schedule": "nosuch"})) == []


def test_rare_runs_of_a_schedule_are_looked_for_among_its_own_rows(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduling.admin.tasks.WINDOW", 6)
    mine, other = make_schedule(task_id="mine"), make_schedule()
    make_task(task_id="wanted", schedule=mine, status=TaskStatus.FAILED)
    for _ in range(4):
        make_task(schedule=mine, status=TaskStatus.COMPLETED)
        for _ in range(5):
            make_task(schedule=other)

    first = admin_client.get(TASKS, {"schedule": "mine", "status": "failed"})
    second = admin_client.get(TASKS + first.context["cl"].older)
    back = admin_client.get(TASKS + second.context["cl"].newer)

    assert (shown(first), shown(second), shown(back)) == ([], ["wanted"], [])
    assert second.context["cl"].older is None


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("run-1", ["run-1"]),
        ("run-1*", ["run-12", "run-11", "run-1"]),
        ("run", ["run-2", "run-12", "run-11", "run-1"]),
        ("un-1", []),
        ("RUN-1", []),
        ("%", []),
        ("_un", []),
    ],
)
def test_tasks_are_found_by_id_and_by_how_ids_begin(admin_client: Client, query: str, found: list[str]) -> None:
    for name in ("run-1", "run-2", "run-11", "run-12", "sun-1"):
        make_task(task_id=name)

    assert shown(admin_client.get(TASKS, {"q": query})) == found


@pytest.mark.parametrize("count", [1, 20])
def test_list_of_tasks_asks_a_fixed_number_of_questions(
    admin_client: Client, django_assert_num_queries: Any, count: int
) -> None:
    for _ in range(count):
        make_task(schedule=make_schedule(), status=TaskStatus.FAILED, last_error="no")

    # Session, user, hold, rows, names of schedules.
    with django_assert_num_queries(5):
        admin_client.get(TASKS)


# --- the page of a task -----------------------------------------------------------------------------------------


def write(task: Task, position: int, data: bytes, stream: str = "stdout", fence: int = 1) -> None:
    OutputChunk.objects.create(task=task, fence=fence, position=position, stream=stream, data=data)


def test_page_shows_attempts_and_the_output_of_the_latest(admin_client: Client) -> None:
    task = make_task(status=TaskStatus.FAILED, attempt=2, fence=2, last_error="gave up")
    make_attempt(task, fence=1, outcome="timeout", decision="retry", retry_at=NOW, error="too slow", output_bytes=5)
    make_attempt(task, fence=2, number=2, outcome="failed", decision="fail", error="gave up", output_bytes=6)
    write(task, 0, b"first")
    write(task, 0, b"second", fence=2)

    latest = text_of(admin_client.get(page_of(task)))
    earlier = text_of(admin_client.get(page_of(task), {"run": "1"}))

    assert "tries again" in latest
    assert "too slow" in latest
    assert '<span class="k1-stdout">second</span>' in latest
    assert '<span class="k1-stdout">first</span>' in earlier
    assert "of an earlier attempt" in earlier


def test_output_is_decoded_escaped_and_its_streams_and_cuts_marked(admin_client: Client) -> None:
    task = make_task(status=TaskStatus.COMPLETED, fence=1)
    make_attempt(task, output_bytes=3_000_000)
    euro = "€".encode()
    first, second = b"<b>1</b> \x1b[31mred\x1b[0m \x00 " + euro[:2], euro[2:] + b"\xff\n"
    write(task, 0, first)
    write(task, len(first), second)
    write(task, len(first + second), b"oops", stream="stderr")
    write(task, 2_000_000, b"tail")

    page = text_of(admin_client.get(page_of(task)))

    log = page[page.index('<pre class="k1-log"') :]
    assert re.findall(r'<span class="k1-(\w+)">([^<]*)</span>', log[: log.index("</pre>")]) == [
        ("stdout", "&lt;b&gt;1&lt;/b&gt; red ␀ €�\n"),
        ("stderr", "oops"),
        ("cut", "2.0 MB not kept"),
        ("stdout", "tail"),
        ("cut", "1,000.0 kB not kept"),
    ]
    assert "3.0 MB written, 37 bytes kept" in page


def test_running_task_shows_what_it_has_written_so_far(admin_client: Client) -> None:
    task = make_task(status=TaskStatus.EXECUTING)
    write(task, 0, b"step 1\n")

    page = text_of(admin_client.get(page_of(task)))

    assert "step 1" in page
    assert f'href="?run={task.fence}#output">Refresh</a>' in page
    assert "so far" in page


def test_claimed_task_that_has_not_started_shows_as_queued(admin_client: Client) -> None:
    task = make_task(status=TaskStatus.EXECUTING, started_at=None)

    page = text_of(admin_client.get(page_of(task)))

    assert "</svg>queued</span>" in page
    assert "It has not been started yet." in page


def test_output_that_changes_streams_all_the_time_is_bounded(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduling.admin.logs.MOST_PIECES", 3)
    task = make_task(status=TaskStatus.COMPLETED, fence=1)
    make_attempt(task, output_bytes=5)
    for position in range(5):
        write(task, position, b"x", stream=("stdout", "stderr")[position % 2])

    page = text_of(admin_client.get(page_of(task)))

    assert page.count(">x</span>") == 3
    assert "2 more changes between the two streams are not shown" in page


def test_output_is_downloaded_as_it_was_written(admin_client: Client) -> None:
    task = make_task(task_id="../we;ird", status=TaskStatus.COMPLETED, fence=1)
    write(task, 0, b"\x1b[31mred\xff")

    response = admin_client.get(reverse("admin:scheduling_task_output", args=(task.pk, 1)))

    assert response.content == b"\x1b[31mred\xff"
    assert response["Content-Type"] == "text/plain; charset=utf-8"
    assert response["Content-Disposition"] == 'attachment; filename="..-we-ird-1.log"'


def test_output_needs_the_permission_to_view(operator: Callable[..., Client]) -> None:
    task = make_task()
    client = operator("view_schedule")

    assert client.get(reverse("admin:scheduling_task_output", args=(task.pk, 1))).status_code == 403
    assert client.get(page_of(task)).status_code == 403


@pytest.mark.parametrize("pk", ["0", "999", "abc", "9" * 30])
def test_task_that_is_not_there_is_404(admin_client: Client, pk: str) -> None:
    assert admin_client.get(reverse("admin:scheduling_task_change", args=(pk,))).status_code == 404


def test_big_numbers_in_parameters_stay_exact(admin_client: Client) -> None:
    task = make_task(parameters={"id": 2**63 - 1})

    assert "9223372036854775807" in text_of(admin_client.get(page_of(task)))


def test_page_of_a_task_asks_a_fixed_number_of_questions(admin_client: Client, django_assert_num_queries: Any) -> None:
    origin = make_task()
    task = make_task(schedule=make_schedule(), origin=origin, status=TaskStatus.FAILED, fence=9)
    for number in range(1, 9):
        make_attempt(task, fence=number, number=number)
        write(task, 0, b"x", fence=number)
        make_task(origin=task)

    # Session, user, hold, task, interventions, attempts, output, retries.
    with django_assert_num_queries(8):
        admin_client.get(page_of(task))


# --- retry policies and fields ----------------------------------------------------------------------------------


def policy_form(**fields: str) -> dict[str, str]:
    return {
        "name": "gentle",
        "max_attempts": "4",
        "first_wait_ms": "30 s",
        "multiplier": "2",
        "cap_ms": "15 min",
        "jitter": "full",
    } | fields


def test_policy_is_added_and_its_waits_are_spelled_out(admin_client: Client) -> None:
    admin_client.post(reverse("admin:scheduling_retrypolicy_add"), policy_form())

    page = text_of(admin_client.get(reverse("admin:scheduling_retrypolicy_changelist")))

    assert RetryPolicy.objects.get(pk="gentle").first_wait_ms == 30_000
    assert "30 s, 1 min, 2 min<" in page


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"max_attempts": "0"}, "max_attempts"),
        ({"multiplier": "0.5"}, "multiplier"),
        ({"multiplier": "nan"}, "multiplier"),
        ({"cap_ms": "10 s"}, "cap_ms"),
        ({"deadline_ms": "10 ms"}, "deadline_ms"),
        ({"deadline_ms": "31 d"}, "deadline_ms"),
        ({"first_wait_ms": "soon"}, "first_wait_ms"),
        ({"name": "a b"}, "name"),
        ({"name": "standard"}, "name"),
    ],
)
def test_policy_that_cannot_be_is_refused(admin_client: Client, fields: dict[str, str], field: str) -> None:
    response = admin_client.post(reverse("admin:scheduling_retrypolicy_add"), policy_form(**fields))

    assert list(response.context["adminform"].form.errors) == [field]


def test_policy_shows_its_deadline(admin_client: Client) -> None:
    admin_client.post(reverse("admin:scheduling_retrypolicy_add"), policy_form(deadline_ms="2 h 30 min"))

    page = text_of(admin_client.get(reverse("admin:scheduling_retrypolicy_changelist")))

    assert RetryPolicy.objects.get(pk="gentle").deadline_ms == 9_000_000
    assert "2 h 30 min" in page


def test_policy_cannot_be_deleted(admin_client: Client) -> None:
    response = admin_client.post(reverse("admin:scheduling_retrypolicy_delete", args=("standard",)), {"post": "yes"})

    assert response.status_code == 403


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("1 h 30 min", 5_400_000),
        ("90s", 90_000),
        ("1.5 h", 5_400_000),
        ("2 days", 172_800_000),
        ("1 min, 5 s", 65_000),
        ("0", 0),
        ("250ms", 250),
    ],
)
def test_length_of_time_is_read(text: str, ms: int) -> None:
    assert parse_duration(text) == ms


@pytest.mark.parametrize("text", ["90", "soon", "1 fortnight", "h", "-5 s", "1 h x", "1e9 s", "5 s 3"])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        parse_duration(text)


@pytest.mark.parametrize("ms", [0, 1, 999, 60_000, 90_500, 5_400_000, 183_600_001])
def test_length_of_time_is_written_so_that_it_reads_the_same(ms: int) -> None:
    assert parse_duration(in_units(ms)) == ms


def test_json_that_is_nested_too_deeply_is_refused() -> None:
    with pytest.raises(ValidationError):
        JsonObjectField().clean("[" * 20_000)


def test_times_name_their_zone(admin_client: Client) -> None:
    task = make_task(due_at=datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC))

    assert "2026-03-04 05:06:07 UTC" in text_of(admin_client.get(page_of(task)))
