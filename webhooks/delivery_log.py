"""Looking into what was sent to a webhook: each look costs the same, however much it was."""

from datetime import datetime

from django.db.models import QuerySet

from k1node.lib import keys_in_time
from webhooks.models import Delivery, Webhook

# Deliveries that are looked at for those of one event, which no index has.
SEARCHED = 100_000


def find(
    webhook: Webhook,
    *,
    state: str | None = None,
    event: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> QuerySet[Delivery]:
    """Return the deliveries to a webhook that fit, with messages; of one event those among the newest SEARCHED."""
    rows = Delivery.objects.filter(webhook=webhook)
    if state is not None:
        rows = rows.filter(state=state)
    if since is not None or until is not None:
        of_time = keys_in_time.between(Delivery.objects.all(), "created_at", since=since, until=until)
        rows = rows & of_time
    if event is not None:
        beyond = rows.order_by("-pk").values_list("pk", flat=True)[SEARCHED : SEARCHED + 1]
        oldest = next(iter(beyond), None)
        if oldest is not None:
            rows = rows.filter(pk__gt=oldest)
        rows = rows.filter(event=event)
    return rows.select_related("message")
