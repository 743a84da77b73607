"""What people do to webhooks, from the API and the console: each act one transaction, with its record in the audit log.

Every act locks its webhook's row first, as those do who claim and record deliveries (webhooks.delivery): so nothing is
claimed any more once a deletion has committed, and nobody overwrites what the other has just found out. A webhook that
was deleted is not found any more; its row stays until its last delivery is gone.
"""

import difflib
import logging
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

import orjson
from django.conf import settings
from django.db import connection, models
from django.db.models import QuerySet

from k1node.audit import trail
from k1node.events.catalogue import EVENTS, TEST
from k1node.lib import ids, sql
from k1node.lib.errors import Conflict, Detail, FieldInvalid, InvalidRequest, NotFound
from k1node.lib.keyring import SecretUnreadable
from webhooks import fanout, rules, signing, signing_secrets, targets
from webhooks.models import Delivery, Message, Webhook

logger = logging.getLogger(__name__)

MOST = 1_000
MOST_TESTS = 10  # of one webhook, that wait to be sent
CREATING_LOCK = 0x4B31_5748_4F4F_4B  # "K1WHOOK", a key for PostgreSQL's advisory locks

ALL = "*"
LONGEST_NAME = 100
LONGEST_URL = 2048
RETRIES = (0, 100)
MULTIPLIERS = (1, 10)
IN_FLIGHT = (1, 32)
RATES = (1, 1_000)
MOST_HEADERS = 20
MOST_HEADER_BYTES = 4 * 1024  # names and values of all together
OVERLAP = timedelta(hours=24)
LONGEST_OVERLAP = timedelta(days=7)

# What a change may name; of the row's fields it sets all but the headers' names.
CHANGEABLE = (
    "name",
    "url",
    "events",
    "active",
    "max_retries",
    "backoff_multiplier",
    "headers",
    "max_in_flight",
    "per_second",
)
HEALTHY: dict[str, Any] = {
    "failures": 0,
    "failing_since": None,
    "exhausted": 0,
    "open_until": None,
}
ENABLED: dict[str, Any] = {
    "active": True,
    "disabled_at": None,
    "disabled_reason": "",
    "paced_until": None,
    **HEALTHY,
}


class WebhookInvalid(InvalidRequest):
    """A webhook cannot be made from this"""


class TooManyWebhooks(Conflict):
    """There are as many webhooks as a node can have"""


class TooManyTests(Conflict):
    """Tests of this webhook are waiting to be sent already"""


class State(models.TextChoices):
    """How a webhook is doing, in one word."""

    ACTIVE = "active"
    FAILING = "failing"  # nothing arrives: it is tried less and less often
    PAUSED = "paused"  # by a person
    DISABLED = "disabled"  # by the node


def state(webhook: Webhook) -> State:
    if not webhook.active:
        return State.PAUSED if webhook.disabled_at is None else State.DISABLED
    return State.FAILING if webhook.failures >= rules.OPEN_AFTER else State.ACTIVE


def present() -> "QuerySet[Webhook]":
    """Return the webhooks that are not deleted, the newest first."""
    return Webhook.objects.filter(deleted_at__isnull=True).order_by("-pk")


def in_state(rows: "QuerySet[Webhook]", wanted: State) -> "QuerySet[Webhook]":
    match wanted:
        case State.ACTIVE:
            return rows.filter(active=True, failures__lt=rules.OPEN_AFTER)
        case State.FAILING:
            return rows.filter(active=True, failures__gte=rules.OPEN_AFTER)
        case State.PAUSED:
            return rows.filter(active=False, disabled_at__isnull=True)
        case State.DISABLED:
            return rows.filter(active=False, disabled_at__isnull=False)


def event_names() -> list[str]:
    """Return what a webhook may ask for by name."""
    return sorted(EVENTS.keys() - {TEST})


# --- making and changing --------------------------------------------------------------------------------------------


def create(fields: Mapping[str, Any], *, by: str, now: datetime) -> tuple[Webhook, str]:
    """Return a new webhook and its secret, which is not shown again.

    `fields` are any of CHANGEABLE, with `headers` as a mapping, and `secret`; name, url and events must be there.
    Raises WebhookInvalid and TooManyWebhooks.
    """
    given = dict(fields)
    secret = given.pop("secret", None)
    values = _checked({"name": "", "url": "", "events": [], **given}, secret=secret)
    secret = secret or signing.new_secret()
    values.setdefault("max_retries", settings.WEBHOOK_MAX_RETRIES)
    headers = values.pop("headers", {})

    def work() -> Webhook:
        _one_at_a_time()
        if present().count() >= MOST:
            raise TooManyWebhooks(f"There are {MOST:,} webhooks, and a node can have no more: delete one")
        row = Webhook(webhook_id=ids.prefixed("wh"), created_by=by[:150], created_at=now, updated_at=now, **values)
        _set_headers(row, headers)
        row.secret = signing_secrets.sealed(row.webhook_id, "secret", secret)
        row.secret_hint = secret[-4:]
        if row.active:
            fanout.begin()
        row.save(force_insert=True)
        trail.record("webhook.created", _target(row), after=_audited(row), by=by, now=now)
        return row

    made = sql.in_transaction(work)
    logger.info("Webhook created", extra=_facts(made))
    return made, secret


