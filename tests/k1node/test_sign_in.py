"""The sign-in page: who gets in, and how often one may try there and at the doors of OAuth."""

from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.cache import caches
from django.test import Client

from k1node.access import slowing
from k1node.lib.origin import client_address

PASSWORD = "a long password"
pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _within_one_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the clock that tries are counted by: a window that ends in the middle of a test would let twice as many."""
    monkeypatch.setattr("django_ratelimit.core.time", SimpleNamespace(time=lambda: 1_800_000_000.0))


@pytest.fixture(autouse=True)
def ana() -> User:
    return User.objects.create_user("ana", password=PASSWORD, is_staff=True)


def sign_in(password: str = PASSWORD, name: str = "ana", address: str = "192.0.2.1", **query: str) -> Any:
    browser = Client(REMOTE_ADDR=address)
    return browser.post("/admin/login/", {"username": name, "password": password}, query_params=query or None)


def test_staff_get_in_and_arrive_where_they_wanted_to() -> None:
    assert sign_in()["Location"] == "/admin/"
    assert sign_in(next="/admin/scheduling/task/")["Location"] == "/admin/scheduling/task/"
    assert sign_in(next="https://evil.example/")["Location"] == "/admin/"


@pytest.mark.parametrize("fields", [{"is_staff": False}, {"is_active": False}])
def test_others_do_not(fields: dict[str, bool]) -> None:
    User.objects.update(**fields)

    response = sign_in()

    assert response.status_code == 200
    assert "correct username and password for a staff account" in response.content.decode()


def test_whoever_is_in_is_sent_on(ana: User) -> None:
    browser = Client()
    browser.force_login(ana)

    assert browser.get("/admin/login/")["Location"] == "/admin/"
    assert browser.get("/admin/login/?next=/admin/auth/user/")["Location"] == "/admin/auth/user/"
    assert browser.get("/admin/login/?next=/admin/login/%3Fnext=/")["Location"] == "/admin/"


def test_the_page_is_the_consoles_and_in_nobodys_frame() -> None:
    page = Client().get("/admin/login/")

    assert "<title>Log in | K1.Node</title>" in page.content.decode()
    assert "frame-ancestors 'none'" in page["Content-Security-Policy"]
    assert "no-store" in page["Cache-Control"]
    assert Client().get("/admin/", follow=True).redirect_chain == [("/admin/login/?next=/admin/", 302)]


def test_after_many_tries_from_one_address_there_is_a_pause() -> None:
    tries = [sign_in("wrong", name=f"user {number}") for number in range(20)]
    refused = sign_in()
    elsewhere = sign_in(address="192.0.2.2")

    assert {response.status_code for response in tries} == {200}
    assert refused.status_code == 429
    assert 1 <= int(refused["Retry-After"]) <= 300
    text = refused.content.decode()
    assert "Try again in <strong>" in text
    assert "many attempts to sign in" in text
    assert "<style" not in text
    assert " style=" not in text
    assert elsewhere.status_code == 302


def test_after_many_tries_at_one_name_there_is_a_pause_wherever_they_come_from() -> None:
    for number in range(100):
        sign_in("wrong", name=(" ANA ", "ana", "\uff41na", "an\uff41")[number % 4], address=f"192.0.2.{number}")

    assert sign_in(address="198.51.100.1").status_code == 429


def test_one_address_locks_nobody_else_out() -> None:
    for name in ("ana", "198.51.100.1"):
        for _ in range(21):
            sign_in("wrong", name=name, address="192.0.2.1" if name == "ana" else "192.0.2.3")

    assert sign_in(address="192.0.2.1").status_code == 429
    assert sign_in(address="198.51.100.1").status_code == 302


def test_addresses_of_one_network_count_together() -> None:
    for number in range(20):
        sign_in("wrong", name=f"user {number}", address=f"2001:db8::{number:x}")

    assert sign_in(address="2001:db8::ffff").status_code == 429
    assert sign_in(address="2001:db8:0:1::1").status_code == 302


def test_reading_the_page_is_not_counted() -> None:
    assert {Client().get("/admin/login/").status_code for _ in range(30)} == {200}


def test_behind_a_proxy_its_clients_are_told_apart(settings: Any) -> None:
    settings.K1NODE_TRUSTED_PROXIES = 1
    browser = Client(REMOTE_ADDR="10.0.0.1")

    def from_behind(address: str) -> Any:
        return browser.post(
            "/admin/login/", {"username": address, "password": "x"}, headers={"X-Forwarded-For": address}
        )

    for _ in range(20):
        from_behind("192.0.2.1")

    assert (from_behind("192.0.2.1").status_code, from_behind("192.0.2.2").status_code) == (429, 200)


def test_who_has_no_address_is_counted_with_all_who_have_none(rf: Any) -> None:
    request = rf.get("/", REMOTE_ADDR="")

    assert client_address(request, 0) == "unknown"
    assert slowing.address_of(request) == "0.0.0.0"


def test_what_cannot_be_counted_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(caches["default"]), "_run", lambda *_: [])

    response = sign_in()

    assert (response.status_code, response["Retry-After"]) == (429, "5")


@pytest.mark.parametrize(("where", "limit"), [("token", 60), ("revoke", 60), ("introspect", 600)])
def test_programs_are_told_to_slow_down(where: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    added = caches["default"].add
    # As if all but the last allowed request had been made.
    monkeypatch.setattr(type(caches["default"]), "add", lambda _self, key, _value, timeout: added(key, limit, timeout))

    last, beyond = (Client().post(f"/oauth/{where}", {"token": "x"}) for _ in range(2))

    assert last.status_code in (400, 401)
    assert (beyond.status_code, beyond.json()["error"]) == (429, "slow_down")
    assert 1 <= int(beyond["Retry-After"]) <= 60
    assert beyond["Cache-Control"] == "no-store"


def test_people_with_an_app_are_told_in_words(ana: User) -> None:
    browser = Client()
    browser.force_login(ana)
    for _ in range(60):
        browser.get("/oauth/authorize")

    response = browser.get("/oauth/authorize")

    assert response.status_code == 429
    assert "Try again in <strong>" in response.content.decode()
