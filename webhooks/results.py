"""What came of attempts, written down: the attempt, its delivery, how its webhook is doing.

All results of a moment are one transaction. A result counts only if its delivery is still being sent with that very
attempt; one that was rescued meanwhile is sent again, and its late result is kept with the attempt alone.
"""

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import orjson
from django.db import connection
from django.db.models import QuerySet

from k1node.lib import sql
from webhooks import health, rules
from webhooks.delivery import Job
from webhooks.models import Attempt, Delivery, Webhook
from webhooks.rules import Code, Result

logger = logging.getLogger(__name__)

State = Delivery.State
Report = tuple[Job, Result]

DELIVERY_COLUMNS = {
    "state": "text",
    "due_at": "timestamptz",
    "spent": "integer",
    "last_status": "smallint",
    "last_error": "text",
    "finished_at": "timestamptz",
    "id": "bigint",
}
ATTEMPT_COLUMNS = {
    "finished_at": "timestamptz",
    "outcome": "text",
    "status": "smallint",
    "error": "text",
    "address": "text",
    "allowed_by": "text",
    "dns_ms": "double precision",
    "connect_ms": "double precision",
    "answer_ms": "double precision",
    "total_ms": "double precision",
    "request_headers": "jsonb",
    "response_headers": "jsonb",
    "response_body": "text",
    "id": "bigint",
}
LONGEST_ERROR = 500
LONGEST_ADDRESS = 64