def change(webhook: Webhook, changes: Mapping[str, Any], *, by: str, now: datetime) -> Webhook:
    """Return the webhook with some of CHANGEABLE changed; it counts for the next attempt.

    `headers` takes the place of all of them. They have to be said again when the URL leads to another scheme, host or
    port: else whoever may change webhooks could have headers that are never shown sent to an address of their own.
    One that becomes active starts afresh, as enable() has it; one with another address too, for what the old one did
    says nothing of the new one. Raises WebhookInvalid, FieldInvalid and NotFound.
    """
    values = _checked(changes)

    def work() -> Webhook:
        row = _locked(webhook)
        before, address, was_active = _audited(row), row.url, row.active
        if "headers" in values:
            _set_headers(row, values["headers"])
        elif row.headers and not targets.is_same_place(values.get("url", address), address):
            raise FieldInvalid("headers", _NOT_FOR_OTHERS, "Send them again, or {} for none")
        for name in values.keys() - {"headers"}:
            setattr(row, name, values[name])
        if row.active and not was_active:
            fanout.begin()
            _set(row, ENABLED)
        if row.url != address:
            _set(row, HEALTHY)
        after = _audited(row)
        changed = {name for name in before if before[name] != after[name]} | (values.keys() & {"headers"})
        if not changed:
            return row
        row.updated_at = now
        row.save(update_fields=[*CHANGEABLE, "header_names", *ENABLED.keys() - {"active"}, "updated_at"])
        named = changed - {"headers"}
        trail.record(
            "webhook.updated",
            _target(row),
            before={name: before[name] for name in named},
            after={name: after[name] for name in named} | ({"headers": "set"} if "headers" in changed else {}),
            by=by,
            now=now,
        )
        return row

    found = sql.in_transaction(work)
    logger.info("Webhook changed", extra=_facts(found) | {"fields": sorted(values)})
    return found


def enable(webhook: Webhook, *, by: str, now: datetime) -> Webhook:
    """Return the webhook active and as if it had never failed: what waits for it is sent at once. Raises NotFound."""

    def work() -> Webhook:
        row = _locked(webhook)
        before = {"active": row.active, "state": state(row), "reason": row.disabled_reason}
        if not row.active:
            fanout.begin()
        _set(row, ENABLED)
        row.updated_at = now
        row.save(update_fields=[*ENABLED, "updated_at"])
        after = {"active": True, "state": state(row), "reason": ""}
        trail.record("webhook.enabled", _target(row), before=before, after=after, by=by, now=now)
        return row

    found = sql.in_transaction(work)
    logger.info("Webhook enabled", extra=_facts(found))
    return found


def delete(webhook: Webhook, *, by: str, now: datetime) -> None:
    """End the webhook for good: nothing is claimed for it any more, and its secrets are gone. Raises NotFound.

    What still waits for it is cancelled bit by bit (webhooks.retention).
    """

    def work() -> Webhook:
        row = _locked(webhook)
        before = _audited(row)
        gone = {
            "deleted_at": now,
            "active": False,
            "secret": "",
            "secret_hint": "",
            "headers": "",
            "updated_at": now,
            **_NO_ROTATION,
        }
        _set(row, gone)
        row.save(update_fields=list(gone))
        trail.record("webhook.deleted", _target(row), before=before, by=by, now=now)
        return row

    logger.info("Webhook deleted", extra=_facts(sql.in_transaction(work)))


# --- secrets --------------------------------------------------------------------------------------------------------

_NO_ROTATION: dict[str, Any] = {"next_secret": "", "next_secret_hint": "", "rotates_at": None}
_SECRETS = ("secret", "secret_hint", *_NO_ROTATION, "updated_at")


