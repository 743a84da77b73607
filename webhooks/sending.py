"""One attempt: the request that takes a message to its webhook, and the result of it. Touches no row, never raises.

Steps, all within one deadline that no receiver can stretch:

1. the URL and the addresses of its host are held against webhooks.targets; one bad address refuses the host;
2. a connection is made to one of those addresses, checked again at the socket, TLS verified for the name;
3. the body is signed for this very moment and sent;
4. the head of the answer is read, and at most MOST_BODY of its body; then the connection is cut.

Nothing outlives an attempt: no connection, no cookie, no answer of a name server. So one receiver cannot reach another,
nor this node's memory: heads are bounded by the parser, bodies are not decompressed, redirects are not followed, and
proxies of the environment are not asked.
"""

import asyncio
import logging
import os
import re
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from time import monotonic
from typing import cast

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from yarl import URL

from webhooks import rules, signing, targets
from webhooks.delivery import Job
from webhooks.rules import Code, Result

logger = logging.getLogger(__name__)

NAME_SECONDS = 10.0
CONNECT_SECONDS = 10.0  # TCP and TLS
LOOKUPS = 512  # names that are looked up at the same time: one for each request that may be under way
MOST_ADDRESSES = 2  # of a name and of each family that are tried
MOST_BODY = 16 * 1024
MOST_RECEIVED = 64 * 1024  # of everything; what comes after it is thrown away unread
CUT_SECONDS = 0.1
MOST_SHOWN = 4 * 1024  # of the headers of an answer
MOST_HEADERS = 100
LONGEST_HEADER = 8 * 1024
LONGEST_ERROR = 500

HIDDEN = "(hidden)"
SECRET_HEADER = re.compile(r"cookie|auth|token|secret|key|password|session|credential|signature", re.IGNORECASE)
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")

Lookup = Callable[[str, int], list[str]]


def look_up(host: str, port: int) -> list[str]:
    """Return the addresses of a name, as this machine's resolver gives them; it may take as long as it likes."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class Names:
    """Looks names up in threads, each name once at a time: one that hangs holds one thread, however many ask for it."""

    def __init__(self, look_up: Lookup) -> None:
        self._look_up = look_up
        self._threads = ThreadPoolExecutor(LOOKUPS, thread_name_prefix="name")
        self._asked: dict[tuple[str, int], asyncio.Future[list[str]]] = {}

    async def addresses(self, host: str, port: int) -> list[targets.Address]:
        """Return all addresses of `host`. Raises OSError."""
        asked = self._asked.get((host, port))
        if asked is None:
            asked = asyncio.get_running_loop().run_in_executor(self._threads, self._look_up, host, port)
            self._asked[host, port] = asked
            asked.add_done_callback(lambda done: self._answered(host, port, done))
        # The others who wait for it go on waiting when this one has no more time.
        return [targets.parse(text) for text in await asyncio.shield(asked)]

    def _answered(self, host: str, port: int, done: "asyncio.Future[list[str]]") -> None:
        del self._asked[host, port]
        if not done.cancelled():
            done.exception()  # seen, though nobody may be waiting any more


@dataclass(frozen=True)
class Network:
    """What all attempts of a process share."""

    rules: targets.Rules
    within: timedelta
    tls: ssl.SSLContext
    names: Names

    @classmethod
    def from_settings(cls, look_up: Lookup = look_up) -> "Network":
        return cls(
            rules=targets.rules(),
            within=timedelta(milliseconds=settings.WEBHOOK_TIMEOUT_MS),
            tls=tls_context(settings.WEBHOOK_CA_FILE),
            names=Names(look_up),
        )


def tls_context(ca_file: str) -> ssl.SSLContext:
    """Return what verifies receivers: by the system's certificates and those in `ca_file`, if it is named."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if ca_file:
        try:
            context.load_verify_locations(cafile=ca_file)
        except OSError as error:
            raise ImproperlyConfigured(
                f"WEBHOOK_CA_FILE must name a file of certificates in PEM: {ca_file}: {error}."
            ) from None
    return context


class Failed(Exception):
    """An attempt came to nothing, for a reason that is known."""

    def __init__(self, code: Code, error: str) -> None:
        super().__init__(error)
        self.code = code
        self.error = error


