"""Signing in with a key: tokens, their one refresh, and what ends them."""

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries
from rest_framework.test import APIClient

from k1node.access import grants, jwt_tokens, keys
from k1node.access.models import ApiKey, DeniedToken, RefreshToken, TokenFamily
from k1node.lib.errors import FieldInvalid
from tests.databases import Rival

Clients = Callable[..., APIClient]
pytestmark = pytest.mark.django_db
TOKEN, REFRESH, REVOKE = "/api/v2/auth/token", "/api/v2/auth/refresh", "/api/v2/auth/revoke"


def make_key(*scopes: str, **fields: Any) -> tuple[ApiKey, keys.Known]:
    row, text = keys.issue("billing", scopes or ["scheduler:read"], **fields)
    known = keys.verify(text)
    assert known is not None
    return row, known


def bearer(token: str) -> APIClient:
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {token}")
    return client


def opens(token: str) -> int:
    return int(bearer(token).get("/api/v2/tasks").status_code)


def test_a_key_gives_tokens_that_open_what_it_opens(api_client: Clients) -> None:
    client = api_client("scheduler:write", "error-recovery:read")

    response = client.post(TOKEN, {"scope": "scheduler:read"}, format="json")

    body = response.json()
    assert response.status_code == 200, body
    assert set(body) == {"access_token", "token_type", "expires_in", "refresh_token", "scope"}
    assert (body["token_type"], body["expires_in"], body["scope"]) == ("Bearer", 86_400, "scheduler:read")
    assert (response["Cache-Control"], response["Pragma"]) == ("no-store", "no-cache")
    assert opens(body["access_token"]) == 200
    assert bearer(body["access_token"]).get("/api/v2/circuit-breaker/status").status_code == 403
    assert bearer(body["access_token"]).post("/api/v2/tasks", {}, format="json").status_code == 403


def test_all_of_the_keys_scopes_are_the_default(api_client: Clients) -> None:
    body = api_client("scheduler:write", "batch:write").post(TOKEN).json()

    assert body["scope"] == "batch:write scheduler:write"


@pytest.mark.parametrize(
    ("scope", "message"),
    [
        ("admin", "The key has not got admin"),
        ("scheduler:read scheduler:trigger nonsense", "The key has not got nonsense, scheduler:trigger"),
        (" ", "Must not be empty"),
    ],
)
def test_a_scope_the_key_has_not_got_is_named(api_client: Clients, scope: str, message: str) -> None:
    response = api_client("scheduler:write").post(TOKEN, {"scope": scope}, format="json")

    (detail,) = response.json()["error"]["details"]
    assert (response.status_code, detail["field"], detail["message"]) == (400, "scope", message)
    assert not TokenFamily.objects.exists()


def test_a_key_with_any_scope_may_sign_in_and_nothing_else_may(api_client: Clients, admin_client: Any) -> None:
    jwt = api_client("webhooks:read").post(TOKEN).json()["access_token"]

    refused = bearer(jwt).post(TOKEN)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "FORBIDDEN")
    assert admin_client.post(TOKEN).status_code == 401
    assert api_client().post(TOKEN).status_code == 401


def test_a_jwt_speaks_in_the_name_of_its_key() -> None:
    row, known = make_key("scheduler:read")

    found, reason = jwt_tokens.examine(grants.issue(known).access_token)

    assert found, reason
    assert (found.name, found.identity, found.key and found.key.pk) == ("billing", f"key:{row.pk}", row.pk)


def test_checking_a_jwt_costs_one_query(django_assert_num_queries: DjangoAssertNumQueries) -> None:
    token = grants.issue(make_key()[1]).access_token

    with django_assert_num_queries(1):
        assert jwt_tokens.examine(token)[0]


def test_a_revoked_key_takes_its_tokens_with_it() -> None:
    row, known = make_key()
    grant = grants.issue(known)
    assert opens(grant.access_token) == 200

    keys.revoke(row)

    assert opens(grant.access_token) == 401
    assert grants.exchange(grant.refresh_token)[0] is None


def test_an_expired_key_takes_its_tokens_with_it(now: datetime) -> None:
    _, known = make_key(expires_at=timezone.now() + timedelta(hours=1))
    grant = grants.issue(known)
    later = timezone.now() + timedelta(hours=1)

    assert 3500 <= grant.expires_in <= 3600
    assert "expired key" in jwt_tokens.examine(grant.access_token, now=later)[1]
    assert "expired key" in grants.exchange(grant.refresh_token, now=later)[1]


