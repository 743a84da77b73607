"""OAuth 2.0 for user apps: the code flow with PKCE, what refuses it, and how what was given ends."""

import logging
import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.db import OperationalError
from django.test import Client
from django.utils import timezone
from oauth2_provider.models import AccessToken, Application, Grant, RefreshToken
from pytest_django import DjangoAssertNumQueries

from k1node import tidying
from k1node.access.oauth import tokens
from k1node.access.scopes import ALL_SCOPES
from k1node.audit import trail
from k1node.audit.models import AuditRecord, AuditRefusal
from tests.databases import Rival
from tests.k1node.oauth_flow import CALLBACK, CHALLENGE, VERIFIER, App, answered, browser_of, make_app, make_person

pytestmark = pytest.mark.django_db


@pytest.fixture
def app() -> App:
    return make_app()


@pytest.fixture
def ana() -> User:
    return make_person("ana", "view_task", "change_task")


@pytest.fixture
def browser(ana: User) -> Client:
    return browser_of(ana)


def text_of(response: Any) -> str:
    return " ".join(response.content.decode().split())


def acts() -> list[tuple[str, str, str, str]]:
    return list(AuditRecord.objects.order_by("id").values_list("action", "target", "actor_name", "reason"))


# --- the way through --------------------------------------------------------------------------------------------


def test_a_person_lets_an_app_read(app: App, browser: Client) -> None:
    given = app.tokens(browser)

    assert given["token_type"] == "Bearer"
    assert (given["scope"], given["expires_in"]) == ("dashboard:read", 3600)
    assert app.api(given["access_token"]).status_code == 200
    hold = app.client.post("/api/v2/scheduler/hold", headers={"Authorization": f"Bearer {given['access_token']}"})
    assert (hold.status_code, hold.json()["error"]["code"]) == (403, "FORBIDDEN")


def test_the_answer_names_state_and_issuer(app: App, browser: Client) -> None:
    response = answered(app.answer(browser, app.ask(browser)))

    assert set(response) == {"code", "state", "iss"}
    assert (response["state"], response["iss"]) == ("s1", "http://testserver")


def test_whoever_is_not_signed_in_does_so_first(app: App, ana: User) -> None:
    ana.set_password("a long password")
    ana.save()
    browser = Client()

    asked = app.ask(browser)
    page = browser.post(asked["Location"], {"username": "ana", "password": "a long password"}, follow=True)

    assert asked["Location"].startswith("/admin/login/?next=/oauth/authorize")
    assert page.status_code == 200
    assert "Board" in text_of(page)
    assert answered(app.answer(browser, page))["code"]


def test_a_program_without_a_secret_gets_tokens_by_its_verifier_alone(browser: Client) -> None:
    program = make_app("Tool", ["http://127.0.0.1/cb"], client_type=Application.CLIENT_PUBLIC)
    there = "http://127.0.0.1:49152/cb"  # any port

    response = program.answer(browser, program.ask(browser, redirect_uri=there))
    code = response["Location"].partition("code=")[2].partition("&")[0]
    fields = {"grant_type": "authorization_code", "code": code, "redirect_uri": there, "code_verifier": VERIFIER}
    given = Client().post("/oauth/token", {**fields, "client_id": program.row.client_id})

    assert response["Location"].startswith(f"{there}?code=")
    assert given.status_code == 200
    again = Client().post(
        "/oauth/token",
        {
            "grant_type": "refresh_token",
            "refresh_token": given.json()["refresh_token"],
            "client_id": program.row.client_id,
        },
    )
    assert again.status_code == 200


def test_nothing_that_could_be_used_is_kept(app: App, browser: Client) -> None:
    given = app.tokens(browser)

    kept = str([list(model.objects.values_list()) for model in (AccessToken, RefreshToken, Application)])
    assert given["access_token"] not in kept
    assert given["refresh_token"] not in kept
    assert app.secret not in kept


def test_answers_are_kept_by_no_cache(app: App, browser: Client) -> None:
    page = app.ask(browser)
    answer = app.answer(browser, page)
    token = app.exchange(answered(answer)["code"])
    refused = app.exchange("x")

    for response in (page, answer, token, refused, app.post("introspect", token="x"), app.post("revoke", token="x")):
        assert response["Cache-Control"] == "no-store"


