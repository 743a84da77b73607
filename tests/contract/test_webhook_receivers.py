"""Real deliveries of a running node, verified with both libraries of Standard Webhooks and the snippets of the docs."""

import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import orjson
import pytest
from jsonschema import Draft202012Validator

from k1node.events.catalogue import EVENTS
from tests.factories import NOW, SECRET
from tests.node.running import RunningNode, running_node, until
from tests.webhooks import snippets
from tests.webhooks.snippets import Receiver
from webhooks import signing

pytestmark = pytest.mark.contract

# Installed there by `make check-api`, from the lock file in tests/contract/receivers.
MODULES = Path(sys.prefix, "receivers", "node_modules")


@dataclass
class Inbox:
    """What a receiver on the loopback has been sent: headers in lower case, and bodies."""

    url: str = ""
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    def next(self) -> tuple[dict[str, str], bytes]:
        """Return the next request; there must be one in time."""
        until(lambda: self.requests, what="a delivery")
        return self.requests.pop(0)


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    found = Inbox()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.requests.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_port}/hook"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def verifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Receiver]:
    assert MODULES.exists(), "The library is not installed: run `make check-api`"
    library = snippets.node_with_library(tmp_path_factory.mktemp("library"), MODULES)
    return {**snippets.present(), "Node.js, library": library}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    with running_node(tmp_path_factory.mktemp("webhooks"), WEBHOOK_ALLOW_PRIVATE="1") as found:
        yield found


def who_takes(verifiers: dict[str, Receiver], secret: str, sent: tuple[dict[str, str], bytes]) -> set[str]:
    headers, body = sent
    now = datetime.now(UTC)
    return {
        name for name, each in verifiers.items() if each.verify(secret, headers, body, now) == headers["webhook-id"]
    }


def test_the_javascript_library_agrees_with_ours_and_refuses_what_was_changed(verifiers: dict[str, Receiver]) -> None:
    verify = verifiers["Node.js, library"].verify
    body = signing.body("wh-evt-1", "task.completed", NOW, '{"task_id": "Nächte"}', now=NOW)
    headers = signing.signatures((SECRET,), "wh-evt-1", body, now=NOW)

    assert verify(SECRET, headers, body, NOW) == "wh-evt-1"
    assert verify(SECRET, headers, body + b" ", NOW) == ""
    assert verify(SECRET, headers | {"webhook-id": "wh-evt-2"}, body, NOW) == ""
    assert verify(SECRET, headers | {"webhook-signature": "v1,abc"}, body, NOW) == ""
    assert verify(SECRET, headers, body, NOW + timedelta(seconds=301)) == ""
    assert verify(SECRET, headers, body, NOW - timedelta(seconds=301)) == ""


def test_deliveries_are_verified_before_during_and_after_a_rotation(
    node: RunningNode, inbox: Inbox, verifiers: dict[str, Receiver]
) -> None:
    everybody = set(verifiers)
    made = node.call("POST", "/webhooks", {"name": "contract", "url": inbox.url, "events": ["task.completed"]})
    path, old = f"/webhooks/{made['webhook_id']}", made["secret"]

    task_id = node.submit("python:noop")
    before = inbox.next()

    assert orjson.loads(before[1])["data"]["task_id"] == task_id
    assert who_takes(verifiers, old, before) == everybody

    new = node.call("POST", f"{path}/rotate-secret", {"overlap_seconds": 3600})["secret"]
    node.submit("python:noop")
    during = inbox.next()

    assert who_takes(verifiers, old, during) == who_takes(verifiers, new, during) == everybody
    assert who_takes(verifiers, new, before) == set()

    newest = node.call("POST", f"{path}/rotate-secret", {"overlap_seconds": 0})["secret"]
    node.submit("python:noop")
    after = inbox.next()

    assert who_takes(verifiers, newest, after) == everybody
    assert who_takes(verifiers, old, after) == who_takes(verifiers, new, after) == set()


def test_what_arrives_is_as_the_document_says(node: RunningNode, inbox: Inbox) -> None:
    made = node.call(
        "POST", "/webhooks", {"name": "contract", "url": inbox.url, "events": ["*"], "headers": {"X-Tenant": "blue"}}
    )
    path = f"/webhooks/{made['webhook_id']}"

    node.call("POST", f"{path}/test", {})
    headers, body = inbox.next()

    message = orjson.loads(body)
    Draft202012Validator(EVENTS["webhook.test"].envelope()).validate(message)
    assert (headers["webhook-id"], headers["x-tenant"]) == (message["id"], "blue")
    assert (headers["x-k1node-event"], headers["x-k1node-test"]) == ("webhook.test", "true")
    delivery = node.call("GET", f"{path}/deliveries/{headers['x-k1node-delivery']}")
    assert (delivery["message_id"], delivery["is_test"]) == (message["id"], True)
