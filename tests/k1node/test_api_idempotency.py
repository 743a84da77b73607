"""Idempotency-Key: the same POST sent again has no second effect, whatever happens in between."""

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.db import IntegrityError, OperationalError, connection
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries
from rest_framework.test import APIClient

from k1node import tidying
from k1node.access import keys
from k1node.access.models import ApiKey
from k1node.api import idempotency
from k1node.api.models import IdempotentAnswer
from k1node.lib import wake
from scheduling.models import Schedule, Task
from tests.databases import ON_POSTGRESQL, Rival, only_postgresql, only_sqlite
from tests.k1node.api_probe import MakingViewSet

Clients = Callable[..., APIClient]
pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.k1node.api_probe")]

MADE = "/api/v2/made"
REPLAYED = "Idempotency-Replayed"


@pytest.fixture
def writer(api_client: Clients) -> APIClient:
    return api_client("scheduler:write")


def post(client: APIClient, path: str = MADE, body: Any = None, *, key: str | None = "k") -> Any:
    headers = {} if key is None else {"Idempotency-Key": key}
    return client.post(path, {} if body is None else body, format="json", headers=headers)


def made() -> int:
    """Return how many rows the probe has made."""
    return ApiKey.objects.exclude(name="test").count()


def error_of(response: Any) -> tuple[int, str, str]:
    error = response.json()["error"]
    return response.status_code, error["code"], error["message"]


# --- the first answer, again ------------------------------------------------------------------------------------


def test_the_same_request_has_one_effect_and_gets_the_first_answer_again(writer: APIClient) -> None:
    first, second, third = post(writer), post(writer), post(writer)

    assert [response.status_code for response in (first, second, third)] == [201, 201, 201]
    assert [response.get(REPLAYED) for response in (first, second, third)] == [None, "true", "true"]
    assert first["Location"] == second["Location"] == third["Location"]
    assert first.json()["name"] == second.json()["name"] == "made"
    assert (second["Content-Type"], second["Cache-Control"]) == ("application/json", "no-store")
    assert made() == 1


def test_a_task_is_submitted_once(writer: APIClient) -> None:
    first, second = (post(writer, "/api/v2/tasks", {"handler": "python:noop"}) for _ in range(2))

    assert (first.status_code, second.status_code, second.json()) == (202, 202, first.json())
    assert Task.objects.count() == 1


def test_an_answer_without_a_body_is_replayed(writer: APIClient) -> None:
    first, second = post(writer, f"{MADE}/bare"), post(writer, f"{MADE}/bare")

    assert (first.status_code, second.status_code, second.content) == (204, 204, b"")
    assert "Content-Type" not in second
    assert made() == 1


def test_an_answer_comes_under_the_media_type_asked_for_now(writer: APIClient) -> None:
    post(writer)

    again = writer.post(
        MADE,
        {},
        format="json",
        headers={"Idempotency-Key": "k", "Accept": "application/vnd.k1node.v2+json"},
    )

    assert (again[REPLAYED], again["Content-Type"]) == ("true", "application/vnd.k1node.v2+json")


def test_secrets_are_shown_once_and_not_stored(writer: APIClient) -> None:
    first, second = post(writer).json(), post(writer).json()

    end = first["secret"][-4:]
    assert len(first["secret"]) > 30
    assert second["secret"] == f"…{end}"
    assert second["inner"] == [{"secret": f"…{end}", "hint": "short"}, {"secret": "…"}]
    assert b"0123456789" not in bytes(IdempotentAnswer.objects.get().body or b"")


def test_without_the_header_each_request_counts_and_no_query_is_added(
    writer: APIClient, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    post(writer, key=None)

    with django_assert_num_queries(2):  # the key, and what the action itself does
        post(writer, key=None)

    assert (made(), IdempotentAnswer.objects.count()) == (2, 0)


def test_with_the_header_a_look_and_an_insert_are_added(
    writer: APIClient, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    post(writer, key=None)
    lock = 1 if ON_POSTGRESQL else 0
    savepoints = 2  # in place of BEGIN and COMMIT, since a test is a transaction already

    with django_assert_num_queries(2 + 2 + savepoints + lock):
        post(writer)
    with django_assert_num_queries(1 + 1 + savepoints + lock):
        post(writer)


# --- another request --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param(MADE, {"name": "other"}, id="body"),
        pytest.param(f"{MADE}?x=1", {}, id="query"),
    ],
)
def test_another_request_under_the_key_is_refused(writer: APIClient, path: str, body: dict[str, Any]) -> None:
    post(writer)

    response = post(writer, path, body)

    assert error_of(response) == (409, "CONFLICT", "This Idempotency-Key came with another request before")
    assert response.json()["error"]["details"] == [
        {
            "field": "Idempotency-Key",
            "message": "Came with another body or query before",
            "suggestion": "Use a new key for a new request",
        }
    ]
    assert made() == 1


