"""Receivers on the loopback, well-behaved and hostile, each an asyncio server in one thread beside the test."""

import asyncio
import gzip
import ipaddress
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Behaviour = Callable[["Request", asyncio.StreamWriter], Awaitable[None]]
METADATA = "http://169.254.169.254/latest/meta-data/"


@dataclass
class Request:
    line: str
    headers: list[tuple[str, str]]
    body: bytes
    sni: str | None = None

    def __getitem__(self, name: str) -> str:
        """Return the only header of this name."""
        (value,) = (value for key, value in self.headers if key.lower() == name.lower())
        return value

    def __contains__(self, name: str) -> bool:
        return any(key.lower() == name.lower() for key, _ in self.headers)


@dataclass
class Receivers:
    """Starts receivers; `requests` are those of all of them, in their order."""

    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    written: int = 0  # bytes that hostile ones have got rid of
    servers: list[asyncio.Server] = field(default_factory=list)

    def serve(
        self, behaviour: Behaviour, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", port: int = 0
    ) -> int:
        """Start a receiver and return its port."""

        async def start() -> int:
            async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                self.connections += 1
                try:
                    with suppress(OSError, asyncio.IncompleteReadError):
                        request = await read_request(reader)
                        self.requests.append(request)
                        await behaviour(request, writer)
                        writer.close()
                        await writer.wait_closed()
                finally:
                    writer.transport.abort()

            server = await asyncio.start_server(serve_one, host, port, ssl=tls)
            self.servers.append(server)
            return int(server.sockets[0].getsockname()[1])

        return asyncio.run_coroutine_threadsafe(start(), self.loop).result(10)


@contextmanager
def receivers() -> Iterator[Receivers]:
    """Give a maker of receivers; all of them end with it."""
    made = Receivers()
    made.loop.set_exception_handler(lambda _loop, _context: None)  # what clients that go away do to servers
    thread = threading.Thread(target=made.loop.run_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:

        async def end() -> None:
            for server in made.servers:
                server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await asyncio.sleep(0)  # for the transports

        asyncio.run_coroutine_threadsafe(end(), made.loop).result(10)
        made.loop.call_soon_threadsafe(made.loop.stop)
        thread.join(10)
        made.loop.close()


async def read_request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *rest = head.rstrip().split("\r\n")
    headers = [(name, value) for name, _, value in (each.partition(": ") for each in rest)]
    request = Request(line, headers, b"")
    request.body = await reader.readexactly(int(request["Content-Length"]))
    return request


# --- behaviours ---


def answer(status: int = 200, body: bytes = b"ok", **headers: str) -> Behaviour:
    """Answer as HTTP says; `Retry_After="5"` is the header Retry-After."""

    async def behave(_request: Request, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await writer.drain()

    return behave


def raw(data: bytes, *, hang: bool = False, reset: bool = False) -> Behaviour:
    """Send these bytes and close, or hang, or reset the connection."""

    async def behave(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if hang:
            await asyncio.sleep(3600)
        if reset:
            await asyncio.sleep(0.05)  # what was sent must not be lost with it
            writer.transport.abort()

    return behave


def dripping(start: bytes, drop: bytes, *, every: float = 1) -> Behaviour:
    """Send `start`, then `drop` again and again."""

    async def behave(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while True:
            writer.write(drop)
            await writer.drain()
            await asyncio.sleep(every)

    return behave


def endless(made: Receivers, start: bytes, part: bytes) -> Behaviour:
    """Send `start`, then `part` for as long as it is taken, and count it: there are far more than 10 MB to come."""

    async def behave(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while True:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)  # over TLS, drain() alone does not let the end of a connection be noticed
            made.written += len(part)

    return behave


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
CHUNK = b"1000\r\n" + b"x" * 4096 + b"\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
TEN_MB = 10_000_000


def gzip_bomb() -> Behaviour:
    return answer(200, gzip.compress(b"\0" * TEN_MB), Content_Encoding="gzip", Content_Type="text/plain")


# --- certificates ---


@dataclass
class Authority:
    """Makes certificates that `ca_file` vouches for."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def made_in(cls, folder: Path) -> "Authority":
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "An authority for tests")])
        builder = _builder(name, name, key.public_key(), ends_in=timedelta(days=1))
        certificate = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), True).sign(
            key, hashes.SHA256()
        )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ca.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return cls(folder, key, certificate)

    @property
    def ca_file(self) -> str:
        return str(self.folder / "ca.pem")

    def context(self, *names: str, ends_in: timedelta = timedelta(days=1), self_signed: bool = False) -> ssl.SSLContext:
        """Return what a receiver called `names` serves with."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        issuer, signer = (name, key) if self_signed else (self.certificate.subject, self.key)
        certificate = (
            _builder(name, issuer, key.public_key(), ends_in=ends_in)
            .add_extension(x509.SubjectAlternativeName([_alternative(each) for each in names]), False)
            .sign(signer, hashes.SHA256())
        )
        path = self.folder / "receiver.pem"
        path.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _builder(
    name: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, ends_in: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=30))
        .not_valid_after(now + ends_in)
    )
