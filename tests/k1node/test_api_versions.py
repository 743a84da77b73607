"""How a version of the API is asked for, what the old one looks like, and how it ends."""

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.test import Client
from django.utils.http import parse_http_date
from hypothesis import given
from hypothesis import strategies as st
from pytest_django import Settings
from rest_framework.test import APIClient

from k1node.api import versions
from k1node.api.renderers import JSON, JSON_V1, JSON_V2, MEDIA_TYPES, PROBLEM
from k1node.lib.env import env_date
from k1node.lib.sunset import DEPRECATED_ON, months_after, sunset_on

Clients = Callable[..., APIClient]
pytestmark = pytest.mark.urls("tests.k1node.api_probe")

MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00")
V1, V2 = {"Accept": JSON_V1}, {"Accept": JSON_V2}


def version_of(response: Any) -> str:
    """Return the version an answer is in, having checked that body and header agree."""
    version: str = response["X-API-Version"]
    assert ("timestamp" in response.json()) is (version == "1"), response.content
    assert ("Sunset" in response) is (version == "1")
    return version


@pytest.fixture
def ended(settings: Settings) -> date:
    """Make yesterday the last day of version 1."""
    settings.K1NODE_V1_SUNSET_ON = datetime.now(UTC).date() - timedelta(days=1)
    return settings.K1NODE_V1_SUNSET_ON  # type: ignore[no-any-return]


# --- which one --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("path", "accept", "header", "version", "media_type"),
    [
        pytest.param("/api", "", "", "2", JSON, id="nothing"),
        pytest.param("/api", "*/*", "", "2", JSON, id="anything"),
        pytest.param("/api", JSON, "", "2", JSON, id="JSON"),
        pytest.param("/api/v2", "", "", "2", JSON, id="path 2"),
        pytest.param("/api/v1", "", "", "1", JSON, id="path 1"),
        pytest.param("/api/v1", JSON, "", "1", JSON, id="JSON names no version, the path does"),
        pytest.param("/api", "", "1", "1", JSON, id="header 1"),
        pytest.param("/api", "", "2", "2", JSON, id="header 2"),
        pytest.param("/api", "", " 1 ", "1", JSON, id="header with blanks"),
        pytest.param("/api/v2", "", "1", "1", JSON, id="header over path"),
        pytest.param("/api/v1", "", "2", "2", JSON, id="header over path, the other way"),
        pytest.param("/api", JSON_V1, "", "1", JSON_V1, id="type 1"),
        pytest.param("/api", JSON_V2, "", "2", JSON_V2, id="type 2"),
        pytest.param("/api/v2", JSON_V1, "", "1", JSON_V1, id="type over path"),
        pytest.param("/api/v1", JSON_V2, "", "2", JSON_V2, id="type over path, the other way"),
        pytest.param("/api/v2", JSON_V1, "1", "1", JSON_V1, id="both headers over the path"),
        pytest.param("/api/v1", JSON, "2", "2", JSON, id="JSON and a header"),
        pytest.param("/api", JSON_V1.upper(), "", "1", JSON_V1, id="letter case"),
        pytest.param("/api", f"{JSON_V1};q=0.9, {JSON_V2};q=0.8", "", "1", JSON_V1, id="1 preferred"),
        pytest.param("/api", f"{JSON_V1};q=0.8, {JSON_V2};q=0.9", "", "2", JSON_V2, id="2 preferred"),
        pytest.param("/api", f"{JSON_V1}, {JSON_V2}", "", "2", JSON_V2, id="no preference"),
        pytest.param("/api", f"{JSON_V1}, {JSON}", "", "2", JSON, id="no preference between 1 and JSON"),
        pytest.param("/api/v1", f"{JSON_V1}, {JSON}", "", "1", JSON, id="the same under path 1"),
        pytest.param("/api", f"{JSON_V1}, {JSON};q=0.5", "", "1", JSON_V1, id="1 rather than JSON"),
        pytest.param("/api", f"{JSON_V1}, */*", "", "1", JSON_V1, id="1 named, the rest covered"),
        pytest.param("/api", f"{JSON_V1};q=0.5, */*", "", "2", JSON, id="anything rather than 1"),
        pytest.param("/api", f"{JSON_V1};q=0, */*", "", "2", JSON, id="anything but 1"),
        pytest.param("/api", f"{JSON};q=0, {JSON_V1};q=0.1, */*;q=0.2", "", "2", JSON_V2, id="anything but JSON"),
        pytest.param("/api", "application/vnd.k1node.v7+json, */*;q=0.1", "", "2", JSON, id="7, or anything"),
        pytest.param("/api", f"text/html, {JSON_V1};q=0.9", "", "1", JSON_V1, id="1 rather than nothing"),
        pytest.param("/api", f"{JSON_V1};q=high", "", "1", JSON_V1, id="a quality that is no number"),
        pytest.param("/api", f"{JSON};q=nan, {JSON_V1};q=inf", "", "2", JSON, id="nor is this"),
        pytest.param("/api", f"{JSON_V1};charset=utf-8;Q=1.000", "", "1", JSON_V1, id="parameters"),
        pytest.param("/api", f"{JSON_V1};q=0.1, {JSON_V1}, {JSON};q=0.5", "", "1", JSON_V1, id="named twice"),
        pytest.param("/api", ",;, ,", "", "2", JSON, id="nothing in many signs"),
        pytest.param("/api", PROBLEM, "", "2", JSON, id="problems only"),
        pytest.param("/api", f"{PROBLEM}, {JSON_V1}", "", "1", JSON_V1, id="problems and 1"),
        pytest.param("/api/v1", PROBLEM, "", "1", JSON, id="problems only, under path 1"),
        pytest.param("/api", "text/x," * 63 + JSON_V1, "", "1", JSON_V1, id="very long"),
    ],
)
def test_a_version_is_asked_for(
    api_client: Clients, path: str, accept: str, header: str, version: str, media_type: str
) -> None:
    headers = {name: value for name, value in {"Accept": accept, "X-API-Version": header}.items() if value}

    response = api_client("admin").get(f"{path}/echoes/1", headers=headers)

    assert (response.status_code, version_of(response), response["Content-Type"]) == (200, version, media_type)
    assert response["Vary"] == "Accept, X-API-Version"