# --- who asks, and where the answer goes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"client_id": "nobody"}, id="unknown app"),
        pytest.param({"client_id": None}, id="no app"),
        pytest.param({"redirect_uri": "https://evil.example/"}, id="another host"),
        pytest.param({"redirect_uri": CALLBACK + "/more"}, id="another path"),
        pytest.param({"redirect_uri": CALLBACK + "?a=b"}, id="with a query"),
        pytest.param({"redirect_uri": CALLBACK + "#a"}, id="with a fragment"),
        pytest.param({"redirect_uri": "https://x@app.example/callback"}, id="with a name"),
        pytest.param({"redirect_uri": "https://app.example:444/callback"}, id="another port"),
        pytest.param({"redirect_uri": "http://app.example/callback"}, id="without TLS"),
        pytest.param({"redirect_uri": "https://app.example:99999/callback"}, id="no port at all"),
        pytest.param({"redirect_uri": "https://[::1/callback"}, id="no address"),
        pytest.param({"redirect_uri": "javascript:alert(1)"}, id="a script"),
    ],
)
def test_what_cannot_be_trusted_is_a_page_and_leads_nowhere(
    app: App, browser: Client, changed: dict[str, str | None]
) -> None:
    page = app.ask(browser, **changed)

    assert page.status_code == 400
    assert "This cannot go on" in text_of(page)
    assert "evil.example" not in text_of(page)
    assert "Location" not in page


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        pytest.param({"code_challenge": None, "code_challenge_method": None}, "invalid_request", id="no PKCE"),
        pytest.param({"code_challenge_method": "plain"}, "invalid_request", id="plain PKCE"),
        pytest.param({"code_challenge_method": None}, "invalid_request", id="no method, which would mean plain"),
        pytest.param({"code_challenge_method": "S512"}, "invalid_request", id="unknown method"),
        pytest.param({"code_challenge": "short"}, "invalid_request", id="challenge of another length"),
        pytest.param({"response_type": "token"}, "unsupported_response_type", id="implicit"),
        pytest.param({"response_type": "code id_token"}, "unauthorized_client", id="OpenID"),
        pytest.param({"response_type": None}, "invalid_request", id="no response type"),
        pytest.param({"scope": "root"}, "invalid_scope", id="unknown scope"),
    ],
)
def test_what_the_app_does_wrong_goes_back_to_it(
    app: App, browser: Client, changed: dict[str, str | None], error: str
) -> None:
    response = answered(app.ask(browser, **changed))

    assert response["error"] == error
    assert (response["state"], response["iss"]) == ("s1", "http://testserver")
    assert not Grant.objects.exists()


def test_denial_goes_back_to_the_app(app: App, browser: Client) -> None:
    response = answered(app.answer(browser, app.ask(browser), allow=False))

    assert (response["error"], response["state"]) == ("access_denied", "s1")
    assert not Grant.objects.exists()


def test_what_the_form_hides_is_checked_again(app: App, browser: Client) -> None:
    page = app.ask(browser)

    sent = [
        app.answer(browser, page, allow=allow, **changed)
        for allow in (True, False)
        for changed in (
            {"redirect_uri": "https://evil.example/"},
            {"client_id": "nobody"},
            {"client_id": ""},
            {"client_id": "a\0b"},
        )
    ]
    plain = answered(app.answer(browser, page, code_challenge_method="plain"))
    hidden = {name: value for name, value in page.context["form"].initial.items() if value is not None}
    without = answered(browser.post("/oauth/authorize", hidden | {"allow": "1", "code_challenge": ""}))

    assert {response.status_code for response in sent} == {400}
    assert (plain["error"], without["error"]) == ("invalid_request", "invalid_request")
    assert not Grant.objects.exists()


def test_a_challenge_cannot_be_taken_out_of_the_form(app: App, browser: Client) -> None:
    code = answered(app.answer(browser, app.ask(browser), code_challenge=""))["code"]

    assert app.exchange(code, code_verifier=None).status_code == 400
    assert not AccessToken.objects.exists()


def test_consent_needs_the_form_of_the_page(app: App, ana: User) -> None:
    browser = browser_of(ana, enforce_csrf_checks=True)

    response = app.answer(browser, app.ask(browser))

    assert response.status_code == 403
    assert not Grant.objects.exists()


@pytest.mark.parametrize("short_cut", ["prompt=none", "prompt=login", "prompt=create", "approval_prompt=auto"])
def test_nothing_skips_consent(app: App, browser: Client, short_cut: str) -> None:
    app.tokens(browser)
    name, _, value = short_cut.partition("=")

    page = app.ask(browser, **{name: value})

    assert page.status_code == 200
    assert "asks for access" in text_of(page)


