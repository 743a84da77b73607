from typing import Any

import pytest
from django.test import Client

CHECKS = {"database": True, "clock": True, "workers": True}


def all_well() -> dict[str, bool]:
    return CHECKS


def no_clock() -> dict[str, bool]:
    return {**CHECKS, "clock": False}


def no_database() -> dict[str, bool]:
    raise OSError("gone")


def test_alive_without_a_database(client: Client) -> None:
    # No django_db mark: a query would fail this test.
    response = client.get("/healthz")

    assert (response.status_code, response.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize(
    ("function", "status", "failing"),
    [
        ("all_well", 200, []),
        ("no_clock", 503, ["clock"]),
        ("no_database", 503, ["database", "clock", "workers"]),
    ],
)
def test_ready_only_when_every_part_is(
    client: Client, settings: Any, function: str, status: int, failing: list[str]
) -> None:
    settings.K1NODE_READINESS = f"{__name__}.{function}"

    response = client.get("/readyz")

    assert response.status_code == status
    assert response.json()["status"] == ("not ready" if failing else "ready")
    assert [name for name, fine in response.json()["checks"].items() if not fine] == failing


def test_the_root_leads_to_the_console(client: Client) -> None:
    response = client.get("/")

    assert (response.status_code, response["Location"]) == (302, "/admin/")
