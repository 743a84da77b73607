"""From the event log to deliveries: one message for each event that somebody wants, one delivery for each who does.

The log is read behind one cursor, whose row is locked while a page of it becomes rows: what was made and how far the
cursor has come commit together, so a crash repeats the page and nothing else. On PostgreSQL whoever finds the row
locked leaves it to the other node.

While no webhook is active nothing is read. The first one that becomes active starts at the log's end (`begin`).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson
from django.db import connection

from k1node.events import log
from k1node.events.log import Cursor, LoggedEvent
from k1node.lib import sql
from k1node.lib.ids import derived, prefixed
from webhooks.models import Webhook

CURSOR = 1  # the key of its row
PAGE = 1000  # events read at once
MOST = 2000  # deliveries made in one transaction, but for those of a single event
ALL = "*"
# A webhook is never told of itself: it would fail at that too, and be told again.
OWN_EVENTS = frozenset({"webhook.failing", "webhook.disabled"})
MESSAGE_COLUMNS = {
    "message_id": "text",
    "event_pk": "bigint",
    "event": "text",
    "occurred_at": "timestamptz",
    "data": "text",
}
DELIVERY_COLUMNS = {
    "delivery_id": "text",
    "webhook_id": "bigint",
    "message_id": "bigint",
    "event": "text",
    "state": "text",
    "is_test": "boolean",
    "due_at": "timestamptz",
    "attempts": "integer",
    "spent": "integer",
    "owner": "text",
    "last_error": "text",
    "redelivered_by": "text",
    "created_at": "timestamptz",
}


@dataclass(frozen=True, slots=True)
class Subscriber:
    pk: int
    webhook_id: str
    events: frozenset[str]

    def wants(self, event: LoggedEvent) -> bool:
        if event.name in OWN_EVENTS and event.data.get("webhook_id") == self.webhook_id:
            return False
        return event.name in self.events or ALL in self.events


def begin() -> None:
    """Let the fan-out start at the log's end if nothing is active yet.

    Call it in the transaction that makes a webhook active, before the row is written. Of two at the same moment the
    second waits here for the first, and finds it active.
    """
    _lay_down()
    _cursor(sql.for_update())
    if not _is_any_active():
        _move(log.end())


def advance(*, now: datetime) -> bool:
    """Make the deliveries of the next events; say whether there may be more at once."""
    # Looked at without a lock first: most calls find nothing, and on SQLite a write transaction excludes all others.
    if not _is_any_active():
        return False
    start = _cursor()
    if start is None:
        sql.in_transaction(_lay_down)
        return False
    return _is_behind(start) and sql.in_transaction(lambda: _advance(now))


def read_up_to() -> int | None:
    """Return the key of the last event that the fan-out is through with; None while nothing is waiting for any."""
    cursor = _cursor() if _is_any_active() else None
    return None if cursor is None else cursor.id


def _is_any_active() -> bool:
    return Webhook.objects.filter(active=True, deleted_at=None).exists()


def _cursor(lock: str = "") -> Cursor | None:
    with connection.cursor() as db:
        db.execute(f"SELECT cursor_xid, cursor_id FROM webhooks_fanoutcursor WHERE id = {CURSOR}{lock}")
        row = db.fetchone()
    return Cursor(*row) if row else None


def _is_behind(cursor: Cursor) -> bool:
    return bool(log.read_after(cursor, limit=1))


def _advance(now: datetime) -> bool:
    start = _cursor(sql.skip_locked())
    if start is None:  # another node has it
        return False
    events, subscribers, reached = _read(start)
    wanted: list[tuple[LoggedEvent, list[Subscriber]]] = []
    count = 0
    for event in events:
        takers = [subscriber for subscriber in subscribers if subscriber.wants(event)]
        if not takers:
            continue
        if wanted and count + len(takers) > MOST:
            reached = wanted[-1][0].cursor
            break
        wanted.append((event, takers))
        count += len(takers)
    if wanted:
        make([(event, [taker.pk for taker in takers]) for event, takers in wanted], now=now)
    _move(reached)
    return reached != start


def _read(start: Cursor) -> tuple[list[LoggedEvent], list[Subscriber], Cursor]:
    """Return the next events that may be wanted, who wants which, and the cursor behind all that was looked at.

    Whoever is active before an event happens gets it: the subscribers are read after the events. If one of them wants
    names that were passed over, the events are read again.
    """
    names = _names(_subscribers())
    while True:
        if ALL in names:
            events = log.read_after(start, limit=PAGE)
            reached = events[-1].cursor if events else start
        else:
            events, reached = log.read_named(start, names, limit=PAGE)
        subscribers = _subscribers()
        now_wanted = _names(subscribers)
        if now_wanted <= names or ALL in names:
            return events, subscribers, reached
        names = now_wanted


def _subscribers() -> list[Subscriber]:
    rows = Webhook.objects.filter(active=True, deleted_at=None).order_by("pk")
    return [
        Subscriber(pk, webhook_id, frozenset(events))
        for pk, webhook_id, events in rows.values_list("pk", "webhook_id", "events")
    ]


def _names(subscribers: Collection[Subscriber]) -> set[str]:
    return {name for subscriber in subscribers for name in subscriber.events}


def make(wanted: Sequence[tuple[LoggedEvent, Sequence[int]]], *, now: datetime) -> None:
    """Make the message of each event and its deliveries to these webhooks (primary keys); those that are there stay."""
    stamp = sql.stored(now)
    sql.insert_many(
        "webhooks_message",
        MESSAGE_COLUMNS,
        [
            (
                _message_id(event),
                event.cursor.id,
                event.name,
                sql.stored(event.occurred_at),
                orjson.dumps(event.data).decode(),
            )
            for event, _ in wanted
        ],
        unless_there=True,
    )
    among, values = sql.among([event.cursor.id for event, _ in wanted])
    with connection.cursor() as db:
        db.execute(f"SELECT event_pk, id FROM webhooks_message WHERE event_pk {among}", values)
        message_of = dict(db.fetchall())
    sql.insert_many(
        "webhooks_delivery",
        DELIVERY_COLUMNS,
        [
            (
                *(prefixed("wh-dlv"), webhook, message_of[event.cursor.id], event.name, "pending"),
                *(False, stamp, 0, 0, "", "", "", stamp),
            )
            for event, webhooks in wanted
            for webhook in webhooks
        ],
        unless_there=True,
    )


def _message_id(event: LoggedEvent) -> str:
    """Return the id of an event's message: the same one if it must be made again.

    That is so when the machine loses power after a commit that no disk has seen, but not before a receiver got it, and
    when an event is sent again whose message was pruned.
    """
    fact = f"{event.cursor.id} {event.occurred_at.astimezone(UTC).isoformat()} {event.name}"
    return derived("wh-evt", fact.encode())


def _lay_down() -> None:
    """Make the cursor's row at the log's end, if there is none."""
    end = log.end()
    sql.insert_many(
        "webhooks_fanoutcursor",
        {"id": "bigint", "cursor_xid": "bigint", "cursor_id": "bigint"},
        [(CURSOR, end.xid, end.id)],
        unless_there=True,
    )


def _move(cursor: Cursor) -> None:
    with connection.cursor() as db:
        db.execute(
            f"UPDATE webhooks_fanoutcursor SET cursor_xid = %s, cursor_id = %s WHERE id = {CURSOR}",
            [cursor.xid, cursor.id],
        )
