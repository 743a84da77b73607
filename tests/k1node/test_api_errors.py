import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from rest_framework.exceptions import ErrorDetail
from rest_framework.test import APIClient

from k1node.api.errors import Hint, flatten
from k1node.lib.errors import Detail

Clients = Callable[..., APIClient]
pytestmark = pytest.mark.urls("tests.k1node.api_probe")

MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00")


def error_of(response: Any) -> dict[str, Any]:
    """Return the error of an answer, having checked its shape."""
    assert response["Content-Type"] == "application/json"
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert list(error) == ["code", "message", "status", "timestamp", "request_id", "details"]
    assert error["status"] == response.status_code
    assert MOMENT.fullmatch(error["timestamp"])
    assert error["request_id"] == response["X-Request-Id"]
    assert isinstance(error["details"], list)
    return error


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("conflict", 409, "CONFLICT"),
        ("field", 400, "INVALID_REQUEST"),
        ("not-found", 404, "NOT_FOUND"),
        ("http404", 404, "NOT_FOUND"),
        ("denied", 403, "FORBIDDEN"),
        ("parse", 400, "INVALID_REQUEST"),
        ("unavailable", 503, "SERVICE_UNAVAILABLE"),
        ("too-big", 413, "PAYLOAD_TOO_LARGE"),
        ("suspicious", 400, "INVALID_REQUEST"),
        ("bug", 500, "INTERNAL_ERROR"),
        ("throttled", 429, "RATE_LIMIT_EXCEEDED"),
    ],
)
def test_every_error_has_the_same_shape(api_client: Clients, name: str, status: int, code: str) -> None:
    response = api_client("admin").get(f"/api/v2/echoes/{name}")

    assert (response.status_code, error_of(response)["code"]) == (status, code)
    assert b"secret" not in response.content


def test_details_of_a_domain_error_are_shown(api_client: Clients) -> None:
    response = api_client("admin").get("/api/v2/echoes/field")

    assert error_of(response)["details"] == [
        {"field": "handler", "message": "is not allowed", "suggestion": "Use bash"}
    ]


def test_a_bug_is_logged_with_its_traceback(api_client: Clients, caplog: pytest.LogCaptureFixture) -> None:
    client = api_client("admin")

    with caplog.at_level(logging.ERROR):
        client.get("/api/v2/echoes/bug")

    (record,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


def test_a_lost_database_tells_when_to_come_back(api_client: Clients) -> None:
    assert api_client("admin").get("/api/v2/echoes/unavailable")["Retry-After"] == "5"


def test_without_credentials_it_is_401_with_a_challenge(client: Client) -> None:
    response = client.get("/api/v2/echoes")

    assert error_of(response)["code"] == "UNAUTHORIZED"
    assert response["WWW-Authenticate"] == 'Bearer realm="k1node"'


def test_a_missing_scope_is_named(api_client: Clients) -> None:
    response = api_client("scheduler:read").post("/api/v2/echoes", {}, format="json")

    assert (response.status_code, error_of(response)["code"]) == (403, "FORBIDDEN")
    assert "scheduler:write, error-recovery:write" in error_of(response)["message"]


def test_an_action_without_scopes_is_open_to_nobody(api_client: Clients) -> None:
    response = api_client("admin").get("/api/v2/forgotten")

    assert (response.status_code, error_of(response)["code"]) == (403, "FORBIDDEN")


@pytest.mark.parametrize("method", ["put", "patch", "options"])
def test_other_methods_are_405_with_allow(api_client: Clients, method: str) -> None:
    response = getattr(api_client("scheduler:read"), method)("/api/v2/echoes")

    assert (response.status_code, error_of(response)["code"]) == (405, "METHOD_NOT_ALLOWED")
    assert response["Allow"] == "GET, POST, HEAD"


def test_other_media_types_are_refused(api_client: Clients) -> None:
    response = api_client("admin").post("/api/v2/echoes", "a=b", content_type="application/x-www-form-urlencoded")

    assert (response.status_code, error_of(response)["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")


def test_unacceptable_representations_are_406(api_client: Clients) -> None:
    response = api_client("admin").get("/api/v2/echoes", headers={"Accept": "text/csv"})

    assert (response.status_code, error_of(response)["code"]) == (406, "NOT_ACCEPTABLE")


@pytest.mark.parametrize("accept", ["*/*", "application/json", "application/*;q=0.5", "text/html, */*;q=0.1"])
def test_plain_json_is_the_default(api_client: Clients, accept: str) -> None:
    response = api_client("admin").get("/api/v2/echoes/1?format=xml", headers={"Accept": accept})

    assert (response.status_code, response["Content-Type"]) == (200, "application/json")


def test_the_products_own_media_type_is_answered_in_kind(api_client: Clients) -> None:
    media_type = "application/vnd.k1node.v2+json"

    response = api_client("admin").post(
        "/api/v2/echoes", b'{"title": "x"}', content_type=media_type, headers={"Accept": media_type}
    )

    assert (response.status_code, response["Content-Type"]) == (201, media_type)


@pytest.mark.parametrize("path", ["/api", "/api/", "/api/v2/nothing", "/api/v3/echoes", "/api/v2/echoes/"])
def test_unknown_addresses_of_the_api_are_json(client: Client, path: str) -> None:
    response = client.get(path)

    assert (response.status_code, error_of(response)["code"]) == (404, "NOT_FOUND")


def test_unknown_addresses_elsewhere_are_pages(client: Client) -> None:
    response = client.get("/nothing")

    assert (response.status_code, response["Content-Type"]) == (404, "text/html; charset=utf-8")


def test_errors_outside_the_views_are_json_too(client: Client) -> None:
    client.raise_request_exception = False

    response = client.get("/api/v2/broken")

    assert (response.status_code, error_of(response)["code"]) == (500, "INTERNAL_ERROR")
    assert b"secret" not in response.content


def test_a_foreign_host_is_refused_in_json(client: Client) -> None:
    response = client.get("/api/v2/echoes", headers={"Host": "evil.example"})

    assert (response.status_code, error_of(response)["code"]) == (400, "INVALID_REQUEST")
    assert b"evil.example" not in response.content


@pytest.mark.parametrize("path", ["/api/v2/echoes/a%00b", "/api/v2/echoes?enabled=%00"])
def test_nul_in_an_address_is_refused_before_any_query(client: Client, path: str) -> None:
    response = client.get(path)

    assert (response.status_code, error_of(response)["code"]) == (400, "INVALID_REQUEST")


def test_field_paths_of_nested_errors() -> None:
    wrong = ErrorDetail("wrong", Hint("invalid", "do right"))
    problems = {
        "tasks": {17: {"handler": [wrong], "non_field_errors": [wrong]}},
        "names": {1: [wrong]},
        "non_field_errors": [wrong],
        "old": [{}, {"a": [wrong]}],
    }

    assert flatten(problems) == [
        Detail("tasks[17].handler", "wrong", "do right"),
        Detail("tasks[17]", "wrong", "do right"),
        Detail("names[1]", "wrong", "do right"),
        Detail("body", "wrong", "do right"),
        Detail("old[1].a", "wrong", "do right"),
    ]
