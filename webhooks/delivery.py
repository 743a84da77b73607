"""Deliveries on their way: claimed by a sender, given back when it stops, rescued when it dies.

A claim moves due deliveries from pending to sending, with a lease and the number of the attempt, and makes the row of
that attempt; what comes of it is recorded by webhooks.results. A lease is as long as a request can possibly take and is
never renewed.

Who gets the free places of a sender: of all webhooks that something is due for and that may be sent to, always the one
with the fewest requests under way. So one with thousands waiting, or one that answers slowly, never takes more than its
share, and what it costs to find the next ones does not depend on how many wait. The last places are kept for webhooks
that have nothing under way: however many hang, the others are not held up by them.

The row of a webhook is locked while something is claimed for it, so its places are counted exactly over all nodes.
Locks are taken in one order everywhere: webhooks by id, deliveries by id, attempts, events.
"""

import logging
import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from heapq import heapify, heappop, heappush
from time import monotonic
from typing import Any

from django.db import connection

from k1node.lib import sql
from k1node.lib.keyring import SecretUnreadable
from webhooks import rules, signing_secrets
from webhooks.models import Attempt, Webhook

logger = logging.getLogger(__name__)

Row = tuple[Any, ...]
RESCUE_MOST = 500
MOST_TESTS = 100  # looked at in one claim
SELECTS_AT_ONCE = 100  # in one statement of SQLite

# The webhooks for which something is pending, by one step into the index for each. Conditions are literals, as SQLite
# uses a partial index for no others; and it must be told to, or it steps through all that has ended in another one.
_WAITING = """
WITH RECURSIVE waiting (id) AS (
    SELECT min(webhook_id) FROM webhooks_delivery{by_due} WHERE state = 'pending'
    UNION ALL
    SELECT (SELECT min(webhook_id) FROM webhooks_delivery{by_due} WHERE state = 'pending' AND webhook_id > waiting.id)
    FROM waiting WHERE waiting.id IS NOT NULL
)
"""
_BUSY = "(SELECT count(*) FROM webhooks_delivery WHERE state = 'sending' AND webhook_id = hook.id)"
_READY = f"""{_WAITING}
SELECT hook.id, {_BUSY}, hook.max_in_flight, hook.failures
FROM waiting JOIN webhooks_webhook AS hook ON hook.id = waiting.id
WHERE hook.active AND hook.deleted_at IS NULL
    AND (hook.open_until IS NULL OR hook.open_until <= %s)
    AND (hook.paced_until IS NULL OR hook.paced_until <= %s)
    AND EXISTS (
        SELECT 1 FROM webhooks_delivery{{by_due}}
        WHERE state = 'pending' AND webhook_id = hook.id AND due_at <= %s AND NOT is_test
    )
"""
_TESTED = f"""
SELECT hook.id, {_BUSY}, hook.max_in_flight
FROM webhooks_webhook AS hook
WHERE hook.deleted_at IS NULL AND hook.id IN (
    SELECT webhook_id FROM webhooks_delivery WHERE state = 'pending' AND is_test ORDER BY id LIMIT {MOST_TESTS}
)
"""
_DUE = """
SELECT id FROM webhooks_delivery{by_due}
WHERE state = 'pending' AND webhook_id = {webhook} AND due_at <= {now} AND NOT is_test ORDER BY due_at, id LIMIT {most}
"""
_TESTS = """
SELECT id, webhook_id FROM webhooks_delivery
WHERE state = 'pending' AND is_test AND due_at <= %s ORDER BY id LIMIT {limit}
"""
_TAKE = """
UPDATE webhooks_delivery SET state = 'sending', attempts = attempts + 1, owner = %s, lease_expires_at = %s
WHERE state = 'pending' AND id {among}
RETURNING id
"""
_TAKEN = """
SELECT d.id, d.delivery_id, d.attempts, d.webhook_id, m.message_id, d.event, m.occurred_at, m.data, d.is_test
FROM webhooks_delivery AS d JOIN webhooks_message AS m ON m.id = d.message_id
WHERE d.id {among}
"""
_ATTEMPT_COLUMNS = {
    "delivery_id": "bigint",
    "number": "integer",
    "started_at": "timestamptz",
    "outcome": "text",
    "error": "text",
    "url": "text",
    "address": "text",
    "allowed_by": "text",
    "request_headers": "jsonb",
    "response_headers": "jsonb",
    "response_body": "text",
}


@dataclass(frozen=True, slots=True)
class Job:
    """All that a sender needs for one attempt; it reads nothing else."""

    delivery: int  # the primary key
    delivery_id: str
    attempt: int  # its number; the result must match it
    webhook: int  # the primary key
    webhook_id: str
    url: str
    message_id: str
    event: str
    occurred_at: datetime
    data: str = field(repr=False)  # JSON
    # For signing.signatures; empty when they cannot be read, which is to be told (Code.SECRET) without sending.
    keys: tuple[str, ...] = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)  # the owner's own
    is_test: bool
    is_probe: bool = False  # whether it tries a webhook whose breaker was open