@dataclass(frozen=True, slots=True)
class Held:
    """A delivery that is being sent, locked."""

    attempt: int
    spent: int
    due_at: datetime


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a delivery."""

    state: str
    spent: int
    due_at: datetime


def record(reports: Sequence[Report], *, now: datetime) -> None:
    """Write down what came of these attempts."""
    if not reports:
        return
    in_order = sorted(((job, _cleaned(result)) for job, result in reports), key=lambda report: report[1].finished_at)
    late, disabled = sql.in_transaction(lambda: _record(in_order, now))
    for job in late:
        logger.warning("A result came too late", extra={"delivery": job.delivery_id, "attempt": job.attempt})
    for webhook in disabled:
        facts = {"webhook_id": webhook.webhook_id, "reason": webhook.disabled_reason}
        logger.warning("A webhook was disabled", extra=facts)


def _record(reports: Sequence[Report], now: datetime) -> tuple[list[Job], list[Webhook]]:
    webhooks = _lock_webhooks(reports, now)
    held = _lock_deliveries([job.delivery for job, _ in reports])
    late: list[Job] = []
    rows: list[tuple[Any, ...]] = []
    counted: dict[int, Webhook] = {}
    disabled: list[Webhook] = []
    for job, result in reports:
        delivery = held.get(job.delivery)
        if delivery is None or delivery.attempt != job.attempt:
            late.append(job)
            continue
        del held[job.delivery]
        webhook = webhooks.get(job.webhook)
        verdict = _verdict(job, result, delivery, webhook, now)
        rows.append(_delivery_row(job, result, verdict))
        # What a paused one had under way says nothing about one that will be enabled some day, and what its address
        # of before answered nothing about the present one.
        if webhook is not None and webhook.active and webhook.url == job.url and not job.is_test:
            counted[webhook.pk] = webhook
            if _count(webhook, job, result, verdict, now):
                disabled.append(webhook)
    health.save([counted[pk] for pk in sorted(counted)])
    rows.sort(key=lambda row: row[-1])
    sql.update_many("webhooks_delivery", DELIVERY_COLUMNS, rows, also="owner = '', lease_expires_at = NULL")
    _finish_attempts(reports)
    return late, disabled


def _lock_webhooks(reports: Sequence[Report], now: datetime) -> dict[int, Webhook]:
    """Lock the webhooks that these results may change, in the order of their ids; those that are well stay unlocked."""
    counted = [(job, result) for job, result in reports if not job.is_test]
    failed = {job.webhook for job, result in counted if result.code is not Code.DELIVERED}
    others = {job.webhook for job, _ in counted} - failed
    ill = {webhook.pk for webhook in Webhook.objects.filter(pk__in=others) if not health.is_well(webhook, now=now)}
    if not failed | ill:
        return {}
    rows: QuerySet[Webhook] = Webhook.objects.filter(pk__in=failed | ill).order_by("pk")
    if sql.is_postgresql():
        # Not against who only names them: new deliveries go on being made.
        rows = rows.select_for_update(no_key=True)
    return {webhook.pk: webhook for webhook in rows}


def _lock_deliveries(pks: Sequence[int]) -> dict[int, Held]:
    among, values = sql.among(sorted(set(pks)))
    with connection.cursor() as db:
        db.execute(
            "SELECT id, attempts, spent, due_at FROM webhooks_delivery"
            f" WHERE state = 'sending' AND id {among} ORDER BY id{sql.for_update()}",
            values,
        )
        return {
            pk: Held(attempt, spent, sql.moment(due_at))  # type: ignore[arg-type]
            for pk, attempt, spent, due_at in db.fetchall()
        }


def _verdict(job: Job, result: Result, delivery: Held, webhook: Webhook | None, now: datetime) -> Verdict:
    if result.code is Code.DELIVERED:
        return Verdict(State.DELIVERED, delivery.spent + 1, delivery.due_at)
    if job.is_test:
        return Verdict(State.FAILED, delivery.spent + 1, delivery.due_at)
    if webhook is None or webhook.deleted_at is not None:
        return Verdict(State.CANCELLED, delivery.spent + 1, delivery.due_at)
    if result.code is Code.SECRET:
        return Verdict(State.PENDING, delivery.spent, now + health.UNREADABLE_WAIT)
    spent = delivery.spent + 1
    is_gone = result.code is Code.GONE and webhook.url == job.url
    if is_gone or spent > webhook.max_retries:
        return Verdict(State.FAILED, spent, delivery.due_at)
    wait = rules.wait_before(spent, webhook.backoff_multiplier, random.Random())
    if result.retry_after is not None:
        wait = max(wait, result.retry_after)
    return Verdict(State.PENDING, spent, now + wait)


def _count(webhook: Webhook, job: Job, result: Result, verdict: Verdict, now: datetime) -> bool:
    """Count a result for its webhook; say whether it was disabled for that."""
    if result.code is Code.DELIVERED:
        health.succeed(webhook, now=now)
        return False
    gave_up = verdict.state == State.FAILED
    return health.fail(webhook, result, is_probe=job.is_probe, gave_up=gave_up, now=now)


def _delivery_row(job: Job, result: Result, verdict: Verdict) -> tuple[Any, ...]:
    ended = result.finished_at if verdict.state != State.PENDING else None
    error = "" if result.code is Code.DELIVERED else result.error or str(result.code)
    due_at, ended = sql.stored(verdict.due_at), sql.stored(ended)
    return (str(verdict.state), due_at, verdict.spent, result.status, error, ended, job.delivery)


def _finish_attempts(reports: Sequence[Report]) -> None:
    """Write the results to their attempts, those that came too late as well."""
    among, values = sql.among(sorted({job.delivery for job, _ in reports}))
    with connection.cursor() as db:
        db.execute(
            "SELECT delivery_id, number, id FROM webhooks_attempt"
            f" WHERE outcome IN ('{Attempt.SENDING}', '{Attempt.UNKNOWN}') AND delivery_id {among}",
            values,
        )
        pk_of: Mapping[tuple[int, int], int] = {(delivery, number): pk for delivery, number, pk in db.fetchall()}
    rows = {pk_of[job.delivery, job.attempt]: result for job, result in reports if (job.delivery, job.attempt) in pk_of}
    sql.update_many("webhooks_attempt", ATTEMPT_COLUMNS, [_attempt_row(pk, rows[pk]) for pk in sorted(rows)])


def _attempt_row(pk: int, result: Result) -> tuple[Any, ...]:
    return (
        sql.stored(result.finished_at),
        str(result.code),
        result.status,
        result.error,
        result.address,
        result.allowed_by,
        result.dns_ms,
        result.connect_ms,
        result.answer_ms,
        result.total_ms,
        orjson.dumps(result.request_headers or {}).decode(),
        orjson.dumps(result.response_headers or {}).decode(),
        result.response_body,
        pk,
    )


def _cleaned(result: Result) -> Result:
    """Return the result in a form that any database takes: what a receiver sends must not stop the record of others."""
    return replace(
        result,
        status=result.status if result.status is not None and 0 <= result.status <= 999 else None,
        error=_text(result.error, LONGEST_ERROR),
        address=_text(result.address, LONGEST_ADDRESS),
        allowed_by=_text(result.allowed_by, LONGEST_ADDRESS),
        request_headers=_headers(result.request_headers),
        response_headers=_headers(result.response_headers),
        response_body=_text(result.response_body),
    )


def _headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in (headers or {}).items()}


def _text(text: str, most: int | None = None) -> str:
    """Return the text without NUL and without halves of characters, at most so long."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")[:most]