def test_the_page_says_who_asks_for_what_and_where_it_leads(app: App, browser: Client) -> None:
    Application.objects.update(name="<b>Board</b>")

    page = app.ask(browser, scope="scheduler:read error-recovery:write")

    text = text_of(page)
    assert "&lt;b&gt;Board&lt;/b&gt;" in text
    assert "signed in as <strong>ana</strong>" in text
    assert "List and read schedules, tasks and the queue" in text
    assert "Resubmit dead letters; pause, resume, skip and retry tasks" in text
    assert "<strong>app.example</strong>" in text
    policy = page["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    # Chromium would hold it against the way back to the app.
    assert "form-action" not in policy
    assert "<style" not in text
    assert " style=" not in text
    assert "<script>" not in text


def test_whoever_is_the_wrong_person_signs_out_and_comes_back_to_the_question(app: App, browser: Client) -> None:
    page = app.ask(browser)

    out = browser.post("/admin/logout/", {"next": page.wsgi_request.get_full_path()})
    back = browser.get(out["Location"])

    assert 'name="next" value="/oauth/authorize?' in text_of(page)
    assert out["Location"].startswith("/oauth/authorize?")
    assert back["Location"].startswith("/admin/login/?next=/oauth/authorize")


# --- scopes -----------------------------------------------------------------------------------------------------


def test_consent_is_cut_to_what_the_person_may(app: App) -> None:
    browser = browser_of(make_person("olga", "view_task"))

    page = app.ask(browser, scope="dashboard:read dashboard:write admin")
    code = answered(app.answer(browser, page))["code"]
    given = app.exchange(code).json()

    assert [each["scope"] for each in page.context["may"]] == ["dashboard:read"]
    assert [each["scope"] for each in page.context["withheld"]] == ["dashboard:write", "admin"]
    assert "will not get" in text_of(page)
    assert given["scope"] == "dashboard:read"


def test_scopes_added_to_the_hidden_field_are_cut_too(app: App) -> None:
    browser = browser_of(make_person("olga", "view_task"))

    response = app.answer(browser, app.ask(browser), scope="dashboard:read admin")

    assert app.exchange(answered(response)["code"]).json()["scope"] == "dashboard:read"


def test_who_may_give_nothing_can_only_go_back(app: App) -> None:
    browser = browser_of(make_person("olga"))

    page = app.ask(browser)
    denied = answered(app.answer(browser, page, allow=False))
    forced = answered(app.answer(browser, page))

    assert 'name="allow"' not in text_of(page)
    assert (denied["error"], forced["error"]) == ("access_denied", "invalid_scope")
    assert not Grant.objects.exists()


def test_an_app_that_asks_for_nothing_may_read(app: App, browser: Client) -> None:
    assert app.tokens(browser, scope=None)["scope"] == "dashboard:read"


def test_an_administrator_may_give_everything(app: App) -> None:
    browser = browser_of(make_person("root", is_superuser=True))

    page = app.ask(browser, scope=" ".join(sorted(ALL_SCOPES)))

    assert len(page.context["may"]) == len(ALL_SCOPES)
    assert "everything an administrator can do" in text_of(page)


def test_a_token_never_does_more_than_its_person_may_now(app: App) -> None:
    olga = make_person("olga", is_superuser=True)
    given = app.tokens(browser_of(olga), scope="admin")

    User.objects.update(is_superuser=False)
    nothing = app.api(given["access_token"])
    group = Group.objects.create(name="readers")
    group.permissions.set(Permission.objects.filter(codename="view_task"))
    olga.groups.add(group)
    reading = app.api(given["access_token"])
    told = app.post("introspect", token=given["access_token"]).json()

    assert (nothing.status_code, reading.status_code) == (403, 200)
    assert "admin" not in told["scope"].split()
    assert "dashboard:read" in told["scope"].split()


@pytest.mark.parametrize("field", ["is_active", "is_staff"])
def test_whoever_may_not_sign_in_has_no_tokens_and_gets_none(app: App, browser: Client, field: str) -> None:
    given = app.tokens(browser)
    code = app.code(browser)

    User.objects.update(**{field: False})

    assert app.api(given["access_token"]).status_code == 401
    assert app.refresh(given["refresh_token"]).json()["error"] == "invalid_grant"
    assert app.exchange(code).json()["error"] == "invalid_grant"
    assert app.post("introspect", token=given["access_token"]).json() == {"active": False}
    # A closed account is signed out; one that is no longer staff is told.
    assert app.ask(browser).status_code == (302 if field == "is_active" else 403)


# --- codes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        pytest.param({"code_verifier": "w" * 43}, "invalid_grant", id="wrong verifier"),
        pytest.param({"code_verifier": CHALLENGE}, "invalid_grant", id="the challenge as verifier"),
        pytest.param({"code_verifier": None}, "invalid_request", id="no verifier"),
        pytest.param({"redirect_uri": "https://evil.example/"}, "invalid_request", id="another redirect URI"),
        pytest.param({"grant_type": "password"}, "unsupported_grant_type", id="password"),
        pytest.param({"grant_type": "client_credentials"}, "unsupported_grant_type", id="client credentials"),
        pytest.param(
            {"grant_type": "urn:ietf:params:oauth:grant-type:device_code"}, "unsupported_grant_type", id="device"
        ),
        pytest.param({"grant_type": None}, "unsupported_grant_type", id="no grant type"),
        pytest.param({"code": "nonsense"}, "invalid_grant", id="unknown code"),
        pytest.param({"code": None}, "invalid_request", id="no code"),
        pytest.param({"code": "a\0b"}, "invalid_request", id="NUL"),
        pytest.param({"resource": "https://[::1"}, "invalid_request", id="broken resource"),
    ],
)
def test_a_code_alone_is_not_enough(app: App, browser: Client, changed: dict[str, str | None], error: str) -> None:
    response = app.exchange(app.code(browser), **changed)

    assert (response.status_code, response.json()["error"]) == (400, error)
    assert response["Content-Type"] == "application/json"
    assert not AccessToken.objects.exists()