@pytest.mark.parametrize(
    ("path", "headers", "field", "named"),
    [
        ("/api/v9/echoes/1", {}, "path", "9"),
        ("/api/v9/nothing", {}, "path", "9"),
        ("/api/v9", V2, "path", "9"),
        ("/api/v0/openapi.json", {}, "path", "0"),
        ("/api/v002/echoes/1", {}, "path", "002"),
        (f"/api/v{'9' * 200}/echoes/1", {}, "path", "9" * 20),
        ("/api/v2/echoes/1", {"X-API-Version": "9"}, "X-API-Version", "9"),
        ("/api/v2/echoes/1", {"X-API-Version": "2.0.0"}, "X-API-Version", "2.0.0"),
        ("/api/v2/echoes/1", {"X-API-Version": "v2"} | V2, "X-API-Version", "v2"),
        ("/api/v2/echoes/1", {"Accept": "application/vnd.k1node.v7+json"}, "Accept", "7"),
        ("/api/v2/nothing", {"Accept": f"text/html, application/vnd.k1node.v7+json, {JSON};q=0"}, "Accept", "7"),
    ],
)
def test_a_version_there_is_not_is_406(
    client: Client, path: str, headers: dict[str, str], field: str, named: str
) -> None:
    response = client.get(path, headers=headers)

    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (406, "NOT_ACCEPTABLE")
    assert error["message"] == f"This API has no version {named}; it has 2 and 1"
    (detail,) = error["details"]
    assert (detail["field"], "2 and 1" in detail["message"]) == (field, True)
    assert detail["suggestion"]
    assert (response["Vary"], response["X-API-Version"]) == ("Accept, X-API-Version", "2")
    assert response["Content-Length"] == str(len(response.content))
    assert response["X-Content-Type-Options"] == "nosniff"
    assert error["request_id"] == response["X-Request-Id"]