def test_what_a_key_has_lost_its_tokens_have_lost(api_client: Clients) -> None:
    row, known = make_key("scheduler:write", "scheduler:trigger")
    grant = grants.issue(known)

    keys.change(row, {"scopes": ["scheduler:read"]})

    found, _ = jwt_tokens.examine(grant.access_token)
    assert found and found.scopes == {"scheduler:read"}
    refreshed, _ = grants.exchange(grant.refresh_token)
    assert refreshed and refreshed.scopes == ("scheduler:read",)


def test_scopes_do_not_grow_by_refreshing() -> None:
    _, known = make_key("admin")
    grant = grants.issue(known, "scheduler:read")

    refreshed, _ = grants.exchange(grant.refresh_token)

    assert refreshed and refreshed.scopes == ("scheduler:read",)


def test_tokens_of_a_key_that_has_lost_all_their_scopes_end() -> None:
    row, known = make_key("scheduler:read", "batch:write")
    grant = grants.issue(known, "batch:write")
    keys.change(row, {"scopes": ["scheduler:read"]})

    assert "has lost" in grants.exchange(grant.refresh_token)[1]


def test_a_refresh_token_is_good_for_one_use(api_client: Clients, caplog: pytest.LogCaptureFixture) -> None:
    grant = grants.issue(make_key()[1])
    client = api_client()

    first = client.post(REFRESH, {"refresh_token": grant.refresh_token}, format="json")
    with caplog.at_level(logging.WARNING):
        second = client.post(REFRESH, {"refresh_token": grant.refresh_token}, format="json")

    assert (first.status_code, second.status_code) == (200, 401)
    assert second["WWW-Authenticate"] == 'Bearer realm="k1node", error="invalid_token"'
    assert second["Cache-Control"] == "no-store"
    assert "Token family revoked" in caplog.messages
    assert grant.refresh_token not in caplog.text + str([record.__dict__ for record in caplog.records])
    # What the first call got, and what came before it, has ended too.
    assert opens(first.json()["access_token"]) == opens(grant.access_token) == 401
    third = client.post(REFRESH, {"refresh_token": first.json()["refresh_token"]}, format="json")
    assert third.status_code == 401


def test_refreshing_goes_on_for_ever_within_one_family() -> None:
    grant = grants.issue(make_key()[1])

    for _ in range(5):
        following, reason = grants.exchange(grant.refresh_token)
        assert following, reason
        grant = following

    assert (TokenFamily.objects.count(), RefreshToken.objects.filter(used_at=None).count()) == (1, 1)
    assert opens(grant.access_token) == 200


@pytest.mark.django_db(transaction=True)
def test_of_two_rivals_with_one_refresh_token_exactly_one_wins(rival: Rival, monkeypatch: pytest.MonkeyPatch) -> None:
    grant = grants.issue(make_key()[1])
    theirs: list[Any] = []
    read = grants._row

    def read_and_let_the_rival_go_first(text: str) -> Any:
        row = read(text)
        monkeypatch.setattr(grants, "_row", read)
        theirs.append(rival.do(grants.exchange, text))
        return row

    monkeypatch.setattr(grants, "_row", read_and_let_the_rival_go_first)
    ours, reason = grants.exchange(grant.refresh_token)

    assert (ours, theirs[0][1]) == (None, "")
    assert "a second time" in reason
    assert RefreshToken.objects.filter(used_at=None).count() == 1
    assert TokenFamily.objects.get().revoked_at is not None


