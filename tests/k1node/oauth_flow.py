"""Steps of the code flow with Django's test client: a person's browser on one side, the app on the other."""

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from django.contrib.auth.models import Permission, User
from django.test import Client
from oauth2_provider.generators import generate_client_secret
from oauth2_provider.models import Application

CALLBACK = "https://app.example/callback"
VERIFIER = "v" * 43
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()


def make_person(name: str = "ana", *codenames: str, **fields: Any) -> User:
    """Return somebody of the staff with these permissions."""
    person = User.objects.create_user(name, **{"is_staff": True, **fields})
    person.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    return person


def browser_of(person: User, **options: Any) -> Client:
    browser = Client(**options)
    browser.force_login(person)
    return browser


@dataclass
class App:
    """A registered application, as its own server sees it."""

    row: Any
    secret: str
    client: Client = field(default_factory=Client)

    @property
    def basic(self) -> dict[str, str]:
        pair = f"{self.row.client_id}:{self.secret}".encode()
        return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}

    def query(self, **changed: str | None) -> dict[str, str]:
        """Return the parameters of the authorization request; None leaves one out."""
        usual = {
            "response_type": "code",
            "client_id": self.row.client_id,
            "redirect_uri": CALLBACK,
            "scope": "dashboard:read",
            "state": "s1",
            "code_challenge": CHALLENGE,
            "code_challenge_method": "S256",
        }
        return {name: value for name, value in {**usual, **changed}.items() if value is not None}

    def ask(self, browser: Client, **changed: str | None) -> Any:
        return browser.get("/oauth/authorize", self.query(**changed))

    def answer(self, browser: Client, page: Any, *, allow: bool = True, **changed: str) -> Any:
        """Press a button of the consent page, with its hidden fields changed."""
        hidden = {name: value for name, value in page.context["form"].initial.items() if value is not None}
        pressed = {"allow": "1"} if allow else {}
        return browser.post(page.wsgi_request.get_full_path(), {**hidden, **pressed, **changed})

    def code(self, browser: Client, **changed: str | None) -> str:
        """Return the code that a person's consent has given."""
        return answered(self.answer(browser, self.ask(browser, **changed)))["code"]

    def exchange(self, code: str, /, **changed: str | None) -> Any:
        fields = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": CALLBACK,
            "code_verifier": VERIFIER,
            **changed,
        }
        return self.post("token", **fields)

    def refresh(self, token: str, **more: str) -> Any:
        return self.post("token", grant_type="refresh_token", refresh_token=token, **more)

    def tokens(self, browser: Client, **changed: str | None) -> dict[str, Any]:
        """Return what the whole flow gives the app."""
        response = self.exchange(self.code(browser, **changed))
        assert response.status_code == 200, response.content
        given: dict[str, Any] = response.json()
        return given

    def post(self, where: str, **fields: str | None) -> Any:
        sent = {name: value for name, value in fields.items() if value is not None}
        return self.client.post(f"/oauth/{where}", sent, headers=self.basic)

    def api(self, token: str, path: str = "/api/v2/scheduler/queue") -> Any:
        return self.client.get(path, headers={"Authorization": f"Bearer {token}"})


def make_app(name: str = "Board", redirect_uris: Iterable[str] = (CALLBACK,), **fields: Any) -> App:
    secret = generate_client_secret()
    row = Application.objects.create(
        name=name,
        redirect_uris=" ".join(redirect_uris),
        client_secret=secret,
        authorization_grant_type=Application.GRANT_AUTHORIZATION_CODE,
        **{"client_type": Application.CLIENT_CONFIDENTIAL, **fields},
    )
    return App(row, secret)


def answered(response: Any) -> dict[str, str]:
    """Return what the redirect to the app says."""
    assert response.status_code == 302, (response.status_code, response.content)
    assert response["Location"].startswith(CALLBACK), response["Location"]
    return {name: values[0] for name, values in parse_qs(urlsplit(response["Location"]).query).items()}
