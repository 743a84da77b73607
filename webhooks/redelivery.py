"""Sending again what was sent, or should have been: one delivery, all that failed, or a whole period.

One delivery is pending again at once, with its id and all its tries. More than one is a bulk job
(k1node.operations.jobs) whose set is frozen when it is asked for:

- `failed`: the deliveries of a webhook that were given up since a moment;
- `period`: every event of a period that the webhook wants, from the event log. What it had already comes again under
  the same ids; for what it never had (it was not active, or did not want it yet) messages and deliveries are made.

Neither sends anything: due deliveries are claimed as ever, in the webhook's own pace. What is on its way already is
left alone.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import orjson
from django.db import connection
from django.db.models import BooleanField, Count, QuerySet
from django.db.models.expressions import RawSQL

from k1node.audit import trail
from k1node.events import periods
from k1node.events.catalogue import EVENTS
from k1node.events.log import Cursor, LoggedEvent
from k1node.events.models import Event
from k1node.lib import sql
from k1node.lib.errors import Conflict, FieldInvalid
from k1node.operations import jobs
from k1node.operations.jobs import Answer, Kind, Pace, Verdict
from k1node.operations.models import Item, Operation
from webhooks import fanout
from webhooks.models import Delivery, Message, Webhook

State = Delivery.State

KIND = "redelivery"
FINAL = (State.DELIVERED, State.FAILED, State.CANCELLED)
UNDER_WAY = "It is on its way already"
GONE = "It is gone: kept no longer"
ABOUT_ITSELF = "It is about this webhook itself"
DELETED = "The webhook was deleted"
NOT_ACTIVE = "The webhook is not active: enable it first"
COUNT_MOST = 10_000
OUTCOMES_MOST = 10_000
MOST_OPEN = 3  # of one webhook, that run or have stopped; each may have jobs.MOST items
MOST_RUNNING = 50  # on all nodes
OPENING_LOCK = 0x4B31_5245_4445_4C  # "K1REDEL", a key for PostgreSQL's advisory locks
# A literal, as its index has it: SQLite uses a partial index for no other.
IS_FAILED = RawSQL("webhooks_delivery.state = 'failed'", [], output_field=BooleanField())


class Mode(StrEnum):
    FAILED = "failed"
    PERIOD = "period"


class DeliveryUnderWay(Conflict):
    """The delivery is on its way already"""


class WebhookGone(Conflict):
    """The webhook was deleted"""


class WebhookNotActive(Conflict):
    """The webhook is not active: enable it first"""


class NothingToRedeliver(Conflict):
    """Nothing of that time can be delivered again"""


class TooManyRedeliveries(Conflict):
    """Redeliveries that have not ended are there already"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is delivered again: from `since` on and before `until`; `events` narrows it, None is all."""

    mode: Mode
    since: datetime
    until: datetime
    events: tuple[str, ...] | None = None

    def as_json(self) -> dict[str, Any]:
        told: dict[str, Any] = {"since": self.since.isoformat(), "until": self.until.isoformat()}
        return told if self.events is None else {**told, "events": sorted(self.events)}


# --- one --------------------------------------------------------------------------------------------------------


def redeliver(delivery: Delivery, *, by: str, now: datetime) -> Delivery:
    """Let a delivery that has ended be sent again, with its id and all its tries.

    Raises DeliveryUnderWay, WebhookGone and WebhookNotActive. A test is sent to a webhook that is not active too.
    """

    def work() -> Delivery:
        webhook = _locked(delivery.webhook_id)
        rows = Delivery.objects.filter(pk=delivery.pk)
        row = (rows.select_for_update() if sql.is_postgresql() else rows).first()
        if row is None or webhook is None or webhook.deleted_at is not None:
            raise WebhookGone()
        if not webhook.active and not row.is_test:
            raise WebhookNotActive()
        if row.state not in FINAL:
            raise DeliveryUnderWay(f"It is {row.state}: it is on its way already")
        before = row.state
        _again([row.pk], by=by, now=now)
        trail.record(
            "delivery.redelivered",
            f"delivery:{row.delivery_id}",
            before={"state": str(before)},
            after={"state": str(State.PENDING), "webhook_id": webhook.webhook_id, "event": row.event},
            by=by,
            now=now,
        )
        row.refresh_from_db()
        return row

    return sql.in_transaction(work)


def _again(pks: Sequence[int], *, by: str, now: datetime) -> None:
    """Make deliveries that have ended and are locked pending again."""
    Delivery.objects.filter(pk__in=pks, state__in=FINAL).update(
        state=State.PENDING, due_at=now, spent=0, finished_at=None, owner="", redelivered_by=by[:150]
    )


def _locked(pk: int) -> Webhook | None:
    """Return the webhook, as it is until the transaction ends."""
    rows = Webhook.objects.filter(pk=pk)
    # Not against who only names it: new deliveries go on being made.
    return (rows.select_for_update(no_key=True) if sql.is_postgresql() else rows).first()


