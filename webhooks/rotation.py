"""The end of a rotation: the next secret becomes the secret. For who signs it is so at once (signing_secrets.keys)."""

import logging
from datetime import datetime

from k1node.lib.keyring import SecretUnreadable
from webhooks import signing_secrets
from webhooks.models import Webhook

logger = logging.getLogger(__name__)

MOST = 100


def finish_due(*, now: datetime) -> int:
    """Let the next secrets whose time has come take the place of the old ones; return how many."""
    due = Webhook.objects.filter(rotates_at__isnull=False, rotates_at__lte=now, deleted_at=None).order_by("rotates_at")
    return sum(_finish(webhook, now) for webhook in due[:MOST])


def _finish(webhook: Webhook, now: datetime) -> int:
    try:
        secret = signing_secrets.unsealed(webhook, "next_secret")
    except SecretUnreadable:
        logger.warning("The next secret of a webhook cannot be read", extra={"webhook_id": webhook.webhook_id})
        return 0
    # Unless somebody has rotated, finished or deleted it since it was read.
    return Webhook.objects.filter(pk=webhook.pk, next_secret=webhook.next_secret, rotates_at=webhook.rotates_at).update(
        secret=signing_secrets.sealed(webhook.webhook_id, "secret", secret),
        secret_hint=webhook.next_secret_hint,
        next_secret="",
        next_secret_hint="",
        rotates_at=None,
        updated_at=now,
    )