def rotate_secret(
    webhook: Webhook, *, by: str, now: datetime, secret: str | None = None, overlap: timedelta = OVERLAP
) -> tuple[Webhook, str]:
    """Return the webhook with a new secret, and that secret, which is not shown again.

    For the overlap both sign (webhooks.signing). Where a rotation is under way its successor takes over first, and the
    oldest secret ends. Without an overlap, and where the old secret cannot be read any more, the new one is at once the
    only one. Raises FieldInvalid and NotFound.
    """
    if not timedelta() <= overlap <= LONGEST_OVERLAP:
        most = int(LONGEST_OVERLAP.total_seconds())
        raise FieldInvalid("overlap_seconds", f"Must be from 0 to {most}, which is 7 days", "Use 86400 for a day")
    if secret is not None and not signing.is_secret(secret):
        raise WebhookInvalid(details=(_WRONG_SECRET,))
    new = secret or signing.new_secret()

    def work() -> Webhook:
        row = _locked(webhook)
        old = _last_secret(row)
        if new == old:
            raise FieldInvalid("secret", "Is the secret it has already", "Leave it out to have one made")
        if overlap and old is not None:
            _only_secret(row, old)
            row.next_secret = signing_secrets.sealed(row.webhook_id, "next_secret", new)
            row.next_secret_hint, row.rotates_at = new[-4:], now + overlap
        else:
            _only_secret(row, new)
        row.updated_at = now
        row.save(update_fields=_SECRETS)
        facts = {"hint": new[-4:], "rotates_at": row.rotates_at}
        trail.record("webhook.rotated", _target(row), after=facts, by=by, now=now)
        return row

    found = sql.in_transaction(work)
    logger.info("Webhook's secret rotated", extra=_facts(found) | {"rotates_at": found.rotates_at})
    return found, new


def finish_rotation(webhook: Webhook, *, by: str, now: datetime) -> Webhook:
    """Return the webhook with its new secret as the only one, before the overlap is over.

    Nothing happens where no rotation is under way. Raises SecretUnreadable and NotFound.
    """

    def work() -> Webhook:
        row = _locked(webhook)
        if not row.next_secret:
            return row
        _only_secret(row, signing_secrets.unsealed(row, "next_secret"))
        row.updated_at = now
        row.save(update_fields=_SECRETS)
        trail.record("webhook.rotation_finished", _target(row), after={"hint": row.secret_hint}, by=by, now=now)
        return row

    return sql.in_transaction(work)


def _last_secret(row: Webhook) -> str | None:
    """Return the newest secret that receivers may know; None if it cannot be read."""
    try:
        return signing_secrets.unsealed(row, "next_secret" if row.next_secret else "secret")
    except SecretUnreadable:
        return None


def _only_secret(row: Webhook, secret: str) -> None:
    _set(row, _NO_ROTATION)
    row.secret = signing_secrets.sealed(row.webhook_id, "secret", secret)
    row.secret_hint = secret[-4:]


# --- tests ----------------------------------------------------------------------------------------------------------


def send_test(webhook: Webhook, event: str | None = None, *, by: str, now: datetime) -> Delivery:
    """Return the delivery of a made-up event, sent once whether or not the webhook is active or wants it.

    Without `event` it is TEST, else an example of that event. Raises FieldInvalid, TooManyTests and NotFound.
    """
    name = event or TEST
    if name not in EVENTS:
        raise FieldInvalid("event", f"Unknown event {name[:100]!r}", _meant(name))

    def work() -> Delivery:
        row = _locked(webhook)
        waiting = Delivery.objects.filter(state=Delivery.State.PENDING, is_test=True, webhook=row)
        if waiting.count() >= MOST_TESTS:
            raise TooManyTests(f"{MOST_TESTS} tests of this webhook are waiting to be sent: does the sender run?")
        data = {"webhook_id": row.webhook_id, "by": by} if name == TEST else dict(EVENTS[name].example)
        message = Message.objects.create(
            message_id=ids.prefixed("wh-evt"), event=name, occurred_at=now, data=orjson.dumps(data).decode()
        )
        delivery = Delivery.objects.create(
            delivery_id=ids.prefixed("wh-dlv"),
            webhook=row,
            message=message,
            event=name,
            is_test=True,
            due_at=now,
            created_at=now,
        )
        after = {"delivery_id": delivery.delivery_id, "event": name}
        trail.record("webhook.tested", _target(row), after=after, by=by, now=now)
        return delivery

    return sql.in_transaction(work)


# --- what may be said -----------------------------------------------------------------------------------------------

_WRONG_SECRET = Detail(
    "secret",
    "Must be whsec_ and the base64 of 24 to 64 bytes",
    'Leave it out to have one made, or make it with: echo "whsec_$(openssl rand -base64 32)"',
)


_NOT_FOR_OTHERS = "Must be said again for another address: they were given for the present one"


