"""API keys: made once, shown once, kept as a digest.

A key is `sk-k1n_`, 40 random characters and a checksum of them, so that a mistyped or invented key costs no query and
a scanner can recognise a leaked one. A fast hash is enough for the digest: 238 random bits cannot be guessed.
"""

import hashlib
import logging
import re
import secrets
import string
import zlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

import orjson
from django.db import OperationalError, connection, transaction
from django.db.models import Q
from django.utils import timezone

from k1node.access import addresses
from k1node.access.models import ApiKey, KeyState
from k1node.access.scopes import ALL_SCOPES, allows
from k1node.audit import trail
from k1node.lib import origin, sql
from k1node.lib.errors import Conflict, Detail, FieldInvalid, InvalidRequest

logger = logging.getLogger(__name__)

PREFIX = "sk-k1n_"
BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
PAIRS = [first + second for first in BASE62 for second in BASE62]
RANDOM_LENGTH = 40
CHECKSUM_LENGTH = 6
SHAPE = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{RANDOM_LENGTH + CHECKSUM_LENGTH}}}")
LAST_USED_EVERY = timedelta(minutes=1)
RATES = (1, 10_000_000)  # requests an hour
OVERLAP = timedelta(hours=24)
LONGEST_OVERLAP = timedelta(days=7)


class KeyInvalid(InvalidRequest):
    """An API key cannot be made from this"""


class KeyEnded(Conflict):
    """The key has ended, or has been replaced"""


class Known(NamedTuple):
    """What a request needs to know of the key it came with: a row without the weight of a model."""

    pk: int
    public_id: str
    name: str
    hint: str
    scopes: tuple[str, ...]
    allowed_cidrs: tuple[str, ...]
    requests_per_hour: int | None
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None

    def __str__(self) -> str:
        return f"{self.name} (…{self.hint})"


# In the order of Known's fields.
COLUMNS = (
    "k.id, k.public_id, k.name, k.hint, k.scopes, k.allowed_cidrs, k.requests_per_hour, k.expires_at, k.revoked_at,"
    " k.last_used_at"
)
BY_DIGEST = f"SELECT {COLUMNS} FROM access_apikey k WHERE k.digest = %s"


def issue(
    name: str,
    scopes: Iterable[str],
    *,
    requests_per_hour: int | None = None,
    expires_at: datetime | None = None,
    allowed_cidrs: Iterable[str] = (),
    by: str = "",
    now: datetime | None = None,
) -> tuple[ApiKey, str]:
    """Return a new key's row and its text, which is not kept anywhere. Raises KeyInvalid.

    With `now`, an end that does not lie ahead is refused too.
    """
    values = _checked(
        {
            "name": name,
            "scopes": scopes,
            "requests_per_hour": requests_per_hour,
            "expires_at": expires_at,
            "allowed_cidrs": allowed_cidrs,
        },
        now,
    )
    with transaction.atomic():
        key, text = _create(values, by)
        trail.record("key.issued", _target(key), after=_audited(key), by=by)
    logger.info("API key issued", extra=_facts(key) | {"scopes": key.scopes})
    return key, text


def verify(text: str, *, now: datetime | None = None) -> Known | None:
    """Return the key `text` is, if it may be used now; one query, and once a minute a note that it was used."""
    return examine(text, now=now)[0]


def examine(text: str, *, now: datetime | None = None) -> tuple[Known | None, str]:
    """Return the usable key, or None and the reason in words for the log.

    Written to cost little beside its one query: every request pays for it.
    """
    if not is_wellformed(text):
        return None, "malformed key"
    with connection.cursor() as cursor:
        cursor.execute(BY_DIGEST, (digest(text),))
        row = cursor.fetchone()
    if row is None:
        return None, "unknown key"
    key = known(row)
    now = now or timezone.now()
    reason = why_not(key, now)
    if reason:
        return None, reason
    note_use(key, now)
    return key, ""


def known(row: Sequence[Any]) -> Known:
    """Return the key that a row of COLUMNS describes."""
    pk, public_id, name, hint, scopes, cidrs, rate, expires_at, revoked_at, last_used_at = row
    return Known(
        pk,
        public_id,
        name,
        hint,
        _words(scopes),
        _words(cidrs),
        rate,
        expires_at and sql.moment(expires_at),
        revoked_at and sql.moment(revoked_at),
        last_used_at and sql.moment(last_used_at),
    )


@lru_cache(maxsize=1024)
def _words(text: str) -> tuple[str, ...]:
    """Return the words of a JSON list; most keys share theirs with others."""
    return tuple(orjson.loads(text))