# --- many -------------------------------------------------------------------------------------------------------


def checked(
    webhook: Webhook,
    mode: Mode,
    *,
    since: datetime,
    until: datetime | None = None,
    events: Collection[str] | None = None,
    now: datetime,
) -> Wanted:
    """Return what is asked for, until now if nothing else is said. Raises FieldInvalid."""
    until = now if until is None else until
    if since >= now:
        raise FieldInvalid("since", "Must lie in the past")
    if until <= since:
        raise FieldInvalid("until", "Must lie after since")
    for place, name in enumerate(events or ()):
        if name not in EVENTS:
            raise FieldInvalid(f"events.{place}", f"{name[:100]!r} is no event", "Use names of the event types")
        if "*" not in webhook.events and name not in webhook.events:
            raise FieldInvalid(f"events.{place}", f"The webhook does not want {name}", "Add it to the webhook first")
    return Wanted(mode, since, until, None if events is None else tuple(dict.fromkeys(events)))


def subjects_of(webhook: Webhook, wanted: Wanted) -> QuerySet[Any, int]:
    """Return the keys of what fits, the oldest first: of deliveries for mode failed, of events for a period."""
    if wanted.mode == Mode.FAILED:
        rows = Delivery.objects.filter(
            IS_FAILED, webhook=webhook, finished_at__gte=wanted.since, finished_at__lt=wanted.until, is_test=False
        )
        if wanted.events is not None:
            rows = rows.filter(event__in=wanted.events)
        return rows.order_by("finished_at", "pk").values_list("pk", flat=True)
    names: Collection[str] | None = wanted.events
    if names is None and "*" not in webhook.events:
        names = webhook.events
    return periods.between(wanted.since, wanted.until, names).values_list("pk", flat=True)


def count(webhook: Webhook, wanted: Wanted) -> int:
    """Return how many fit, at most one more than COUNT_MOST."""
    return len(subjects_of(webhook, wanted)[: COUNT_MOST + 1])


def begin(
    webhook: Webhook, wanted: Wanted, *, per_second: int | None = None, by: str, now: datetime
) -> tuple[Operation, bool]:
    """Freeze what fits and let the clock begin; return the job and whether more fits than it may have.

    Raises WebhookGone, WebhookNotActive, TooManyRedeliveries and NothingToRedeliver.
    """
    _ready(webhook)
    _room(webhook)
    pks = list(subjects_of(webhook, wanted)[: jobs.MOST + 1])
    if not pks:
        raise NothingToRedeliver()

    def work() -> Operation:
        if sql.is_postgresql():
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", [OPENING_LOCK])
        _room(webhook)
        job = jobs.plan(
            KIND,
            pks,
            arguments={"mode": str(wanted.mode), "webhook": webhook.pk},
            selection={"webhook_id": webhook.webhook_id, "mode": str(wanted.mode), **wanted.as_json()},
            pace=Pace(per_second),
            by=by,
            now=now,
        )
        return jobs.start(job.operation_id, KIND, by, now=now)

    return sql.in_transaction(work), len(pks) > jobs.MOST


def _ready(webhook: Webhook) -> None:
    if webhook.deleted_at is not None:
        raise WebhookGone()
    if not webhook.active:
        raise WebhookNotActive()


def _room(webhook: Webhook) -> None:
    """Raise TooManyRedeliveries if no other one may begin."""
    states = Operation.State
    if of(webhook).exclude(state__in=(states.COMPLETED, states.CANCELLED)).count() >= MOST_OPEN:
        raise TooManyRedeliveries(f"{MOST_OPEN} redeliveries of this webhook have not ended: wait, or cancel one")
    # Those that rest are not counted: they may be of webhooks that were deleted, and nobody could cancel them.
    if Operation.objects.filter(kind=KIND, state=states.RUNNING).count() >= MOST_RUNNING:
        raise TooManyRedeliveries(f"{MOST_RUNNING} redeliveries are running: wait, or cancel one")


def start(operation_id: str, *, by: str, now: datetime) -> Operation:
    """Let it go on after it has stopped. Raises JobRefuses."""
    return jobs.start(operation_id, KIND, by, now=now)


def stop(operation_id: str, *, by: str, now: datetime) -> Operation:
    """Let it rest until somebody starts it again. Raises JobRefuses."""
    return jobs.stop(operation_id, KIND, by, now=now)


def cancel(operation_id: str, *, by: str, now: datetime) -> Operation:
    """End it where it stands; what is pending by then is sent. Raises JobRefuses."""
    return jobs.cancel(operation_id, KIND, by, now=now)


# --- the kind of job --------------------------------------------------------------------------------------------


def _obstacle(job: Operation, subjects: Sequence[int]) -> str:
    # It stays locked until the step is done: nobody deletes or disables it in between.
    webhook = _locked(job.arguments["webhook"])
    if webhook is None or webhook.deleted_at is not None:
        return DELETED
    return "" if webhook.active else NOT_ACTIVE