# --- the claim --------------------------------------------------------------------------------------------------


def claim(owner: str, *, limit: int, lease: timedelta, now: datetime, kept: int = 0) -> list[Job]:
    """Take at most `limit` due deliveries until `now + lease`, oldest first within a webhook.

    The last `kept` of these places are only for webhooks that have nothing under way.
    """
    # Looked for without a lock: most calls find nothing, and on SQLite a write transaction excludes all others.
    candidates = _candidates(limit, now) if limit > 0 else []
    if not candidates:
        return []
    began = monotonic()

    def work() -> tuple[list[Row], dict[int, Webhook]]:
        # On SQLite it may have waited for its turn for longer than a lease has to spare.
        waited = timedelta(seconds=int(monotonic() - began))
        return _claim(owner, candidates, limit, lease + waited, now, kept)

    taken, webhooks = sql.in_transaction(work)
    # After the commit: reading secrets takes longer than all statements together.
    secrets = {pk: _secrets(webhook, now) for pk, webhook in webhooks.items()}
    return [_job(row, webhooks[row[3]], secrets[row[3]]) for row in taken]


def _candidates(limit: int, now: datetime) -> list[int]:
    """Return the webhooks to lock: those with something due and a free place, the least busy first, by chance."""
    at = sql.stored(now)
    with connection.cursor() as db:
        db.execute(_TESTED)
        tested = {pk: busy for pk, busy, most in db.fetchall() if busy < most}
        db.execute(_READY.format(by_due=_by_due()), [at, at, at])
        ready = {pk: busy for pk, busy, most, failures in db.fetchall() if busy < _places(most, failures)}
    order = list((ready | tested).items())
    random.shuffle(order)
    order.sort(key=lambda item: (item[0] not in tested, item[1]))
    return [pk for pk, _ in order[:limit]]


def _by_due() -> str:
    return "" if sql.is_postgresql() else " INDEXED BY delivery_due"


def _places(max_in_flight: int, failures: int) -> int:
    """Return how many may be under way; of a webhook whose breaker has opened only one, which tries it."""
    return 1 if failures >= rules.OPEN_AFTER else max_in_flight


def _claim(
    owner: str, candidates: Collection[int], limit: int, lease: timedelta, now: datetime, kept: int = 0
) -> tuple[list[Row], dict[int, Webhook]]:
    webhooks = _locked(candidates)
    if not webhooks:
        return [], {}
    busy = _busy(webhooks)
    tests = _tests(webhooks, busy, limit, now)
    busy.update(webhook for _, webhook in tests)
    chosen = [pk for pk, _ in tests]
    chosen += _due(_shares(webhooks, busy, limit - len(chosen), kept, now), now)
    taken = _take(owner, chosen, lease, now)
    _pace(webhooks, Counter(row[3] for row in taken if not row[8]), now)
    _begin_attempts(taken, webhooks, now)
    return taken, webhooks


def _locked(pks: Collection[int]) -> dict[int, Webhook]:
    """Lock webhooks, but for those a rival has at this moment; return those that are still there."""
    rows = Webhook.objects.filter(pk__in=pks, deleted_at=None).order_by("pk")
    if sql.is_postgresql():
        # Not against who only names them: new deliveries go on being made.
        rows = rows.select_for_update(skip_locked=True, no_key=True)
    return {row.pk: row for row in rows}


def _busy(webhooks: Collection[int]) -> Counter[int]:
    among, values = sql.among(list(webhooks))
    with connection.cursor() as db:
        db.execute(
            "SELECT webhook_id, count(*) FROM webhooks_delivery"
            f" WHERE state = 'sending' AND webhook_id {among} GROUP BY webhook_id",
            values,
        )
        return Counter(dict(db.fetchall()))


def _tests(
    webhooks: Mapping[int, Webhook], busy: Mapping[int, int], limit: int, now: datetime
) -> list[tuple[int, int]]:
    """Return tests that go, with their webhooks: before all others, whatever state the webhook is in."""
    with connection.cursor() as db:
        db.execute(_TESTS.format(limit=MOST_TESTS), [sql.stored(now)])
        rows = db.fetchall()
    found: list[tuple[int, int]] = []
    here: Counter[int] = Counter()
    for pk, webhook in rows:
        if webhook in webhooks and busy[webhook] + here[webhook] < webhooks[webhook].max_in_flight:
            here[webhook] += 1
            found.append((pk, webhook))
    return found[:limit]


