import gc
import logging
import sys
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from rest_framework.test import APIClient

from k1node.lib import logs

Clients = Callable[..., APIClient]
pytestmark = pytest.mark.urls("tests.k1node.api_probe")


def test_an_id_is_made(client: Client) -> None:
    first, second = client.get("/healthz")["X-Request-Id"], client.get("/healthz")["X-Request-Id"]

    assert first.startswith("req-")
    assert len(first) == 20
    assert first != second


def test_the_callers_id_is_kept(client: Client) -> None:
    response = client.get("/api/v2/echoes", headers={"X-Request-Id": "req-Abc.123_4"})

    assert response["X-Request-Id"] == response.json()["error"]["request_id"] == "req-Abc.123_4"


@pytest.mark.parametrize("value", ["", " ", "a b", "-x", "a\tb", "<script>", "é", "x" * 101, 'a"b'])
def test_an_unsafe_id_is_replaced(client: Client, value: str) -> None:
    assert client.get("/healthz", headers={"X-Request-Id": value})["X-Request-Id"].startswith("req-")


def test_each_api_request_is_one_line(api_client: Clients, caplog: pytest.LogCaptureFixture) -> None:
    client = api_client("scheduler:read")

    with caplog.at_level(logging.INFO):
        client.get("/api/v2/echoes/x%0Ay?secret=1")

    record: Any
    (record,) = (record for record in caplog.records if record.name == "k1node.api.middleware")
    assert (record.method, record.path, record.status, record.by) == ("GET", "/api/v2/echoes/x%0Ay", 200, "test")
    assert record.duration_ms > 0


def test_answers_of_the_api_are_not_cached(client: Client) -> None:
    assert client.get("/api/v2/echoes")["Cache-Control"] == "no-store"


def test_the_id_ends_with_the_request(client: Client) -> None:
    client.get("/healthz")

    assert logs.request_id.get() == ""


def test_a_session_nobody_needs_is_not_read(client: Client) -> None:
    # No django_db mark: a query would fail this test.
    client.cookies["sessionid"] = "a" * 32

    assert client.get("/api/v2/openapi.json").status_code == 200


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/api/v2/echoes/1", "/admin/"])
def test_a_cookie_with_a_nul_is_refused(client: Client, path: str) -> None:
    # A quoted cookie may write any byte in octal; PostgreSQL cannot look for a session with a NUL.
    response = client.get(path, headers={"Cookie": r'sessionid="\000aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"'})

    assert response.status_code == 400


@pytest.mark.parametrize("body", ["[{items}]", '{{"parameters": {{"items": [{items}]}}}}', '{{"unknown": [{items}]}}'])
def test_a_parsed_body_does_not_outlive_its_answer(api_client: Clients, body: str) -> None:
    client = api_client("scheduler:write")
    large = body.format(items=",".join(["{}"] * 100_000))
    client.post("/api/v2/echoes", "{}", content_type="application/json")
    gc.collect()
    gc.disable()
    try:
        before = sys.getallocatedblocks()
        client.post("/api/v2/echoes", large, content_type="application/json")
        kept = sys.getallocatedblocks() - before
    finally:
        gc.enable()

    assert kept < 20_000
