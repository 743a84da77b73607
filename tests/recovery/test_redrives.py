"""Redrives: a frozen set, resubmitted little by little, that stops when it should."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from k1node.clock import KINDS
from k1node.events.models import Event
from k1node.lib.errors import FieldInvalid, NotFound
from k1node.operations import jobs
from k1node.operations.jobs import JobRefuses, Pace
from k1node.operations.models import Item, Operation
from recovery import breakers, dead_letters, redrives
from recovery.dead_letters import Wanted
from recovery.models import DeadLetter
from recovery.records import By
from recovery.redrives import NothingToRedrive
from recovery.retries import Changes
from scheduling.models import RetryPolicy, Task, TaskStatus
from tests.databases import Rival, only_postgresql
from tests.factories import NOW, make_dead_letter, make_policy, make_task

pytestmark = pytest.mark.django_db

ANA = By("ana", "disk mended")
SECOND = timedelta(seconds=1)
REDRIVES = "/api/v2/queue/dlq/redrives"


def dead(count: int, **fields: Any) -> list[DeadLetter]:
    return [make_dead_letter(make_task(status=TaskStatus.FAILED, **fields)) for _ in range(count)]


def planned(wanted: Wanted = Wanted(), changes: Changes = Changes(), **how: Any) -> Operation:  # noqa: B008
    job, _ = redrives.plan(wanted, changes, ANA, now=NOW, **how)
    return job


def started(*args: Any, **how: Any) -> Operation:
    return redrives.start(planned(*args, **how).operation_id, ANA, now=NOW)


def tend(seconds: float = 0, times: int = 1) -> None:
    for _ in range(times):
        jobs.tend(KINDS, now=NOW + timedelta(seconds=seconds))


def told(job: Operation) -> tuple[str, int, int, int]:
    job.refresh_from_db()
    return job.state, job.done, job.refused, job.total


def statuses() -> list[str]:
    return list(DeadLetter.objects.order_by("pk").values_list("status", flat=True))


def made() -> list[Task]:
    return list(Task.objects.filter(task_id__contains="-retry-").order_by("pk"))


def test_a_plan_freezes_its_set_and_does_nothing() -> None:
    dead(3)

    job = planned()
    dead(1)
    tend()

    assert told(job) == ("planned", 0, 0, 3)
    assert job.operation_id.startswith("redrive-")
    assert made() == []


def test_a_started_one_resubmits_its_set_with_the_changes_and_no_more() -> None:
    letters = dead(3, handler="python:sleep", parameters={"seconds": 1})
    job = planned(changes=Changes({"timeout_ms": 5000}, "aggressive"))
    dead(1)

    redrives.start(job.operation_id, ANA, now=NOW)
    tend(times=2)

    assert told(job) == ("completed", 3, 0, 3)
    assert [task.task_id for task in made()] == [f"{letter.task.task_id}-retry-1" for letter in letters]
    assert {(task.timeout_ms, task.retry_policy_id, task.created_by) for task in made()} == {
        (5000, "aggressive", "ana")
    }
    assert statuses() == ["resubmitted"] * 3 + ["pending"]
    assert [name for name in Event.objects.values_list("name", flat=True) if name.startswith("redrive")] == [
        "redrive.started",
        "redrive.completed",
    ]
    assert redrives.outcomes(job) == {"queued": 3}


def test_entries_that_cannot_be_are_refused_by_name_and_the_rest_goes_on() -> None:
    spent, good, gone = dead(3)
    lame = make_dead_letter(make_task(status=TaskStatus.FAILED, handler="python:none"))
    job = started()
    dead_letters.archive([spent], ANA, now=NOW)
    gone.delete()

    tend()

    assert told(job) == ("completed", 1, 3, 4)
    notes = dict(job.items.values_list("subject", "note"))
    assert "is archived" in notes[spent.pk]
    assert notes[good.pk] == ""
    assert "none" in notes[lame.pk]
    assert "It is gone" in notes.values()


def test_a_step_takes_so_many_and_the_next_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "AT_ONCE", 2)
    dead(5)
    job = started()

    seen = []
    for _ in range(3):
        tend()
        seen.append(told(job)[:2])

    assert seen == [("running", 2), ("running", 4), ("completed", 5)]


def test_no_more_a_second_than_wanted() -> None:
    dead(10)
    job = started(pace=Pace(per_second=4))

    seen = []
    for quarters in range(12):
        tend(quarters / 4, times=3)
        seen.append(told(job)[1])

    assert seen == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 10]


def test_the_rest_follows_when_the_first_have_completed() -> None:
    dead(5)
    job = started(pace=Pace(first=2))
    tend(0, times=5)
    assert told(job) == ("running", 2, 0, 5)
    assert job.said == "Waiting for 2 of the first 2"

    Task.objects.filter(pk__in=[task.pk for task in made()]).update(status=TaskStatus.COMPLETED, finished_at=NOW)
    tend(1)
    tend(2)

    assert told(job) == ("completed", 5, 0, 5)
    assert job.said == ""


def test_the_rest_stays_when_one_of_the_first_fails_until_somebody_goes_on() -> None:
    dead(5)
    job = started(pace=Pace(first=2))
    tend()
    first, second = made()
    Task.objects.filter(pk=first.pk).update(status=TaskStatus.COMPLETED, finished_at=NOW)
    Task.objects.filter(pk=second.pk).update(status=TaskStatus.FAILED, finished_at=NOW)

    tend(1, times=3)
    stopped = told(job), job.said
    redrives.start(job.operation_id, ANA, now=NOW + SECOND)
    tend(1, times=2)

    assert stopped == (("stopped", 2, 0, 5), "1 of the first 2 did not succeed")
    assert told(job) == ("completed", 5, 0, 5)


def test_the_rest_stays_when_none_of_the_first_could_be_resubmitted() -> None:
    lame = [make_dead_letter(make_task(status=TaskStatus.FAILED, handler="python:none")) for _ in range(2)]
    dead(2)
    job = started(pace=Pace(first=len(lame)))

    tend(0, times=3)

    assert told(job) == ("stopped", 0, 2, 4)
    assert job.said == "None of the first 2 could be resubmitted"


def test_an_obstacle_while_the_first_are_tried_proves_nothing() -> None:
    dead(4, circuit_breaker="api")
    breakers.create("api", {}, ANA, now=NOW)
    job = started(pace=Pace(first=1))
    tend()
    breakers.open_("api", ANA, now=NOW)
    tend(1)
    breakers.reset("api", ANA, now=NOW)

    redrives.start(job.operation_id, ANA, now=NOW)
    tend(2, times=3)

    assert told(job) == ("running", 1, 0, 4)


def test_small_jobs_do_not_wait_for_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "AT_ONCE", 2)
    dead(20)
    large = started()
    make_dead_letter(make_task(task_id="other", status=TaskStatus.FAILED))
    small = started(Wanted(task_id="other"))

    tend(0, times=3)

    assert told(small)[0] == "completed"
    assert told(large)[:2] == ("running", 4)


def test_fewer_than_the_first_are_simply_done() -> None:
    dead(2)
    job = started(pace=Pace(first=5))

    tend()

    assert told(job) == ("completed", 2, 0, 2)


def test_it_stops_when_the_breaker_opens_and_goes_on_when_somebody_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "AT_ONCE", 2)
    dead(4, circuit_breaker="api")
    breakers.create("api", {}, ANA, now=NOW)
    job = started()
    tend()
    breakers.open_("api", ANA, now=NOW)

    tend(times=3)
    stopped = told(job), job.said
    breakers.reset("api", ANA, now=NOW)
    redrives.start(job.operation_id, ANA, now=NOW)
    tend(times=2)

    assert stopped == (("stopped", 2, 0, 4), "The breaker 'api' is open")
    assert told(job) == ("completed", 4, 0, 4)


def test_a_breaker_that_opens_while_the_first_are_tried_stops_it() -> None:
    dead(4, circuit_breaker="api")
    breakers.create("api", {}, ANA, now=NOW)
    job = started(pace=Pace(first=1))
    tend()
    breakers.open_("api", ANA, now=NOW)

    tend(1)

    assert told(job)[:2] == ("stopped", 1)


def test_with_an_open_breaker_they_wait_behind_it_if_that_is_wanted() -> None:
    dead(2, circuit_breaker="api")
    breakers.create("api", {}, ANA, now=NOW)
    breakers.open_("api", ANA, now=NOW)
    job = started(stop_when_open=False)

    tend()

    assert told(job) == ("completed", 2, 0, 2)
    assert {task.status for task in made()} == {"blocked"}


def test_stopped_it_rests_until_somebody_lets_it_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "AT_ONCE", 2)
    dead(5)
    job = started()
    tend()

    redrives.stop(job.operation_id, ANA, now=NOW)
    tend(times=3)
    rested = told(job), job.said
    with pytest.raises(JobRefuses):
        redrives.stop(job.operation_id, ANA, now=NOW)
    redrives.start(job.operation_id, ANA, now=NOW)
    tend(times=3)

    assert rested == (("stopped", 2, 0, 5), "Stopped by ana")
    assert told(job) == ("completed", 5, 0, 5)


def test_cancelled_it_goes_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "AT_ONCE", 2)
    dead(5)
    job = started()
    tend()

    redrives.cancel(job.operation_id, ANA, now=NOW)
    tend(times=3)

    assert told(job) == ("cancelled", 2, 0, 5)
    assert statuses() == ["resubmitted"] * 2 + ["pending"] * 3
    with pytest.raises(JobRefuses):
        redrives.start(job.operation_id, ANA, now=NOW)
    with pytest.raises(JobRefuses):
        redrives.cancel(job.operation_id, ANA, now=NOW)
    with pytest.raises(NotFound):
        redrives.cancel("redrive-none", ANA, now=NOW)


def test_a_plan_without_entries_or_with_changes_that_cannot_fit_is_refused() -> None:
    with pytest.raises(NothingToRedrive):
        planned()
    dead(1)
    with pytest.raises(FieldInvalid):
        planned(changes=Changes({"timeout_ms": -1}))
    with pytest.raises(FieldInvalid):
        planned(Wanted(status="archived"))

    assert not Operation.objects.exists()


def test_a_policy_that_is_gone_by_then_stops_it() -> None:
    dead(1)
    make_policy(name="brief")
    job = started(changes=Changes(retry_policy="brief"))
    RetryPolicy.objects.filter(pk="brief").delete()

    tend()

    assert told(job)[0] == "stopped"
    assert "brief" in job.said


def test_a_step_that_fails_is_tried_again_and_stands_in_nobodys_way(monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = dead(1)
    bad = started()
    dead(1)
    good = started(Wanted(task_id=DeadLetter.objects.exclude(pk=one.pk).get().task.task_id))
    perform = redrives.REDRIVE.perform
    failing = [True]

    def broken(job: Operation, *rest: Any) -> Any:
        if job.pk == bad.pk and failing:
            raise RuntimeError("no")
        return perform(job, *rest)

    kinds = {"redrive": jobs.Kind("redrive", broken, redrives.REDRIVE.obstacle, redrives.REDRIVE.verdict)}

    jobs.tend(kinds, now=NOW)
    jobs.tend(kinds, now=NOW)
    assert (told(bad)[0], told(good)[0]) == ("running", "completed")
    assert "RuntimeError" in bad.said
    failing.clear()
    jobs.tend(kinds, now=NOW + 10 * SECOND)

    assert told(bad)[:2] == ("completed", 1)


def test_trouble_of_the_database_changes_nothing() -> None:
    dead(1)
    job = started()

    def out(*args: Any) -> Any:
        raise OperationalError("gone")

    with pytest.raises(OperationalError):
        jobs.tend({"redrive": jobs.Kind("redrive", out, lambda *a: "", redrives.REDRIVE.verdict)}, now=NOW)

    assert told(job)[0] == "running"
    assert job.said == ""


def test_a_step_costs_the_same_for_many() -> None:
    def counted(count: int) -> int:
        dead(count)
        started()
        with CaptureQueriesContext(connection) as captured:
            tend()
        return len(captured)

    counted(2)

    assert counted(30) == counted(3)


def test_old_jobs_and_plans_that_nobody_started_go() -> None:
    dead(1)
    plan, done, running = planned(), started(), planned()
    tend()
    Operation.objects.filter(pk=running.pk).update(state="running", next_at=NOW)

    assert jobs.prune(before=NOW - timedelta(days=30), now=NOW + timedelta(hours=23)) == 0
    jobs.prune(before=NOW - timedelta(days=30), now=NOW + timedelta(days=2))
    assert set(Operation.objects.all()) == {done, running}
    jobs.prune(before=NOW + SECOND, now=NOW + SECOND)

    assert list(Operation.objects.all()) == [running]
    assert [item.operation for item in Item.objects.select_related("operation")] == [running]
    assert plan.pk


@pytest.mark.django_db(transaction=True)
@only_postgresql
def test_of_two_clocks_one_does_each_step(rival: Rival) -> None:
    dead(3)
    job = started()

    with transaction.atomic():
        Operation.objects.select_for_update().get(pk=job.pk)
        assert rival.do(jobs.tend, KINDS, now=NOW) == 0
    tend()

    assert told(job) == ("completed", 3, 0, 3)
    assert len(made()) == 3


# --- over HTTP ----------------------------------------------------------------------------------------------------


@pytest.fixture
def client(api_client: Callable[..., APIClient]) -> APIClient:
    return api_client("error-recovery:write", "error-recovery:read")


def post(client: APIClient, path: str = "", body: Any = None) -> Any:
    return client.post(f"{REDRIVES}{path}", body or {}, format="json")


def now_tend() -> None:
    jobs.tend(KINDS, now=Operation.objects.latest("pk").next_at or NOW)


def test_planned_started_and_followed(client: APIClient) -> None:
    letter, other = dead(2, handler="python:sleep", parameters={"seconds": 9})

    plan = post(client, "", {"filter": {"task_id": letter.task.task_id}, "parameters": {"seconds": 1}, "first": 0})
    told = plan.json()
    begun = post(client, f"/{told['redrive_id']}/start")
    now_tend()
    after = client.get(plan["Location"]).json()
    entries = client.get(f"{plan['Location']}/entries").json()

    assert (plan.status_code, told["state"], told["total"], told["capped"]) == (201, "planned", 1, False)
    (sample,) = told["sample"]
    assert (sample["dlq_id"], sample["original_parameters"], sample["parameters"], sample["problem"]) == (
        letter.dlq_id,
        {"seconds": 9},
        {"seconds": 1},
        None,
    )
    assert (begun.status_code, begun.json()["state"]) == (202, "running")
    assert (after["state"], after["resubmitted"], after["remaining"]) == ("completed", 1, 0)
    assert after["tasks"] == {"queued": 1}
    (entry,) = entries["entries"]
    assert (entry["dlq_id"], entry["state"], entry["new_task_status"]) == (letter.dlq_id, "done", "queued")
    other.refresh_from_db()
    assert other.status == "pending"


def test_started_at_once_and_cancelled(client: APIClient) -> None:
    dead(2)

    begun = post(client, "", {"filter": {}, "per_second": 1, "start": True, "reason": "mended"})
    rested = post(client, f"/{begun.json()['redrive_id']}/stop")
    ended = post(client, f"/{begun.json()['redrive_id']}/cancel")
    again = post(client, f"/{begun.json()['redrive_id']}/start")

    assert (begun.status_code, begun.json()["state"], begun.json()["reason"]) == (202, "running", "mended")
    assert (rested.status_code, rested.json()["state"]) == (202, "stopped")
    assert (ended.status_code, ended.json()["state"], ended.json()["said"]) == (202, "cancelled", "Cancelled by test")
    assert again.status_code == 409
    listed = client.get(REDRIVES).json()
    assert [row["state"] for row in listed["redrives"]] == ["cancelled"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "filter"),
        ({"filter": {"statis": "x"}}, "filter.statis"),
        ({"filter": {"since": "yesterday"}}, "filter.since"),
        ({"filter": {}, "per_second": 0}, "per_second"),
        ({"filter": {}, "first": -1}, "first"),
        ({"filter": {}, "retry_policy": "none such"}, "retry_policy"),
        ({"filter": {}, "parameters": {"timeout_ms": 0}}, "parameters.timeout_ms"),
    ],
)
def test_a_wrong_plan_is_named(client: APIClient, body: dict[str, Any], field: str) -> None:
    dead(1)

    response = post(client, "", body)

    assert response.status_code == 400
    assert response.json()["error"]["details"][0]["field"] == field


@pytest.mark.parametrize("verb", ["start", "stop", "cancel"])
def test_a_verb_is_posted_and_nothing_else(client: APIClient, verb: str) -> None:
    dead(1)
    address = post(client, "", {"filter": {}})["Location"]

    assert client.get(f"{address}/{verb}").status_code == 405


def test_nothing_that_fits_is_said(client: APIClient) -> None:
    assert post(client, "", {"filter": {}}).status_code == 409
    assert client.get(f"{REDRIVES}/redrive-none").status_code == 404
    assert post(client, "/redrive-none/start").status_code == 404


def test_only_writers_redrive(api_client: Callable[..., APIClient]) -> None:
    dead(1)
    reader = api_client("error-recovery:read")

    assert reader.get(REDRIVES).status_code == 200
    assert post(reader, "", {"filter": {}}).status_code == 403


def test_entries_are_paged_in_the_order_of_the_job(client: APIClient) -> None:
    dead(5)
    address = post(client, "", {"filter": {}, "start": True})["Location"]
    now_tend()

    first = client.get(f"{address}/entries", {"limit": 3}).json()
    with CaptureQueriesContext(connection) as captured:
        second = client.get(
            f"{address}/entries", {"limit": 3, "cursor": first["pagination"]["next_cursor"], "state": "done"}
        ).json()

    ids = [entry["dlq_id"] for page in (first, second) for entry in page["entries"]]
    assert ids == list(DeadLetter.objects.order_by("pk").values_list("dlq_id", flat=True))
    assert len(captured) <= 5