def test_a_version_there_is_not_is_406_as_a_problem_too(client: Client) -> None:
    accept = f"application/vnd.k1node.v7+json, {PROBLEM};q=0.1"

    response = client.get("/api/v2/echoes/1", headers={"Accept": accept})

    assert (response.status_code, response["Content-Type"], response.json()["code"]) == (406, PROBLEM, "NOT_ACCEPTABLE")


@pytest.mark.parametrize(
    "accept", ["text/csv", "application/xml, text/html;q=0.9", "*/*;q=0", "application/vnd.k1node"]
)
def test_a_media_type_there_is_not_is_406(api_client: Clients, accept: str) -> None:
    response = api_client("admin").get("/api/v2/echoes", headers={"Accept": accept})

    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (406, "NOT_ACCEPTABLE")
    for media_type in MEDIA_TYPES:
        assert media_type in error["message"]
        assert media_type in error["details"][0]["message"]
    assert (error["details"][0]["field"], error["details"][0]["suggestion"]) == ("Accept", f"Send Accept: {JSON}")


@pytest.mark.parametrize(("accept", "header"), [(JSON_V1, "2"), (JSON_V2, "1"), (f"{JSON_V1}, {JSON};q=0.1", "2")])
@pytest.mark.parametrize("path", ["/api", "/api/v1", "/api/v2"])
def test_headers_that_disagree_are_400(client: Client, path: str, accept: str, header: str) -> None:
    response = client.get(f"{path}/echoes/1", headers={"Accept": accept, "X-API-Version": header})

    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "INVALID_REQUEST")
    assert error["details"][0]["field"] == "X-API-Version"
    assert "Accept" in error["message"]


@pytest.mark.parametrize("path", ["/api", "/api/", "/api/v1", "/api/v2", "/api/v", "/api/version", "/api/vision/x"])
def test_addresses_without_a_resource_are_404(client: Client, path: str) -> None:
    response = client.get(path)

    assert (response.status_code, response.json()["error"]["code"]) == (404, "NOT_FOUND")


def test_a_path_that_only_looks_like_the_apis_has_no_version(client: Client) -> None:
    assert "X-API-Version" not in client.get("/apiary", headers=V1)


def test_vary_keeps_what_it_had(api_client: Clients, operator: Callable[..., Client]) -> None:
    response = operator("view_task").get("/api/v2/echoes")

    assert response.status_code == 200
    assert response["Vary"].split(", ") == ["Cookie", "Accept", "X-API-Version"]


def test_every_long_header_is_read_anew() -> None:
    versions._accepted_before.cache_clear()

    for index in range(600):
        versions.accepted(f"text/{index}")
        versions.accepted(f"text/{'x' * 300}{index}")

    kept = versions._accepted_before.cache_info()
    assert (kept.misses, kept.currsize) == (600, 512)


@given(st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=400))
def test_any_header_is_read(header: str) -> None:
    read = versions.accepted(header)

    assert read.media_type in (*MEDIA_TYPES, None)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*MEDIA_TYPES, PROBLEM, "*/*", "application/*", "application/vnd.k1node.v3+json", "a/b"]),
            st.sampled_from(["", ";q=0", ";q=0.5", ";q=1", ";x=y; q=0.3"]),
        ),
        max_size=6,
        unique_by=lambda entry: entry[0],
    ),
    st.randoms(),
)
def test_the_order_in_a_header_does_not_matter(ranges: list[tuple[str, str]], random: Any) -> None:
    parts = [name + quality for name, quality in ranges]
    read = versions.accepted(", ".join(parts))
    random.shuffle(parts)

    assert versions.accepted(",".join(parts)) == read


def test_the_log_tells_who_still_asks_for_version_1(api_client: Clients, caplog: pytest.LogCaptureFixture) -> None:
    client = api_client("admin")

    with caplog.at_level(logging.INFO, "k1node.api.middleware"):
        client.get("/api/echoes/1", headers=V1)
        client.get("/api/echoes/1")

    records: list[Any] = [record for record in caplog.records if record.name == "k1node.api.middleware"]
    assert [(record.path, record.version) for record in records] == [("/api/echoes/1", "1"), ("/api/echoes/1", "2")]


