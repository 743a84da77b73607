"""The two signatures, against the vectors of others and the official library."""

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta

import pytest
from standardwebhooks import Webhook as Verifier

from webhooks import signing

SECRET = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
BODY = (
    b'{"id":"wh-evt-123","timestamp":"2025-11-09T20:37:29+08:00","event":"task.completed","data":{"task_id":"task-1"}}'
)
AT = datetime.fromtimestamp(1762691849, UTC)


def test_both_signatures_are_those_of_the_vector() -> None:
    headers = signing.signatures([SECRET], "wh-evt-123", BODY, now=AT)

    assert headers == {
        "webhook-id": "wh-evt-123",
        "webhook-timestamp": "1762691849",
        "webhook-signature": "v1,/U087EzFw/XgM6I/vlBDumlksPF8avUfnG+nyW6py0k=",
        "X-K1Node-Signature": "sha256=32a7f8abe03a838f3aec27f73150a6f396c47d32c1921facb51c96c1964e5a32",
    }


def test_the_standard_signature_is_that_of_another_sender_too() -> None:
    headers = signing.signatures(
        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        b'{"test": 2432232314}',
        now=datetime.fromtimestamp(1614265330, UTC),
    )

    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_during_a_rotation_receivers_with_either_secret_verify() -> None:
    old, new = signing.new_secret(), signing.new_secret()
    now = datetime.now(UTC)
    sent = signing.body("wh-evt-1", "task.completed", now - timedelta(days=1), '{"task_id":"a"}', now=now)

    headers = signing.signatures([old, new], "wh-evt-1", sent, now=now)

    for secret, plain in ((old, "X-K1Node-Signature"), (new, "X-K1Node-Signature-Next")):
        assert Verifier(secret).verify(sent, headers)["data"] == {"task_id": "a"}
        assert headers[plain] == "sha256=" + hmac.new(secret.encode(), sent, hashlib.sha256).hexdigest()
    newest = headers["webhook-signature"].split(" ")[0]
    assert Verifier(new).verify(sent, {**headers, "webhook-signature": newest})


def test_the_body_says_when_it_is_sent_and_when_it_happened() -> None:
    sent = signing.body("wh-evt-1", "task.completed", AT - timedelta(days=1), '{"b":1,"a":"é"}', now=AT)

    assert json.loads(sent) == {
        "id": "wh-evt-1",
        "timestamp": "2025-11-09T12:37:29.000+00:00",
        "event": "task.completed",
        "data": {"b": 1, "a": "é"},
        "occurred_at": "2025-11-08T12:37:29.000+00:00",
    }
    assert b'"data":{"b":1,"a"' in sent  # as it was stored


def key(size: int) -> str:
    return base64.b64encode(bytes(range(size))).decode()


def test_a_new_secret_is_one() -> None:
    secret = signing.new_secret()

    assert signing.is_secret(secret)
    assert len(base64.b64decode(secret.removeprefix("whsec_"))) == 32


@pytest.mark.parametrize("size", [24, 32, 64])
def test_secrets_of_these_sizes_are_taken(size: int) -> None:
    assert signing.is_secret("whsec_" + key(size))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("whsec_", id="no key"),
        pytest.param("mysecret", id="a word"),
        pytest.param(key(32), id="no prefix"),
        pytest.param("WHSEC_" + key(32), id="another prefix"),
        pytest.param("whsec_" + key(23), id="too short"),
        pytest.param("whsec_" + key(65), id="too long"),
        pytest.param("whsec_" + key(32).rstrip("="), id="no padding"),
        pytest.param("whsec_" + base64.urlsafe_b64encode(b"\xff" * 32).decode(), id="URL-safe"),
        pytest.param("whsec_" + key(32) + "\n", id="line end"),
        pytest.param("whsec_" + key(32)[:-2] + "9=", id="loose bits"),
        pytest.param("whsec_" + key(32)[:10] + " " + key(32)[10:], id="blank inside"),
    ],
)
def test_other_texts_are_no_secrets(text: str) -> None:
    assert not signing.is_secret(text)