def why_not(key: Known, now: datetime) -> str:
    """Return why the key cannot be used now, by the client that asks; "" if it can."""
    if key.revoked_at is not None:
        return f"revoked key {key}"
    if key.expires_at is not None and key.expires_at <= now:
        return f"expired key {key}"
    if key.allowed_cidrs:
        address = _address()
        if not addresses.contains(key.allowed_cidrs, address):
            return f"key {key} used from {address or 'an unknown address'}, which it is not for"
    return ""


def revoke(key: ApiKey, *, reason: str = "", now: datetime | None = None) -> bool:
    """End the key at once and for good; False if that was done before."""
    now = now or timezone.now()
    with transaction.atomic():
        rows = ApiKey.objects.filter(pk=key.pk, revoked_at__isnull=True)
        changed = rows.update(revoked_at=now, revoked_reason=reason)
        if changed:
            trail.record("key.revoked", _target(key), reason=reason)
    if changed:
        key.revoked_at, key.revoked_reason = now, reason
        logger.info("API key revoked", extra=_facts(key) | {"reason": reason})
    return bool(changed)


def rotate(
    key: ApiKey, *, overlap: timedelta = OVERLAP, by: str = "", now: datetime | None = None
) -> tuple[ApiKey, str]:
    """Return a new key that takes the place of `key`, and its text; both are valid until the overlap ends.

    The new one has the name, scopes and limits of the old one, and if that was made for a time, as long a life.
    Raises FieldInvalid, or KeyEnded for a key that is revoked, expired or replaced already.
    """
    if not timedelta() <= overlap <= LONGEST_OVERLAP:
        most = int(LONGEST_OVERLAP.total_seconds())
        raise FieldInvalid("overlap_seconds", f"Must be from 0 to {most}, which is 7 days", "Use 86400 for a day")
    now = now or timezone.now()
    with transaction.atomic():
        old = _locked(key.pk, now)
        if old.replaced_by_id:
            raise KeyEnded(f"The key has been rotated already: {_id_of(old.replaced_by_id)} replaces it")
        new, text = _create(
            {
                "name": old.name,
                "scopes": old.scopes,
                "requests_per_hour": old.requests_per_hour,
                "allowed_cidrs": old.allowed_cidrs,
                "expires_at": _end_of_successor(old, now),
            },
            by,
        )
        old.replaced_by = new
        if overlap:
            old.expires_at = min(old.expires_at or now + overlap, now + overlap)
        else:
            # Not by its expiry: the clocks of several nodes need not agree to the second.
            old.revoked_at, old.revoked_reason = now, f"Replaced by {new.public_id}"
        old.save(update_fields=["replaced_by", "expires_at", "revoked_at", "revoked_reason"])
        after = {"replaced_by": new.public_id, "overlap_seconds": int(overlap.total_seconds())}
        trail.record("key.rotated", _target(old), after=after, by=by)
    logger.info(
        "API key rotated", extra=_facts(old) | {"new_id": new.pk, "overlap_seconds": int(overlap.total_seconds())}
    )
    key.refresh_from_db()
    return new, text


CHANGEABLE = ("name", "scopes", "allowed_cidrs", "requests_per_hour", "expires_at")


def change(key: ApiKey, changes: Mapping[str, Any], *, now: datetime | None = None) -> ApiKey:
    """Return the key with some of CHANGEABLE changed: at once, for its next request.

    Its scopes may only become fewer. Raises KeyInvalid, or KeyEnded for a key that is revoked or expired.
    """
    now = now or timezone.now()
    with transaction.atomic():
        row = _locked(key.pk, now)
        values = _checked({name: getattr(row, name) for name in CHANGEABLE if name in changes} | dict(changes), now)
        problems = []
        if wider := [scope for scope in values.get("scopes", ()) if not allows(row.scopes, [scope])]:
            problems.append(
                Detail("scopes", f"The key has not got {', '.join(wider)}", "Make a new key: scopes only become fewer")
            )
        ends = values.get("expires_at", row.expires_at)
        if row.replaced_by_id and row.expires_at and (ends is None or ends > row.expires_at):
            problems.append(
                Detail("expires_at", "The key has been rotated: its end can only come sooner", "Use an earlier moment")
            )
        if problems:
            raise KeyInvalid(details=tuple(problems))
        before = {name: getattr(row, name) for name in values}
        for name, value in values.items():
            setattr(row, name, value)
        row.save(update_fields=list(values))
        trail.record("key.updated", _target(row), before=before, after=values)
    logger.info("API key changed", extra=_facts(row) | {"fields": sorted(values)})
    return row