def test_a_code_is_for_the_app_that_asked(app: App, browser: Client) -> None:
    code = app.code(browser)

    response = make_app("other").exchange(code)

    assert response.json()["error"] == "invalid_grant"
    assert app.exchange(code).status_code == 200


def test_a_code_lasts_a_minute(app: App, browser: Client) -> None:
    code = app.code(browser)
    left = Grant.objects.get().expires - timezone.now()
    Grant.objects.update(expires=timezone.now() - timedelta(seconds=1))

    assert timedelta(seconds=50) < left <= timedelta(seconds=60)
    assert app.exchange(code).json()["error"] == "invalid_grant"


def test_a_code_used_twice_ends_what_came_of_it(app: App, browser: Client, caplog: pytest.LogCaptureFixture) -> None:
    code = app.code(browser)
    given = app.exchange(code).json()
    later = app.refresh(given["refresh_token"]).json()
    other = app.tokens(browser)

    again = app.exchange(code)

    assert (again.status_code, again.json()["error"]) == (400, "invalid_grant")
    assert app.api(later["access_token"]).status_code == 401
    assert app.refresh(later["refresh_token"]).status_code == 400
    assert app.api(other["access_token"]).status_code == 200
    assert "OAuth tokens revoked" in caplog.messages


def test_another_app_ends_nothing_with_a_code_it_has_seen(app: App, browser: Client) -> None:
    code = app.code(browser)
    given = app.exchange(code).json()

    make_app("other").exchange(code)

    assert app.api(given["access_token"]).status_code == 200


@pytest.mark.parametrize("secret", ["", "wrong"])
def test_a_service_shows_its_secret(app: App, browser: Client, secret: str) -> None:
    code = app.code(browser)
    app.secret = secret

    response = app.exchange(code)

    assert (response.status_code, response.json()["error"]) == (401, "invalid_client")


def test_a_program_does_not_sign_in_with_an_empty_secret(browser: Client) -> None:
    program = make_app("Tool", client_type=Application.CLIENT_PUBLIC)
    program.secret = ""

    assert program.post("introspect", token="x").status_code == 401


# --- refresh ----------------------------------------------------------------------------------------------------


def test_a_refresh_token_is_used_once_and_the_old_access_ends(app: App, browser: Client) -> None:
    first = app.tokens(browser)

    second = app.refresh(first["refresh_token"]).json()

    assert app.api(first["access_token"]).status_code == 401
    assert app.api(second["access_token"]).status_code == 200
    assert second["refresh_token"] != first["refresh_token"]
    assert second["scope"] == "dashboard:read"


