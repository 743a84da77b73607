"""Keys over the API: made and shown once, changed, replaced, ended."""

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries
from rest_framework.test import APIClient

from k1node.access import keys
from k1node.access.models import ApiKey
from k1node.access.scopes import ALL_SCOPES

Clients = Callable[..., APIClient]
pytestmark = pytest.mark.django_db
KEYS = "/api/v2/api-keys"
FIELDS = {
    *("key_id", "name", "prefix", "last_four", "state", "scopes", "allowed_cidrs", "requests_per_hour", "created_at"),
    *("created_by", "last_used_at", "last_used_ip", "expires_at", "revoked_at", "revoked_reason", "replaced_by"),
}


@pytest.fixture
def client(api_client: Clients) -> APIClient:
    return api_client("admin")


def post(client: APIClient, path: str, body: Any = None) -> Any:
    return client.post(path, {} if body is None else body, format="json")


def test_a_key_is_made_and_shown_once(client: APIClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        response = post(
            client,
            KEYS,
            {
                "name": "billing",
                "scopes": ["scheduler:read", "batch:write"],
                "allowed_cidrs": ["10.0.0.0/8", "127.0.0.1"],
                "requests_per_hour": 500,
                "expires_at": "2100-01-01T00:00:00Z",
            },
        )

    body = response.json()
    assert response.status_code == 201, body
    assert set(body) == FIELDS | {"key"}
    assert (body["scopes"], body["allowed_cidrs"]) == (
        ["batch:write", "scheduler:read"],
        ["10.0.0.0/8", "127.0.0.1/32"],
    )
    assert (body["state"], body["created_by"], body["prefix"]) == ("active", "test", "sk-k1n_")
    assert body["key"].endswith(body["last_four"])
    assert body["key_id"].startswith("key-") and len(body["key_id"]) == 20
    assert response["Location"] == f"{KEYS}/{body['key_id']}"
    assert keys.verify(body["key"]) is None  # from nowhere: it is tied to networks
    opened = Client().get("/api/v2/tasks", headers={"Authorization": f"Bearer {body['key']}"})
    assert opened.status_code == 200
    shown = client.get(response["Location"])
    assert set(shown.json()) == FIELDS
    for place in (shown.content.decode(), client.get(KEYS).content.decode(), str([r.__dict__ for r in caplog.records])):
        assert body["key"] not in place
        assert keys.digest(body["key"]) not in place


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"scopes": ["admin"]}, "name"),
        ({"name": " ", "scopes": ["admin"]}, "name"),
        ({"name": "a\nb", "scopes": ["admin"]}, "name"),
        ({"name": "a", "scopes": []}, "scopes"),
        ({"name": "a", "scopes": ["root"]}, "scopes"),
        ({"name": "a", "scopes": "admin"}, "scopes"),
        ({"name": "a", "scopes": ["admin"], "requests_per_hour": 0}, "requests_per_hour"),
        ({"name": "a", "scopes": ["admin"], "allowed_cidrs": ["10.0.0.0/8", "10.0.0.1/8"]}, "allowed_cidrs[1]"),
        ({"name": "a", "scopes": ["admin"], "allowed_cidrs": ["everywhere"]}, "allowed_cidrs[0]"),
        ({"name": "a", "scopes": ["admin"], "allowed_cidrs": ["10.0.0.0/33"]}, "allowed_cidrs[0]"),
        ({"name": "a", "scopes": ["admin"], "allowed_cidrs": ["1.1.1.1"] * 51}, "allowed_cidrs"),
        ({"name": "a", "scopes": ["admin"], "expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"name": "a", "scopes": ["admin"], "digest": "0" * 64}, "digest"),
        ({"name": "a", "scopes": ["admin"], "key": "sk-k1n_mine"}, "key"),
    ],
)
def test_what_no_key_is_made_from(client: APIClient, body: dict[str, Any], field: str) -> None:
    response = post(client, KEYS, body)

    assert response.status_code == 400
    assert field in [detail["field"] for detail in response.json()["error"]["details"]]
    assert ApiKey.objects.count() == 1