def _shares(
    webhooks: Mapping[int, Webhook], busy: Counter[int], limit: int, kept: int, now: datetime
) -> dict[int, int]:
    """Return how many of each webhook's go: place after place to the one with the fewest under way."""
    free = {pk: _free(webhook, busy[pk], now) for pk, webhook in webhooks.items()}
    heap = [(busy[pk], random.random(), pk) for pk, places in free.items() if places > 0]
    heapify(heap)
    shares: Counter[int] = Counter()
    for left in range(limit, 0, -1):
        if not heap or (heap[0][0] and left <= kept):
            break
        under_way, chance, pk = heappop(heap)
        shares[pk] += 1
        if shares[pk] < free[pk]:
            heappush(heap, (under_way + 1, chance, pk))
    return shares


def _free(webhook: Webhook, busy: int, now: datetime) -> int:
    """Return how many more may be sent to the webhook at this moment, apart from tests."""
    if not webhook.active or (webhook.open_until is not None and webhook.open_until > now):
        return 0
    places = _places(webhook.max_in_flight, webhook.failures) - busy
    return min(places, rules.allowed(webhook.per_second, webhook.paced_until, now=now))


def _due(shares: Mapping[int, int], now: datetime) -> list[int]:
    """Return the next deliveries of each webhook, as many as its share."""
    found: list[int] = []
    wanted = list(shares.items())
    with connection.cursor() as db:
        if sql.is_postgresql():
            query = _DUE.format(by_due="", webhook="share.webhook", now="%s", most="share.most")
            db.execute(
                "SELECT due.id FROM unnest(%s::bigint[], %s::int[]) AS share (webhook, most)"
                f" CROSS JOIN LATERAL ({query}) AS due",
                [[pk for pk, _ in wanted], [most for _, most in wanted], now],
            )
            return [pk for (pk,) in db.fetchall()]
        for start in range(0, len(wanted), SELECTS_AT_ONCE):
            part = wanted[start : start + SELECTS_AT_ONCE]
            # Numbers of our own, so no text of others is in the statement.
            queries = [
                f"SELECT id FROM ({_DUE.format(by_due=_by_due(), webhook=pk, now='%s', most=most)})"
                for pk, most in part
            ]
            db.execute(" UNION ALL ".join(queries), [sql.stored(now)] * len(part))
            found += [pk for (pk,) in db.fetchall()]
    return found


def _take(owner: str, pks: Sequence[int], lease: timedelta, now: datetime) -> list[Row]:
    """Move deliveries from pending to sending; return what their jobs are made of, in the order of `pks`."""
    if not pks:
        return []
    among, values = sql.among(sorted(pks))
    with connection.cursor() as db:
        db.execute(_TAKE.format(among=among), [owner, sql.stored(now + lease), *values])
        taken = [pk for (pk,) in db.fetchall()]
        if not taken:
            return []
        among, values = sql.among(taken)
        db.execute(_TAKEN.format(among=among), values)
        rows = {row[0]: row for row in db.fetchall()}
    return [rows[pk] for pk in pks if pk in rows]


def _pace(webhooks: Mapping[int, Webhook], sent: Mapping[int, int], now: datetime) -> None:
    paced = [
        (sql.stored(rules.paced(webhook.per_second, webhook.paced_until, sent[pk], now=now)), pk)
        for pk, webhook in webhooks.items()
        if webhook.per_second is not None and sent[pk]
    ]
    sql.update_many("webhooks_webhook", {"paced_until": "timestamptz", "id": "bigint"}, paced)


def _begin_attempts(taken: Sequence[Row], webhooks: Mapping[int, Webhook], now: datetime) -> None:
    stamp = sql.stored(now)
    rows = [
        (pk, number, stamp, Attempt.SENDING, "", webhooks[webhook].url, "", "", "{}", "{}", "")
        for pk, _, number, webhook, *_ in taken
    ]
    sql.insert_many("webhooks_attempt", _ATTEMPT_COLUMNS, rows)


