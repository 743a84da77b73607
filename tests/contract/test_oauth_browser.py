"""User apps against a running node, from outside: a real browser, and client libraries that know nothing of us.

A person registers an app on the console, signs in, consents, and is sent back to a callback on the loopback; the app
exchanges the code, calls the API, refreshes, and is found out when it uses a refresh token twice.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.node.running import PROJECT, RunningNode, free_port, running_node, until

pytestmark = pytest.mark.contract
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PASSWORD = "correct horse battery staple"


class Callback:
    """Where an app waits for the browser to come back. `address` is the last one it was called by."""

    def __init__(self) -> None:
        callback = self
        self.address = ""

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.startswith("/callback"):
                    callback.address = f"{callback.base}{self.path}"
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(b"<!doctype html><title>Back</title><p>Back at the app")

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.server.server_port}"
        self.uri = f"{self.base}/callback"


@pytest.fixture
def callback() -> Iterator[Callback]:
    waiting = Callback()
    thread = threading.Thread(target=waiting.server.serve_forever)
    thread.start()
    yield waiting
    waiting.server.shutdown()
    thread.join()
    waiting.server.server_close()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    with running_node(tmp_path_factory.mktemp("oauth")) as running:
        running.command(
            "shell",
            "-c",
            "from django.contrib.auth.models import Permission, User\n"
            f"User.objects.create_superuser('root', password={PASSWORD!r})\n"
            f"olga = User.objects.create_user('olga', password={PASSWORD!r}, is_staff=True)\n"
            "olga.user_permissions.set(Permission.objects.filter(codename='view_task'))\n",
        )
        yield running


@contextmanager
def browser_page() -> Iterator[Any]:
    """Give a page of a new Chromium, which has met nobody yet."""
    from playwright.sync_api import sync_playwright

    if not CHROMIUM:
        pytest.skip("There is no Chromium here: set CHROMIUM to one, or put it on the PATH.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            page = browser.new_page()
            page.set_default_timeout(20_000)
            complaints: list[str] = []
            page.on("console", lambda message: complaints.append(message.text))
            yield page
            # A policy that gets in the way of a page, or of the way back to the app, is said here.
            assert not [text for text in complaints if "Content Security Policy" in text]
        finally:
            browser.close()


def home(node: RunningNode) -> str:
    return f"http://127.0.0.1:{node.port}"


def sign_in(page: Any, name: str) -> None:
    page.fill("#id_username", name)
    page.fill("#id_password", PASSWORD)
    page.click("#login-form input[type=submit]")


def register(node: RunningNode, name: str, kind: str, redirect_uri: str) -> tuple[str, str]:
    """Register an app on the console, as an administrator does; return its client id and its secret, "" if none."""
    with browser_page() as page:
        page.goto(f"{home(node)}/admin/oauth2_provider/application/add/")
        sign_in(page, "root")
        page.fill("#id_name", name)
        page.check(f"input[name=client_type][value={kind}]")
        page.fill("#id_redirect_uris", redirect_uri)
        page.click("input[name=_save]")
        said = page.locator(".messagelist li")
        said.first.wait_for()
        client_id = said.locator("code.k1-code").first.inner_text()
        secret = said.locator("code.k1-secret")
        return client_id, secret.inner_text() if secret.count() else ""


def consent(page: Any, address: str, name: str, callback: Callback, *, press: str = "Allow") -> str:
    """Follow the app's link as this person; return the address the browser came back to the app by."""
    callback.address = ""
    page.goto(address)
    sign_in(page, name)
    page.get_by_role("button", name=press, exact=True).click()
    page.wait_for_url(f"{callback.uri}**")
    return str(until(lambda: callback.address, within=10, what="the way back to the app"))


def test_authlib_goes_all_the_way_as_a_service(node: RunningNode, callback: Callback) -> None:
    from authlib.integrations.requests_client import OAuth2Session

    base = home(node)
    client_id, secret = register(node, "Night shift board", "confidential", callback.uri)
    verifier = secrets.token_urlsafe(48)
    with OAuth2Session(
        client_id,
        secret,
        scope="dashboard:read dashboard:write",
        redirect_uri=callback.uri,
        code_challenge_method="S256",
    ) as app:
        told = app.request("GET", f"{base}/.well-known/oauth-authorization-server", withhold_token=True).json()
        address, state = app.create_authorization_url(told["authorization_endpoint"], code_verifier=verifier)
        with browser_page() as page:
            callback_address = consent(page, address, "olga", callback)
        first = app.fetch_token(
            told["token_endpoint"], authorization_response=callback_address, state=state, code_verifier=verifier
        )
        assert first["scope"] == "dashboard:read"  # olga may not give more

        queue = app.get(f"{base}/api/v2/scheduler/queue")
        hold = app.post(f"{base}/api/v2/scheduler/hold", json={"reason": "no"})
        assert (queue.status_code, hold.status_code) == (200, 403)
        assert "queue_status" in queue.json()

        looked_into = app.introspect_token(told["introspection_endpoint"], token=first["access_token"]).json()
        assert (looked_into["active"], looked_into["username"]) == (True, "olga")

        old = dict(first)
        second = dict(app.refresh_token(told["token_endpoint"], refresh_token=old["refresh_token"]))
        assert second["refresh_token"] != old["refresh_token"]
        assert app.get(f"{base}/api/v2/scheduler/queue").status_code == 200

        revoked = app.revoke_token(told["revocation_endpoint"], token=second["refresh_token"])
        assert revoked.status_code == 200
        assert app.introspect_token(told["introspection_endpoint"], token=second["access_token"]).json() == {
            "active": False
        }


