"""Where the request being answered comes from: its address, its id and, once recognised, who makes it.

Set by the outermost middleware for each request, so that what lies deep inside (limits, keys with an address list, the
audit log) can ask without every function in between passing it on. Outside a request there is none.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network

from django.http import HttpRequest

UNKNOWN = "unknown"


@dataclass(slots=True)
class Origin:
    """`address` is the client's, past the proxies that are trusted; `actor` is an identity ("key:12") or ""."""

    address: str
    request_id: str
    actor: str = ""
    actor_name: str = ""


_current: ContextVar[Origin | None] = ContextVar("origin", default=None)


def current() -> Origin | None:
    return _current.get()


def recognised(actor: str, name: str) -> None:
    """Note who makes the current request, if there is one."""
    if (asked_from := _current.get()) is not None:
        asked_from.actor, asked_from.actor_name = actor, name


@contextmanager
def of(origin: Origin) -> Iterator[Origin]:
    """Make `origin` the current one for the block."""
    token = _current.set(origin)
    try:
        yield origin
    finally:
        _current.reset(token)


def client_address(request: HttpRequest, trusted_proxies: int) -> str:
    """Return the address of the client; UNKNOWN if the connection names none, as a Unix socket's does.

    Each trusted proxy has appended the address it was called from to X-Forwarded-For: with N of them the Nth from the
    right is the first that no client can make up. A header shorter than that did not come through all of them.
    """
    address = str(request.META.get("REMOTE_ADDR", ""))
    if trusted_proxies:
        hops = [hop.strip() for hop in request.META.get("HTTP_X_FORWARDED_FOR", "").split(",") if hop.strip()]
        if len(hops) >= trusted_proxies:
            address = hops[-trusted_proxies]
    try:
        # Without the zone of a link-local one ("%eth0"), which may be any text and says nothing of the client.
        read = ip_address(address.partition("%")[0])
    except ValueError:
        return UNKNOWN
    if isinstance(read, IPv6Address) and read.ipv4_mapped:
        return str(read.ipv4_mapped)
    return str(read)


def network_of(address: str) -> str:
    """Return what counts as one caller: an IPv4 address, or the /64 that one IPv6 subscriber has."""
    try:
        read = ip_address(address)
    except ValueError:
        return address
    return str(ip_network((read, 64), strict=False)) if isinstance(read, IPv6Address) else address
