import re
from collections.abc import Callable
from typing import Any

import pytest
from pytest_django import DjangoAssertNumQueries
from rest_framework.test import APIClient

from k1node.access.models import ApiKey
from k1node.api import pagination

Clients = Callable[..., APIClient]
pytestmark = pytest.mark.urls("tests.k1node.api_probe")


@pytest.fixture
def reader(api_client: Clients) -> APIClient:
    """Return a client of 25 keys: its own, which is the oldest, and 24 named 0 to 23."""
    client = api_client("scheduler:read")
    ApiKey.objects.bulk_create(ApiKey(name=str(number), digest=f"{number:064}") for number in range(24))
    return client


def names(response: Any, key: str = "echoes") -> list[str]:
    return [row["name"] for row in response.json()[key]]


def links(response: Any) -> dict[str, str]:
    """Return the addresses in Link by their rel."""
    return {name: address for address, name in re.findall(r'<([^>]*)>; rel="([a-z]+)"', response.get("Link", ""))}


def test_pages_by_number(reader: APIClient) -> None:
    first, second = reader.get("/api/v2/echoes"), reader.get("/api/v2/echoes?page=2&limit=20")

    assert list(first.json()) == ["echoes", "pagination"]
    assert first.json()["pagination"] == {"page": 1, "limit": 20, "total": 25}
    assert names(first) == [str(number) for number in range(23, 3, -1)]
    assert second.json()["pagination"] == {"page": 2, "limit": 20, "total": 25}
    assert names(second) == ["3", "2", "1", "0", "test"]


def test_a_page_past_the_end_is_empty(reader: APIClient) -> None:
    response = reader.get("/api/v2/echoes?page=4")

    assert (response.status_code, names(response)) == (200, [])


@pytest.mark.parametrize("value", ["0", "-1", "101", "x", "", "1.5", "1e2", "٣", "9" * 30, "+1"])
def test_nonsense_limits_are_refused(reader: APIClient, value: str) -> None:
    response = reader.get("/api/v2/echoes", {"limit": value})

    assert (response.status_code, response.json()["error"]["code"]) == (400, "INVALID_REQUEST")
    assert response.json()["error"]["details"] == [
        {"field": "limit", "message": "Must be a whole number from 1 to 100", "suggestion": "Use limit=20"}
    ]


def test_totals_stop_at_the_cap(reader: APIClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagination, "TOTAL_CAP", 10)

    response = reader.get("/api/v2/echoes?limit=5")
    beyond = reader.get("/api/v2/echoes?limit=5&page=3")

    assert response.json()["pagination"] == {"page": 1, "limit": 5, "total": 10, "capped": True}
    assert beyond.status_code == 400


def test_a_cursor_walks_the_whole_list_while_it_grows(reader: APIClient) -> None:
    seen: list[str] = []

    response = reader.get("/api/v2/keys?limit=10")
    seen += names(response, "keys")
    assert response.json()["pagination"]["total"] == 25
    ApiKey.objects.create(name="new", digest="n")
    while "next" in links(response):
        response = reader.get(links(response)["next"])
        assert set(links(response)) <= {"next"}
        seen += names(response, "keys")

    assert seen == [*(str(number) for number in range(23, -1, -1)), "test"]
    assert response.json()["pagination"] == {"limit": 10, "next_cursor": None}
    assert "Link" not in response


def test_the_next_link_of_a_growing_list_keeps_the_limit_and_drops_the_page(reader: APIClient) -> None:
    response = reader.get("/api/v2/keys?limit=5&page=2")

    cursor = response.json()["pagination"]["next_cursor"]
    assert response["Link"] == (
        '<http://testserver/api/v2/keys?limit=5&page=1>; rel="first", '
        '<http://testserver/api/v2/keys?limit=5&page=1>; rel="prev", '
        f'<http://testserver/api/v2/keys?cursor={cursor}&limit=5>; rel="next", '
        '<http://testserver/api/v2/keys?limit=5&page=5>; rel="last"'
    )
    assert names(reader.get(links(response)["next"]), "keys")[0] == "13"


