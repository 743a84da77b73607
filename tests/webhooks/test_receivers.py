"""Receivers written from our documentation take what comes from us, and nothing else."""

import re
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings

from tests.factories import NOW, SECRET
from tests.webhooks import snippets
from tests.webhooks.snippets import Receiver
from webhooks import signing

ID = "wh-evt-4w0k6yq1m8z2f7tc"
NEXT = "whsec_HxwdHhsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA="
OTHER = "whsec_" + "A" * 43 + "="
RECEIVERS = snippets.present()
all_receivers = pytest.mark.parametrize("receiver", RECEIVERS.values(), ids=RECEIVERS)
those_that_go_by_headers = pytest.mark.parametrize(
    "receiver",
    [each for each in RECEIVERS.values() if each.by_headers],
    ids=[name for name, each in RECEIVERS.items() if each.by_headers],
)


def sent(*keys: str, age: timedelta = timedelta()) -> tuple[dict[str, str], bytes]:
    """Return headers, in lower case, and body of a message that was sent so long ago."""
    moment = NOW - age
    body = signing.body(ID, "task.completed", NOW - timedelta(days=1), '{"task_id": "Nächte"}', now=moment)
    headers = signing.signatures(keys, ID, body, now=moment)
    return {name.lower(): value for name, value in headers.items()}, body


@all_receivers
def test_what_we_send_is_taken(receiver: Receiver) -> None:
    headers, body = sent(SECRET)

    assert receiver.verify(SECRET, headers, body, NOW) == ID


@all_receivers
@pytest.mark.parametrize("seconds", [301, -301])
def test_what_is_older_than_five_minutes_or_from_the_future_is_refused(receiver: Receiver, seconds: int) -> None:
    headers, body = sent(SECRET, age=timedelta(seconds=seconds))

    assert receiver.verify(SECRET, headers, body, NOW) == ""


@all_receivers
@pytest.mark.parametrize("seconds", [299, -299])
def test_what_is_not_quite_so_old_is_taken(receiver: Receiver, seconds: int) -> None:
    headers, body = sent(SECRET, age=timedelta(seconds=seconds))

    assert receiver.verify(SECRET, headers, body, NOW) == ID


@all_receivers
@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("Nächte", "Nachte", id="the data"),
        pytest.param(ID, ID.upper(), id="the id"),
        pytest.param("2026-03-04T05", "2026-03-04T06", id="the time"),
        pytest.param("}", "} ", id="a space at the end"),
    ],
)
def test_a_body_that_was_changed_is_refused(receiver: Receiver, old: str, new: str) -> None:
    headers, body = sent(SECRET)
    changed = body.decode().replace(old, new).encode()
    assert changed != body

    assert receiver.verify(SECRET, headers, changed, NOW) == ""


@those_that_go_by_headers
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("webhook-id", "wh-evt-another"),
        ("webhook-timestamp", str(int(NOW.timestamp()) - 1)),
        ("webhook-timestamp", "soon"),
        ("webhook-timestamp", ""),
    ],
)
def test_a_header_that_was_changed_is_refused(receiver: Receiver, name: str, value: str) -> None:
    headers, body = sent(SECRET)

    assert receiver.verify(SECRET, headers | {name: value}, body, NOW) == ""


@all_receivers
@pytest.mark.parametrize("length", [0, 1, 2, 5, 20, 40])
def test_a_signature_that_is_cut_short_is_refused(receiver: Receiver, length: int) -> None:
    headers, body = sent(SECRET)
    short = {name: value[:length] if "signature" in name else value for name, value in headers.items()}

    assert receiver.verify(SECRET, short, body, NOW) == ""


@all_receivers
def test_a_message_without_a_signature_is_refused(receiver: Receiver) -> None:
    headers, body = sent(SECRET)
    bare = {name: value for name, value in headers.items() if "signature" not in name}

    assert receiver.verify(SECRET, bare, body, NOW) == ""


@all_receivers
@pytest.mark.parametrize(
    ("signed", "secret", "taken"),
    [
        pytest.param((SECRET,), NEXT, False, id="before, new secret"),
        pytest.param((SECRET, NEXT), SECRET, True, id="during, old secret"),
        pytest.param((SECRET, NEXT), NEXT, True, id="during, new secret"),
        pytest.param((SECRET, NEXT), OTHER, False, id="during, another secret"),
        pytest.param((NEXT,), NEXT, True, id="after, new secret"),
        pytest.param((NEXT,), SECRET, False, id="after, old secret"),
    ],
)
def test_a_rotation_is_seen_through(receiver: Receiver, signed: tuple[str, ...], secret: str, taken: bool) -> None:
    headers, body = sent(*signed)

    assert receiver.verify(secret, headers, body, NOW) == (ID if taken else "")


def test_the_documentation_shows_the_snippets_that_are_tested() -> None:
    page = (Path(settings.BASE_DIR) / "docs" / "webhooks.md").read_text()
    shown = set(re.findall(r"^```(?:python|js|go|bash)\n(.*?)^```", page, re.MULTILINE | re.DOTALL))

    for snippet in snippets.SNIPPETS.glob("verify*"):
        assert snippet.read_text() in shown, snippet.name