@dataclass
class Course:
    """How far an attempt has come."""

    began: float = field(default_factory=monotonic)
    allowed: dict[targets.Address, targets.Verdict] = field(default_factory=dict)
    address: targets.Address | None = None
    transport: asyncio.BaseTransport | None = None
    dns_ms: float | None = None
    connect_ms: float | None = None
    answer_ms: float | None = None
    sent: dict[str, str] = field(default_factory=dict)  # as it may be shown
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    retry_after: str | None = None
    body: str = ""

    def result(self, code: Code, error: str, *, now: datetime) -> Result:
        verdict = self.allowed.get(self.address) if self.address is not None else None
        return Result(
            code=code,
            finished_at=now,
            status=self.status,
            error=shown(error)[:LONGEST_ERROR],
            retry_after=rules.retry_after(self.retry_after, now=now),
            address=str(self.address or ""),
            allowed_by=verdict.allowed_by if verdict else "",
            dns_ms=self.dns_ms,
            connect_ms=self.connect_ms,
            answer_ms=self.answer_ms,
            total_ms=milliseconds_since(self.began),
            request_headers=self.sent,
            response_headers=self.headers,
            response_body=self.body,
        )


async def send(network: Network, job: Job, *, clock: Callable[[], datetime]) -> Result:
    """Make one attempt of `job` and return what came of it."""
    course = Course()
    code, error = Code.SECRET, "The secret of the webhook cannot be read with the keys of K1NODE_KEYRING"
    if job.keys:
        code, error = await _attempt(network, job, course, clock)
    return course.result(code, error, now=clock())


async def _attempt(network: Network, job: Job, course: Course, clock: Callable[[], datetime]) -> tuple[Code, str]:
    try:
        async with asyncio.timeout(network.within.total_seconds()):
            await _exchange(network, job, course, clock)
    except Failed as failed:
        return failed.code, failed.error
    except TimeoutError:
        return Code.TIMEOUT, f"Not done within {network.within.total_seconds():g} s: {_stage(course)}"
    except Exception as error:
        if course.status is None or not isinstance(error, (aiohttp.ClientError, OSError)):
            return _what_failed(error, course)
        # The head has said what became of it; the rest is only for show.
    finally:
        if isinstance(course.transport, asyncio.WriteTransport):
            # Not closed: that would wait for the other side, or for what it does not take.
            course.transport.abort()
    assert course.status is not None
    code = rules.code_of(course.status)
    return code, "" if code is Code.DELIVERED else f"The answer was {course.status}"


async def _exchange(network: Network, job: Job, course: Course, clock: Callable[[], datetime]) -> None:
    target = await _find(network, job.url, course)
    connector = _Connector(network, target, course)
    now = clock()
    body = signing.body(job.message_id, job.event, job.occurred_at, job.data, now=now)
    headers = _headers(job, body, course, now=now)
    async with (
        aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=NO_TIMEOUT,
            auto_decompress=False,
            trust_env=False,
            max_line_size=LONGEST_HEADER,
            max_field_size=LONGEST_HEADER,
            max_headers=MOST_HEADERS,
        ) as session,
        session.post(URL(job.url, encoded=True), data=body, headers=headers, allow_redirects=False) as answer,
    ):
        course.answer_ms = milliseconds_since(connector.connected_at)
        if answer.status < 200:
            raise Failed(Code.PROTOCOL, f"The answer was {answer.status}, which nothing had asked for")
        course.status = answer.status
        course.retry_after = answer.headers.get("Retry-After")
        course.headers = shown_headers(answer.headers)
        read = bytearray()
        try:
            while len(read) < MOST_BODY and (part := await answer.content.read(MOST_BODY - len(read))):
                read += part
        finally:
            course.body = _text(bytes(read), answer.headers.get("Content-Encoding", ""))
            if isinstance(course.transport, asyncio.WriteTransport):
                course.transport.abort()


NO_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)  # there is a deadline