def test_only_admin_opens_them(api_client: Clients, client: APIClient) -> None:
    key, _ = keys.issue("a", ["scheduler:read"])
    other = api_client(*(ALL_SCOPES - {"admin"}))
    path = f"{KEYS}/{key.public_id}"

    answers = [
        other.get(KEYS),
        post(other, KEYS),
        other.get(path),
        other.patch(path, {}, format="json"),
        other.delete(path),
        post(other, f"{path}/rotate"),
        post(other, f"{path}/revoke"),
    ]

    assert [answer.status_code for answer in answers] == [403] * 7
    assert api_client().get(KEYS).status_code == 401


def test_keys_are_listed_by_state_and_name(
    client: APIClient, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    now = timezone.now()
    made = {name: keys.issue(name, ["scheduler:read"])[0] for name in ("active", "rotated", "revoked")}
    made["expired"] = keys.issue("expired", ["scheduler:read"], expires_at=now - timedelta(seconds=1))[0]
    keys.rotate(made["rotated"])
    keys.revoke(made["revoked"])
    keys.revoke(keys.issue("revoked", ["scheduler:read"], expires_at=now - timedelta(seconds=1))[0])

    def names(**query: str) -> list[str]:
        return [row["name"] for row in client.get(KEYS, query).json()["api_keys"]]

    names()
    assert names(state="revoked") == ["revoked", "revoked"]
    assert names(state="expired") == ["expired"]
    assert names(state="rotated") == ["rotated"]
    assert sorted(names(state="active")) == ["active", "rotated", "test"]
    assert names(name="active") == ["active"]
    assert names(name="active", state="revoked") == []
    for row in client.get(KEYS).json()["api_keys"]:
        assert row["state"] == ApiKey.objects.get(public_id=row["key_id"]).state(timezone.now())
    with django_assert_num_queries(3):
        body = client.get(KEYS, {"limit": 2, "page": 2}).json()
    assert (len(body["api_keys"]), body["pagination"]["total"]) == (2, 7)
    assert client.get(KEYS, {"state": "gone"}).status_code == 400


def test_a_key_nobody_has_is_404(client: APIClient) -> None:
    for method, path in (("get", ""), ("patch", ""), ("delete", ""), ("post", "/rotate"), ("post", "/revoke")):
        assert getattr(client, method)(f"{KEYS}/key-nothing{path}", format="json").status_code == 404


def test_a_change_counts_at_once(client: APIClient) -> None:
    key, text = keys.issue("a", ["scheduler:write", "batch:write"])
    path = f"{KEYS}/{key.public_id}"

    response = client.patch(
        path, {"name": "b", "scopes": ["scheduler:read"], "requests_per_hour": 7, "allowed_cidrs": []}, format="json"
    )

    assert response.status_code == 200
    known = keys.verify(text)
    assert known and (known.name, known.scopes, known.requests_per_hour) == ("b", ("scheduler:read",), 7)
    assert client.patch(path, {"requests_per_hour": None}, format="json").json()["requests_per_hour"] is None
    assert client.patch(path, {"allowed_cidrs": ["192.0.2.0/24"]}, format="json").status_code == 200
    assert keys.verify(text) is None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"scopes": ["scheduler:write", "admin"]}, "scopes"),
        ({"scopes": ["scheduling:admin"]}, "scopes"),
        ({"scopes": []}, "scopes"),
        ({"name": ""}, "name"),
        ({"name": None}, "name"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"allowed_cidrs": ["nowhere"]}, "allowed_cidrs[0]"),
        ({"revoked_at": None}, "revoked_at"),
        ({"key_id": "key-other"}, "key_id"),
    ],
)
def test_changes_that_cannot_be(client: APIClient, change: dict[str, Any], field: str) -> None:
    key, _ = keys.issue("a", ["scheduler:write"])

    response = client.patch(f"{KEYS}/{key.public_id}", change, format="json")

    assert response.status_code == 400
    assert [detail["field"] for detail in response.json()["error"]["details"]] == [field]
    before = ApiKey.objects.get(pk=key.pk)
    assert (before.name, before.scopes, before.allowed_cidrs) == ("a", ["scheduler:write"], [])


