import json
import logging
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.test import Client
from pytest_django import Settings
from rest_framework.exceptions import ErrorDetail
from rest_framework.test import APIClient

from k1node.api.error_codes import BY_CODE, TABLE
from k1node.api.errors import Hint, as_nested, as_problem, error_response, flatten
from k1node.api.renderers import MEDIA_TYPES, PROBLEM
from k1node.lib.errors import Detail, K1NodeError, RateLimited

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
        ("changed", 412, "PRECONDITION_FAILED"),
    ],
)
def test_every_error_has_the_same_shape(api_client: Clients, name: str, status: int, code: str) -> None:
    response = api_client("admin").get(f"/api/v2/echoes/{name}")

    assert (response.status_code, error_of(response)["code"]) == (status, code)
    assert b"secret" not in response.content


@pytest.mark.parametrize("path", ["/api/v2/echoes/conflict", "/api/v2/nothing", "/api/v2/echoes/a%00b"])
def test_an_error_links_to_what_is_said_of_its_code(api_client: Clients, settings: Settings, path: str) -> None:
    settings.K1NODE_URL = "https://k1.example.org"

    response = api_client("admin").get(path)

    code = error_of(response)["code"]
    assert response["Link"] == f'<https://k1.example.org/api/errors#{code}>; rel="help"'


def test_a_rate_limit_has_the_designs_flat_body(api_client: Clients) -> None:
    response = api_client("admin").get("/api/v2/echoes/limited")

    assert (response.status_code, response["Content-Type"]) == (429, "application/json")
    assert response.json() == {
        "error": "rate_limit_exceeded",
        "message": "API rate limit exceeded",
        "limit": 1000,
        "remaining": 0,
        "reset_at": "2026-03-04T06:00:00.000+00:00",
        "retry_after": 3,
    }
    assert response["Retry-After"] == response["X-RateLimit-RetryAfter"] == "3"


def test_an_error_met_outside_a_view_has_the_same_body_and_headers(now: datetime) -> None:
    limited = RateLimited(limit=5, remaining=0, reset_at=now, retry_after=7)

    response = error_response(limited)

    assert (response.status_code, response["Content-Type"]) == (429, "application/json")
    assert (json.loads(response.content)["limit"], response["Retry-After"]) == (5, "7")


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
    assert response["WWW-Authenticate"] == 'Bearer realm="k1node", error="insufficient_scope", scope="scheduler:write"'


def test_an_action_without_scopes_is_open_to_nobody(api_client: Clients) -> None:
    response = api_client("admin").get("/api/v2/forgotten")

    assert (response.status_code, error_of(response)["code"]) == (403, "FORBIDDEN")


@pytest.mark.parametrize("method", ["put", "patch", "options"])
def test_other_methods_are_405_with_allow(api_client: Clients, method: str) -> None:
    response = getattr(api_client("scheduler:read"), method)("/api/v2/echoes")

    assert (response.status_code, error_of(response)["code"]) == (405, "METHOD_NOT_ALLOWED")
    assert response["Allow"] == "GET, POST, HEAD"


