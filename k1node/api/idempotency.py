"""Idempotency-Key: a POST that is sent again has no second effect and gets the first answer again.

    POST ── key seen before? ── yes ── the same request? ── yes: the stored answer, marked; no: 409
                  └── no ── the action ── its answer stored ── commit

All of it is one transaction, so there is never an effect without its answer, nor an answer without its effect. Only
answers 2xx are stored: an error leaves no effect, and the same request sent again is carried out anew. Two that run at
the same time: on SQLite the second waits for the first and gets its answer; on PostgreSQL it gets a 409.
"""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import orjson
from django.db import connection, transaction
from django.utils import timezone
from rest_framework.request import Request
from rest_framework.response import Response

from k1node.api.models import IdempotentAnswer
from k1node.api.renderers import dumps
from k1node.lib import sql
from k1node.lib.errors import Conflict, Detail, FieldInvalid

if TYPE_CHECKING:
    from k1node.api.views import ApiViewSet

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
KEPT = timedelta(hours=24)
MAX_LENGTH = 255
MAX_BODY_BYTES = 1024 * 1024  # of an answer; those of larger ones are not kept
PRUNE_BATCH = 1_000
SHOWN_OF_SECRET = 4

BARE = re.compile(r"[ -~]+")
QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')  # a string of RFC 8941
ESCAPED = re.compile(r"\\(.)")

KEY_PARAMETER: dict[str, Any] = {
    "name": HEADER,
    "in": "header",
    "description": (
        "Any text of your own, new for each new request, bare or between quotation marks. The same request sent again "
        "with it within 24 hours has no second effect and gets the first answer again; another request with it is a "
        "409. Only answers 2xx are kept."
    ),
    "schema": {"type": "string", "minLength": 1, "maxLength": 2 * MAX_LENGTH + 2, "pattern": "^[!-~]([ -~]*[!-~])?$"},
}
REPLAYED_HEADER: dict[str, Any] = {
    "description": "`true` when this is the answer of an earlier request with the same Idempotency-Key",
    "schema": {"type": "string", "const": "true"},
}


class KeyReused(Conflict):
    """This Idempotency-Key came with another request before"""

    def __init__(self) -> None:
        detail = Detail(HEADER, "Came with another body or query before", "Use a new key for a new request")
        super().__init__(details=(detail,))


class TwinRuns(Conflict):
    """A request with this Idempotency-Key is being carried out at this moment"""

    wait = 0  # for Retry-After


class AnswerNotKept(Conflict):
    """The request was carried out before; its answer was too large to be kept"""


@dataclass(frozen=True, slots=True)
class Asked:
    identity: str
    request: str


def key_of(request: Request) -> str | None:
    """Return the request's key; None if it has none. Raises FieldInvalid."""
    given = request.META.get("HTTP_IDEMPOTENCY_KEY")
    if given is None:
        return None
    key = given
    if given.startswith('"'):
        quoted = QUOTED.fullmatch(given)
        if quoted is None:
            raise FieldInvalid(HEADER, "Is not a quoted string", 'Use "…" with \\" and \\\\ inside, or leave them out')
        key = ESCAPED.sub(r"\1", quoted[1])
    if not BARE.fullmatch(key) or len(key) > MAX_LENGTH:
        raise FieldInvalid(HEADER, f"Must be 1 to {MAX_LENGTH} printable ASCII characters", "Use a new UUID")
    return str(key)


def once(
    view: "ApiViewSet", key: str, handler: Callable[..., Response], request: Request, *args: Any, **kwargs: Any
) -> Response:
    """Return what `handler` answers, or what it answered to this key before. Raises KeyReused, TwinRuns and its own."""
    # The body is read before the transaction, which on SQLite excludes all others.
    body = orjson.dumps(request.data, option=orjson.OPT_SORT_KEYS)
    principal, path = view.principal, request._request.path_info
    asked = Asked(
        identity=_digest(principal.identity.encode(), b"POST", path.encode(), key.encode()),
        request=_digest(request.META.get("QUERY_STRING", "").encode(), body),
    )

    def work() -> Response:
        if not _is_alone(asked.identity):
            raise TwinRuns()
        now = timezone.now()
        if (kept := _kept(asked.identity, now)) is not None:
            return _replay(kept, asked)
        response = handler(request, *args, **kwargs)
        if response.status_code >= 300:
            transaction.set_rollback(True)
            return response
        content = b"" if response.data is None else dumps(_masked(response.data, view.secret_fields))
        IdempotentAnswer.objects.create(
            identity=asked.identity,
            request=asked.request,
            asked_by=principal.name[:150],
            path=path[:500],
            status=response.status_code,
            headers={name: value for name, value in response.items() if name != "Content-Type"},
            body=content if len(content) <= MAX_BODY_BYTES else None,
            created_at=now,
        )
        return response

    return sql.in_transaction(work)


def prune(*, now: datetime) -> int:
    """Delete answers that are not kept any longer; return how many, a batch at most."""
    old = IdempotentAnswer.objects.filter(created_at__lte=now - KEPT).order_by("created_at")
    return IdempotentAnswer.objects.filter(pk__in=list(old.values_list("pk", flat=True)[:PRUNE_BATCH])).delete()[0]


def _is_alone(identity: str) -> bool:
    """Say whether no other transaction works on this; until the end of ours none will. SQLite has one at a time."""
    if not sql.is_postgresql():
        return True
    with connection.cursor() as cursor:
        lock = int.from_bytes(bytes.fromhex(identity[:16]), signed=True)
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [lock])
        return bool(cursor.fetchone()[0])


def _kept(identity: str, now: datetime) -> IdempotentAnswer | None:
    kept = IdempotentAnswer.objects.filter(identity=identity).first()
    if kept is None or kept.created_at > now - KEPT:
        return kept
    kept.delete()
    return None


def _replay(kept: IdempotentAnswer, asked: Asked) -> Response:
    if kept.request != asked.request:
        raise KeyReused()
    if kept.body is None:
        raise AnswerNotKept()
    content = bytes(kept.body)
    # Rendered anew, so that it comes in the format that is asked for now. Not orjson: integers may be huge.
    data = json.loads(content) if content else None
    return Response(data, status=kept.status, headers={**kept.headers, REPLAYED: "true"})


def _masked(data: Any, names: Collection[str]) -> Any:
    """Return `data` with no more than the end of each text under one of `names`, however deep."""
    if not names:
        return data
    if isinstance(data, Mapping):
        return {
            key: _end_of(item) if key in names and isinstance(item, str) else _masked(item, names)
            for key, item in data.items()
        }
    if isinstance(data, list | tuple):
        return [_masked(item, names) for item in data]
    return data


def _end_of(secret: str) -> str:
    return "…" + (secret[-SHOWN_OF_SECRET:] if len(secret) > 3 * SHOWN_OF_SECRET else "")


def _digest(*parts: bytes) -> str:
    # None of the parts has a NUL, so no two lists of parts look alike.
    return hashlib.sha256(b"\0".join(parts)).hexdigest()