@pytest.mark.parametrize("body", ['{"name":"a"}', ' {\n"name" : "a" } ', '{"name":"\\u0061"}'])
def test_the_same_body_written_otherwise_is_the_same_request(writer: APIClient, body: str) -> None:
    post(writer, body={"name": "a"})

    again = writer.post(MADE, body, content_type="application/json", headers={"Idempotency-Key": "k"})

    assert again[REPLAYED] == "true"


def test_keys_count_by_caller_and_path(writer: APIClient, api_client: Clients) -> None:
    other = api_client("scheduler:write")

    answers = [post(writer), post(other), post(writer, f"{MADE}/elsewhere"), post(writer, key="K")]

    assert [REPLAYED in response for response in answers] == [False] * 4
    assert made() == 4


def test_a_caller_without_the_scope_learns_nothing(writer: APIClient, api_client: Clients) -> None:
    post(writer)
    ApiKey.objects.filter(name="test").update(scopes=["scheduler:read"])

    assert post(writer).status_code == 403


@pytest.mark.parametrize("method", ["put", "patch", "delete", "get"])
def test_other_methods_do_not_heed_it(writer: APIClient, method: str) -> None:
    answers = [getattr(writer, method)(MADE, headers={"Idempotency-Key": "k"}) for _ in range(2)]

    assert [(response.status_code, REPLAYED in response) for response in answers] == [(201, False)] * 2
    assert made() == 2


def test_a_view_can_leave_it_out(writer: APIClient) -> None:
    answers = [post(writer, f"{MADE}/heedless", key='"') for _ in range(2)]

    assert [response.status_code for response in answers] == [201, 201]
    assert (made(), IdempotentAnswer.objects.count()) == (2, 0)


def test_callers_nobody_knows_share_no_answers(api_client: Clients) -> None:
    answers = [post(api_client(), f"{MADE}/open") for _ in range(2)]

    assert [(response.status_code, REPLAYED in response) for response in answers] == [(201, False)] * 2


# --- keys -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("8e03978e-40d5-43e8-bc93-6894a57f9324", '"8e03978e-40d5-43e8-bc93-6894a57f9324"'),
        ('a"b', r'"a\"b"'),
        (r"a\b", r'"a\\b"'),
        ("a b, c", '"a b, c"'),
        ("x" * 255, '"' + "x" * 255 + '"'),
        ("~" * 255, '"' + "~" * 255 + '"'),
    ],
)
def test_bare_and_quoted_are_the_same_key(writer: APIClient, one: str, other: str) -> None:
    assert post(writer, key=one).status_code == 201
    assert post(writer, key=other)[REPLAYED] == "true"


@pytest.mark.parametrize(
    "key",
    ["", '""', '"', '"a', '"a"b"', '"a", "b"', r'"a\b"', '"a";p=1', "é", "a\tb", "\x7f", "x" * 256, f'"{"x" * 256}"'],
)
def test_what_is_no_key_is_refused(writer: APIClient, key: str) -> None:
    response = post(writer, key=key)

    assert error_of(response) == (400, "INVALID_REQUEST", "Request validation failed")
    assert [detail["field"] for detail in response.json()["error"]["details"]] == ["Idempotency-Key"]
    assert made() == 0


# --- what is not kept -------------------------------------------------------------------------------------------