def _perform(job: Operation, subjects: Sequence[int], now: datetime) -> list[Answer]:
    webhook = Webhook.objects.get(pk=job.arguments["webhook"])
    perform = _perform_failed if job.arguments["mode"] == Mode.FAILED else _perform_period
    return perform(webhook, subjects, by=job.created_by, now=now)


def _verdict(job: Operation, made: Collection[int]) -> Verdict:
    return Verdict(True)  # nothing is tried first


REDELIVERY = Kind(KIND, _perform, _obstacle, _verdict)


def _perform_failed(webhook: Webhook, subjects: Sequence[int], *, by: str, now: datetime) -> list[Answer]:
    states = dict(_locked_rows(webhook, pk__in=subjects).values_list("pk", "state"))
    again = [pk for pk in subjects if states.get(pk) == State.FAILED]
    _again(again, by=by, now=now)
    return [
        Answer(True, made=pk) if states.get(pk) == State.FAILED else Answer(False, _why_not(states.get(pk)))
        for pk in subjects
    ]


def _why_not(state: str | None) -> str:
    if state is None:
        return GONE
    return UNDER_WAY if state not in FINAL else f"It is {state} by now"


def _perform_period(webhook: Webhook, subjects: Sequence[int], *, by: str, now: datetime) -> list[Answer]:
    facts = _facts(subjects)
    own = {pk for pk, event in facts.items() if is_about(webhook, event)}
    rows = _locked_rows(webhook, message__event_pk__in=facts.keys() - own)
    there = {event: (pk, state) for event, pk, state in rows.values_list("message__event_pk", "pk", "state")}
    made = {event: pk for event, (pk, state) in there.items() if state in FINAL}
    _again(list(made.values()), by=by, now=now)
    missing = [pk for pk in subjects if pk in facts and pk not in own and pk not in there]
    if missing:
        fanout.make([(facts[pk], [webhook.pk]) for pk in missing], now=now)
        new = Delivery.objects.filter(webhook=webhook, message__event_pk__in=missing)
        made |= dict(new.values_list("message__event_pk", "pk"))
        new.update(redelivered_by=by[:150])
    return [
        Answer(True, made=made[pk])
        if pk in made
        else Answer(False, ABOUT_ITSELF if pk in own else UNDER_WAY if pk in facts else GONE)
        for pk in subjects
    ]


def _facts(events: Sequence[int]) -> dict[int, LoggedEvent]:
    """Return what happened, by key: from the log, or from the message if the log has it no more."""
    found = {
        row.pk: LoggedEvent(Cursor(0, row.pk), row.name, row.occurred_at, row.data)
        for row in Event.objects.filter(pk__in=events)
    }
    for row in Message.objects.filter(event_pk__in=set(events) - found.keys()):
        assert row.event_pk is not None
        found[row.event_pk] = LoggedEvent(Cursor(0, row.event_pk), row.event, row.occurred_at, orjson.loads(row.data))
    return found


def is_about(webhook: Webhook, event: LoggedEvent) -> bool:
    """Say whether an event tells how this webhook itself is doing: those it is never sent."""
    return event.name in fanout.OWN_EVENTS and event.data.get("webhook_id") == webhook.webhook_id


def _locked_rows(webhook: Webhook, **which: Any) -> QuerySet[Delivery]:
    rows = Delivery.objects.filter(webhook=webhook, **which).order_by("pk")
    return rows.select_for_update(of=("self",)) if sql.is_postgresql() else rows


# --- what is read -----------------------------------------------------------------------------------------------


def of(webhook: Webhook) -> QuerySet[Operation]:
    """Return the redeliveries of a webhook."""
    return Operation.objects.filter(kind=KIND, selection__webhook_id=webhook.webhook_id)


def outcomes(job: Operation) -> dict[str, int]:
    """Return how many of the deliveries it made pending are in each state: of the newest OUTCOMES_MOST."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT delivery.state, count(*) FROM (SELECT made FROM operations_item WHERE operation_id = %s"
            " AND position <= %s AND made IS NOT NULL ORDER BY position DESC LIMIT %s) AS item"
            " JOIN webhooks_delivery AS delivery ON delivery.id = item.made GROUP BY delivery.state",
            [job.pk, job.position, OUTCOMES_MOST],
        )
        return dict(cursor.fetchall())


def refusals(job: Operation) -> dict[str, int]:
    """Return why so many were left as they are."""
    if not job.refused:
        return {}
    rows = job.items.filter(position__lte=job.position, state=Item.State.REFUSED).order_by()
    return dict(rows.values("note").annotate(number=Count("pk")).values_list("note", "number"))


def webhook_id_of(job: Operation) -> str:
    return str(job.selection.get("webhook_id", ""))
