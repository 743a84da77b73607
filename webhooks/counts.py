"""How much waits for webhooks: each number is counted so far and no further."""

from collections.abc import Sequence
from dataclasses import dataclass

from django.db import connection

from k1node.lib import sql

MOST = 10_000


@dataclass(frozen=True, slots=True)
class Waiting:
    """Deliveries that are pending, MOST + 1 for any more, and those being sent."""

    pending: int = 0
    sending: int = 0


def waiting(webhooks: Sequence[int]) -> dict[int, Waiting]:
    """Return what waits for each of these webhooks, by primary key."""
    if not webhooks:
        return {}
    among, values = sql.among(webhooks)
    # Literals, as the indexes have them: SQLite uses a partial index for no other.
    counted = (
        "(SELECT count(*) FROM (SELECT 1 FROM webhooks_delivery AS delivery WHERE delivery.webhook_id = webhook.id"
        f" AND delivery.state = '{{}}' LIMIT {MOST + 1}) AS counted)"
    )
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT webhook.id, {counted.format('pending')}, {counted.format('sending')}"
            f" FROM webhooks_webhook AS webhook WHERE webhook.id {among}",
            values,
        )
        return {pk: Waiting(pending, sending) for pk, pending, sending in cursor.fetchall()}