# --- version 1 --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("query", ["", "?limit=1"])
def test_a_success_of_version_1_is_that_of_2_in_an_envelope(api_client: Clients, query: str) -> None:
    client = api_client("admin")
    plain = client.get(f"/api/v2/echoes{query}").json()

    response = client.get(f"/api/v1/echoes{query}")

    body = response.json()
    assert list(body) == ["status", "data", "timestamp"]
    assert (response.status_code, body["status"], body["data"]) == (200, "success", plain)
    assert MOMENT.fullmatch(body["timestamp"])
    assert response["Content-Length"] == str(len(response.content))


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/api/v1/echoes/conflict", 409, "CONFLICT"),
        ("/api/v1/echoes/field", 400, "INVALID_REQUEST"),
        ("/api/v1/echoes/bug", 500, "INTERNAL_ERROR"),
        ("/api/v1/echoes/limited", 429, "RATE_LIMIT_EXCEEDED"),
        ("/api/v1/nothing", 404, "NOT_FOUND"),
        ("/api/v1/broken", 500, "INTERNAL_ERROR"),
        ("/api/v1/echoes/a%00b", 400, "INVALID_REQUEST"),
    ],
)
def test_an_error_of_version_1_is_in_an_envelope(api_client: Clients, path: str, status: int, code: str) -> None:
    client = api_client("admin")
    client.raise_request_exception = False

    response = client.get(path)

    body = response.json()
    assert (list(body), body["status"]) == (["status", "error", "timestamp"], "error")
    assert list(body["error"]) == ["code", "message", "status", "timestamp", "request_id", "details"]
    assert (response.status_code, body["error"]["status"], body["error"]["code"]) == (status, status, code)
    assert body["error"]["request_id"] == response["X-Request-Id"]
    assert MOMENT.fullmatch(body["timestamp"])
    assert version_of(response) == "1"


def test_a_refused_host_is_in_an_envelope_too(client: Client) -> None:
    response = client.get("/api/v1/echoes", headers={"Host": "evil.example"})

    assert (response.status_code, response.json()["status"]) == (400, "error")


def test_a_rate_limit_of_version_1_keeps_its_headers(api_client: Clients) -> None:
    response = api_client("admin").get("/api/v1/echoes/limited")

    assert response["Retry-After"] == response["X-RateLimit-RetryAfter"] == "3"
    assert response.json()["error"]["message"] == "API rate limit exceeded"


def test_an_answer_without_a_body_has_none_in_version_1(api_client: Clients) -> None:
    response = api_client("admin").delete("/api/v1/echoes/1")

    assert (response.status_code, response.content, response["X-API-Version"]) == (204, b"", "1")
    assert "Content-Length" not in response.headers
    assert response["Deprecation"] == "true"


def test_a_head_of_version_1_has_no_body(api_client: Clients) -> None:
    client = api_client("admin")
    length = client.get("/api/v1/echoes")["Content-Length"]

    response = client.head("/api/v1/echoes")

    assert (response.status_code, response.content) == (200, b"")
    assert response["Content-Length"] == length


def test_version_1_says_how_it_ends(api_client: Clients, settings: Settings) -> None:
    today = datetime.now(UTC).date()
    settings.K1NODE_V1_DEPRECATED_ON, settings.K1NODE_V1_SUNSET_ON = today, months_after(today, 6)
    settings.K1NODE_URL = "https://k1.example.org"

    response = api_client("admin").get("/api/v1/echoes/a b>")

    assert response["Deprecation"] == "true"
    end = datetime.fromtimestamp(parse_http_date(response["Sunset"]), UTC)
    assert (end.date(), f"{end:%H:%M:%S}") == (settings.K1NODE_V1_SUNSET_ON, "23:59:59")
    assert response["Link"].split(", ") == [
        '</api/v2/echoes/a%20b%3E>; rel="successor-version"',
        '<https://k1.example.org/api/migration>; rel="deprecation"',
        '<https://k1.example.org/api/migration>; rel="sunset"',
    ]


def test_deprecation_is_a_date_for_who_wants_one(api_client: Clients, settings: Settings) -> None:
    settings.K1NODE_DEPRECATION_STYLE = "rfc9745"
    since = datetime.combine(settings.K1NODE_V1_DEPRECATED_ON, datetime.min.time(), UTC)

    assert api_client("admin").get("/api/v1/echoes/1")["Deprecation"] == f"@{since.timestamp():.0f}"