def test_oauthlib_goes_all_the_way_as_a_program_and_reuse_ends_it(
    node: RunningNode, callback: Callback, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oauthlib.oauth2 import InvalidGrantError
    from requests_oauthlib import OAuth2Session

    # oauthlib refuses to speak to an address without TLS, the loopback too.
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")
    base = home(node)
    # Registered without the port: a program takes the one that is free.
    client_id, secret = register(node, "Tool", "public", "http://127.0.0.1/callback")
    assert secret == ""
    with OAuth2Session(client_id, scope=["dashboard:read"], redirect_uri=callback.uri, pkce="S256") as app:
        address, _ = app.authorization_url(f"{base}/oauth/authorize")
        with browser_page() as page:
            callback_address = consent(page, address, "olga", callback)
        first = dict(
            app.fetch_token(f"{base}/oauth/token", authorization_response=callback_address, include_client_id=True)
        )
        assert app.get(f"{base}/api/v2/scheduler/queue").status_code == 200

        second = dict(
            app.refresh_token(f"{base}/oauth/token", refresh_token=first["refresh_token"], client_id=client_id)
        )
        assert app.get(f"{base}/api/v2/scheduler/queue").status_code == 200

        with pytest.raises(InvalidGrantError):
            app.refresh_token(f"{base}/oauth/token", refresh_token=first["refresh_token"], client_id=client_id)
        with pytest.raises(InvalidGrantError):
            app.refresh_token(f"{base}/oauth/token", refresh_token=second["refresh_token"], client_id=client_id)
        app.token = second
        assert app.get(f"{base}/api/v2/scheduler/queue").status_code == 401


def test_denial_reaches_the_app_and_another_address_reaches_nobody(node: RunningNode, callback: Callback) -> None:
    from authlib.integrations.requests_client import OAuth2Session

    base = home(node)
    client_id, secret = register(node, "Curious", "confidential", callback.uri)
    with OAuth2Session(client_id, secret, redirect_uri=callback.uri, code_challenge_method="S256") as app:
        address, _ = app.create_authorization_url(f"{base}/oauth/authorize", code_verifier=secrets.token_urlsafe(48))
    with browser_page() as page:
        came_back = consent(page, address, "olga", callback, press="Deny")
        assert "error=access_denied" in came_back

        callback.address = ""
        page.goto(address.replace("callback", "elsewhere"))
        page.get_by_role("heading", name="This cannot go on").wait_for()
        assert page.url.startswith(base)
        assert callback.address == ""


def test_the_example_app_shows_the_queue(node: RunningNode, tmp_path: Path) -> None:
    port = free_port()
    client_id, secret = register(node, "Example", "confidential", "http://127.0.0.1/callback")
    environment = os.environ | {
        "NODE": home(node),
        "APP_PORT": str(port),
        "CLIENT_ID": client_id,
        "CLIENT_SECRET": secret,
    }
    with (
        (tmp_path / "app.log").open("wb") as log,
        subprocess.Popen(
            [sys.executable, str(PROJECT / "docs/examples/user_app/app.py")], env=environment, stdout=log, stderr=log
        ) as example,
    ):
        try:
            with browser_page() as page:
                until(lambda: page.goto(f"http://127.0.0.1:{port}/") if _answers(port) else None, what="the example")
                page.get_by_role("link", name="Sign in with K1.Node").click()
                sign_in(page, "olga")
                page.get_by_role("button", name="Allow", exact=True).click()
                page.get_by_role("heading", name="Queue").wait_for()
                assert "queue_status" in page.content()

                page.get_by_role("link", name="Sign out").click()
                page.get_by_role("link", name="Sign in with K1.Node").wait_for()
        finally:
            example.terminate()


def _answers(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), 1):
        return True
