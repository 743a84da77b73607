"""Who may do what: every operation of the OpenAPI document × every scope × every kind of credential.

What is expected comes from the document's x-required-scopes and the table of scopes; what happens, from requests. A new
kind of credential is one more line in KINDS.
"""

import hashlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.utils import timezone
from django.utils.crypto import get_random_string
from oauth2_provider.models import AccessToken, Application
from rest_framework.test import APIClient

from k1node.access import grants, keys, scopes, task_tokens
from k1node.access.operators import CONSOLE_SCOPES
from k1node.api import document
from tests.factories import make_task

# Which right opens what is decided before any database is asked, and these are the most requests of all tests.
pytestmark = [pytest.mark.django_db, pytest.mark.sqlite]

OPERATIONS = [
    (method, path, operation)
    for method, path, operation in document.operations(document.build())
    if "x-required-scopes" in operation
]
BODIES = ("post", "put", "patch")


def by_key(*granted: str) -> APIClient:
    _key, text = keys.issue("matrix", granted)
    return bearing(text)


def by_jwt(*granted: str) -> APIClient:
    _key, text = keys.issue("matrix", granted)
    known = keys.verify(text)
    assert known is not None
    return bearing(grants.issue(known).access_token)


def by_app(*granted: str) -> APIClient:
    user = User.objects.create_superuser(f"person-{'-'.join(granted)}")
    app = Application.objects.create(
        name="matrix", client_type="confidential", authorization_grant_type="authorization-code"
    )
    text = get_random_string(30)
    AccessToken.objects.create(
        token=text,
        token_checksum=hashlib.sha256(text.encode()).hexdigest(),
        user=user,
        application=app,
        scope=" ".join(granted),
        expires=timezone.now() + timedelta(hours=1),
    )
    return bearing(text)


def by_session(*granted: str) -> APIClient:
    user = User.objects.create_user(f"operator-{'-'.join(granted)}", is_staff=True)
    names = [CONSOLE_SCOPES[scope].partition(".")[2] for scope in granted if scope in CONSOLE_SCOPES]
    user.user_permissions.set(Permission.objects.filter(codename__in=names, content_type__app_label="scheduling"))
    if scopes.ADMIN in granted:
        User.objects.filter(pk=user.pk).update(is_superuser=True)
    client = APIClient()
    client.force_login(user)
    return client


def by_task(*granted: str) -> APIClient:
    task = make_task(status="executing")
    return bearing(task_tokens.issue(task.pk, task.fence, 60))


def bearing(token: str) -> APIClient:
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {token}")
    return client


# Kind -> how to get one with these scopes, and the scopes there can be in one.
KINDS: dict[str, tuple[Callable[..., APIClient], frozenset[str]]] = {
    "key": (by_key, scopes.ALL_SCOPES),
    "jwt": (by_jwt, scopes.ALL_SCOPES),
    "oauth": (by_app, scopes.ALL_SCOPES),
    "session": (by_session, frozenset({*CONSOLE_SCOPES, scopes.ADMIN})),
    "task": (by_task, frozenset({"scheduler:read"})),
}


def status_of(client: APIClient, method: str, path: str) -> int:
    """Return how a request for something that is not there is answered."""
    while "{" in path:
        before, _, rest = path.partition("{")
        path = f"{before}nothing-of-this-name{rest.partition('}')[2]}"
    body: dict[str, Any] = {"data": {}, "format": "json"} if method in BODIES else {}
    status: int = getattr(client, method)(f"/api/v2{path}", **body).status_code
    return status


@pytest.mark.parametrize(
    ("kind", "scope"), [(kind, scope) for kind, (_, all_) in KINDS.items() for scope in sorted(all_)]
)
def test_a_scope_opens_what_it_covers_and_nothing_else(kind: str, scope: str) -> None:
    client = KINDS[kind][0](scope)
    wrong = []
    for method, path, operation in OPERATIONS:
        expected = scopes.allows({scope}, operation["x-required-scopes"])
        status = status_of(client, method, path)
        if (status not in (401, 403)) != expected or status >= 500:
            wrong.append(f"{method} {path}: {status}, where it is {'open' if expected else 'closed'}")

    assert wrong == []


def test_a_key_alone_is_exchanged_for_tokens_whatever_it_may_do() -> None:
    statuses = {
        kind: status_of(make(next(iter(sorted(all_)))), "post", "/auth/token") for kind, (make, all_) in KINDS.items()
    }

    assert statuses == {kind: 200 if kind == "key" else 401 if kind == "session" else 403 for kind in KINDS}


def test_what_is_open_to_everybody_is_named_here() -> None:
    public = {
        path
        for _method, path, operation in document.operations(document.build())
        if not operation["security"] or {} in operation["security"]
    }

    assert public == {"/auth/refresh", "/auth/revoke"}


def test_all_other_scopes_together_open_nothing() -> None:
    by_required: dict[tuple[str, ...], APIClient] = {}
    for method, path, operation in OPERATIONS:
        required = tuple(operation["x-required-scopes"])
        if required not in by_required:
            by_required[required] = by_key(*(each for each in scopes.ALL_SCOPES if not scopes.allows({each}, required)))

        assert status_of(by_required[required], method, path) == 403, f"{method} {path}"


def test_without_a_credential_nothing_is_open() -> None:
    for method, path, _operation in OPERATIONS:
        assert status_of(APIClient(), method, path) == 401, f"{method} {path}"


def test_a_session_without_permissions_may_do_nothing() -> None:
    client = by_session()

    for method, path, _operation in OPERATIONS:
        assert status_of(client, method, path) == 403, f"{method} {path}"
