"""Which version of the API a request asks for, and what the answers of each look like.

Views know only version 2, under /api/v2. Every other way to ask is brought to that on the way in; on the way out
version 1 is put around the same bodies, and errors become RFC 9457 problems for those who ask for them. The middleware
does both for each request.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from functools import lru_cache

from django.conf import settings
from django.utils.http import http_date

from k1node.api.errors import as_nested, as_problem
from k1node.api.renderers import JSON, JSON_V1, JSON_V2, MEDIA_TYPES, PROBLEM, timestamp
from k1node.lib.errors import Detail, Gone, InvalidRequest, NotAcceptable

CURRENT = "2"
OLD = "1"
SUPPORTED = (CURRENT, OLD)
VENDOR_TYPES = {CURRENT: JSON_V2, OLD: JSON_V1}
VERSION_OF = {media_type: version for version, media_type in VENDOR_TYPES.items()}
VENDOR_PREFIX, VENDOR_SUFFIX = "application/vnd.k1node.v", "+json"
VARY = "Accept, X-API-Version"
HEADER = "X-API-Version"

MIGRATION = "/api/migration"
# About all versions: no version of their own, and no way to ask for one.
UNVERSIONED = frozenset({"/api/versions", "/api/errors", MIGRATION})
# About version 2, for tools and browsers that ask in many ways: no header counts, and version 1 has none of them.
PAGES = frozenset({"/openapi.json", "/docs", "/redoc"})

MAX_RANGES = 64
CACHED_LENGTH = 300  # longer Accept headers are not worth their place in memory
# Who prefers none of them gets, of those named, the current version, and what the rest of the request asks for before
# the old one by its name; and of those that only a wildcard covers, the plain name.
NAMED_RANK = {JSON_V2: 2, JSON: 1, JSON_V1: 0}
COVERED_RANK = {JSON: 2, JSON_V2: 1, JSON_V1: 0}


# --- what a request asks for -------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Accepted:
    """What an Accept header asks for."""

    media_type: str | None  # of an answer's JSON; None if it takes none that there is
    version: str | None  # the one this media type names
    unknown: str | None  # a version it names that there is not
    problem: bool  # errors as application/problem+json


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for, all considered."""

    path: str  # where its view is
    version: str | None = None  # None on pages that have none
    path_version: str | None = None
    media_type: str = JSON
    problem: bool = False
    by: str = "path"  # what decided the version: Accept, X-API-Version or path


def accepted(header: str) -> Accepted:
    """Return what the value of an Accept header asks for; an empty one takes anything."""
    return _accepted_before(header) if len(header) <= CACHED_LENGTH else _accepted(header)


def _accepted(header: str) -> Accepted:
    ranges: dict[str, float] = {}
    for entry in header.split(",", MAX_RANGES)[:MAX_RANGES]:
        name, *parameters = entry.split(";")
        name = name.strip().lower()
        if name:
            ranges[name] = max(_quality(parameters), ranges.get(name, 0.0))
    if not ranges:
        ranges["*/*"] = 1.0
    best: tuple[float, int, int, str] | None = None
    for media_type in MEDIA_TYPES:
        quality, specificity = _weight(media_type, ranges)
        rank = NAMED_RANK if specificity == 2 else COVERED_RANK
        if quality > 0:
            best = max(best or (0.0, 0, 0, ""), (quality, specificity, rank[media_type], media_type))
    wanted = ranges.get(PROBLEM, 0.0)
    unknown = None if best else _unknown(ranges)
    # Whoever takes nothing but problems still gets successes: there is no problem form of those.
    media_type_of_answer = best[3] if best else JSON if wanted and not unknown else None
    return Accepted(
        media_type_of_answer,
        VERSION_OF.get(media_type_of_answer or ""),
        unknown,
        problem=wanted > 0 and wanted >= (best[0] if best else 0.0),
    )


_accepted_before = lru_cache(maxsize=512)(_accepted)


def _weight(media_type: str, ranges: dict[str, float]) -> tuple[float, int]:
    """Return the quality that the most specific range gives the type, and how specific that is (0 to 2)."""
    for specificity, name in ((2, media_type), (1, "application/*"), (0, "*/*")):
        if name in ranges:
            return ranges[name], specificity
    return 0.0, 0


