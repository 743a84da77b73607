"""The secrets of webhooks as they are stored: encrypted for their own row and field (k1node.lib.keyring).

While a rotation is under way a webhook has two: the one that receivers know, and its successor. At `rotates_at` the
successor is the only one, at once for who signs; the row follows when the sender comes by (webhooks.delivery).
"""

import json
from datetime import datetime

from k1node.lib import keyring
from webhooks.models import Webhook


def sealed(webhook_id: str, field: str, text: str) -> str:
    """Return `text` as it is stored in `field`: secret, next_secret or headers."""
    return keyring.seal(text, f"webhook {webhook_id} {field}")


def unsealed(webhook: Webhook, field: str) -> str:
    """Return the text in `field`, "" if there is none. Raises SecretUnreadable."""
    stored: str = getattr(webhook, field)
    return keyring.unseal(stored, f"webhook {webhook.webhook_id} {field}") if stored else ""


def keys(webhook: Webhook, *, now: datetime) -> tuple[str, ...]:
    """Return what to sign with at `now`: the secret and, during a rotation, its successor. Raises SecretUnreadable."""
    if not webhook.next_secret:
        return (unsealed(webhook, "secret"),)
    if webhook.rotates_at is not None and webhook.rotates_at <= now:
        return (unsealed(webhook, "next_secret"),)
    return unsealed(webhook, "secret"), unsealed(webhook, "next_secret")


def headers(webhook: Webhook) -> dict[str, str]:
    """Return the headers its owner wants with each request. Raises SecretUnreadable."""
    text = unsealed(webhook, "headers")
    found: dict[str, str] = json.loads(text) if text else {}
    return found