def check(values: Mapping[str, Any]) -> None:
    """Raise WebhookInvalid unless `values`, any of CHANGEABLE and `secret`, may be a webhook's."""
    others = {name: value for name, value in values.items() if name != "secret"}
    _checked(others, secret=values.get("secret"))


def _checked(values: Mapping[str, Any], *, secret: str | None = None) -> dict[str, Any]:
    """Return `values` as they are stored. Raises WebhookInvalid."""
    checked = dict(values)
    if unknown := checked.keys() - set(CHANGEABLE):
        raise TypeError(f"A webhook has no {', '.join(sorted(unknown))} to set.")
    problems: list[Detail] = []
    if "name" in checked:
        checked["name"] = checked["name"].strip()
        if not checked["name"] or len(checked["name"]) > LONGEST_NAME or not checked["name"].isprintable():
            problems.append(Detail("name", f"Must be 1 to {LONGEST_NAME} printable characters"))
    if "url" in checked:
        problems += targets.check_url(checked["url"], targets.rules())
    if "events" in checked:
        checked["events"] = list(dict.fromkeys(checked["events"]))
        problems += _wrong_events(checked["events"])
    problems += [
        Detail(name, f"Must be from {low} to {high:,}")
        for name, (low, high) in _BOUNDS.items()
        if checked.get(name) is not None and not low <= checked[name] <= high
    ]
    if "headers" in checked:
        problems += _wrong_headers(checked["headers"])
    if secret is not None and not signing.is_secret(secret):
        problems.append(_WRONG_SECRET)
    if problems:
        raise WebhookInvalid(details=tuple(problems))
    return checked


_BOUNDS = {
    "max_retries": RETRIES,
    "backoff_multiplier": MULTIPLIERS,
    "max_in_flight": IN_FLIGHT,
    "per_second": RATES,
}


def _wrong_events(wanted: Collection[str]) -> list[Detail]:
    if not wanted:
        return [Detail("events", "At least one event is needed", f'Use ["{ALL}"] for all of them')]
    if ALL in wanted:
        return [] if len(wanted) == 1 else [Detail("events", f'"{ALL}" stands alone', f'Use ["{ALL}"] for every event')]
    unknown = [name for name in wanted if name not in event_names()]
    return [Detail("events", f"Unknown event {name[:100]!r}", _meant(name)) for name in unknown[:20]]


def _meant(name: str) -> str:
    close = difflib.get_close_matches(name[:100], event_names(), n=1)
    return f"Did you mean {close[0]}?" if close else "GET /api/v2/webhooks/event-types lists them"


def _wrong_headers(headers: Mapping[str, str]) -> list[Detail]:
    """Return what is wrong with headers; no text here has a value in it, which may be a secret."""
    if len(headers) > MOST_HEADERS:
        return [Detail("headers", f"Must be at most {MOST_HEADERS}, not {len(headers):,}")]
    problems: list[Detail] = []
    seen: set[str] = set()
    for name, value in headers.items():
        if problem := targets.header_problem(name, value if isinstance(value, str) else "\n"):
            problems.append(Detail("headers", problem))
        elif name.lower() in seen:
            problems.append(Detail("headers", f"{name} is there twice: upper and lower case do not differ"))
        seen.add(name.lower())
    size = sum(len(name) + len(str(value)) for name, value in headers.items())
    if size > MOST_HEADER_BYTES:
        problems.append(Detail("headers", f"Must be at most {MOST_HEADER_BYTES:,} bytes together, not {size:,}"))
    return problems


# --- small parts ----------------------------------------------------------------------------------------------------


def _one_at_a_time() -> None:
    """Keep others from counting webhooks until the commit; SQLite's write transactions exclude each other anyhow."""
    if sql.is_postgresql():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [CREATING_LOCK])


def _locked(webhook: Webhook) -> Webhook:
    """Return the webhook's row as it is now, held against rivals. Raises NotFound if it was deleted."""
    rows = present().filter(pk=webhook.pk)
    row = (rows.select_for_update(no_key=True) if sql.is_postgresql() else rows).first()
    if row is None:
        raise NotFound()
    return row


def _set(row: Webhook, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(row, name, value)


def _set_headers(row: Webhook, headers: Mapping[str, str]) -> None:
    text = orjson.dumps(dict(headers)).decode()
    row.headers = signing_secrets.sealed(row.webhook_id, "headers", text) if headers else ""
    row.header_names = list(headers)


def _target(row: Webhook) -> str:
    return f"webhook:{row.webhook_id}"


def _audited(row: Webhook) -> dict[str, Any]:
    return {name: getattr(row, name) for name in CHANGEABLE if name != "headers"} | {"header_names": row.header_names}


def _facts(row: Webhook) -> dict[str, Any]:
    return {"webhook": row.webhook_id}
