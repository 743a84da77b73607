"""Verify a webhook of K1.Node with the library of Standard Webhooks: pip install standardwebhooks"""

from typing import Any

from standardwebhooks.webhooks import Webhook


def verify(secret: str, headers: dict[str, str], body: bytes) -> Any:
    """Return the message; `headers` by their names in lower case. Any exception: it is not to be trusted."""
    return Webhook(secret).verify(body, headers)