async def _find(network: Network, url: str, course: Course) -> targets.Target:
    """Return where `url` leads, with every address of it checked and noted in `course`."""
    target, problems = targets.read(url)
    if target is not None:
        problems = targets.check_target(target, network.rules)
    if target is None or problems:
        raise Failed(Code.BLOCKED, ". ".join(f"{each.message}. {each.suggestion}" for each in problems))
    began = monotonic()
    found = [target.address] if target.address is not None else await _look_up(network, target)
    course.dns_ms = milliseconds_since(began)
    for ip in found:
        verdict = course.allowed[ip] = targets.check_address(target, ip, network.rules)
        if verdict.refused:
            course.address = ip
            raise Failed(Code.BLOCKED, f"{verdict.refused}. {verdict.remedy}")
    return target


async def _look_up(network: Network, target: targets.Target) -> list[targets.Address]:
    try:
        async with asyncio.timeout(NAME_SECONDS):
            found = await network.names.addresses(target.host, target.port)
    except TimeoutError:
        raise Failed(Code.DNS, f"The name {target.host} was not resolved within {NAME_SECONDS:g} s") from None
    except (OSError, ValueError) as error:  # UnicodeError is one
        raise Failed(Code.DNS, f"The name {target.host} cannot be resolved: {_words(error)}") from None
    if not found:
        raise Failed(Code.DNS, f"The name {target.host} has no address")
    return found


def _few(found: Iterable[targets.Address]) -> list[targets.Address]:
    """Return the first addresses of each family: each that is tried holds a socket, and a name may have hundreds."""
    left = {4: MOST_ADDRESSES, 6: MOST_ADDRESSES}
    few: list[targets.Address] = []
    for ip in found:
        if left[ip.version]:
            left[ip.version] -= 1
            few.append(ip)
    return few


class _Connector(aiohttp.TCPConnector):
    """Connects once, to the checked addresses and nothing else."""

    def __init__(self, network: Network, target: targets.Target, course: Course) -> None:
        super().__init__(
            resolver=_Pinned(_few(course.allowed)),
            ssl=network.tls,
            use_dns_cache=False,
            force_close=True,
            limit=1,
            socket_factory=self._socket,
        )
        self._factory = cast(partial[ResponseHandler], partial(_Reader, loop=asyncio.get_running_loop()))
        self._course = course
        self._target = target
        self.connected_at = 0.0

    def _socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _name, sockaddr = info
        self._hold_against(sockaddr)
        return socket.socket(family, kind, protocol)

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list["aiohttp.tracing.Trace"], timeout: aiohttp.ClientTimeout
    ) -> "aiohttp.connector.Connection":
        began = monotonic()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                connection = await super().connect(req, traces, timeout)
        except TimeoutError:
            raise Failed(Code.CONNECT, f"No connection to {self._where()} within {CONNECT_SECONDS:g} s") from None
        self._course.transport = transport = connection.transport
        self.connected_at = monotonic()
        self._course.connect_ms = (self.connected_at - began) * 1000
        try:
            # Whatever lies between the name and the socket: this is where the request would go.
            self._hold_against(transport.get_extra_info("peername") if transport is not None else None)
        except Failed:
            connection.close()
            raise
        return connection

    def _hold_against(self, sockaddr: tuple[object, ...] | None) -> None:
        if sockaddr is None:
            raise Failed(Code.CONNECT, f"The connection to {self._where()} broke at once")
        ip = targets.parse(str(sockaddr[0]))
        if ip not in self._course.allowed or sockaddr[1] != self._target.port:
            raise Failed(Code.BLOCKED, f"{ip} is not an address that was checked")
        self._course.address = ip

    def _where(self) -> str:
        return f"{self._course.address or self._target.host} port {self._target.port}"


class _Reader(ResponseHandler):
    """Reads an answer to MOST_RECEIVED and no further, be it a head, many of them, or what is never told of a body."""

    _received = 0

    def data_received(self, data: bytes) -> None:
        if self._received >= MOST_RECEIVED:
            return
        part = data[: MOST_RECEIVED - self._received]
        self._received += len(part)
        super().data_received(part)
        if self._received >= MOST_RECEIVED:
            if isinstance(self.transport, asyncio.ReadTransport):
                self.transport.pause_reading()
            # Who waits for the head or the body first reads what has come.
            asyncio.get_running_loop().call_later(CUT_SECONDS, self._cut)

    def _cut(self) -> None:
        if isinstance(self.transport, asyncio.WriteTransport):
            self.transport.abort()