@pytest.mark.parametrize("name", ["application/x-www-form-urlencoded", "application/vnd.k1node.v7+json", "x" * 300])
def test_other_media_types_are_refused_with_those_that_are_taken(api_client: Clients, name: str) -> None:
    response = api_client("admin").post("/api/v2/echoes", "a=b", content_type=name)

    error = error_of(response)
    assert (response.status_code, error["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert response["Accept"] == response["Accept-Post"] == ", ".join(MEDIA_TYPES)
    assert "Accept-Patch" not in response
    assert "application/json" in error["message"]
    (detail,) = error["details"]
    assert (detail["field"], detail["suggestion"]) == ("Content-Type", "Send application/json")
    assert all(media_type in detail["message"] for media_type in MEDIA_TYPES)
    assert name[:100] in detail["message"]
    assert len(detail["message"]) < 300


def test_a_patch_has_its_own_header(api_client: Clients) -> None:
    response = api_client("admin").patch("/api/v2/echoes/1", "a=b", content_type="text/plain")

    assert (response.status_code, error_of(response)["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert response["Accept"] == response["Accept-Patch"] == ", ".join(MEDIA_TYPES)
    assert "Accept-Post" not in response


@pytest.mark.parametrize("media_type", MEDIA_TYPES)
def test_bodies_come_under_any_of_its_names(api_client: Clients, media_type: str) -> None:
    response = api_client("admin").post("/api/v2/echoes", b'{"title": "x"}', content_type=f"{media_type};charset=utf-8")

    assert (response.status_code, response.json()) == (201, {"title": "x"})


@pytest.mark.parametrize("path", ["/api", "/api/", "/api/v2/nothing", "/api/v2/echoes/"])
def test_unknown_addresses_of_the_api_are_json(client: Client, path: str) -> None:
    response = client.get(path)

    assert (response.status_code, error_of(response)["code"]) == (404, "NOT_FOUND")


@pytest.mark.parametrize("method", ["get", "post", "put", "patch", "delete", "options", "trace"])
def test_unknown_addresses_are_404_whatever_the_method(method: str) -> None:
    response = getattr(Client(enforce_csrf_checks=True), method)("/api/v2/nothing")

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


# --- as problems ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "path",
    [f"/api/v2/echoes/{name}" for name in ("conflict", "field", "http404", "unavailable", "bug", "changed")]
    + ["/api/v2/nothing", "/api/v9/echoes", "/api/v2/echoes/a%00b", "/api/v1/echoes/conflict"],
)
def test_any_error_can_be_had_as_a_problem(api_client: Clients, settings: Settings, path: str) -> None:
    settings.K1NODE_URL = "https://k1.example.org"

    response = api_client("admin").get(path, headers={"Accept": PROBLEM})

    assert response["Content-Type"] == PROBLEM
    problem = response.json()
    assert list(problem) == [
        *("type", "title", "status", "detail", "instance", "code", "request_id", "timestamp", "errors")
    ]
    assert problem["type"] == f"https://k1.example.org/api/errors#{problem['code']}"
    assert problem["title"] == BY_CODE[problem["code"]].title
    assert problem["status"] == response.status_code == BY_CODE[problem["code"]].status
    assert problem["instance"] == f"urn:k1node:request:{response['X-Request-Id']}"
    assert problem["request_id"] == response["X-Request-Id"]
    assert MOMENT.fullmatch(problem["timestamp"])
    assert isinstance(problem["errors"], list)


def test_a_problem_has_the_details(api_client: Clients) -> None:
    problem = api_client("admin").get("/api/v2/echoes/field", headers={"Accept": PROBLEM}).json()

    assert problem["detail"] == "Request validation failed"
    assert problem["errors"] == [{"field": "handler", "message": "is not allowed", "suggestion": "Use bash"}]


def test_a_rate_limit_as_a_problem_keeps_its_figures(api_client: Clients) -> None:
    response = api_client("admin").get("/api/v2/echoes/limited", headers={"Accept": PROBLEM})

    problem = response.json()
    assert (response["Content-Type"], problem["code"], problem["status"]) == (PROBLEM, "RATE_LIMIT_EXCEEDED", 429)
    assert (problem["limit"], problem["remaining"], problem["retry_after"]) == (1000, 0, 3)
    assert problem["reset_at"] == "2026-03-04T06:00:00.000+00:00"
    assert (problem["detail"], problem["errors"]) == ("API rate limit exceeded", [])


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (PROBLEM, PROBLEM),
        (f"{PROBLEM}, application/json;q=0.9", PROBLEM),
        (f"application/json, {PROBLEM}", PROBLEM),
        (f"application/vnd.k1node.v2+json, {PROBLEM}", PROBLEM),
        (f"application/json, {PROBLEM};q=0.9", "application/json"),
        (f"*/*, {PROBLEM};q=0", "application/json"),
        ("application/*", "application/json"),
    ],
)
def test_errors_are_problems_where_those_are_not_preferred_less(
    api_client: Clients, accept: str, media_type: str
) -> None:
    client = api_client("admin")

    error = client.get("/api/v2/echoes/conflict", headers={"Accept": accept})
    success = client.get("/api/v2/echoes/1", headers={"Accept": accept})

    assert (error.status_code, error["Content-Type"]) == (409, media_type)
    assert (success.status_code, success.json()["echo_id"]) == (200, "1")
    assert success["Content-Type"] in MEDIA_TYPES


@pytest.mark.parametrize("body", [b"not json", b"[1]", b'{"error":"invalid_grant"}', b'{"error":{"code":"x"}}'])
def test_a_body_that_is_no_error_of_ours_stays_as_it_is(body: bytes) -> None:
    assert as_problem(body, 400) == body
    assert as_nested(body, 400) == body


# --- the codes --------------------------------------------------------------------------------------------------
def test_every_code_has_its_anchor_on_the_page(client: Client) -> None:
    response = client.get("/api/errors", headers={"Accept": "text/html"})

    page = response.content.decode()
    assert (response.status_code, response["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert re.findall(r'<h2 id="(\w+)">', page) == [entry.code for entry in TABLE]
    assert "<code>GET /api/versions</code>" in page
    assert response["Content-Security-Policy"].startswith("default-src 'self'")


def test_the_document_of_errors_is_in_step_with_the_table() -> None:
    document = Path(django_settings.BASE_DIR) / "docs" / "errors.md"

    assert re.findall(r"^\| <a id=.*$", document.read_text(), re.MULTILINE) == [
        f'| <a id="{entry.code}"></a>`{entry.code}` | {entry.status} | {entry.when} | {entry.remedy} |'
        for entry in TABLE
    ]


def test_every_error_raised_on_purpose_is_in_the_table() -> None:
    kinds, waiting = set(), [K1NodeError]
    while waiting:
        kind = waiting.pop()
        kinds.add((kind.code, kind.status))
        waiting += kind.__subclasses__()

    assert kinds <= {(entry.code, entry.status) for entry in TABLE}