def _secrets(webhook: Webhook, now: datetime) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the keys and the headers of a webhook; without keys where either cannot be read."""
    try:
        return signing_secrets.keys(webhook, now=now), signing_secrets.headers(webhook)
    except SecretUnreadable:
        logger.warning("The secret of a webhook cannot be read", extra={"webhook_id": webhook.webhook_id})
        return (), {}


def _job(row: Row, webhook: Webhook, secrets: tuple[tuple[str, ...], dict[str, str]]) -> Job:
    pk, delivery_id, number, _, message_id, event, occurred_at, data, is_test = row
    keys, headers = secrets
    return Job(
        delivery=pk,
        delivery_id=delivery_id,
        attempt=number,
        webhook=webhook.pk,
        webhook_id=webhook.webhook_id,
        url=webhook.url,
        message_id=message_id,
        event=event,
        occurred_at=sql.moment(occurred_at),  # type: ignore[arg-type]
        data=data,
        keys=keys,
        headers=headers,
        is_test=bool(is_test),
        is_probe=webhook.failures >= rules.OPEN_AFTER and not is_test,
    )


# --- without a result ----------------------------------------------------------------------------------------------

UNKNOWN_MOST = 5  # attempts of a delivery in a row; each one more spends a try
# Of these deliveries those that had more, how many, and what their webhooks say about tries.
_FATAL = f"""
SELECT id, spent, is_test, max_retries, backoff_multiplier, unknown FROM (
    SELECT d.id, d.spent, d.is_test, hook.max_retries, hook.backoff_multiplier, d.attempts - coalesce((
        SELECT max(number) FROM webhooks_attempt WHERE delivery_id = d.id AND outcome <> '{Attempt.UNKNOWN}'
    ), 0) AS unknown
    FROM webhooks_delivery AS d JOIN webhooks_webhook AS hook ON hook.id = d.webhook_id
    WHERE d.id {{among}}
) AS released
WHERE unknown > {UNKNOWN_MOST}
"""
_SPENT_COLUMNS = {
    "state": "text",
    "due_at": "timestamptz",
    "spent": "integer",
    "last_error": "text",
    "finished_at": "timestamptz",
    "id": "bigint",
}
_HELD = "SELECT id, attempts FROM webhooks_delivery WHERE state = 'sending'"


def give_back(jobs: Sequence[Job], *, now: datetime) -> None:
    """Let deliveries whose sender stops be sent by another at once; whether the receiver has them is not known."""
    if jobs:
        numbers = {job.delivery: job.attempt for job in jobs}
        among, values = sql.among(sorted(numbers))
        sql.in_transaction(lambda: _release(f"{_HELD} AND id {among} ORDER BY id", values, now, numbers))


def rescue(*, now: datetime) -> int:
    """Do the same for deliveries whose lease has run out; return how many."""
    query = f"{_HELD} AND lease_expires_at < %s"
    with connection.cursor() as db:
        db.execute(f"{query} LIMIT 1", [sql.stored(now)])
        if db.fetchone() is None:
            return 0
    query += f" ORDER BY lease_expires_at LIMIT {RESCUE_MOST}"
    count = sql.in_transaction(lambda: _release(query, [sql.stored(now)], now))
    if count:
        logger.warning("Rescued deliveries whose sender is gone", extra={"deliveries": count})
    return count


def take_back(owner_prefix: str, *, owner: str, now: datetime) -> int:
    """Do the same for what earlier senders of this node had when they died; return how many."""
    # In the order of the index of leases: for that of ids SQLite would read the whole table.
    query = f"{_HELD} AND substr(owner, 1, {len(owner_prefix)}) = %s AND owner <> %s ORDER BY lease_expires_at"
    count = sql.in_transaction(lambda: _release(query, [owner_prefix, owner], now))
    if count:
        logger.warning("Took back the deliveries of a sender before", extra={"deliveries": count})
    return count


def _release(query: str, values: list[Any], now: datetime, numbers: Mapping[int, int] | None = None) -> int:
    """Make deliveries pending again, no try spent; with `numbers` only those whose attempt is still that one.

    One that has had no result for more than UNKNOWN_MOST attempts does spend a try: it may be what ends its senders.
    """
    with connection.cursor() as db:
        db.execute(query + sql.skip_locked(), values)
        held = [pk for pk, number in db.fetchall() if numbers is None or numbers[pk] == number]
        if not held:
            return 0
        stamp = sql.stored(now)
        among, pks = sql.among(held)
        db.execute(
            "UPDATE webhooks_delivery SET state = 'pending', owner = '', lease_expires_at = NULL,"
            f" due_at = {sql.moment_mark()} WHERE id {among}",
            [stamp, *pks],
        )
        # Of a delivery that was being sent only the last attempt is open.
        db.execute(
            f"UPDATE webhooks_attempt SET outcome = '{Attempt.UNKNOWN}', finished_at = {sql.moment_mark()}"
            f" WHERE outcome = '{Attempt.SENDING}' AND delivery_id {among}",
            [stamp, *pks],
        )
        db.execute(_FATAL.format(among=among), pks)
        rows = [_spent(*row, now=now) for row in db.fetchall()]
    sql.update_many("webhooks_delivery", _SPENT_COLUMNS, rows)
    return len(held)


def _spent(
    pk: int, spent: int, is_test: bool, max_retries: int, multiplier: float, unknown: int, *, now: datetime
) -> tuple[Any, ...]:
    """Return the row of a delivery that had so many attempts without a result: it waits, or has failed."""
    spent += 1
    error = f"Its sender ended {unknown} times before there was a result"
    if is_test or spent > max_retries:
        return "failed", sql.stored(now), spent, error, sql.stored(now), pk
    due_at = now + rules.wait_before(spent, multiplier, random.Random())
    return "pending", sql.stored(due_at), spent, error, None, pk
