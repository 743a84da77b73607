"""Verify a webhook of K1.Node, with nothing but Python's own library."""

import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

TOLERANCE = 300  # seconds


def verify(secret: str, headers: Mapping[str, str], body: bytes, now: float | None = None) -> Any:
    """Return the message; `headers` by their names in lower case. Raises ValueError if it is not to be trusted."""
    expected = "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    # While a secret is rotated there are two: the old one's and, in -Next, the new one's.
    given = [headers.get("x-k1node-signature", ""), headers.get("x-k1node-signature-next", "")]
    if not any(hmac.compare_digest(expected.encode(), each.encode()) for each in given):
        raise ValueError("The signature is not K1.Node's")
    message = json.loads(body)
    sent = datetime.fromisoformat(message["timestamp"]).timestamp()
    if abs((time.time() if now is None else now) - sent) > TOLERANCE:
        raise ValueError("Too old, or from the future: look at both clocks")
    return message