@pytest.mark.parametrize(
    ("query", "pages"),
    [
        pytest.param("", {"first": 1, "next": 2, "last": 2}, id="first page"),
        pytest.param("page=2", {"first": 1, "prev": 1, "last": 2}, id="last page"),
        pytest.param("limit=5&page=3", {"first": 1, "prev": 2, "next": 4, "last": 5}, id="in between"),
        pytest.param("limit=100", {"first": 1, "last": 1}, id="only page"),
        pytest.param("page=40", {"first": 1, "prev": 2, "last": 2}, id="beyond the end"),
    ],
)
def test_links_lead_to_the_pages_around(reader: APIClient, query: str, pages: dict[str, int]) -> None:
    response = reader.get(f"/api/v2/echoes?{query}")

    found = links(response)
    assert {name: int(address.partition("page=")[2]) for name, address in found.items()} == pages
    assert [reader.get(address).status_code for address in found.values()] == [200] * len(pages)


def test_links_keep_the_filters_and_the_host(reader: APIClient) -> None:
    response = reader.get(
        "/api/v2/echoes?enabled=true&since=2025-11-09T00:00:00%2B00:00&limit=20", headers={"Host": "localhost:3000"}
    )

    address = (
        "http://localhost:3000/api/v2/echoes?enabled=true&limit=20&page={}&since=2025-11-09T00%3A00%3A00%2B00%3A00"
    )
    assert response["Link"] == (
        f'<{address.format(1)}>; rel="first", <{address.format(2)}>; rel="next", <{address.format(2)}>; rel="last"'
    )


def test_an_empty_list_has_one_page(api_client: Clients) -> None:
    client = api_client("scheduler:read")

    assert {name: address[-6:] for name, address in links(client.get("/api/v2/scheduler/schedules")).items()} == {
        "first": "page=1",
        "last": "page=1",
    }


def test_links_stay_within_the_cap(reader: APIClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagination, "TOTAL_CAP", 10)

    last = reader.get("/api/v2/echoes?limit=4&page=3")
    growing = reader.get("/api/v2/keys?limit=4&page=3")

    assert {name: address[-6:] for name, address in links(last).items()} == {
        "first": "page=1",
        "prev": "page=2",
        "last": "page=3",
    }
    assert "cursor=" in links(growing)["next"]


def test_links_are_those_of_the_path_that_was_asked_for(reader: APIClient) -> None:
    # As a proxy that publishes the node below a prefix has it.
    response = reader.get("/api/v2/echoes?limit=100", SCRIPT_NAME="/node")

    assert links(response)["first"] == "http://testserver/node/api/v2/echoes?limit=100&page=1"


def test_a_list_that_ends_with_the_page_has_no_next_cursor(reader: APIClient) -> None:
    assert reader.get("/api/v2/keys?limit=25").json()["pagination"]["next_cursor"] is None
    assert reader.get("/api/v2/keys?limit=24").json()["pagination"]["next_cursor"]


@pytest.mark.parametrize("cursor", ["", "x", "%00", "NQ", "a:b", "é", "YWJj", "k1:5", "A" * 5000])
def test_broken_cursors_are_refused(reader: APIClient, cursor: str) -> None:
    response = reader.get("/api/v2/keys", {"cursor": cursor})

    assert (response.status_code, response.json()["error"]["code"]) == (400, "INVALID_REQUEST")
    assert response.json()["error"]["details"][0]["field"] == "cursor"


def test_a_cursor_and_a_page_do_not_go_together(reader: APIClient) -> None:
    response = reader.get("/api/v2/keys", {"cursor": pagination.encode_cursor(5), "page": "1"})

    assert response.status_code == 400


def test_a_page_costs_two_queries_and_the_key(
    reader: APIClient, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    reader.get("/api/v2/echoes")

    with django_assert_num_queries(3):
        reader.get("/api/v2/echoes")
