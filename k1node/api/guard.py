"""What stands between the network and Django's threads: an ASGI wrapper that lets only whole, bounded requests through.

Bodies are read here, in the event loop, where a slow sender costs a coroutine; Django's few threads only ever see
requests that have arrived in full. Answers that a client does not read are given up, so that it cannot hold a thread.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from django.utils.http import parse_header_parameters

from k1node.api import versions
from k1node.api.error_codes import CODES
from k1node.api.errors import TOO_LARGE, accept_headers, error_body, help_link, is_api, unsupported
from k1node.api.middleware import HEADER, request_id_from
from k1node.api.renderers import JSON, dumps

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

ALIVE = b'{"status":"ok"}'
BUSY = "Too many large requests at one time; try again in a moment"
MAX_BODY_BYTES = 1024 * 1024
MAX_HELD_BYTES = 64 * 1024 * 1024  # of all bodies together that arrive or wait for their answer
MAX_URL_BYTES = 8192
BODY_SECONDS = 10.0
SEND_SECONDS = 30.0
# A refused client is listened to for this long, so that it reads the refusal instead of a reset connection.
LINGER_SECONDS = 2.0
LINGER_BYTES = 4 * 1024 * 1024


class Refused(Exception):
    """The request goes no further; answered with `status` and `message`, after which the connection is closed."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        self.message = message
        super().__init__(message)


class ClientGone(Exception):
    """Nobody is left to answer."""