class _Pinned(AbstractResolver):
    """Gives the addresses that were checked, whatever name is asked for."""

    def __init__(self, addresses: list[targets.Address]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=str(ip),
                port=port,
                family=socket.AF_INET if ip.version == 4 else socket.AF_INET6,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for ip in self._addresses
        ]

    async def close(self) -> None:
        pass


def _headers(job: Job, body: bytes, course: Course, *, now: datetime) -> dict[str, str]:
    """Return the headers of the request; what the owner wants of them cannot replace ours."""
    ours = {
        "Content-Type": "application/json",
        "User-Agent": signing.USER_AGENT,
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        **signing.signatures(job.keys, job.message_id, body, now=now),
        "X-K1Node-Event": job.event,
        "X-K1Node-Delivery": job.delivery_id,
        "X-K1Node-Attempt": str(job.attempt),
    }
    if job.is_test:
        ours["X-K1Node-Test"] = "true"
    own = {name: value for name, value in job.headers.items() if not targets.header_problem(name, value)}
    course.sent = {**dict.fromkeys(own, HIDDEN), **ours}
    return {**own, **ours}


# --- what failed ---


def _what_failed(error: Exception, course: Course) -> tuple[Code, str]:
    cause = error.__cause__ if isinstance(error.__cause__, ssl.SSLError) else error
    if isinstance(error, aiohttp.ClientSSLError) or isinstance(cause, ssl.SSLError):
        return Code.TLS, f"TLS failed: {_words(getattr(error, 'certificate_error', None) or cause)}"
    if isinstance(error, aiohttp.ClientConnectorError):
        if isinstance(error.os_error, ConnectionResetError) and error.os_error.errno is None:
            # So asyncio says it; a connection that is refused or reset on its way has a number.
            return Code.TLS, "TLS failed: the receiver ended the connection during the handshake"
        where = f" to {course.address}" if course.address is not None else ""
        return Code.CONNECT, f"No connection{where}: {_words(error.os_error)}"
    if isinstance(error, aiohttp.ClientResponseError):
        # What follows in the library's message are the receiver's words, which are for administrators alone.
        said = error.message.splitlines()[0].partition(" when reading")[0].rstrip(":")
        return Code.PROTOCOL, f"The answer is not HTTP as it should be: {said}"
    if isinstance(error, (aiohttp.ClientError, OSError)):
        return Code.PROTOCOL, "The connection ended before the head of the answer did"
    logger.error("An attempt failed in the node itself", exc_info=error)
    return Code.PROTOCOL, f"The node could not make the request: {type(error).__name__}"


def _words(error: BaseException) -> str:
    """Return what an error says, without the addresses and class names that libraries put around it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    if isinstance(error, socket.gaierror):
        return error.strerror or "no such name"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


def _stage(course: Course) -> str:
    if course.dns_ms is None:
        return "the name was not resolved"
    if course.connect_ms is None:
        return "there was no connection"
    if course.status is None:
        return "the answer's head did not come"
    return "the answer's body did not end"


# --- what may be shown ---


def shown(text: str) -> str:
    """Return `text` without what databases refuse and terminals obey."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def shown_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of an answer, together at most MOST_SHOWN long, without what may be a secret."""
    told: dict[str, str] = {}
    left = MOST_SHOWN
    for name, value in headers.items():
        name = shown(name)
        value = HIDDEN if SECRET_HEADER.search(name) else shown(value)
        if name in told:
            value = value if told[name] == value == HIDDEN else f"{told[name]}, {value}"
            left += len(name) + len(told[name])
        if len(name) >= left:
            break
        told[name] = value[: left - len(name)]
        left -= len(name) + len(told[name])
    return told


def _text(body: bytes, encoding: str) -> str:
    if encoding and encoding.lower() != "identity" and body:
        return f"(not shown: encoded as {shown(encoding)[:40]})"
    return shown(body.decode(errors="replace"))


def milliseconds_since(moment: float) -> float:
    return (monotonic() - moment) * 1000