def test_an_error_after_the_effect_takes_both_back_and_the_next_try_is_carried_out(
    writer: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise IntegrityError("the answer never came to be")

    with monkeypatch.context() as broken:
        broken.setattr(MakingViewSet, "meanwhile", staticmethod(fail))
        first = post(writer)
    rows = made(), IdempotentAnswer.objects.count()
    second = post(writer)

    assert (first.status_code, rows) == (500, (0, 0))
    assert (second.status_code, REPLAYED in second, made()) == (201, False, 1)


def test_a_refusal_is_not_kept(writer: APIClient) -> None:
    schedule = {"task_id": "a", "handler": "python:noop", "schedule_type": "event", "schedule_expr": "x"}

    refused = post(writer, "/api/v2/scheduler/schedules", schedule | {"priority": 99})
    corrected = post(writer, "/api/v2/scheduler/schedules", schedule)
    taken = post(writer, "/api/v2/scheduler/schedules", schedule, key="other")

    assert [response.status_code for response in (refused, corrected, taken)] == [400, 201, 409]
    assert (Schedule.objects.count(), IdempotentAnswer.objects.count()) == (1, 1)


def test_an_error_that_is_returned_leaves_no_effect_either(writer: APIClient) -> None:
    response = post(writer, f"{MADE}/reluctant")

    assert (response.status_code, response.json()) == (409, {"done": False})
    assert (made(), IdempotentAnswer.objects.count()) == (0, 0)


def test_a_body_that_cannot_be_read_is_refused_as_ever(writer: APIClient) -> None:
    response = writer.post(MADE, "{", content_type="application/json", headers={"Idempotency-Key": "k"})

    assert error_of(response)[:2] == (400, "INVALID_REQUEST")


def test_an_answer_too_large_to_keep_still_has_no_second_effect(
    writer: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "MAX_BODY_BYTES", 10)

    first, second = post(writer), post(writer)

    assert first.status_code == 201
    assert error_of(second) == (
        409,
        "CONFLICT",
        "The request was carried out before; its answer was too large to be kept",
    )
    assert made() == 1


def test_after_a_day_a_key_is_new_again_pruned_or_not(writer: APIClient) -> None:
    post(writer)
    IdempotentAnswer.objects.update(created_at=timezone.now() - timedelta(hours=23, minutes=59))
    in_time = post(writer)
    IdempotentAnswer.objects.update(created_at=timezone.now() - timedelta(hours=24, seconds=1))
    too_late = post(writer, body={"name": "other"})
    again = post(writer, body={"name": "other"})

    assert [REPLAYED in response for response in (in_time, too_late, again)] == [True, False, True]
    assert (made(), IdempotentAnswer.objects.count()) == (2, 1)


def test_old_answers_are_pruned_a_batch_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "PRUNE_BATCH", 2)
    now = timezone.now()
    for number in range(4):
        age = timedelta(hours=26 - number)  # 26, 25, 24 and 23 hours
        IdempotentAnswer.objects.create(identity=str(number), status=201, created_at=now - age)

    deleted = [tidying.prune(now=now).rows for _ in range(3)]

    assert deleted == [2, 1, 0]
    assert IdempotentAnswer.objects.get().identity == "3"


# --- at the same time -------------------------------------------------------------------------------------------