def test_a_change_can_name_the_state_it_was_made_for(client: APIClient) -> None:
    path = f"{KEYS}/{keys.issue('billing', ['scheduler:read'])[0].public_id}"
    read = client.get(path)
    assert client.get(path, headers={"If-None-Match": read["ETag"]}).status_code == 304

    first = client.patch(path, {"name": "b"}, format="json", headers={"If-Match": read["ETag"]})
    second = client.patch(path, {"name": "c"}, format="json", headers={"If-Match": read["ETag"]})
    ended = client.delete(path, headers={"If-Match": read["ETag"]})

    assert (first.status_code, second.status_code, ended.status_code) == (200, 412, 412)
    assert client.get(path).json()["name"] == "b"
    assert client.delete(path, headers={"If-Match": first["ETag"]}).status_code == 204


def test_an_end_may_move_either_way_but_not_that_of_a_rotated_key(client: APIClient) -> None:
    key, _ = keys.issue("a", ["scheduler:read"])
    path = f"{KEYS}/{key.public_id}"
    soon, later = (f"{timezone.now() + timedelta(hours=hours):%Y-%m-%dT%H:%M:%SZ}" for hours in (1, 100))

    assert client.patch(path, {"expires_at": soon}, format="json").status_code == 200
    assert client.patch(path, {"expires_at": later}, format="json").status_code == 200
    assert client.patch(path, {"expires_at": None}, format="json").json()["expires_at"] is None
    keys.rotate(key)
    assert client.patch(path, {"expires_at": later}, format="json").status_code == 400
    assert client.patch(path, {"expires_at": None}, format="json").status_code == 400
    assert client.patch(path, {"expires_at": soon}, format="json").status_code == 200


@pytest.mark.parametrize("ended", ["revoked", "expired"])
def test_what_has_ended_is_neither_changed_nor_rotated(client: APIClient, ended: str) -> None:
    key, _ = keys.issue("a", ["scheduler:read"])
    if ended == "revoked":
        keys.revoke(key)
    else:
        ApiKey.objects.filter(pk=key.pk).update(expires_at=timezone.now())
    path = f"{KEYS}/{key.public_id}"

    changed, rotated = client.patch(path, {"name": "b"}, format="json"), post(client, f"{path}/rotate")

    assert (changed.status_code, rotated.status_code) == (409, 409)
    assert rotated.json()["error"]["message"] == f"The key is {ended}: make a new one"


def test_both_keys_are_valid_until_the_overlap_ends(client: APIClient) -> None:
    key, text = keys.issue("a", ["scheduler:read"], requests_per_hour=9, allowed_cidrs=["127.0.0.0/8"])

    response = post(client, f"{KEYS}/{key.public_id}/rotate", {"overlap_seconds": 3600})

    new = response.json()
    assert response.status_code == 201
    assert response["Location"] == f"{KEYS}/{new['key_id']}"
    assert (new["name"], new["scopes"], new["requests_per_hour"]) == ("a", ["scheduler:read"], 9)
    assert (new["allowed_cidrs"], new["expires_at"], new["created_by"]) == (["127.0.0.0/8"], None, "test")
    for each in (text, new["key"]):
        assert Client().get("/api/v2/tasks", headers={"Authorization": f"Bearer {each}"}).status_code == 200
    old = client.get(f"{KEYS}/{key.public_id}").json()
    assert (old["state"], old["replaced_by"]) == ("rotated", new["key_id"])
    ends_in = ApiKey.objects.get(pk=key.pk).expires_at - timezone.now()  # type: ignore[operator]
    assert timedelta(minutes=59) < ends_in <= timedelta(hours=1)


