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
    while "Link" in response:
        assert response["Link"].endswith('>; rel="next"')
        response = reader.get(response["Link"].removeprefix("<").partition(">")[0])
        seen += names(response, "keys")

    assert seen == [*(str(number) for number in range(23, -1, -1)), "test"]
    assert response.json()["pagination"] == {"limit": 10, "next_cursor": None}


def test_the_link_keeps_the_limit_and_drops_the_page(reader: APIClient) -> None:
    response = reader.get("/api/v2/keys?limit=5&page=2")

    address = response["Link"].partition(">")[0]
    assert "limit=5" in address
    assert "page=" not in address
    assert names(reader.get(address.removeprefix("<")), "keys")[0] == "13"


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
