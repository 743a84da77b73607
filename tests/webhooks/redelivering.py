"""Redeliveries as the API begins them."""

from collections.abc import Collection
from datetime import datetime

from k1node.operations.models import Operation
from webhooks import redelivery
from webhooks.models import Webhook
from webhooks.redelivery import Mode


def recover(webhook: Webhook, **asked: object) -> tuple[Operation, bool]:
    return _begun(webhook, Mode.FAILED, **asked)  # type: ignore[arg-type]


def resend(webhook: Webhook, **asked: object) -> tuple[Operation, bool]:
    return _begun(webhook, Mode.PERIOD, **asked)  # type: ignore[arg-type]


def _begun(
    webhook: Webhook,
    mode: Mode,
    *,
    since: datetime,
    until: datetime | None = None,
    events: Collection[str] | None = None,
    per_second: int | None = None,
    by: str,
    now: datetime,
) -> tuple[Operation, bool]:
    wanted = redelivery.checked(webhook, mode, since=since, until=until, events=events, now=now)
    return redelivery.begin(webhook, wanted, per_second=per_second, by=by, now=now)
