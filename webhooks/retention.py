"""Old deliveries go with their attempts, and deleted webhooks with all they had: in small pieces, by the clock.

A message is gone with its last delivery. Whoever deletes deliveries locks their messages before looking whether others
are left, or two who delete the last two at the same moment would both see one.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.db import connection

from k1node.lib import sql
from webhooks.models import Webhook

BATCH = 500
MOST_BATCHES = 4  # of each kind in one call, which is a fraction of a second; the next call goes on
SETTLED = timedelta(minutes=1)  # whoever saw a webhook before it was deleted has made its deliveries by then

# Literals, as SQLite uses a partial index for no others. What a sender holds is left until it has ended.
_OLD = (
    "SELECT id, message_id FROM webhooks_delivery WHERE finished_at IS NOT NULL AND finished_at < %s"
    f" ORDER BY finished_at LIMIT {BATCH}"
)
# Bounds instead of one value, so that only the index of both gives this order: by ids alone PostgreSQL would read
# everything younger first, again for each batch.
_ORPHANED = (
    "SELECT id, message_id FROM webhooks_delivery"
    " WHERE webhook_id >= %s AND webhook_id <= %s AND state <> 'sending'"
    f" ORDER BY webhook_id, id DESC LIMIT {BATCH}"
)


def prune(before: datetime, *, now: datetime) -> int:
    """Delete deliveries that ended before `before`, and what is left of deleted webhooks; return how many rows."""
    gone = _in_batches(partial(_delete_deliveries, _OLD, [sql.stored(before)]))
    deleted = Webhook.objects.filter(deleted_at__lt=now - SETTLED).order_by("pk")
    for pk in deleted.values_list("pk", flat=True)[:BATCH]:
        gone += _in_batches(partial(_delete_deliveries, _ORPHANED, [pk, pk]))
        gone += sql.in_transaction(partial(_delete_webhook, pk))
        if gone >= BATCH * MOST_BATCHES:
            break
    return gone


def _in_batches(delete: Callable[[], int]) -> int:
    gone = 0
    for _ in range(MOST_BATCHES):
        count = sql.in_transaction(delete)
        gone += count
        if count < BATCH:
            break
    return gone


def _delete_deliveries(query: str, values: list[Any]) -> int:
    """Delete the deliveries that `query` gives, with their attempts and the messages nobody else gets."""
    with connection.cursor() as db:
        # Locked: one that is redelivered at this moment is not deleted.
        db.execute(query + sql.skip_locked(), values)
        rows = db.fetchall()
        if not rows:
            return 0
        among, pks = sql.among([pk for pk, _ in rows])
        db.execute(f"DELETE FROM webhooks_attempt WHERE delivery_id {among}", pks)
        db.execute(f"DELETE FROM webhooks_delivery WHERE id {among}", pks)
        among, pks = sql.among(sorted({message for _, message in rows}))
        db.execute(f"SELECT id FROM webhooks_message WHERE id {among} ORDER BY id{sql.for_update()}", pks)
        db.execute(
            f"DELETE FROM webhooks_message WHERE id {among} AND NOT EXISTS"
            " (SELECT 1 FROM webhooks_delivery WHERE message_id = webhooks_message.id)",
            pks,
        )
    return len(rows)


def _delete_webhook(pk: int) -> int:
    """Delete the row of a deleted webhook unless it has deliveries left."""
    rows = Webhook.objects.filter(pk=pk)
    if sql.is_postgresql():
        # Also against who makes deliveries for it.
        rows = rows.select_for_update()
    row = rows.first()
    if row is None or row.deliveries.exists():
        return 0
    return rows._raw_delete("default")
