"""User apps on the console: registered, their secret shown once, what they were given ended but never read."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.messages import get_messages
from django.test import Client
from django.urls import reverse
from oauth2_provider.models import AccessToken, Application, Grant, RefreshToken

from k1node.audit.models import AuditRecord
from tests.k1node.oauth_flow import CALLBACK, App, browser_of, make_app, make_person

pytestmark = pytest.mark.django_db
SERVICE = {"name": "Board", "client_type": "confidential", "redirect_uris": CALLBACK}


def add(console: Client, **changed: str) -> Any:
    return console.post(reverse("admin:oauth2_provider_application_add"), SERVICE | changed)


def act(console: Client, name: str, row: Any) -> list[str]:
    """Take an action on one row; return what the console says."""
    address = reverse(f"admin:oauth2_provider_{row._meta.model_name}_changelist")
    response = console.post(address, {"action": name, "_selected_action": [row.pk]})
    return [str(message) for message in get_messages(response.wsgi_request)]


def page_of(row: Any) -> str:
    return reverse(f"admin:oauth2_provider_{row._meta.model_name}_change", args=(row.pk,))


def secret_in(text: str) -> str:
    found = re.search(r'<code class="k1-secret">(\w+)</code>', text)
    assert found, text
    return found[1]


def test_a_new_service_shows_its_secret_once(admin_client: Client) -> None:
    added = add(admin_client)
    first = admin_client.get(added["Location"]).content.decode()
    second = admin_client.get(added["Location"]).content.decode()

    application = Application.objects.get()
    secret = secret_in(first)
    assert len(secret) == 128
    assert application.client_id in first
    assert "k1-secret" not in second
    assert secret not in str(list(Application.objects.values_list()))
    assert application.authorization_grant_type == Application.GRANT_AUTHORIZATION_CODE
    assert not application.skip_authorization
    assert App(application, secret).tokens(browser_of(make_person("ana", "view_task")))["access_token"]


def test_a_program_has_no_secret_to_show(admin_client: Client) -> None:
    added = add(admin_client, client_type="public", redirect_uris="http://127.0.0.1/callback")
    page = admin_client.get(added["Location"]).content.decode()

    assert Application.objects.get().client_id in page
    assert "k1-secret" not in page
    assert act(admin_client, "new_secret", Application.objects.get()) == ["Skipped 1: programs have no secret"]


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        pytest.param({"name": ""}, "name", id="no name"),
        pytest.param({"name": "a\tb"}, "name", id="control character"),
        pytest.param({"client_type": "other"}, "client_type", id="unknown kind"),
        pytest.param({"redirect_uris": ""}, "redirect_uris", id="nowhere"),
        pytest.param({"redirect_uris": "http://app.example/"}, "redirect_uris", id="without TLS"),
        pytest.param({"redirect_uris": "http://localhost/cb"}, "redirect_uris", id="localhost"),
        pytest.param(
            {"redirect_uris": "http://127.0.0.1.evil.example/"}, "redirect_uris", id="looks like the loopback"
        ),
        pytest.param({"redirect_uris": "https://app.example/#a"}, "redirect_uris", id="fragment"),
        pytest.param({"redirect_uris": "https://*.example/"}, "redirect_uris", id="wildcard"),
        pytest.param({"redirect_uris": "https://a@app.example/"}, "redirect_uris", id="a name"),
        pytest.param({"redirect_uris": "https://[::1"}, "redirect_uris", id="no address"),
        pytest.param({"redirect_uris": "javascript:alert(1)"}, "redirect_uris", id="a script"),
        pytest.param({"redirect_uris": f"{CALLBACK} nonsense"}, "redirect_uris", id="one good, one bad"),
    ],
)
def test_what_cannot_be_registered_is_refused_at_its_field(
    admin_client: Client, changed: dict[str, str], field: str
) -> None:
    response = add(admin_client, **changed)

    assert list(response.context["adminform"].form.errors) == [field]
    assert not Application.objects.exists()


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1/cb", "http://127.0.0.1:8123/cb", "http://[::1]/cb?a=b", CALLBACK]
)
def test_addresses_that_can(admin_client: Client, address: str) -> None:
    add(admin_client, redirect_uris=address)

    assert Application.objects.get().redirect_uris == address


def test_an_application_can_move_but_keeps_what_it_is(admin_client: Client) -> None:
    app = make_app()
    moved = "https://new.example/callback"

    admin_client.post(
        page_of(app.row),
        {"name": "Renamed", "redirect_uris": f"{CALLBACK}\r\n{moved}", "client_type": "public", "client_id": "mine"},
    )

    application = Application.objects.get()
    assert (application.name, application.redirect_uris.split()) == ("Renamed", [CALLBACK, moved])
    assert (application.client_id, application.client_type) == (app.row.client_id, "confidential")
    assert App(application, app.secret).post("introspect", token="x").json() == {"active": False}


def test_a_new_secret_ends_the_old_one(admin_client: Client) -> None:
    app = make_app()

    (told,) = act(admin_client, "new_secret", app.row)

    assert app.post("introspect", token="x").status_code == 401
    assert App(app.row, secret_in(told)).post("introspect", token="x").json() == {"active": False}


def test_deleting_an_application_ends_what_it_was_given(admin_client: Client) -> None:
    app = make_app()
    given = app.tokens(browser_of(make_person("ana", "view_task")))
    address = reverse("admin:oauth2_provider_application_delete", args=(app.row.pk,))

    asked = admin_client.get(address).content.decode()
    admin_client.post(address, {"post": "yes"})

    assert "every access given to it" in asked
    assert app.api(given["access_token"]).status_code == 401
    assert not Application.objects.exists()


@pytest.mark.parametrize("model", [AccessToken, RefreshToken])
def test_revoking_ends_both_tokens(admin_client: Client, model: Any) -> None:
    app = make_app()
    given = app.tokens(browser_of(make_person("ana", "view_task")))

    told = act(admin_client, "revoke", model.objects.get())

    assert told == ["Revoked 1"]
    assert app.api(given["access_token"]).status_code == 401
    assert app.refresh(given["refresh_token"]).status_code == 400


def test_revoking_a_code_and_what_was_revoked_before(admin_client: Client) -> None:
    app, browser = make_app(), browser_of(make_person("ana", "view_task"))
    code = app.code(browser)
    app.tokens(browser)
    refresh = RefreshToken.objects.get()
    refresh.revoke()

    assert act(admin_client, "revoke", Grant.objects.get()) == ["Revoked 1"]
    assert act(admin_client, "revoke", refresh)[-1] == "Skipped 1: revoked before"
    assert app.exchange(code).status_code == 400


def test_revoking_needs_the_permission_to_delete(operator: Callable[..., Client]) -> None:
    app = make_app()
    given = app.tokens(browser_of(make_person("olga", "view_task")))

    act(operator("view_accesstoken"), "revoke", AccessToken.objects.get())

    assert app.api(given["access_token"]).status_code == 200


def test_the_page_of_a_token_does_not_show_it(admin_client: Client) -> None:
    app = make_app()
    app.tokens(browser_of(make_person("ana", "view_task")))
    token = AccessToken.objects.get()

    page = admin_client.get(page_of(token)).content.decode()

    assert token.token_checksum not in page
    assert "dashboard:read" in page
    assert "ana" in page


def test_what_is_done_to_apps_is_in_the_audit_log(admin_client: Client) -> None:
    add(admin_client)
    application = Application.objects.get()
    admin_client.post(page_of(application), {"name": "Board 2", "redirect_uris": CALLBACK})
    act(admin_client, "new_secret", application)
    given = RefreshToken.objects.create(user=make_person("ana"), application=application, token="t" * 30)
    act(admin_client, "revoke", given)
    admin_client.post(reverse("admin:oauth2_provider_application_delete", args=(application.pk,)), {"post": "yes"})

    target = f"application:{application.client_id}"
    assert list(AuditRecord.objects.order_by("id").values_list("action", "target", "actor_name")) == [
        ("application.created", "application:Board", "admin"),
        ("application.updated", "application:Board 2", "admin"),
        ("application.secret_replaced", target, "admin"),
        ("grant.revoked", target, "admin"),
        ("application.deleted", "application:Board 2", "admin"),
    ]
