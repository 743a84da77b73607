"""Submitting batches: all or nothing, every problem by its place, and what is made of thousands."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from batches import items, submission
from batches.models import Batch
from batches.submission import BatchIdTaken, NotOpen, Options, TaskIdsTaken
from k1node.lib.errors import InvalidRequest
from scheduling import claims
from scheduling.models import Gate, Task, TaskStatus
from tests.databases import Rival
from tests.factories import NOW, make_schedule, make_task

pytestmark = pytest.mark.django_db


def given(count: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"task_id": f"t{number}", "handler": "python:noop", **fields} for number in range(count)]


def submit(tasks: list[Any], *, batch_id: str = "b", **more: Any) -> Batch:
    return submission.submit(tasks, batch_id=batch_id, by="ana", now=NOW, **more)


def problems(tasks: list[Any], **more: Any) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        submit(tasks, **more)
    assert not Batch.objects.exists()
    assert not Gate.objects.exists()
    assert not Task.objects.exists()
    return {detail.field: detail.message for detail in caught.value.details}


def statuses() -> list[str]:
    return list(Task.objects.order_by("pk").values_list("status", flat=True))


def test_without_limit_and_order_all_are_queued_and_may_be_bundled() -> None:
    batch = submit(given(3))

    assert statuses() == ["queued"] * 3
    assert not Task.objects.filter(solo=True).exists()
    assert (batch.gate.in_flight, batch.gate.waiting, batch.total) == (3, 0, 3)


def test_a_limit_lets_the_most_urgent_through() -> None:
    tasks = given(4)
    tasks[2]["priority"] = 9

    batch = submit(tasks, options=Options(max_concurrent=2))

    assert statuses() == ["queued", "blocked", "queued", "blocked"]
    assert (batch.gate.in_flight, batch.gate.waiting) == (2, 2)
    assert Task.objects.filter(solo=True).count() == 4


def test_one_by_one_the_first_goes_first_even_if_it_is_not_due() -> None:
    tasks = given(3)
    tasks[0]["delay_until"] = (NOW + timedelta(hours=1)).isoformat()
    tasks[1]["priority"] = 9

    submit(tasks, options=Options(parallel=False))

    assert statuses() == ["scheduled", "blocked", "blocked"]
    assert list(Task.objects.order_by("pk").values_list("task_id", flat=True)) == ["t0", "t1", "t2"]


def test_what_is_not_due_holds_no_place() -> None:
    tasks = given(3)
    tasks[0] |= {"delay_until": (NOW + timedelta(hours=1)).isoformat(), "priority": 10}

    submit(tasks, options=Options(max_concurrent=1))

    assert statuses() == ["blocked", "queued", "blocked"]


def test_defaults_stand_where_an_item_says_nothing() -> None:
    shared = {"handler": "python:sleep", "parameters": {"seconds": 1}, "priority": 3}

    submit([{}, {"priority": 4, "parameters": {"seconds": 2}}], defaults=shared)

    first, second = Task.objects.order_by("pk")
    assert (first.handler, first.parameters, first.priority) == ("python:sleep", {"seconds": 1}, 3)
    assert (second.parameters, second.priority) == ({"seconds": 2}, 4)


def test_ids_that_are_left_out_are_made_up() -> None:
    batch = submit([{"handler": "python:noop"}, {"handler": "python:noop"}], batch_id="")

    names = set(Task.objects.values_list("task_id", flat=True))
    assert len(names) == 2
    assert all(len(name) > 20 for name in names)
    assert batch.batch_id.startswith("batch-")


def test_a_value_written_another_way_is_taken_all_the_same() -> None:
    submit([{"task_id": "t", "handler": " python:noop ", "priority": 7.0, "delay_until": None}])

    task = Task.objects.get()
    assert (task.handler, task.priority, task.due_at) == ("python:noop", 7, NOW)


def test_every_bad_item_is_named() -> None:
    tasks = given(20)
    tasks[3] = "text"  # type: ignore[call-overload]
    tasks[17]["handler"] = "python:absent"
    tasks[4] |= {"priority": 11, "task_id": "batch"}
    tasks[5]["retry_policy"] = "absent"
    tasks[6]["parametres"] = {}
    tasks[7] = {"handler": "python:sleep", "parameters": {"seconds": "x"}}
    tasks[8]["delay_until"] = "tomorrow"
    tasks[9]["circuit_breaker"] = "status"
    del tasks[10]["handler"]

    found = problems(tasks)

    assert set(found) == {
        "tasks[3]",
        "tasks[17].handler",
        "tasks[4].priority",
        "tasks[4].task_id",
        "tasks[5].retry_policy",
        "tasks[6].parametres",
        "tasks[7].parameters.seconds",
        "tasks[8].delay_until",
        "tasks[9].circuit_breaker",
        "tasks[10].handler",
    }


def test_thousands_of_bad_items_are_named_and_not_each_explained() -> None:
    found = problems([{"handler": "python:absent"}] * 2_000)

    assert len(found) == 2_000
    assert found["tasks[1999]"] == "Is not usable either"


def test_bad_defaults_options_and_ids_are_named_together() -> None:
    found = problems(
        given(1), batch_id="a b", defaults={"priority": 0, "task_id": "x"}, options=Options(max_concurrent=0)
    )

    assert set(found) == {"batch_id", "defaults.priority", "defaults.task_id", "options.max_concurrent"}


@pytest.mark.parametrize("count", [0, submission.MOST_TASKS + 1])
def test_none_and_too_many_are_refused(count: int) -> None:
    assert set(problems([{"handler": "python:noop"}] * count)) == {"tasks"}


def test_defaults_must_not_blow_a_batch_up() -> None:
    large = {"handler": "python:noop", "parameters": {"text": "x" * 40_000}}

    assert "defaults.parameters" in problems([{"parameters": {"n": 1}}] * 1_000, defaults=large)
    assert "defaults.parameters" in problems([{}] * 1_000, defaults=large)


def test_ids_that_are_taken_are_listed_and_nothing_is_stored() -> None:
    make_task(task_id="t1")
    make_schedule(task_id="s")

    with pytest.raises(TaskIdsTaken) as caught:
        submit(given(3))
    with pytest.raises(TaskIdsTaken) as by_schedule:
        submit([{"task_id": "s", "handler": "python:noop"}])
    with pytest.raises(TaskIdsTaken) as twice:
        submit([*given(2), *given(1)])

    assert [detail.field for detail in caught.value.details] == ["tasks[1].task_id"]
    assert [detail.field for detail in by_schedule.value.details] == ["tasks[0].task_id"]
    assert [detail.field for detail in twice.value.details] == ["tasks[2].task_id"]
    assert not Batch.objects.exists()
    assert Task.objects.count() == 1


def test_a_batch_id_is_given_once() -> None:
    submit(given(1))

    with pytest.raises(BatchIdTaken):
        submit([{"handler": "python:noop"}])

    assert Task.objects.count() == 1


def test_an_open_batch_takes_more_until_it_is_closed() -> None:
    batch = submit([], is_open=True, defaults={"handler": "python:noop"}, options=Options(max_concurrent=1))

    submission.add(batch, [{"task_id": "a"}, {"task_id": "b"}], by="ana", now=NOW)
    batch = submission.add(batch, [{"task_id": "c"}], by="ana", now=NOW)
    submission.close(batch, by="ana", now=NOW)

    with pytest.raises(NotOpen):
        submission.add(batch, [{}], by="ana", now=NOW)
    with pytest.raises(NotOpen):
        submission.close(batch, by="ana", now=NOW)
    batch.refresh_from_db()
    assert (batch.total, batch.gate.in_flight, batch.gate.waiting) == (3, 1, 2)


@pytest.mark.django_db(transaction=True)
def test_two_who_add_at_once_are_both_counted(rival: Rival) -> None:
    batch = submit([], is_open=True)

    rival.do(submission.add, batch, [{"handler": "python:noop"}], by="bob", now=NOW)
    submission.add(batch, [{"handler": "python:noop"}], by="ana", now=NOW)  # its row is stale

    batch.refresh_from_db()
    assert (batch.total, batch.gate.in_flight) == (2, 2)


def test_a_thousand_tasks_take_as_many_queries_as_one() -> None:
    def queries(tasks: list[Any]) -> int:
        with CaptureQueriesContext(
            connection,
        ) as captured:
            submission.submit(tasks, options=Options(max_concurrent=5), by="ana", now=NOW)
        return len(captured)

    queries([{"task_id": "zero", "handler": "python:noop"}])  # with what a process asks once
    first = queries([{"task_id": "one", "handler": "python:noop"}])

    assert queries(given(1_000)) == first <= 20


def test_ten_thousand_that_wait_are_not_looked_at_by_a_claim() -> None:
    submit([{"handler": "python:noop", "priority": 10}] * 10_000, options=Options(max_concurrent=1))
    make_task(task_id="other", priority=1)

    with CaptureQueriesContext(connection) as captured:
        taken = claims.claim(owner="me", now=NOW, window=2, choose=len)

    assert [each.task_id for each in taken][1] == "other"
    assert len(captured) == 2
    assert Task.objects.filter(status=TaskStatus.QUEUED).count() == 0
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN QUERY PLAN {claims.PEEK}", [2])
            assert "task_claim" in str(cursor.fetchall())


def test_defaults_that_make_too_much_of_the_items_are_refused_before_all_of_it_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(items, "MOST_STORED", 1_000)
    read = []

    class Watched(list[dict[str, Any]]):
        def __iter__(self) -> Iterator[dict[str, Any]]:
            for each in super().__iter__():
                read.append(each)
                yield each

    defaults = {"handler": "python:noop", "parameters": {"text": "x" * 90}}
    found = problems(Watched([{"parameters": {"n": 1}}] * 1_000), defaults=defaults)

    assert list(found) == ["defaults.parameters"]
    assert len(read) < 20