def is_wellformed(text: str) -> bool:
    """Say whether `text` has a key's shape and its checksum fits."""
    if not SHAPE.fullmatch(text):
        return False
    return text[-CHECKSUM_LENGTH:] == checksum(text[len(PREFIX) : -CHECKSUM_LENGTH])


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def checksum(body: str) -> str:
    """Return the CRC-32 of `body` as six characters of base 62."""
    number, last = divmod(zlib.crc32(body.encode()), len(PAIRS))
    first, middle = divmod(number, len(PAIRS))
    return PAIRS[first] + PAIRS[middle] + PAIRS[last]


def new_text(prefix: str, length: int = RANDOM_LENGTH) -> str:
    """Return `prefix`, so many random characters, and their checksum."""
    body = "".join(secrets.choice(BASE62) for _ in range(length))
    return f"{prefix}{body}{checksum(body)}"


def note_use(key: Known, now: datetime) -> None:
    """Keep when and from where the key was used; once a minute at the most."""
    before = now - LAST_USED_EVERY
    if key.last_used_at is not None and key.last_used_at > before:
        return
    try:
        # Conditional: of many requests at one moment only one writes.
        ApiKey.objects.filter(Q(last_used_at__isnull=True) | Q(last_used_at__lte=before), pk=key.pk).update(
            last_used_at=now, last_used_ip=_address()
        )
    except OperationalError:
        # A note is not worth failing a request that would only have read.
        logger.warning("Last use of an API key not noted", extra={"key_id": key.pk}, exc_info=True)


def _create(values: Mapping[str, Any], by: str) -> tuple[ApiKey, str]:
    text = new_text(PREFIX)
    return ApiKey.objects.create(digest=digest(text), hint=text[-4:], created_by=by[:150], **values), text


def _target(key: ApiKey) -> str:
    return f"key:{key.public_id}"


def _audited(key: ApiKey) -> dict[str, Any]:
    return {name: getattr(key, name) for name in CHANGEABLE}


def _locked(pk: int, now: datetime) -> ApiKey:
    """Return the row, held against rivals. Raises KeyEnded if the key cannot be used any more."""
    row = ApiKey.objects.select_for_update().get(pk=pk)
    state = row.state(now)
    if state in (KeyState.REVOKED, KeyState.EXPIRED):
        raise KeyEnded(f"The key is {state.value}: make a new one")
    return row


def _end_of_successor(old: ApiKey, now: datetime) -> datetime | None:
    """Return when a key ends that is to live as long as `old`."""
    if old.expires_at is None:
        return None
    try:
        return now + (old.expires_at - old.created_at)
    except OverflowError:
        return old.expires_at  # the calendar ends sooner


def _id_of(pk: int) -> str:
    return str(ApiKey.objects.values_list("public_id", flat=True).get(pk=pk))


def _checked(values: Mapping[str, Any], now: datetime | None) -> dict[str, Any]:
    """Return `values`, some or all of a key's, as they are stored. Raises KeyInvalid."""
    checked: dict[str, Any] = dict(values)
    problems: list[Detail] = []
    if "name" in checked:
        name = checked["name"]
        checked["name"] = name.strip()
        if not name.strip() or len(name) > 100 or not name.isprintable():
            problems.append(Detail("name", "Must be 1 to 100 printable characters"))
    if "scopes" in checked:
        wanted = checked["scopes"] = sorted(set(checked["scopes"]))
        if not wanted:
            problems.append(Detail("scopes", "At least one scope is needed", f"Known scopes: {_known()}"))
        for scope in wanted:
            if scope not in ALL_SCOPES:
                problems.append(Detail("scopes", f"Unknown scope {scope[:60]!r}", f"Known scopes: {_known()}"))
    rate = checked.get("requests_per_hour")
    if rate is not None and not RATES[0] <= rate <= RATES[1]:
        problems.append(Detail("requests_per_hour", f"Must be from {RATES[0]} to {RATES[1]:,}"))
    if "allowed_cidrs" in checked:
        checked["allowed_cidrs"], wrong = addresses.read(checked["allowed_cidrs"])
        problems += wrong
    expires_at = checked.get("expires_at")
    if expires_at is not None and now is not None and expires_at <= now:
        problems.append(Detail("expires_at", "Must lie ahead", "Leave it out for a key without an end"))
    if problems:
        raise KeyInvalid(details=tuple(problems))
    return checked


def _known() -> str:
    return ", ".join(sorted(ALL_SCOPES))


def _address() -> str:
    """Return where the request being answered comes from; "" if nobody knows."""
    asked_from = origin.current()
    return "" if asked_from is None or asked_from.address == origin.UNKNOWN else asked_from.address


def _facts(key: ApiKey) -> dict[str, Any]:
    return {"key": key.name, "key_id": key.public_id}
