"""A user app in one file: people sign in to it with their K1.Node account, and it shows them the queue.

Needs Authlib and requests (pip install Authlib requests). Register it on the console (Set up, Applications) as a
service with the redirect URI http://127.0.0.1/callback, then:

    CLIENT_ID=… CLIENT_SECRET=… python app.py

and open http://127.0.0.1:8080. A program without a secret works too: leave CLIENT_SECRET out.
"""

import html
import json
import os
import secrets
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from authlib.common.errors import AuthlibBaseError
from authlib.integrations.requests_client import OAuth2Session

NODE = os.environ.get("NODE", "http://localhost:3000").rstrip("/")
PORT = int(os.environ.get("APP_PORT", "8080"))
HERE = f"http://127.0.0.1:{PORT}"
CLIENT_ID = os.environ["CLIENT_ID"]
CLIENT_SECRET = os.environ.get("CLIENT_SECRET") or None

# What belongs to one browser: on the way to a token its state and PKCE verifier, then the token. An app that is more
# than an example keeps this in a database.
SESSIONS: dict[str, dict] = {}


def session(token: dict | None = None) -> OAuth2Session:
    """Return a client of the node, which makes the S256 challenge from each verifier it is given."""
    return OAuth2Session(
        CLIENT_ID,
        CLIENT_SECRET,
        scope="dashboard:read",
        redirect_uri=f"{HERE}/callback",
        token=token,
        token_endpoint=f"{NODE}/oauth/token",
        code_challenge_method="S256",
        token_endpoint_auth_method="client_secret_basic" if CLIENT_SECRET else "none",
    )


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        try:
            match urlsplit(self.path).path:
                case "/":
                    self.home()
                case "/sign-in":
                    self.sign_in()
                case "/callback":
                    self.callback()
                case "/sign-out":
                    self.sign_out()
                case _:
                    self.page(404, "<p>Nothing here.</p>")
        except AuthlibBaseError as error:
            # Denied, or over: the answer says which. The person can begin anew.
            self.page(400, f"<p>{html.escape(str(error))}</p><p><a href='/sign-in'>Sign in again</a></p>")

    def home(self) -> None:
        kept = self.mine()
        if "token" not in kept:
            self.page(200, "<p><a href='/sign-in'>Sign in with K1.Node</a></p>")
            return
        with session(kept["token"]) as node:
            answer = node.get(f"{NODE}/api/v2/scheduler/queue")  # refreshes the token first if it is over
            kept["token"] = node.token
        if answer.status_code == 401:
            kept.pop("token")
            self.page(200, "<p>Your access has ended. <a href='/sign-in'>Sign in again</a></p>")
            return
        text = json.dumps(answer.json(), indent=2)
        self.page(200, f"<h1>Queue</h1><pre>{html.escape(text)}</pre><p><a href='/sign-out'>Sign out</a></p>")

    def sign_in(self) -> None:
        verifier = secrets.token_urlsafe(48)
        with session() as node:
            address, state = node.create_authorization_url(f"{NODE}/oauth/authorize", code_verifier=verifier)
        mine = secrets.token_urlsafe(24)
        SESSIONS[mine] = {"state": state, "verifier": verifier}
        self.redirect(address, f"app={mine}; HttpOnly; SameSite=Lax; Path=/")

    def callback(self) -> None:
        kept = self.mine()
        with session() as node:
            # The state must be the one this browser set out with, else someone else's answer was slipped in.
            kept["token"] = node.fetch_token(
                authorization_response=HERE + self.path,
                state=kept.pop("state", secrets.token_urlsafe()),
                code_verifier=kept.pop("verifier", ""),
            )
        self.redirect("/")

    def sign_out(self) -> None:
        kept = self.mine()
        if "token" in kept:
            with session(kept.pop("token")) as node:
                node.revoke_token(f"{NODE}/oauth/revoke", token=node.token["refresh_token"])
        self.redirect("/")

    # --- pages ---

    def mine(self) -> dict:
        cookie = SimpleCookie(self.headers.get("Cookie", "")).get("app")
        return SESSIONS.get(cookie.value, {}) if cookie else {}

    def page(self, status: int, body: str) -> None:
        data = f"<!doctype html><meta charset='utf-8'><title>Queue</title>{body}".encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def redirect(self, address: str, cookie: str = "") -> None:
        self.send_response(302)
        self.send_header("Location", address)
        if cookie:
            self.send_header("Set-Cookie", cookie)
        self.send_header("Content-Length", "0")
        self.end_headers()


if __name__ == "__main__":
    print(f"Open {HERE}")
    ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
