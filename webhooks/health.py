"""How a webhook is doing, after each result of its own: its breaker, its pace, and when it is given up.

Works on a row that is locked (webhooks.results), results in the order in which they came. A breaker opens after some
failures in a row; what was under way by then and fails too changes nothing, but each probe that fails keeps it open for
longer. Tests do not come here.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from k1node.audit import trail
from k1node.events import log
from k1node.lib import sql
from webhooks import rules
from webhooks.models import Webhook
from webhooks.rules import Code, Result

COLUMNS = {
    "active": "boolean",
    "disabled_at": "timestamptz",
    "disabled_reason": "text",
    "failures": "integer",
    "failing_since": "timestamptz",
    "exhausted": "integer",
    "open_until": "timestamptz",
    "paced_until": "timestamptz",
    "last_success_at": "timestamptz",
    "last_failure_at": "timestamptz",
    "last_error": "text",
    "updated_at": "timestamptz",
    "id": "bigint",
}
SUCCESS_EVERY = timedelta(seconds=5)  # that often a success is noted of a webhook that is well
UNREADABLE_WAIT = timedelta(minutes=1)  # until the node's keys may have been put right


def is_well(webhook: Webhook, *, now: datetime) -> bool:
    """Say whether one more success changes nothing that is worth a write."""
    noted = webhook.last_success_at is not None and webhook.last_success_at > now - SUCCESS_EVERY
    return noted and not (webhook.failures or webhook.exhausted or webhook.failing_since or webhook.open_until)


def succeed(webhook: Webhook, *, now: datetime) -> None:
    webhook.failures = webhook.exhausted = 0
    webhook.failing_since = webhook.open_until = None
    webhook.last_success_at = now


def fail(webhook: Webhook, result: Result, *, is_probe: bool, gave_up: bool, now: datetime) -> bool:
    """Count a failure, `gave_up` if its delivery has no tries left; say whether the webhook is disabled for it."""
    webhook.last_failure_at = now
    webhook.last_error = (result.error or result.code)[:500]
    if result.code is Code.SECRET:
        _pace(webhook, UNREADABLE_WAIT, now)
        return False
    if result.retry_after is not None and result.status in (429, 503):
        _pace(webhook, result.retry_after, now)
    webhook.exhausted += gave_up
    if webhook.failing_since is None:
        webhook.failing_since = now
    if is_probe or webhook.failures < rules.OPEN_AFTER:
        webhook.failures += 1
        if opened := rules.open_for(webhook.failures):
            webhook.open_until = now + opened
            if webhook.failures == rules.OPEN_AFTER:
                _tell_failing(webhook, result, now)
    reason = rules.why_give_up(
        result.code,
        exhausted=webhook.exhausted,
        # A webhook that few events reach has not been failing for days because two of them did.
        failing_since=webhook.failing_since if webhook.failures >= rules.OPEN_AFTER else None,
        now=now,
    )
    if reason:
        _disable(webhook, reason, now)
    return bool(reason)


def save(webhooks: Sequence[Webhook]) -> None:
    """Write how these webhooks, locked before, are doing: one statement."""
    rows = [tuple(_stored(webhook, name) for name in COLUMNS) for webhook in webhooks]
    sql.update_many("webhooks_webhook", COLUMNS, rows)


def _stored(webhook: Webhook, name: str) -> Any:
    value = getattr(webhook, name)
    return sql.stored(value) if COLUMNS[name] == "timestamptz" else value


def _pace(webhook: Webhook, wait: timedelta, now: datetime) -> None:
    webhook.paced_until = max(webhook.paced_until or now, now + wait)


def _tell_failing(webhook: Webhook, result: Result, now: datetime) -> None:
    data = {
        "webhook_id": webhook.webhook_id,
        "name": webhook.name,
        "failures": webhook.failures,
        "failing_since": (webhook.failing_since or now).isoformat(timespec="milliseconds"),
        "outcome": str(result.code),
    }
    log.publish("webhook.failing", data, now=now)


def _disable(webhook: Webhook, reason: str, now: datetime) -> None:
    webhook.active = False
    webhook.disabled_at = webhook.updated_at = now
    webhook.disabled_reason = reason[:500]
    log.publish(
        "webhook.disabled",
        {"webhook_id": webhook.webhook_id, "name": webhook.name, "reason": reason},
        now=now,
    )
    trail.record(
        "webhook.disabled",
        f"webhook:{webhook.webhook_id}",
        before={"active": True},
        after={"active": False},
        reason=reason,
        now=now,
    )