def test_version_2_says_nothing_of_the_kind(api_client: Clients) -> None:
    response = api_client("admin").get("/api/v2/echoes/1")

    assert not {"Deprecation", "Sunset", "Link"} & set(response.headers)


def test_links_of_an_error_stay_beside_those_of_the_end(api_client: Clients) -> None:
    links = api_client("admin").get("/api/v1/echoes/conflict")["Link"]

    assert links.startswith('</api/errors#CONFLICT>; rel="help", </api/v2/echoes/conflict>; rel="successor-version"')


@pytest.mark.parametrize(
    ("path", "headers", "location"),
    [
        ("/api/v2/echoes", {}, "/api/v2/echoes/1"),
        ("/api/v1/echoes", {}, "/api/v1/echoes/1"),
        ("/api/v1/echoes", V1, "/api/v1/echoes/1"),
        ("/api/v1/echoes", V2, "/api/v2/echoes/1"),
        ("/api/v2/echoes", V1, "/api/v2/echoes/1"),
        ("/api/echoes", {}, "/api/v2/echoes/1"),
    ],
)
def test_a_location_leads_to_the_version_of_its_path(
    api_client: Clients, path: str, headers: dict[str, str], location: str
) -> None:
    response = api_client("admin").post(path, {}, format="json", headers=headers)

    assert (response.status_code, response["Location"]) == (201, location)


@pytest.mark.parametrize("path", ["/api/v1", "/api/v2", "/api"])
def test_the_next_page_is_under_the_path_of_this_one(api_client: Clients, path: str) -> None:
    client = api_client("admin")
    api_client("admin")

    response = client.get(f"{path}/keys?limit=1")

    following = response["Link"].partition(">")[0].removeprefix("<http://testserver")
    assert following.startswith(f"{path}/keys?")
    assert client.get(following)["X-API-Version"] == response["X-API-Version"]


def test_a_body_in_version_1_is_read_as_in_version_2(api_client: Clients) -> None:
    response = api_client("admin").post("/api/v1/echoes", b'{"title": "x"}', content_type=JSON_V1)

    assert (response.status_code, response.json()["data"]) == (201, {"title": "x"})


@pytest.mark.parametrize("path", ["/api/v1", "/api"])
def test_an_operators_session_works_in_every_version(operator: Callable[..., Client], path: str) -> None:
    assert operator("view_task").get(f"{path}/echoes/1").status_code == 200


# --- its end ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("path", "headers", "field"),
    [
        ("/api/v1/echoes/1", {}, "path"),
        ("/api/v1/nothing", {}, "path"),
        ("/api/v2/echoes/1", V1, "Accept"),
        ("/api/echoes/1", {"X-API-Version": "1"}, "X-API-Version"),
    ],
)
def test_version_1_is_410_after_its_end(
    client: Client, ended: date, path: str, headers: dict[str, str], field: str
) -> None:
    response = client.get(path, headers=headers)

    assert (response.status_code, set(response.json())) == (410, {"error"})
    error = response.json()["error"]
    assert (error["code"], error["message"]) == ("GONE", f"Version 1 of this API ended on {ended}; use version 2")
    assert (error["details"][0]["field"], "2" in error["details"][0]["suggestion"]) == (field, True)
    assert (response["X-API-Version"], response["Vary"]) == ("2", "Accept, X-API-Version")
    assert parse_http_date(response["Sunset"]) < datetime.now(UTC).timestamp()
    assert 'rel="successor-version"' in response["Link"]


def test_version_1_is_410_as_a_problem_too(client: Client, ended: date) -> None:
    response = client.get("/api/v1/echoes/1", headers={"Accept": PROBLEM})

    assert (response.status_code, response["Content-Type"], response.json()["code"]) == (410, PROBLEM, "GONE")


def test_nothing_is_done_for_version_1_after_its_end(api_client: Clients, ended: date) -> None:
    # The view would answer 201.
    assert api_client("admin").post("/api/v1/echoes", {}, format="json").status_code == 410