def test_a_refresh_token_used_again_ends_the_family(app: App, browser: Client) -> None:
    first = app.tokens(browser)
    second = app.refresh(first["refresh_token"]).json()
    other = app.tokens(browser)

    again = app.refresh(first["refresh_token"])

    assert (again.status_code, again.json()["error"]) == (400, "invalid_grant")
    assert app.api(second["access_token"]).status_code == 401
    assert app.refresh(second["refresh_token"]).json()["error"] == "invalid_grant"
    assert app.api(other["access_token"]).status_code == 200


def test_a_refresh_cannot_widen(app: App, browser: Client) -> None:
    given = app.tokens(browser, scope="dashboard:read")

    more = app.refresh(given["refresh_token"], scope="dashboard:write dashboard:read").json()
    other = app.refresh(more["refresh_token"], scope="dashboard:write")

    assert more["scope"] == "dashboard:read"
    assert (other.status_code, other.json()["error"]) == (400, "invalid_scope")


def test_a_refresh_can_narrow(app: App, browser: Client) -> None:
    given = app.tokens(browser, scope="dashboard:read dashboard:write")

    less = app.refresh(given["refresh_token"], scope="dashboard:read").json()

    assert less["scope"] == "dashboard:read"


def test_a_refresh_token_is_its_apps_alone(app: App, browser: Client) -> None:
    given = app.tokens(browser)

    assert make_app("other").refresh(given["refresh_token"]).json()["error"] == "invalid_grant"
    assert app.refresh(given["refresh_token"]).status_code == 200


def test_a_refresh_token_ends_after_thirty_days_without_use(app: App, browser: Client) -> None:
    given = app.tokens(browser)
    AccessToken.objects.update(expires=timezone.now() - timedelta(days=30, seconds=1))

    assert app.refresh(given["refresh_token"]).json()["error"] == "invalid_grant"