@pytest.mark.django_db(transaction=True)
def test_many_at_the_same_moment_get_one_answer() -> None:
    from threading import Barrier, Thread

    from django.db import connection

    grant = grants.issue(make_key()[1])
    barrier, answers = Barrier(5), []

    def exchange() -> None:
        barrier.wait(10)
        answers.append(grants.exchange(grant.refresh_token)[0])
        connection.close()

    threads = [Thread(target=exchange) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert len([answer for answer in answers if answer]) == 1
    assert RefreshToken.objects.count() == 2


@pytest.mark.parametrize("text", ["rt-k1n_" + "a" * 49, "sk-k1n_" + "a" * 46, "eyJh.e30.x", "rt-", "x" * 8000])
def test_unknown_refresh_tokens_are_401(api_client: Clients, text: str) -> None:
    response = api_client().post(REFRESH, {"refresh_token": text}, format="json")

    assert (response.status_code, response.json()["error"]["code"]) == (401, "UNAUTHORIZED")


@pytest.mark.parametrize("body", [{}, {"refresh_token": None}, {"refresh_token": ""}, {"refresh_token": 5}, []])
@pytest.mark.parametrize("path", [REFRESH, REVOKE])
def test_a_body_without_a_token_is_400(api_client: Clients, body: Any, path: str) -> None:
    assert api_client().post(path, body, format="json").status_code == 400


def test_an_expired_refresh_token_is_refused(now: datetime, settings: Any) -> None:
    settings.JWT_REFRESH_EXPIRY = timedelta(minutes=5)
    grant = grants.issue(make_key()[1], now=now)

    assert "expired refresh token" in grants.exchange(grant.refresh_token, now=now + timedelta(minutes=5))[1]
    assert grants.exchange(grant.refresh_token, now=now + timedelta(minutes=4))[0]


def test_a_revoked_access_token_ends_and_its_family_goes_on(api_client: Clients) -> None:
    grant = grants.issue(make_key()[1])

    response = api_client().post(REVOKE, {"token": grant.access_token}, format="json")

    assert (response.status_code, response.json()) == (200, {"revoked": True})
    assert response["Cache-Control"] == "no-store"
    assert opens(grant.access_token) == 401
    following, _ = grants.exchange(grant.refresh_token)
    assert following and opens(following.access_token) == 200
    api_client().post(REVOKE, {"token": grant.access_token}, format="json")
    assert DeniedToken.objects.count() == 1


def test_a_revoked_refresh_token_takes_its_family_with_it(api_client: Clients) -> None:
    grant = grants.issue(make_key()[1])
    other = grants.issue(make_key()[1])

    assert api_client().post(REVOKE, {"token": grant.refresh_token}, format="json").status_code == 200

    assert opens(grant.access_token) == 401
    assert grants.exchange(grant.refresh_token)[0] is None
    assert opens(other.access_token) == 200


@pytest.mark.parametrize("text", ["x", "rt-k1n_nothing", "eyJhbGciOiJub25lIn0.e30.", "sk-k1n_" + "a" * 46])
def test_revoking_nothing_tells_nothing(api_client: Clients, text: str) -> None:
    response = api_client().post(REVOKE, {"token": text}, format="json")

    assert (response.status_code, response.json()) == (200, {"revoked": True})
    assert not DeniedToken.objects.exists()


def test_an_address_list_holds_for_tokens_too() -> None:
    row, known = make_key()
    grant = grants.issue(known)

    keys.change(row, {"allowed_cidrs": ["10.0.0.0/8"]})

    assert opens(grant.access_token) == 401
    assert "not for" in grants.exchange(grant.refresh_token)[1]


def test_a_token_counts_as_use_of_its_key() -> None:
    row, known = make_key()
    grant = grants.issue(known)
    ApiKey.objects.update(last_used_at=None)

    opens(grant.access_token)

    row.refresh_from_db()
    assert (row.last_used_at is not None, row.last_used_ip) == (True, "127.0.0.1")


def test_nothing_that_opens_anything_is_stored() -> None:
    grant = grants.issue(make_key()[1])
    jwt_tokens.deny(jwt_tokens.read(grant.access_token), now=timezone.now())

    stored = str([list(model.objects.values()) for model in (TokenFamily, RefreshToken, DeniedToken)])

    assert grant.refresh_token not in stored
    assert grant.access_token not in stored


def test_what_is_over_is_pruned_and_nothing_else(now: datetime, settings: Any) -> None:
    settings.JWT_REFRESH_EXPIRY = timedelta(days=1)
    _, known = make_key()
    old = grants.issue(known, now=now - timedelta(days=2))
    grants.exchange(old.refresh_token, now=now - timedelta(days=2))
    fresh = grants.issue(known, now=now)
    DeniedToken.objects.create(issuer="a", jti="old", denied_at=now, expires_at=now - timedelta(seconds=1))
    DeniedToken.objects.create(issuer="a", jti="new", denied_at=now, expires_at=now)

    assert grants.prune(now=now) == 4

    assert grants.prune(now=now) == 0
    assert [row.jti for row in DeniedToken.objects.all()] == ["new"]
    assert grants.exchange(fresh.refresh_token, now=now)[0]


def test_no_scope_at_all_is_refused() -> None:
    with pytest.raises(FieldInvalid):
        grants.issue(make_key()[1], "  ")
