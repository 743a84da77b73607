"""ETag, If-None-Match and If-Match of single resources.

A tag has two parts, "<version>-<form>". The form changes with anything the answer shows, and If-None-Match compares
the whole tag. The version changes only with what a PATCH could overwrite, and If-Match compares only that: a schedule
that has run once more since it was read is still the one its reader means to change.
"""

import hashlib
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from django.db.models import Model
from rest_framework.request import Request

from k1node.api.renderers import dumps
from k1node.lib.errors import FieldInvalid

IF_MATCH = "If-Match"
IF_NONE_MATCH = "If-None-Match"
ANY = "*"
TAG = re.compile(r'(W/)?"([!#-~\x80-\xff]*)"')

_EXAMPLE = '"f3a9c1d2e4b5a697-0c1d2e3f405162738495a6b7c8d9eaf0"'
ETAG_HEADER: dict[str, Any] = {
    "description": "Names this state of the resource, for If-None-Match and If-Match",
    "schema": {"type": "string", "examples": [_EXAMPLE]},
}
_TAG = r'(W/)?"[!#-~]*"'
_LIST = rf"^(\*|{_TAG}( *, *{_TAG})*)$"
IF_NONE_MATCH_PARAMETER: dict[str, Any] = {
    "name": IF_NONE_MATCH,
    "in": "header",
    "description": "ETags of states that are known: 304 without a body if the resource is still in one of them",
    "schema": {"type": "string", "pattern": _LIST, "examples": [_EXAMPLE]},
}
IF_MATCH_PARAMETER: dict[str, Any] = {
    "name": IF_MATCH,
    "in": "header",
    "description": (
        "ETag of the state that was read: 412 if somebody has changed the settings since. What changes by itself, as "
        "counts and times do, does not matter. Left out or `*`: whatever the state"
    ),
    "schema": {"type": "string", "pattern": _LIST, "examples": [_EXAMPLE]},
}
NOT_MODIFIED = "Unchanged since the state that If-None-Match names"


@dataclass(frozen=True, slots=True)
class Named:
    """A tag as a request names it."""

    text: str
    is_weak: bool


def named(request: Request, header: str) -> list[Named] | None:
    """Return the tags a header names, a single ANY for `*`; None without the header. Raises FieldInvalid."""
    given = request.headers.get(header)
    if given is None:
        return None
    if given.strip() == ANY:
        return [Named(ANY, False)]
    tags = [Named(found[2], bool(found[1])) for found in TAG.finditer(given)]
    between = TAG.sub("", given)
    if not tags or between.strip(" \t,") or between.count(",") < len(tags) - 1:
        raise FieldInvalid(header, "Must be ETags between quotation marks, or *", "Repeat the ETag as it was given")
    return tags


def version(row: Model, settings: Sequence[str]) -> str:
    """Return the part of a tag that changes with the row's fields `settings`, whoever of the two databases keeps it."""
    fields = [row._meta.pk, *(row._meta.get_field(name) for name in settings)]
    values = [getattr(row, field.attname) for field in fields]  # type: ignore[union-attr]
    # A database may give back an object's keys in another order and 1E+22 with all its zeros.
    text = json.dumps(values, sort_keys=True, default=str)
    plain = json.loads(text, parse_int=_number, parse_float=_number)
    return hashlib.blake2b(repr(plain).encode(), digest_size=8).hexdigest()


def tag(row: Model, settings: Sequence[str], shown: Any, form: str) -> str:
    """Return the ETag of `row`, shown as `shown` in the version `form` of the API."""
    seen = hashlib.blake2b(form.encode() + b"\0" + dumps(shown), digest_size=16).hexdigest()
    return f'"{version(row, settings)}-{seen}"'


def is_known(etag: str, tags: Collection[Named]) -> bool:
    """Say whether If-None-Match names this tag; a proxy that compresses may have made it weak."""
    return any(each.text in (ANY, etag.strip('"')) for each in tags)


def is_meant(present: str, tags: Collection[Named]) -> bool:
    """Say whether If-Match names a state of the version `present`."""
    return any(each.text == ANY or (not each.is_weak and each.text.partition("-")[0] == present) for each in tags)


def _number(digits: str) -> Decimal:
    return Decimal(digits).normalize() + 0