@pytest.mark.django_db(transaction=True)
def test_a_refresh_token_used_twice_at_one_moment_ends_the_family(
    rival: Rival, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, browser = make_app(), browser_of(make_person("ana", "view_task"))
    given = app.tokens(browser)
    from k1node.access.oauth.validator import Validator

    checked = Validator.validate_refresh_token
    answers = []

    def and_then_the_rival_is_first(*args: Any, **kwargs: Any) -> bool:
        good = checked(*args, **kwargs)
        monkeypatch.setattr(Validator, "validate_refresh_token", checked)
        answers.append(rival.do(App(app.row, app.secret).refresh, given["refresh_token"]))
        return good

    monkeypatch.setattr(Validator, "validate_refresh_token", and_then_the_rival_is_first)
    late = app.refresh(given["refresh_token"])

    assert [answer.status_code for answer in answers] == [200]
    assert (late.status_code, late.json()["error"]) == (400, "invalid_grant")
    assert app.api(answers[0].json()["access_token"]).status_code == 401
    assert not AccessToken.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_code_used_twice_at_one_moment_ends_both(rival: Rival, monkeypatch: pytest.MonkeyPatch) -> None:
    app, browser = make_app(), browser_of(make_person("ana", "view_task"))
    code = app.code(browser)
    from k1node.access.oauth.validator import Validator

    confirmed = Validator.confirm_redirect_uri
    answers = []

    def and_then_the_rival_is_first(*args: Any, **kwargs: Any) -> bool:
        good = confirmed(*args, **kwargs)
        monkeypatch.setattr(Validator, "confirm_redirect_uri", confirmed)
        answers.append(rival.do(App(app.row, app.secret).exchange, code))
        return bool(good)

    monkeypatch.setattr(Validator, "confirm_redirect_uri", and_then_the_rival_is_first)
    late = app.exchange(code)

    assert [answer.status_code for answer in answers] == [200]
    assert (late.status_code, late.json()["error"]) == (400, "invalid_grant")
    assert app.api(answers[0].json()["access_token"]).status_code == 401
    assert not RefreshToken.objects.filter(revoked__isnull=True).exists()


@pytest.mark.django_db(transaction=True)
def test_a_code_that_goes_while_it_is_checked_is_no_error_of_ours(
    rival: Rival, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, browser = make_app(), browser_of(make_person("ana", "view_task"))
    code = app.code(browser)
    from k1node.access.oauth.validator import Validator

    checked = Validator.validate_code

    def and_then_it_is_gone(*args: Any, **kwargs: Any) -> bool:
        good = checked(*args, **kwargs)
        rival.do(lambda: Grant.objects.all().delete())
        return good

    monkeypatch.setattr(Validator, "validate_code", and_then_it_is_gone)
    response = app.exchange(code)

    assert (response.status_code, response.json()["error"]) == (400, "invalid_grant")


# --- calling the API --------------------------------------------------------------------------------------------


def test_a_request_with_a_token_costs_one_query(
    app: App, browser: Client, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    given = app.tokens(browser)

    with django_assert_num_queries(1):
        access, _ = tokens.examine(given["access_token"], address="http://testserver/api/v2/tasks")
        assert access is not None
        assert access.principal.name == "ana"
        assert access.principal.kind == "oauth"
        assert access.principal.identity == f"oauth:{app.row.pk}:{access.token.user_id}"
        assert access.principal.may("dashboard:read")


@pytest.mark.parametrize(
    ("reason", "spoil"),
    [
        ("unknown OAuth token", lambda: AccessToken.objects.all().delete()),
        ("expired OAuth token", lambda: AccessToken.objects.update(expires=timezone.now())),
        ("may not sign in", lambda: User.objects.update(is_active=False)),
        ("may not sign in", lambda: User.objects.update(is_staff=False)),
        ("for another service", lambda: AccessToken.objects.update(resource=["https://elsewhere.example/"])),
    ],
)
def test_a_token_that_is_over_is_401_and_the_log_says_why(
    app: App, browser: Client, caplog: pytest.LogCaptureFixture, reason: str, spoil: Any
) -> None:
    token = app.tokens(browser)["access_token"]
    spoil()

    with caplog.at_level(logging.WARNING):
        response = app.api(token)

    assert (response.status_code, response.json()["error"]["code"]) == (401, "UNAUTHORIZED")
    assert response["WWW-Authenticate"] == 'Bearer realm="k1node", error="invalid_token"'
    record: Any
    (record,) = (record for record in caplog.records if record.name == "k1node.access.authentication")
    assert reason in record.reason
    assert token not in str(record.__dict__)


def test_a_token_for_this_service_is_good_here(app: App, browser: Client) -> None:
    token = app.tokens(browser, resource="http://testserver/api/")["access_token"]

    assert app.api(token).status_code == 200


def test_a_token_in_the_address_is_not_heard(app: App, browser: Client) -> None:
    token = app.tokens(browser)["access_token"]

    api = app.client.get("/api/v2/tasks", {"access_token": token})
    inside = app.client.post(f"/oauth/introspect?access_token={token}", {"token": token})
    looked_up = app.client.get("/oauth/introspect", {"token": token}, headers=app.basic)
    exchanged = app.client.post(f"/oauth/token?client_id={app.row.client_id}", {"grant_type": "refresh_token"})

    assert (api.status_code, inside.status_code, looked_up.status_code) == (400, 401, 405)
    assert exchanged.json()["error"] == "invalid_request"


# --- revocation and introspection -------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["access_token", "refresh_token"])
def test_revoking_one_token_ends_both(app: App, browser: Client, which: str) -> None:
    given = app.tokens(browser)

    response = app.post("revoke", token=given[which])

    assert response.status_code == 200
    assert app.api(given["access_token"]).status_code == 401
    assert app.refresh(given["refresh_token"]).status_code == 400


def test_only_its_own_app_revokes_a_token_and_unknown_ones_are_no_error(app: App, browser: Client) -> None:
    given = app.tokens(browser)

    theirs = make_app("other").post("revoke", token=given["access_token"])
    unknown = app.post("revoke", token="nonsense")

    assert (theirs.status_code, unknown.status_code) == (200, 200)
    assert app.api(given["access_token"]).status_code == 200


def test_introspection_tells_what_a_token_is_good_for(app: App, browser: Client) -> None:
    given = app.tokens(browser)

    told = app.post("introspect", token=given["access_token"]).json()
    refresh = app.post("introspect", token=given["refresh_token"]).json()

    assert told["active"] is refresh["active"] is True
    assert (told["scope"], told["client_id"], told["username"]) == ("dashboard:read", app.row.client_id, "ana")
    assert told["exp"] - told["iat"] in (3599, 3600)
    assert refresh["exp"] - told["exp"] == 30 * 86_400


def test_introspection_says_of_what_is_over_only_that(app: App, browser: Client) -> None:
    given = app.tokens(browser)
    AccessToken.objects.update(expires=timezone.now())
    expired = app.post("introspect", token=given["access_token"])
    app.post("revoke", token=given["refresh_token"])
    revoked = app.post("introspect", token=given["refresh_token"])
    unknown = app.post("introspect", token="nonsense")

    assert [response.json() for response in (expired, revoked, unknown)] == [{"active": False}] * 3


def test_introspection_without_credentials_or_token(app: App) -> None:
    nobody = Client().post("/oauth/introspect", {"token": "x"})
    empty = app.post("introspect")

    assert (nobody.status_code, nobody.json()["error"]) == (401, "invalid_client")
    assert nobody["WWW-Authenticate"].startswith("Basic")
    assert (empty.status_code, empty.json()["error"]) == (400, "invalid_request")


# --- whatever arrives -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["token", "revoke", "introspect"])
@pytest.mark.parametrize(
    "header",
    [
        pytest.param("Basic", id="nothing"),
        pytest.param("Basic %%%", id="not base64"),
        pytest.param("Basic \xff", id="not ASCII"),
        pytest.param("Basic AA==", id="NUL"),
        pytest.param("Basic ADoA", id="NUL as client id"),
        pytest.param("Basic JTAwOiUwMA==", id="escaped NUL as client id"),
        pytest.param("Basic /////w==", id="not UTF-8"),
        pytest.param("Bearer x", id="bearer"),
    ],
)
def test_broken_credentials_are_refused(where: str, header: str) -> None:
    fields = {"grant_type": "authorization_code", "code": "x", "token": "x"}

    response = Client().post(f"/oauth/{where}", fields, headers={"Authorization": header})

    assert response.status_code in (400, 401)
    assert response.json()["error"] in ("invalid_client", "invalid_request")


@pytest.mark.parametrize("where", ["token", "revoke", "introspect"])
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        pytest.param(b"", "application/x-www-form-urlencoded", id="nothing"),
        pytest.param(b"token=%00&grant_type=%00&code=%ff", "application/x-www-form-urlencoded", id="bytes"),
        pytest.param(b"a=%zz&%", "application/x-www-form-urlencoded", id="bad escapes"),
        pytest.param(b'{"grant_type": "authorization_code"}', "application/json", id="JSON"),
        pytest.param(b"x", "multipart/form-data; boundary=", id="broken multipart"),
        pytest.param(b"&".join(b"a%d=1" % n for n in range(1500)), "application/x-www-form-urlencoded", id="many"),
    ],
)
def test_broken_bodies_are_refused(app: App, where: str, body: bytes, kind: str) -> None:
    response = app.client.post(f"/oauth/{where}", body, content_type=kind, headers=app.basic)

    assert response.status_code in (400, 401)
    assert response.json()["error"]


@pytest.mark.parametrize(
    "query", ["%", "state=%zz", "client_id=%ff", "scope=a&scope=b", "client_id=é", "a=" + "x" * 5000]
)
def test_broken_addresses_of_the_consent_page_are_refused(browser: Client, query: str) -> None:
    response = browser.get(f"/oauth/authorize?{query}")

    assert response.status_code == 400
    assert "This cannot go on" in text_of(response)


@pytest.mark.parametrize("method", ["get", "put", "delete", "patch", "options"])
@pytest.mark.parametrize("where", ["token", "revoke", "introspect"])
def test_programs_post(where: str, method: str) -> None:
    response = getattr(Client(), method)(f"/oauth/{where}")

    assert (response.status_code, response["Allow"]) == (405, "POST")


@pytest.mark.parametrize(
    "path",
    [
        "/oauth/applications",
        "/oauth/applications/register",
        "/oauth/device-authorization",
        "/oauth/register",
        "/oauth/userinfo",
        "/oauth/token/",
        "/.well-known/openid-configuration",
    ],
)
def test_nothing_else_of_the_toolkit_is_there(path: str) -> None:
    assert Client().get(path).status_code == 404


def test_the_metadata_tells_what_there_is(settings: Any) -> None:
    told = Client().get("/.well-known/oauth-authorization-server").json()

    assert told["issuer"] == "http://testserver"
    assert told["authorization_endpoint"] == "http://testserver/oauth/authorize"
    assert told["token_endpoint"] == "http://testserver/oauth/token"
    assert told["revocation_endpoint"] == "http://testserver/oauth/revoke"
    assert told["introspection_endpoint"] == "http://testserver/oauth/introspect"
    assert told["code_challenge_methods_supported"] == ["S256"]
    assert told["grant_types_supported"] == ["authorization_code", "refresh_token"]
    assert told["response_types_supported"] == ["code"]
    assert told["token_endpoint_auth_methods_supported"] == ["client_secret_basic", "client_secret_post", "none"]
    assert "none" not in told["introspection_endpoint_auth_methods_supported"]
    assert told["authorization_response_iss_parameter_supported"] is True
    assert set(told["scopes_supported"]) == ALL_SCOPES
    assert "registration_endpoint" not in told


# --- what is over goes ------------------------------------------------------------------------------------------


def test_what_has_been_over_for_long_goes_and_the_rest_stays(app: App, browser: Client, ana: User) -> None:
    live = app.tokens(browser)
    now = timezone.now()
    app.code(browser)
    day, month = timedelta(days=1, seconds=1), timedelta(days=30, seconds=1)

    def access(ago: timedelta) -> AccessToken:
        return AccessToken.objects.create(
            user=ana, application=app.row, expires=now - ago, token_checksum=uuid.uuid4().hex, token=uuid.uuid4().hex
        )

    def refresh(ago: timedelta | None, revoked: timedelta | None = None) -> RefreshToken:
        return RefreshToken.objects.create(
            user=ana,
            application=app.row,
            token=uuid.uuid4().hex,
            access_token=access(ago) if ago is not None else None,
            revoked=now - revoked if revoked is not None else None,
        )

    gone = [access(day), refresh(month), refresh(None, month), refresh(None)]
    kept = [access(timedelta(hours=1)), refresh(timedelta(days=29)), refresh(None, timedelta(days=29))]
    Grant.objects.update(expires=now - day)

    rows = tidying.prune(now=now).rows
    tidying.prune(now=now)

    assert rows >= 5
    assert not Grant.objects.exists()
    for row in gone:
        assert not type(row).objects.filter(pk=row.pk).exists()
    for row in kept:
        assert type(row).objects.filter(pk=row.pk).exists()
    assert app.api(live["access_token"]).status_code == 200


def test_a_call_deletes_a_bounded_number(
    app: App, ana: User, monkeypatch: pytest.MonkeyPatch, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    monkeypatch.setattr(tokens, "PRUNED_AT_ONCE", 2)
    now = timezone.now()
    for number in range(5):
        AccessToken.objects.create(
            user=ana,
            application=app.row,
            expires=now - timedelta(days=2),
            token=f"t{number}",
            token_checksum=str(number),
        )

    with django_assert_max_num_queries(12):
        gone = [tokens.prune(now=now) for _ in range(1)]

    assert gone == [2]
    assert [tokens.prune(now=now) for _ in range(3)] == [2, 1, 0]


# --- the audit log ----------------------------------------------------------------------------------------------
def test_what_is_given_and_ended_is_written_down(app: App, browser: Client) -> None:
    target = f"application:{app.row.client_id}"
    given = app.tokens(browser)
    again = app.refresh(given["refresh_token"]).json()
    app.refresh(given["refresh_token"])
    app.refresh(given["refresh_token"])
    other = app.tokens(browser)
    app.post("revoke", token=other["access_token"])
    app.post("revoke", token=other["access_token"])

    assert again["access_token"]
    assert acts() == [
        ("consent.given", target, "ana", ""),
        ("grant.issued", target, "ana", ""),
        ("grant.refreshed", target, "ana", ""),
        ("grant.revoked", target, "Board", "A refresh token came a second time"),
        ("consent.given", target, "ana", ""),
        ("grant.issued", target, "ana", ""),
        ("grant.revoked", target, "Board", "by the app"),
    ]
    written = str(list(AuditRecord.objects.values()))
    assert not any(text in written for text in (given["access_token"], given["refresh_token"], again["access_token"]))


def test_who_is_refused_at_the_doors_of_apps_is_counted(app: App, browser: Client) -> None:
    wrong = App(app.row, "wrong")
    assert wrong.refresh("x").status_code == 401
    assert wrong.post("introspect", token="x").status_code == 401
    assert app.exchange("no code").status_code == 400
    assert app.post("token", grant_type="password").status_code == 400

    row = AuditRefusal.objects.get()
    assert (row.action, row.count) == ("oauth.refused", 3)


def test_a_failing_audit_log_gives_no_tokens(app: App, browser: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    code = app.code(browser)
    monkeypatch.setattr(trail, "record", _fail)

    assert app.exchange(code).status_code == 503
    assert not AccessToken.objects.exists()


def _fail(*args: Any, **kwargs: Any) -> None:
    raise OperationalError("no")
