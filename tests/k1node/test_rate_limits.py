"""Rate limits: never more than the capacity and what came back since, whoever counts, and said on every answer."""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.db import connection
from django.test import Client
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pytest_django import Settings
from rest_framework.test import APIClient

from k1node.access import buckets, keys, limits
from k1node.access.limits import MICRO, Limit
from k1node.lib import origin
from k1node.lib.ids import prefixed
from k1node.lib.sql import is_postgresql
from tests.databases import ON_POSTGRESQL, Rival, only_postgresql, only_sqlite

PROJECT = Path(__file__).resolve().parents[2]
START = 1_800_000_000 * MICRO
HOUR, MINUTE = 3_600 * MICRO, 60 * MICRO
DESIGN = Limit(1000, 3_600_000, 100)

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _own_buckets(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test buckets that nobody has taken from, where a node of this database has them."""
    settings.K1NODE_DATA = tmp_path
    monkeypatch.setattr(buckets, "is_postgresql", is_postgresql)


# --- the arithmetic -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("cost", "allowed"), [(1, 100), (2, 50), (5, 20)])
def test_a_burst_gets_what_a_minute_holds(cost: int, allowed: int) -> None:
    verdicts = [limits.take("key:1", cost, DESIGN, now=START) for _ in range(110)]

    assert [verdict.allowed for verdict in verdicts] == [True] * allowed + [False] * (110 - allowed)


def test_what_a_refusal_says() -> None:
    for _ in range(100):
        limits.take("key:1", 1, DESIGN, now=START)

    verdict = limits.take("key:1", 5, DESIGN, now=START)

    assert (verdict.allowed, verdict.remaining, verdict.burst_remaining) == (False, 900, 0)
    assert verdict.retry_after == 3  # five tokens of 0.6 s
    assert verdict.full_in == 360 and verdict.burst_full_in == 60
    assert verdict.reset_at == datetime.fromtimestamp(START / MICRO + 360, UTC)


@pytest.mark.parametrize(("wait", "allowed"), [(2_999_999, False), (3_000_000, True)])
def test_waiting_as_long_as_told_is_enough_and_less_is_not(wait: int, allowed: bool) -> None:
    for _ in range(100):
        limits.take("key:1", 1, DESIGN, now=START)

    assert limits.take("key:1", 5, DESIGN, now=START + wait).allowed is allowed


def test_the_hour_holds_against_a_caller_that_never_bursts() -> None:
    now, allowed = START, 0
    for _ in range(2500):
        allowed += limits.take("key:1", 1, DESIGN, now=now).allowed
        now += 700_000  # slower than the minute's bucket refills

    assert allowed == 1000 + 2499 * 700_000 // 3_600_000


def test_a_refusal_takes_nothing() -> None:
    for _ in range(98):
        limits.take("key:1", 1, DESIGN, now=START)

    refused = limits.take("key:1", 5, DESIGN, now=START)
    small = limits.take("key:1", 2, DESIGN, now=START)

    assert (refused.allowed, small.allowed) == (False, True)


def test_what_costs_more_than_a_bucket_holds_takes_all_of_it() -> None:
    tiny = Limit(3, 3_600_000, 3)

    first, second = (limits.take("key:1", 5, tiny, now=START) for _ in range(2))

    assert (first.allowed, first.remaining, second.allowed) == (True, 0, False)


def test_buckets_are_apart() -> None:
    for _ in range(100):
        limits.take("key:1", 1, DESIGN, now=START)

    assert limits.take("key:2", 1, DESIGN, now=START).allowed


def test_a_clock_set_back_by_a_day_locks_nobody_out() -> None:
    limits.take("key:1", 100, DESIGN, now=START)

    verdict = limits.take("key:1", 1, DESIGN, now=START - 24 * HOUR)

    assert (verdict.allowed, verdict.remaining, verdict.burst_remaining) == (True, 999, 99)


def test_a_clock_a_moment_behind_a_rivals_gives_nothing_away() -> None:
    limits.take("key:1", 100, DESIGN, now=START)

    assert not limits.take("key:1", 1, DESIGN, now=START - 1000).allowed


def test_full_buckets_are_forgotten_and_others_kept() -> None:
    limits.take("key:1", 1, DESIGN, now=START)
    limits.take("key:2", 100, DESIGN, now=START)

    gone = buckets.forget(now=START + 10 * MICRO)
    verdict = limits.take("key:2", 1, DESIGN, now=START + 10 * MICRO)

    assert (gone, verdict.remaining) == (1, 901)


steps = st.lists(st.tuples(st.integers(0, 90 * MICRO), st.sampled_from([1, 2, 5])), min_size=1, max_size=60)


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=st.integers(1, 300), burst=st.integers(1, 40), steps=steps)
def test_never_more_than_capacity_and_refill_in_any_stretch(
    requests: int, burst: int, steps: list[tuple[int, int]]
) -> None:
    limit, name, now = Limit(requests, 3_600_000, burst), prefixed("key"), START
    taken: list[tuple[int, int]] = []
    remaining = None
    for wait, cost in steps:
        now += wait
        verdict = limits.take(name, cost, limit, now=now)
        if verdict.allowed:
            taken.append((now, min(cost, requests, burst)))
        elif remaining is not None:
            assert verdict.remaining <= remaining + wait * requests / HOUR + 1
        remaining = verdict.remaining

    for first, (since, _) in enumerate(taken):
        spent = 0
        for until, cost in taken[first:]:
            spent += cost
            assert spent <= requests + (until - since) * requests / HOUR
            assert spent <= burst + (until - since) * burst / MINUTE


# --- many at once -------------------------------------------------------------------------------------------------
CALLER = """
import sys, time
import django
django.setup()
from k1node.access import limits
limit = limits.Limit(1000, 3_600_000, 100)
allowed, began = 0, time.time()
for _ in range(400):
    allowed += limits.take(sys.argv[1], int(sys.argv[2]), limit).allowed
print(allowed, began, time.time())
"""


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("cost", [1, 5])
def test_processes_together_get_what_one_would(tmp_path: Path, cost: int) -> None:
    name = prefixed("key")
    environment = _environment(tmp_path)
    callers = [
        subprocess.Popen(
            [sys.executable, "-c", CALLER, name, str(cost)],
            cwd=PROJECT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    said = [caller.communicate(timeout=120)[0].split() for caller in callers]

    allowed = sum(int(line[0]) for line in said)
    elapsed = max(float(line[2]) for line in said) - min(float(line[1]) for line in said)
    assert 100 // cost <= allowed <= (100 + elapsed * 100 / 60) / cost


def _environment(data: Path) -> dict[str, str]:
    import os

    environment = os.environ | {"DJANGO_SETTINGS_MODULE": "k1node.settings", "K1NODE_DATA": str(data)}
    if ON_POSTGRESQL:
        environment["DB_NAME"] = str(connection.settings_dict["NAME"])
    return environment


@only_postgresql
def test_a_take_leaves_nothing_for_a_crash_to_replay() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT relpersistence FROM pg_class WHERE relname = %s", [buckets.TABLE])

        assert cursor.fetchone() == ("u",)


@only_postgresql
@pytest.mark.django_db(transaction=True)
def test_a_take_of_a_rival_that_has_not_committed_is_waited_for(rival: Rival) -> None:
    now = limits.take("key:1", 99, DESIGN).reset_at
    assert now

    rival.execute("BEGIN")
    rival.execute(f"UPDATE {buckets.TABLE} SET burst = burst + 600000, hour = hour + 3600000 WHERE name = 'key:1'")
    waiting = Rival()
    taken = waiting.start(lambda: limits.take("key:1", 1, DESIGN, now=int(time.time() * MICRO)))
    time.sleep(0.3)
    assert not taken.done()
    rival.execute("COMMIT")

    assert not taken.result(10).allowed
    waiting.close()


@only_sqlite
def test_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "limits.sqlite3").write_bytes(b"this is no database" * 100)

    assert limits.take("key:1", 1, DESIGN).allowed
    assert limits.take("key:1", 1, DESIGN).remaining == 998


@only_postgresql
@pytest.mark.django_db(transaction=True)
def test_a_server_that_does_not_answer_is_told_apart_from_a_refusal(rival: Rival) -> None:
    limits.take("key:1", 1, DESIGN)
    rival.execute("BEGIN")
    rival.execute(f"UPDATE {buckets.TABLE} SET burst = burst WHERE name = 'key:1'")
    with connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = 100")
    try:
        with pytest.raises(buckets.Unusable):
            limits.take("key:1", 1, DESIGN)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("RESET statement_timeout")
        rival.execute("ROLLBACK")


# --- over HTTP ----------------------------------------------------------------------------------------------------
@pytest.fixture
def few(settings: Settings) -> None:
    """Let every bucket hold ten requests an hour, three of them in a minute."""
    settings.RATE_LIMIT_REQUESTS, settings.RATE_LIMIT_BURST = 10, 3


Maker = Callable[..., Any]
QUEUE = "/api/v2/scheduler/queue"


@pytest.mark.usefixtures("few")
def test_every_answer_says_where_its_caller_stands(api_client: Maker) -> None:
    response = api_client("scheduler:read").get(QUEUE)

    assert response.status_code == 200
    assert response["X-RateLimit-Limit"] == "10"
    assert response["X-RateLimit-Remaining"] == "9"
    assert datetime.fromisoformat(response["X-RateLimit-Reset"]) > datetime.now(UTC)
    assert response["RateLimit-Policy"] == '"hour";q=10;w=3600, "burst";q=3;w=60'
    assert response["RateLimit"] == '"hour";r=9;t=360, "burst";r=2;t=20'
    assert "Retry-After" not in response and "X-RateLimit-RetryAfter" not in response


@pytest.mark.usefixtures("few")
def test_one_too_many_is_told_when_to_come_back(api_client: Maker) -> None:
    client = api_client("scheduler:read")
    for _ in range(3):
        client.get(QUEUE)

    response = client.get(QUEUE)

    body = response.json()
    assert response.status_code == 429
    assert set(body) == {"error", "message", "limit", "remaining", "reset_at", "retry_after"}
    assert (body["error"], body["message"]) == ("rate_limit_exceeded", "API rate limit exceeded")
    assert (body["limit"], body["remaining"]) == (3, 0)
    assert re.fullmatch(r"[0-9T:.-]+\+00:00", body["reset_at"])
    assert 1 <= body["retry_after"] <= 20
    assert response["Retry-After"] == response["X-RateLimit-RetryAfter"] == str(body["retry_after"])
    assert response["X-RateLimit-Remaining"] == "7"


@pytest.mark.parametrize(
    ("status", "request_of"),
    [
        pytest.param(401, lambda client: client.get(QUEUE), id="without a credential"),
        pytest.param(401, lambda c: c.get(QUEUE, headers={"Authorization": "Bearer sk-no"}), id="with a bad key"),
        pytest.param(404, lambda client: client.get("/api/v2/nowhere"), id="of an unknown path"),
        pytest.param(404, lambda c: c.get("/api/nowhere", headers={"Authorization": "x"}), id="so with a header"),
        pytest.param(200, lambda client: client.get("/api/v2/openapi.json"), id="of the document"),
        pytest.param(
            200, lambda c: c.get("/api/versions", headers={"Authorization": "x"}), id="of a page with a header"
        ),
        pytest.param(406, lambda client: client.get("/api/v9/scheduler/queue"), id="of an unknown version"),
        pytest.param(401, lambda c: c.get(QUEUE, headers={"Cookie": "sessionid=abc"}), id="with a dead session"),
    ],
)
@pytest.mark.usefixtures("few")
def test_who_is_not_recognised_pays_by_address(
    status: int, request_of: Callable[[Any], Any], api_client: Maker
) -> None:
    client = APIClient(REMOTE_ADDR="192.0.2.7")

    first, *_, fourth = (request_of(client) for _ in range(4))

    assert (first.status_code, first["X-RateLimit-Remaining"]) == (status, "9")
    assert fourth.status_code == 429
    assert request_of(APIClient(REMOTE_ADDR="192.0.2.8")).status_code == status


@pytest.mark.usefixtures("few")
def test_a_good_key_is_not_hindered_by_bad_ones_from_its_address(api_client: Maker) -> None:
    for _ in range(4):
        refused = APIClient().get(QUEUE, headers={"Authorization": "Bearer sk-no"})
    assert refused.status_code == 429

    assert api_client("scheduler:read").get(QUEUE).status_code == 200


@pytest.mark.usefixtures("few")
def test_what_a_key_may_not_do_costs_it_too(api_client: Maker) -> None:
    client = api_client("batch:write")

    statuses = [client.get(QUEUE).status_code for _ in range(4)]

    assert statuses == [403, 403, 403, 429]


@pytest.mark.usefixtures("few")
def test_a_key_may_have_a_limit_of_its_own(db: None) -> None:
    _key, text = keys.issue("slow", ["scheduler:read"], requests_per_hour=2)
    client = APIClient(HTTP_AUTHORIZATION=f"Bearer {text}")

    answers = [client.get(QUEUE) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[0]["RateLimit-Policy"] == '"hour";q=2;w=3600, "burst";q=2;w=60'


@pytest.mark.usefixtures("few")
def test_an_operators_session_pays_for_the_api_and_not_for_the_console(operator: Maker) -> None:
    client: Client = operator("view_task")

    pages = [client.get("/admin/") for _ in range(5)]
    answers = [client.get(QUEUE) for _ in range(4)]

    assert {page.status_code for page in pages} == {200}
    assert "X-RateLimit-Limit" not in pages[0]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]


@only_sqlite
@pytest.mark.usefixtures("few")
def test_buckets_that_cannot_be_used_do_not_stop_the_api(api_client: Maker, settings: Settings) -> None:
    settings.K1NODE_DATA = django_settings.K1NODE_DATA / "no such folder"

    response = api_client("scheduler:read").get(QUEUE)

    assert response.status_code == 200 and "X-RateLimit-Limit" not in response


@pytest.mark.parametrize(
    ("method", "path", "cost"),
    [
        ("GET", "/api/v2/scheduler/queue", 1),
        ("POST", "/api/v2/tasks", 1),
        ("POST", "/api/v2/tasks/batch", 5),
        ("POST", "/api/v2/tasks/batch/b-1/retry-failed", 5),
        ("GET", "/api/v2/tasks/batch/b-1", 1),
        ("POST", "/api/v2/queue/dlq/batch-resubmit", 5),
        ("POST", "/api/v2/queue/dlq/batch-archive", 5),
        ("POST", "/api/v2/queue/dlq/redrives", 5),
        ("GET", "/api/v2/queue/dlq/redrives", 1),
        ("POST", "/api/v2/queue/dlq/dlq-1/resubmit", 1),
        ("POST", "/api/v2/queue/dlq", 1),
        ("GET", "/api/v2/webhooks", 2),
        ("DELETE", "/api/v2/webhooks/wh-1", 2),
        ("GET", "/api", 1),
    ],
)
def test_what_a_request_costs(method: str, path: str, cost: int) -> None:
    assert limits.cost_of(method, path) == cost


@pytest.mark.parametrize(
    ("address", "network"),
    [("192.0.2.1", "192.0.2.1"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"), ("unknown", "unknown")],
)
def test_who_counts_as_one_caller(address: str, network: str) -> None:
    assert origin.network_of(address) == network