class Guard:
    """The ASGI application. `app` gets HTTP requests whole, with their Content-Length."""

    def __init__(
        self,
        app: App,
        *,
        max_body_bytes: int = MAX_BODY_BYTES,
        max_held_bytes: int = MAX_HELD_BYTES,
        body_seconds: float = BODY_SECONDS,
        send_seconds: float = SEND_SECONDS,
    ) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.max_held_bytes = max_held_bytes
        self.held_bytes = 0
        self.body_seconds = body_seconds
        self.send_seconds = send_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "http":
                await self._http(scope, receive, send)
            case "websocket":
                await _decline(receive, send)
            case "lifespan":
                await _live(receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = bytearray()
        try:
            await self._pass_on(scope, receive, send, body)
        finally:
            self.held_bytes -= len(body)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, body: bytearray) -> None:
        try:
            _check_address(scope)
            _check_content_type(scope["headers"])
            if scope["path"] == "/healthz" and scope["method"] in ("GET", "HEAD"):
                await _answer(send, 200, ALIVE if scope["method"] == "GET" else b"", content_type=JSON)
                return
            await self._read(scope, receive, body)
        except ClientGone:
            return
        except Refused as refusal:
            await self._refuse(refusal, scope, receive, send)
            return
        scope = {**scope, "headers": _headers(scope["headers"], len(body))}
        await self.app(scope, _replay(bytes(body), receive), _Patient(send, self.send_seconds))

    async def _read(self, scope: Scope, receive: Receive, body: bytearray) -> None:
        """Read the whole body into `body`. Raises Refused if it is too large or too slow, ClientGone if it ends early.

        What is added to `body` is added to held_bytes.
        """
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit():
            raise Refused(400, "Content-Length is not a number")
        if int(declared[:20]) > self.max_body_bytes:
            raise Refused(413, TOO_LARGE)
        try:
            async with asyncio.timeout(self.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    chunk = message.get("body", b"")
                    body += chunk
                    self.held_bytes += len(chunk)
                    if len(body) > self.max_body_bytes:
                        raise Refused(413, TOO_LARGE)
                    if self.held_bytes > self.max_held_bytes:
                        raise Refused(503, BUSY)
                    if not message.get("more_body", False):
                        return
        except TimeoutError:
            raise Refused(408, f"The request body did not arrive within {self.body_seconds:g} seconds") from None

    async def _refuse(self, refusal: Refused, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, then swallow a little of what the client may still be sending, and close the connection."""
        identity = request_id_from(dict(scope["headers"]).get(b"x-request-id", b"").decode("latin1"))
        logger.info(
            "Request refused",
            extra={
                "method": scope["method"],
                "path": scope.get("raw_path", b"").decode("latin1")[:200],
                "status": refusal.status,
                "request_id": identity,
            },
        )
        more: Headers = [(HEADER.lower().encode(), identity.encode()), (b"connection", b"close")]
        if is_api(scope["path"]):
            content, content_type = _error(refusal, scope, identity)
            named = {"Vary": versions.VARY, "Link": help_link(CODES[refusal.status])}
            if refusal.status == 415:
                named |= accept_headers(scope["method"])
            more += [(name.lower().encode(), value.encode()) for name, value in named.items()]
        else:
            content, content_type = refusal.message.encode() + b"\n", "text/plain; charset=utf-8"
        if refusal.status == 503:
            more.append((b"retry-after", b"5"))
        body = b"" if scope["method"] == "HEAD" else content
        await _answer(send, refusal.status, body, content_type=content_type, more=more, last=False)
        swallowed = 0
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while swallowed < LINGER_BYTES:
                    message = await receive()
                    swallowed += len(message.get("body", b""))
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        break
        except TimeoutError:
            pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _error(refusal: Refused, scope: Scope, identity: str) -> tuple[bytes, str]:
    """Return the body of a refusal and its media type, in the version and form that the request asks for."""
    headers = dict(scope["headers"])
    content_type = headers.get(b"content-type", b"").decode("latin1")
    details = [unsupported(content_type)] if refusal.status == 415 else []
    body = error_body(refusal.status, refusal.message, details=details, request=identity)
    asked = versions.asked_if_possible(
        scope["path"], headers.get(b"accept", b"").decode("latin1"), headers.get(b"x-api-version", b"").decode("latin1")
    )
    return versions.formed(dumps(body), refusal.status, asked)


class _Patient:
    """A `send` that waits for a client only so long, and then lets the answer run into the void."""

    def __init__(self, send: Send, seconds: float) -> None:
        self._send = send
        self._seconds = seconds
        self._given_up = False

    async def __call__(self, message: Message) -> None:
        if self._given_up:
            return
        try:
            async with asyncio.timeout(self._seconds):
                await self._send(message)
        except TimeoutError:
            self._given_up = True
            logger.info("Answer given up: the client does not read it")


def _check_address(scope: Scope) -> None:
    raw_path, query = scope.get("raw_path") or b"", scope.get("query_string", b"")
    if len(raw_path) + len(query) > MAX_URL_BYTES:
        raise Refused(414, f"The address is longer than {MAX_URL_BYTES:,} bytes")
    # WSGI reads it as ASCII, which is all that a correct client sends.
    if not query.isascii():
        raise Refused(400, "The query string has bytes that must be percent-encoded")


def _check_content_type(headers: Headers) -> None:
    """Raise Refused unless Django can read the Content-Type, which it does before any of its error handling.

    It takes a `charset` for how to decode even the query string, whatever codec that names.
    """
    text = dict(headers).get(b"content-type", b"").decode("latin1")
    try:
        _kind, parameters = parse_header_parameters(text)
    except (LookupError, TypeError, ValueError):
        raise Refused(400, "The Content-Type is malformed") from None
    if parameters.get("charset", "utf-8").lower() not in ("utf-8", "utf8", "us-ascii"):
        raise Refused(415, "The charset of a body must be UTF-8")


def _headers(headers: Headers, length: int) -> Headers:
    """Return the headers as Django may see them.

    Names with an underscore are dropped: WSGI writes X_Forwarded_For and X-Forwarded-For the same, and only the
    latter is checked by the proxy in front. The length is that of the body as it arrived, chunked or not.
    """
    kept = [
        (name, value)
        for name, value in headers
        if b"_" not in name and name not in (b"content-length", b"transfer-encoding")
    ]
    return [*kept, (b"content-length", str(length).encode())]


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives `body` once, then what the connection itself says."""
    waiting = [body]

    async def replay() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replay


async def _answer(
    send: Send, status: int, body: bytes, *, content_type: str, more: Headers | None = None, last: bool = True
) -> None:
    headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode()), *(more or [])]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": not last})


async def _decline(receive: Receive, send: Send) -> None:
    """Close a WebSocket before it opens, which the client sees as 403: there are none here."""
    await receive()
    await send({"type": "websocket.close", "code": 1000, "reason": "No WebSocket here"})


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