def test_the_overlap_is_a_day_unless_said_and_at_most_a_week(client: APIClient) -> None:
    key, _ = keys.issue("a", ["scheduler:read"])

    for seconds in (-1, 604_801, 1.5, "3600", None):
        assert post(client, f"{KEYS}/{key.public_id}/rotate", {"overlap_seconds": seconds}).status_code == 400
    assert client.post(f"{KEYS}/{key.public_id}/rotate").status_code == 201

    ends_in = ApiKey.objects.get(pk=key.pk).expires_at - timezone.now()  # type: ignore[operator]
    assert timedelta(hours=23, minutes=59) < ends_in <= timedelta(days=1)


def test_without_an_overlap_the_old_key_ends_at_once(client: APIClient) -> None:
    key, text = keys.issue("a", ["scheduler:read"])

    new = post(client, f"{KEYS}/{key.public_id}/rotate", {"overlap_seconds": 0}).json()

    assert keys.verify(text) is None
    assert keys.verify(new["key"])
    old = client.get(f"{KEYS}/{key.public_id}").json()
    assert (old["state"], old["revoked_reason"]) == ("revoked", f"Replaced by {new['key_id']}")


def test_a_key_is_rotated_once(client: APIClient) -> None:
    key, _ = keys.issue("a", ["scheduler:read"])
    new = post(client, f"{KEYS}/{key.public_id}/rotate").json()

    again = post(client, f"{KEYS}/{key.public_id}/rotate")

    assert again.status_code == 409
    assert new["key_id"] in again.json()["error"]["message"]
    assert ApiKey.objects.count() == 3


def test_a_revoked_key_ends_at_once_and_keeps_its_reason(client: APIClient) -> None:
    key, text = keys.issue("a", ["scheduler:read"])
    path = f"{KEYS}/{key.public_id}"

    first = post(client, f"{path}/revoke", {"reason": "leaked"})
    second = post(client, f"{path}/revoke", {"reason": "again"})

    assert (first.status_code, second.status_code) == (200, 200)
    assert (second.json()["state"], second.json()["revoked_reason"]) == ("revoked", "leaked")
    assert second.json()["revoked_at"] == first.json()["revoked_at"]
    assert Client().get("/api/v2/tasks", headers={"Authorization": f"Bearer {text}"}).status_code == 401


def test_deleting_is_revoking(client: APIClient) -> None:
    key, text = keys.issue("a", ["scheduler:read"])

    assert client.delete(f"{KEYS}/{key.public_id}").status_code == 204

    assert keys.verify(text) is None
    assert client.get(f"{KEYS}/{key.public_id}").json()["state"] == "revoked"
    assert client.delete(f"{KEYS}/{key.public_id}").status_code == 204


# --- credentials in an address ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["api_key", "access_token", "key", "API_KEY", "apikey"])
@pytest.mark.parametrize("path", ["/api/v2/tasks", "/api/v2/nowhere", "/api/v2/auth/refresh"])
def test_a_credential_in_an_address_is_refused_and_not_logged(
    name: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, text = keys.issue("a", ["scheduler:read"])

    with caplog.at_level(logging.DEBUG):
        response = Client().get(f"{path}?{name}={text}")

    (detail,) = response.json()["error"]["details"]
    assert (response.status_code, detail["field"]) == (400, name)
    assert "Authorization: Bearer" in detail["suggestion"]
    assert text not in response.content.decode() + str([record.__dict__ for record in caplog.records])


@pytest.mark.parametrize("query", ["status={}", "{}", "{}=1", "status=Bearer%20{}", "a=1&b=2&c=x{}"])
def test_a_key_is_noticed_under_any_name(query: str, client: APIClient, caplog: pytest.LogCaptureFixture) -> None:
    _, text = keys.issue("a", ["scheduler:read"])

    response = client.get("/api/v2/tasks?" + query.format(text))

    assert response.status_code == 400
    assert text not in response.content.decode() + str([record.__dict__ for record in caplog.records])


@pytest.mark.parametrize("query", ["", "?status=queued", "?limit=5&page=1"])
def test_other_addresses_are_let_pass(client: APIClient, query: str) -> None:
    assert client.get(f"/api/v2/tasks{query}").status_code == 200


def test_the_console_has_names_of_its_own(admin_client: Client) -> None:
    assert admin_client.get("/admin/?key=1").status_code == 200