@pytest.mark.parametrize("path", ["/api/v2/echoes/1", "/api/echoes/1"])
def test_version_2_goes_on_after_it(api_client: Clients, ended: date, path: str) -> None:
    assert api_client("admin").get(path).status_code == 200


def test_the_last_day_counts(api_client: Clients, settings: Settings) -> None:
    settings.K1NODE_V1_SUNSET_ON = datetime.now(UTC).date() + timedelta(days=1)

    assert api_client("admin").get("/api/v1/echoes/1").status_code == 200


@pytest.mark.parametrize(
    ("deprecated_on", "today", "ends_on"),
    [
        pytest.param(date(2026, 11, 26), date(2026, 11, 26), date(2027, 5, 31), id="new"),
        pytest.param(date(2026, 11, 26), date(2026, 11, 30), date(2027, 5, 31), id="the same month"),
        pytest.param(date(2026, 11, 26), date(2026, 12, 1), date(2027, 6, 30), id="the next month"),
        pytest.param(date(2026, 11, 26), date(2036, 8, 31), date(2037, 2, 28), id="ten years later"),
        pytest.param(date(2026, 11, 26), date(1970, 1, 1), date(2027, 5, 31), id="a clock that is wrong"),
        pytest.param(date(2028, 2, 29), date(2026, 11, 26), date(2028, 8, 31), id="deprecated in the future"),
    ],
)
def test_without_a_day_the_end_is_never_near(deprecated_on: date, today: date, ends_on: date) -> None:
    assert sunset_on(deprecated_on, None, today) == ends_on


@pytest.mark.parametrize("today", [date(2026, 11, 26), date(2027, 5, 26), date(2040, 1, 1)])
@pytest.mark.parametrize("configured", [date(2027, 5, 26), date(2029, 1, 1)])
def test_a_configured_end_stands_even_when_it_has_passed(configured: date, today: date) -> None:
    assert sunset_on(date(2026, 11, 26), configured, today) == configured


@pytest.mark.parametrize("configured", [date(2027, 5, 25), date(2026, 11, 26), date(2020, 1, 1)])
def test_a_configured_end_without_six_months_of_notice_stops_the_start(configured: date) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"^K1NODE_V1_SUNSET_ON must not be before 2027-05-26, 6 months"):
        sunset_on(date(2026, 11, 26), configured, date(2026, 11, 26))


@pytest.mark.parametrize(
    ("day", "later"), [(date(2026, 8, 31), date(2027, 2, 28)), (date(2027, 8, 31), date(2028, 2, 29))]
)
def test_six_months_after_a_long_month_is_the_last_of_a_short_one(day: date, later: date) -> None:
    assert months_after(day, 6) == later