def _quality(parameters: Sequence[str]) -> float:
    """Return the q of a media range, 1 if it has none or one that is no number."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            digits = value.strip()[:5]
            number = digits.replace(".", "", 1)
            return min(float(digits), 1.0) if number.isascii() and number.isdigit() else 1.0
    return 1.0


def _unknown(ranges: dict[str, float]) -> str | None:
    for name, quality in ranges.items():
        if quality and name.startswith(VENDOR_PREFIX) and name.endswith(VENDOR_SUFFIX):
            return name[len(VENDOR_PREFIX) : -len(VENDOR_SUFFIX)]
    return None


def asked(path: str, accept: Accepted, header: str) -> Asked:
    """Return what a request to `path` (under /api) with these headers asks for. Raises NotAcceptable, InvalidRequest.

    Accept outranks X-API-Version, and both outrank the path; without any of them it is the current version.
    """
    if path in UNVERSIONED:
        return Asked(path, problem=accept.problem)
    path_version, rest = _split(path)
    if path_version is not None and path_version not in SUPPORTED:
        raise no_such_version("path", path_version)
    if rest in PAGES:
        # The address under version 1 stays what it is: one that leads nowhere.
        return Asked(path if path_version == OLD else f"/api/v2{rest}", problem=accept.problem)
    header = header.strip()
    if header and header not in SUPPORTED:
        raise no_such_version(HEADER, header)
    if accept.unknown is not None:
        raise no_such_version("Accept", accept.unknown)
    if header and accept.version and header != accept.version:
        raise InvalidRequest(
            f"Accept asks for version {accept.version} and {HEADER} for version {header}",
            details=(Detail(HEADER, f"Must not differ from the version {accept.version} in Accept", "Leave one out"),),
        )
    version, by = (
        (accept.version, "Accept") if accept.version else (header, HEADER) if header else (path_version, "path")
    )
    return Asked(
        f"/api/v2{rest}", version or CURRENT, path_version, accept.media_type or JSON, problem=accept.problem, by=by
    )


def asked_if_possible(path: str, accept: str, header: str) -> Asked:
    """Return what a request asks for, or the current version if it cannot have that. For what answers errors anyway."""
    wanted = accepted(accept)
    try:
        found = asked(path, wanted, header)
        if found.version != OLD or not retirement().is_over():
            return found
    except (NotAcceptable, InvalidRequest):
        pass
    return Asked(path, CURRENT, problem=wanted.problem)


def _split(path: str) -> tuple[str | None, str]:
    """Return the version in a path under /api, and what follows: ("1", "/tasks") of /api/v1/tasks."""
    rest = path[4:]
    if rest.startswith("/v"):
        digits, slash, tail = rest[2:].partition("/")
        if digits.isascii() and digits.isdigit():
            return digits, slash + tail
    return None, rest


def no_such_version(field: str, version: str) -> NotAcceptable:
    known = " and ".join(SUPPORTED)
    return NotAcceptable(
        f"This API has no version {version[:20]}; it has {known}",
        details=(
            Detail(field, f"Must name one of the versions {known}, not {version[:20]!r}", _SUGGESTIONS.get(field)),
        ),
    )


def not_acceptable() -> NotAcceptable:
    """Return the error for an Accept header that takes nothing there is."""
    known = ", ".join((*MEDIA_TYPES, PROBLEM))
    return NotAcceptable(
        f"No media type in Accept is one that this API answers in: {known}",
        details=(Detail("Accept", f"Must take one of {known}", f"Send Accept: {JSON}"),),
    )


_SUGGESTIONS = {
    "path": "Use an address that begins with /api/v2/",
    HEADER: f"Send {HEADER}: {CURRENT}",
    "Accept": f"Send Accept: {JSON_V2}",
}


# --- the end of version 1 ----------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Retirement:
    """How version 1 goes: the moments, and the headers its answers say them with."""

    deprecated_at: datetime
    sunset_at: datetime
    deprecation: str
    sunset: str

    def is_over(self) -> bool:
        return datetime.now(UTC) > self.sunset_at


def retirement() -> Retirement:
    return _retirement(
        settings.K1NODE_V1_DEPRECATED_ON, settings.K1NODE_V1_SUNSET_ON, settings.K1NODE_DEPRECATION_STYLE
    )


@lru_cache(maxsize=8)
def _retirement(deprecated_on: date, sunset_on: date, style: str) -> Retirement:
    deprecated_at = datetime.combine(deprecated_on, time(), UTC)
    # The last second of the day.
    sunset_at = datetime.combine(sunset_on, time(23, 59, 59), UTC)
    return Retirement(
        deprecated_at,
        sunset_at,
        # RFC 9745 wants a date; the older drafts, and the design, say `true`.
        f"@{int(deprecated_at.timestamp())}" if style == "rfc9745" else "true",
        http_date(sunset_at.timestamp()),
    )


def gone(asked: Asked) -> Gone:
    """Return the error for a request for version 1 after its end."""
    ended = retirement().sunset_at
    suggestion = _SUGGESTIONS[asked.by]
    return Gone(
        f"Version 1 of this API ended on {ended:%Y-%m-%d}; use version 2",
        details=(Detail(asked.by, "Must name version 2", suggestion),),
    )


def retirement_links(path: str) -> str:
    """Return the Link header of an answer of version 1; `path` is the escaped address of the same in version 2."""
    guide = f"{settings.K1NODE_URL}{MIGRATION}"
    return f'<{path}>; rel="successor-version", <{guide}>; rel="deprecation", <{guide}>; rel="sunset"'


# --- answers -----------------------------------------------------------------------------------------------------
def formed(content: bytes, status: int, asked: Asked) -> tuple[bytes, str]:
    """Return a JSON body as the client wants it, and its media type. `content` is that of version 2."""
    if status >= 400 and asked.problem:
        return as_problem(content, status), PROBLEM
    if asked.version == OLD:
        content = _enveloped(content, status)
    return content, asked.media_type


def _enveloped(content: bytes, status: int) -> bytes:
    """Return the body as version 1 has it, put together from bytes: what is inside is never read again."""
    end = f',"timestamp":"{timestamp(datetime.now(UTC))}"}}'.encode()
    if status < 400:
        return b'{"status":"success","data":' + content + end
    if not content.startswith(b'{"error":{'):
        content = as_nested(content, status)
    return b'{"status":"error",' + content[1:-1] + end
