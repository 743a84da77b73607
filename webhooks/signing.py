"""What is sent, byte for byte: the body of one attempt and the headers that prove where it comes from.

Two signatures go with each request. `X-K1Node-Signature` is the HMAC of the body, with the whole secret as the key;
`webhook-signature` is that of Standard Webhooks, whose key is what the secret says in base64 and whose text has the id
and the time in front. Each attempt bears its own time, so that receivers may refuse what is older than five minutes and
still take a retry of yesterday's event; the id never changes.

While a secret is rotated, `webhook-signature` has one of each, the newest first. A header of one value cannot: until
the overlap is over `X-K1Node-Signature` stays with the old secret and `X-K1Node-Signature-Next` has the new one.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

PREFIX = "whsec_"
SIZES = (24, 64)  # bytes
USER_AGENT = "K1Node-Webhooks/2.0"
BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")


def new_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def is_secret(text: str) -> bool:
    """Say whether `text` is whsec_ and the strict base64 of 24 to 64 bytes."""
    if not text.startswith(PREFIX) or not BASE64.fullmatch(text[len(PREFIX) :]):
        return False
    try:
        key = base64.b64decode(text[len(PREFIX) :], validate=True)
    except binascii.Error:
        return False
    # Bits that decoders throw away could be written in more than one way.
    return SIZES[0] <= len(key) <= SIZES[1] and base64.b64encode(key).decode() == text[len(PREFIX) :]


def body(message_id: str, event: str, occurred_at: datetime, data: str, *, now: datetime) -> bytes:
    """Return the body of an attempt at `now`; `data` is JSON."""
    told: dict[str, Any] = {
        "id": message_id,
        "timestamp": moment(now),
        "event": event,
        "data": orjson.Fragment(data),
        "occurred_at": moment(occurred_at),
    }
    return orjson.dumps(told)


def moment(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="milliseconds")


def signatures(keys: Sequence[str], message_id: str, sent: bytes, *, now: datetime) -> dict[str, str]:
    """Return the headers that prove `sent`, a body of `now`; `keys` are the secret and its successor, if it has one."""
    stamp = str(int(now.timestamp()))
    text = f"{message_id}.{stamp}.".encode() + sent
    headers = {
        "webhook-id": message_id,
        "webhook-timestamp": stamp,
        "webhook-signature": " ".join(_standard(key, text) for key in reversed(keys)),
        "X-K1Node-Signature": _plain(keys[0], sent),
    }
    if len(keys) > 1:
        headers["X-K1Node-Signature-Next"] = _plain(keys[1], sent)
    return headers


def _plain(secret: str, sent: bytes) -> str:
    return "sha256=" + hmac.new(secret.encode(), sent, hashlib.sha256).hexdigest()


def _standard(secret: str, text: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(PREFIX))
    return "v1," + base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
