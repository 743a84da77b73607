"""One HTTP connection of the web process, bounded: how long a request's head may take and how large it may be.

The guard sees a request when its head has arrived; what comes before that is decided here.
"""

import asyncio
import logging
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from k1node.api.errors import error_body, is_api
from k1node.api.renderers import JSON, dumps
from k1node.lib.ids import prefixed

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 1024
HEAD_SECONDS = 10.0
MALFORMED = "The request is malformed"


class HeadTooLarge(Exception):
    """The request line and the headers exceed MAX_HEAD_BYTES."""


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's connection, which by itself waits for ever for a request's head and stores one of any size."""

    max_head_bytes = MAX_HEAD_BYTES
    head_seconds = HEAD_SECONDS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.url = b""
        self._heads = 0
        self._in_head = False
        self._head_bytes = 0  # of what is parsed
        self._waiting_bytes = 0  # of what arrived since this head began, parsed or not
        self._is_too_large = False
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self._heads
        super().data_received(data)
        if self.parser is None or self.transport.is_closing():
            return
        if self._in_head and self._heads == before:
            self._waiting_bytes += len(data)
            if self._waiting_bytes > self.max_head_bytes:
                self._is_too_large = True
                self.send_400_response("")
                return
        if self._in_head or not self._is_answering():
            self._expect_head()

    # --- what the parser finds ---

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._heads += 1
        self._in_head = True
        self._head_bytes = self._waiting_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # a trailer comes after the body and means nothing here
            self._count(len(name) + len(value) + 4)
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._forget_deadline()
        super().on_headers_complete()

    def _count(self, length: int) -> None:
        self._head_bytes += length
        if self._head_bytes > self.max_head_bytes:
            self._is_too_large = True
            raise HeadTooLarge

    # --- the answers that come from here ---

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request, or too large a one, and close; in the API's own form where it is the API's."""
        status, text = 400, MALFORMED
        if self._is_too_large:
            status, text = 431, f"The headers are larger than {self.max_head_bytes:,} bytes"
        self._forget_deadline()
        if self._is_answering() and not self._is_still_asking():
            # An answer is owed to an earlier request: this must not be taken for it.
            self.transport.close()
            return
        identity = prefixed("req")
        logger.info("Connection refused", extra={"status": status, "request_id": identity})
        if is_api(self.url.partition(b"?")[0].decode("latin1")):
            content, content_type = dumps(error_body(status, text, request=identity)), JSON
        else:
            content, content_type = text.encode() + b"\n", "text/plain; charset=utf-8"
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: {content_type}\r\n"
            f"content-length: {len(content)}\r\nx-request-id: {identity}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + content)
        self.transport.close()

    # --- time ---

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _is_still_asking(self) -> bool:
        """Say whether the body of the one request in work is on its way, so that no application has seen it yet."""
        return self.cycle.more_body and not self.cycle.response_started and not self.pipeline

    def _expect_head(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.head_seconds, self._time_is_up)

    def _time_is_up(self) -> None:
        self._deadline = None
        if not self._is_answering():
            self.transport.close()
        elif self._in_head:  # the next request's, while this one is answered
            self._expect_head()

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
