import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.signing import Signer
from django.test import Client
from pytest_django import DjangoAssertNumQueries
from rest_framework.test import APIClient

from k1node.access import keys, task_tokens

Clients = Callable[..., APIClient]
pytestmark = [pytest.mark.urls("tests.k1node.api_probe"), pytest.mark.django_db]

RUNNING = {(7, 3)}


def is_running(task_pk: int, fence: int) -> bool:
    return (task_pk, fence) in RUNNING


@pytest.fixture(autouse=True)
def _runs(settings: Any) -> None:
    settings.K1NODE_TASK_TOKEN_CHECK = f"{__name__}.is_running"


def get(token: str, scheme: str = "Bearer") -> Any:
    return Client().get("/api/v2/echoes/1", headers={"Authorization": f"{scheme} {token}"})


def test_a_key_is_known_by_its_name() -> None:
    _, text = keys.issue("backup", ["scheduler:read"])

    assert get(text).json() == {"echo_id": "1", "by": "backup"}
    assert get(text, "bearer").status_code == 200


def test_a_request_with_a_key_costs_one_query(
    django_assert_num_queries: DjangoAssertNumQueries, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    _, text = keys.issue("backup", ["scheduler:read"])

    with django_assert_max_num_queries(2):
        get(text)
    with django_assert_num_queries(1):
        get(text)


def refused_tokens() -> dict[str, str]:
    key, revoked = keys.issue("revoked", ["admin"])
    keys.revoke(key)
    _, expired = keys.issue("expired", ["admin"], expires_at=datetime(2020, 1, 1, tzinfo=UTC))
    return {
        "revoked key": revoked,
        "expired key": expired,
        "malformed key": "sk-k1n_nonsense",
        "unknown key": "sk-k1n_" + "a" * 40 + keys.checksum("a" * 40),
        "unknown kind": "tok-abc123",
        "in another form": "eyJhbGciOiJub25lIn0.e30.",
        "unknown issuer": "eyJhbGciOiJIUzI1NiJ9.e30.AAAA",
        "task token not valid": "kt-7-3-99999999999.forged",
        "not running": task_tokens.issue(8, 1, 60),
    }


@pytest.mark.parametrize(
    "reason",
    [
        "revoked key",
        "expired key",
        "malformed key",
        "unknown key",
        "unknown kind",
        "in another form",
        "unknown issuer",
        "task token not valid",
        "not running",
    ],
)
def test_bad_tokens_are_401_and_logged_without_the_secret(reason: str, caplog: pytest.LogCaptureFixture) -> None:
    token = refused_tokens()[reason]

    with caplog.at_level(logging.WARNING):
        response = get(token)

    assert (response.status_code, response.json()["error"]["code"]) == (401, "UNAUTHORIZED")
    assert response["WWW-Authenticate"] == 'Bearer realm="k1node", error="invalid_token"'
    record: Any
    (record,) = (record for record in caplog.records if record.name == "k1node.access.authentication")
    assert reason in record.reason
    assert token not in str(record.__dict__) + response.content.decode()


def test_other_schemes_are_no_credentials() -> None:
    response = get("dXNlcjpwYXNz", "Basic")

    assert (response.status_code, response["WWW-Authenticate"]) == (401, 'Bearer realm="k1node"')


@pytest.mark.parametrize("header", ["Bearer", "Bearer ", "Bearer a b", "Bearer \xff", "Bearer sk-a, Bearer sk-b"])
def test_broken_headers_are_401(header: str) -> None:
    assert Client().get("/api/v2/echoes/1", headers={"Authorization": header}).status_code == 401


def test_the_token_of_a_running_task_reads_and_no_more() -> None:
    token = task_tokens.issue(7, 3, 60)

    assert get(token).json() == {"echo_id": "1", "by": "task:7"}
    refused = Client().delete("/api/v2/echoes/1", headers={"Authorization": f"Bearer {token}"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "FORBIDDEN")


def test_a_token_of_an_earlier_claim_is_refused() -> None:
    assert get(task_tokens.issue(7, 2, 60)).status_code == 401


def test_task_tokens_are_compact_and_say_what_was_signed() -> None:
    token = task_tokens.issue(123_456_789, 12, 3600)

    assert task_tokens.read(token) == (123_456_789, 12)
    assert len(token) < 80
    assert token.isascii()
    assert not set(token) & set("/+=:&? ")


def test_task_tokens_end() -> None:
    assert task_tokens.read(task_tokens.issue(7, 3, -2)) is None


@pytest.mark.parametrize("salt", ["django.core.signing.Signer", "k1node.access.other"])
def test_signatures_for_other_purposes_are_no_task_tokens(salt: str) -> None:
    forged = "kt-" + Signer(sep=".", salt=salt).sign("7-3-99999999999")

    assert task_tokens.read(forged) is None


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"is_superuser": True, "is_staff": True}, 204),
        ({"is_staff": True}, 403),
        ({}, 401),
        ({"is_superuser": True}, 401),
    ],
)
def test_what_operators_may(fields: dict[str, bool], status: int) -> None:
    client = Client()
    client.force_login(User.objects.create(username="olga", **fields))

    assert client.delete("/api/v2/echoes/1").status_code == status


@pytest.mark.parametrize(("permissions", "status"), [(["view_task"], 200), (["view_schedule"], 403), ([], 403)])
def test_staff_read_what_the_console_shows_them(permissions: list[str], status: int) -> None:
    client = Client()
    user = User.objects.create(username="olga", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client.force_login(user)

    response = client.get("/api/v2/echoes/1")

    assert response.status_code == status
    assert status == 403 or response.json()["by"] == "olga"


def test_writes_in_a_session_need_the_csrf_token() -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create(username="olga", is_staff=True, is_superuser=True))

    refused = client.delete("/api/v2/echoes/1")
    client.cookies["csrftoken"] = "a" * 32
    allowed = client.delete("/api/v2/echoes/1", headers={"X-CSRFToken": "a" * 32})

    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "FORBIDDEN")
    assert allowed.status_code == 204


def test_a_session_whose_user_was_closed_is_nobody() -> None:
    client = Client()
    user = User.objects.create(username="olga", is_staff=True, is_superuser=True)
    client.force_login(user)
    User.objects.update(is_active=False)

    assert client.get("/api/v2/echoes/1").status_code == 401