def test_the_node_starts_with_an_end_that_keeps_the_promise() -> None:
    end = django_settings.K1NODE_V1_SUNSET_ON

    assert end >= months_after(DEPRECATED_ON, 6)
    assert end >= months_after(datetime.now(UTC).date(), 6) - timedelta(days=1)


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"K1NODE_V1_SUNSET_ON": "2027-05-25"}, "K1NODE_V1_SUNSET_ON must not be before 2027-05-26"),
        ({"K1NODE_V1_DEPRECATED_ON": "2030-01-31", "K1NODE_V1_SUNSET_ON": "2030-07-30"}, "before 2030-07-31"),
        ({"K1NODE_V1_DEPRECATED_ON": "2020-01-31", "K1NODE_V1_SUNSET_ON": "2020-07-31"}, "2020-01-31 2020-07-31"),
        ({"K1NODE_DEPRECATION_STYLE": "maybe"}, "K1NODE_DEPRECATION_STYLE must be one of literal, rfc9745"),
    ],
)
def test_the_environment_decides_about_the_end(tmp_path: Path, variables: dict[str, str], says: str) -> None:
    command = "from k1node import settings as s; print(s.K1NODE_V1_DEPRECATED_ON, s.K1NODE_V1_SUNSET_ON)"
    environment = os.environ | {"K1NODE_DATA": str(tmp_path)} | variables

    run = subprocess.run(
        [sys.executable, "-c", command],
        cwd=django_settings.BASE_DIR,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert says in run.stdout + run.stderr
    assert (run.returncode == 0) is (says in run.stdout)


@pytest.mark.parametrize("text", ["tomorrow", "31.05.2027", "2027-02-30"])
def test_a_day_that_is_none_stops_the_start(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("K1NODE_V1_SUNSET_ON", text)

    with pytest.raises(ImproperlyConfigured) as caught:
        env_date("K1NODE_V1_SUNSET_ON")

    assert str(caught.value) == f"K1NODE_V1_SUNSET_ON must be a date such as 2027-05-31, not {text!r}."


# --- what there is ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("headers", [{}, V1, {"X-API-Version": "9"}, {"Accept": "text/html"}])
def test_the_versions_are_public(client: Client, settings: Settings, headers: dict[str, str]) -> None:
    response = client.get("/api/versions", headers=headers)

    body = response.json()
    assert (response.status_code, body["default"]) == (200, "2")
    current, old = body["versions"]
    assert (current["version"], current["status"], current["media_type"]) == ("2", "current", JSON_V2)
    assert (old["version"], old["status"], old["successor"]) == ("1", "deprecated", "2")
    assert (current["path"], old["path"]) == ("/api/v2", "/api/v1")
    assert old["deprecated_at"] == f"{settings.K1NODE_V1_DEPRECATED_ON}T00:00:00.000+00:00"
    assert old["sunset_at"] == f"{settings.K1NODE_V1_SUNSET_ON}T23:59:59.000+00:00"
    assert response["Vary"] == "Accept, X-API-Version"


def test_unchanged_versions_are_not_sent_again(client: Client) -> None:
    etag = client.get("/api/versions")["ETag"]

    assert client.get("/api/versions", headers={"If-None-Match": etag}).status_code == 304


def test_a_version_that_has_ended_is_listed_as_such(client: Client, ended: date) -> None:
    assert [each["status"] for each in client.get("/api/versions").json()["versions"]] == ["current", "retired"]


@pytest.mark.parametrize("path", ["/api/versions", "/api/errors", "/api/migration", "/api/v2/docs", "/api/v2/redoc"])
@pytest.mark.parametrize("accept", [JSON, PROBLEM])
def test_these_are_only_read(client: Client, path: str, accept: str) -> None:
    for method in (client.post, client.options):
        response = method(path, headers={"Accept": accept})

        assert (response.status_code, response["Content-Type"]) == (405, accept)
        assert response["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/api/v2/versions", "/api/v1/versions", "/api/v1/errors"])
def test_they_have_no_version(client: Client, path: str) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize("path", ["/api/v2/openapi.json", "/api/openapi.json", "/api/v2/docs", "/api/redoc"])
@pytest.mark.parametrize("headers", [V1, {"X-API-Version": "9"}, {"Accept": "text/csv"}, {"Accept": "text/html"}])
def test_no_header_matters_to_the_pages_of_version_2(client: Client, path: str, headers: dict[str, str]) -> None:
    response = client.get(path, headers=headers)

    assert response.status_code == 200
    assert not {"X-API-Version", "Sunset"} & set(response.headers)


@pytest.mark.parametrize("name", ["openapi.json", "docs", "redoc"])
def test_version_1_has_no_pages(client: Client, name: str) -> None:
    assert client.get(f"/api/v1/{name}").status_code == 404


def test_the_guide_is_served_as_it_is_written(client: Client) -> None:
    guide = (Path(django_settings.BASE_DIR) / "docs" / "migration-v1-to-v2.md").read_bytes()

    response = client.get("/api/migration")

    assert (response.status_code, response["Content-Type"]) == (200, "text/plain; charset=utf-8")
    assert response.content == guide


def test_the_bodies_in_the_guide_are_json() -> None:
    guide = (Path(django_settings.BASE_DIR) / "docs" / "migration-v1-to-v2.md").read_text()

    bodies = [json.loads(each) for each in re.findall(r"```json\n(.*?)```", guide, re.DOTALL)]

    assert [set(body) for body in bodies][:2] == [{"status", "error", "timestamp"}, {"error"}]