class Pause:
    """Stops the first call until it is let go on, the others not."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __call__(self) -> None:
        if not self.reached.is_set():
            self.reached.set()
            assert self.go_on.wait(10)


@pytest.fixture
def pause(monkeypatch: pytest.MonkeyPatch) -> Pause:
    pause = Pause()
    monkeypatch.setattr(MakingViewSet, "meanwhile", staticmethod(pause))
    return pause


@only_postgresql
@pytest.mark.django_db(transaction=True)
def test_while_its_twin_runs_a_request_is_refused_on_postgresql(writer: APIClient, rival: Rival, pause: Pause) -> None:
    first = rival.start(post, writer)
    assert pause.reached.wait(10)

    meanwhile = post(writer)
    of_another_key = post(writer, key="other")
    pause.go_on.set()

    assert first.result(10).status_code == 201
    assert error_of(meanwhile) == (
        409,
        "CONFLICT",
        "A request with this Idempotency-Key is being carried out at this moment",
    )
    assert meanwhile["Retry-After"] == "1"
    assert of_another_key.status_code == 201
    assert post(writer)[REPLAYED] == "true"
    assert made() == 2


@only_sqlite
@pytest.mark.django_db(transaction=True)
def test_while_its_twin_runs_a_request_waits_for_the_answer_on_sqlite(
    writer: APIClient, rival: Rival, pause: Pause
) -> None:
    first = rival.start(post, writer)
    assert pause.reached.wait(10)
    threading.Timer(0.2, pause.go_on.set).start()

    second = post(writer)

    assert (first.result(10).status_code, second.status_code, second[REPLAYED]) == (201, 201, "true")
    assert made() == 1


@only_postgresql
@pytest.mark.django_db(transaction=True)
def test_a_twin_that_fails_leaves_the_way_free(
    writer: APIClient, rival: Rival, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OperationalError("connection lost")

    with monkeypatch.context() as broken:
        broken.setattr(MakingViewSet, "meanwhile", staticmethod(fail))
        assert rival.do(post, writer).status_code == 503

    assert (post(writer).status_code, made()) == (201, 1)


@pytest.mark.django_db(transaction=True)
def test_of_many_at_once_exactly_one_has_an_effect() -> None:
    text = keys.issue("test", ["scheduler:write"])[1]

    def submit(number: int) -> tuple[int, str | None]:
        client = APIClient()
        client.credentials(HTTP_AUTHORIZATION=f"Bearer {text}")
        try:
            response = post(client, "/api/v2/tasks", {"handler": "python:noop"}, key=f"key {number % 3}")
            return response.status_code, response.get(REPLAYED)
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        answers = Counter(pool.map(submit, range(48)))

    assert answers[202, None] == 3
    assert set(answers) <= {(202, None), (202, "true"), (409, None)}
    assert ON_POSTGRESQL or (409, None) not in answers
    assert (Task.objects.count(), IdempotentAnswer.objects.count()) == (3, 3)


@pytest.mark.django_db(transaction=True)
def test_a_transaction_that_the_database_wants_again_has_one_effect(
    writer: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [1, 1]

    def deadlock() -> None:
        if failures:
            failures.pop()
            error = OperationalError("database is locked")
            error.__cause__ = psycopg.errors.DeadlockDetected()
            raise error

    monkeypatch.setattr(MakingViewSet, "meanwhile", staticmethod(deadlock))

    response = post(writer)

    assert (response.status_code, failures, made()) == (201, [], 1)


DIES = """
import os, signal, sys
import django
from django.conf import settings
settings.DATABASES["default"]["NAME"] = sys.argv[1]
settings.ROOT_URLCONF = "tests.k1node.api_probe"
django.setup()
from rest_framework.test import APIClient
from tests.k1node.api_probe import MakingViewSet
MakingViewSet.meanwhile = staticmethod(lambda: os.kill(os.getpid(), signal.SIGKILL))
client = APIClient()
client.post("/api/v2/made", {}, format="json", headers={"Idempotency-Key": "k", "Authorization": sys.argv[2]})
"""


@pytest.mark.django_db(transaction=True)
def test_a_process_that_is_killed_after_the_effect_leaves_neither_effect_nor_answer() -> None:
    authorization = f"Bearer {keys.issue('test', ['scheduler:write'])[1]}"
    environment = os.environ | {"DJANGO_SETTINGS_MODULE": "k1node.settings"}

    died = subprocess.run(
        [sys.executable, "-c", DIES, str(connection.settings_dict["NAME"]), authorization],
        env=environment,
        cwd=settings.BASE_DIR,
        stderr=subprocess.DEVNULL,
        timeout=60,
    )
    rows = made(), IdempotentAnswer.objects.count()
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=authorization)
    response = post(client)

    assert (died.returncode, rows) == (-signal.SIGKILL, (0, 0))
    assert (response.status_code, REPLAYED in response, made()) == (201, False, 1)


@only_postgresql
@pytest.mark.django_db(transaction=True)
def test_workers_are_woken_by_the_first_request_only(writer: APIClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wake, "_told_at", 0.0)
    reach = connection.get_connection_params()
    with psycopg.connect(
        host=reach["host"], port=reach["port"], user=reach["user"], dbname=reach["dbname"], autocommit=True
    ) as listener:
        listener.execute(f"LISTEN {wake.CHANNEL}")
        for _ in range(2):
            post(writer, "/api/v2/tasks", {"handler": "python:noop"})
            monkeypatch.setattr(wake, "_told_at", 0.0)

        assert len(list(listener.notifies(timeout=0.3))) == 1
