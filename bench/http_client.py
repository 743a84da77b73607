"""A load generator: several keep-alive connections in this one process, each sending its next request on an answer."""

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls which node."""

    port: int
    key: str

    def post(self, path: str, body: dict[str, Any]) -> bytes:
        """Return the bytes of a POST."""
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nAuthorization: Bearer {self.key}\r\n"
            f"Content-Type: application/json\r\nAccept: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        return head.encode() + data

    def get(self, path: str) -> bytes:
        """Return the bytes of a GET."""
        head = (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nAuthorization: Bearer {self.key}\r\n"
            "Accept: application/json\r\n\r\n"
        )
        return head.encode()

    def send(self, requests: Sequence[bytes], *, connections: int) -> float:
        """Send all requests, every answer a 2xx, and return when the first was sent, in seconds of the epoch."""
        return asyncio.run(self._send(requests, connections))

    async def _send(self, requests: Sequence[bytes], connections: int) -> float:
        streams = [await asyncio.open_connection("127.0.0.1", self.port) for _ in range(connections)]
        left = iter(requests)
        began = time.time()
        try:
            await asyncio.gather(*(exchange_all(reader, writer, left) for reader, writer in streams))
        finally:
            for _, writer in streams:
                writer.close()
        return began


async def exchange_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, requests: Iterator[bytes]) -> None:
    for request in requests:
        await exchange(reader, writer, request)


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes:
    """Return the body of the answer; raise RuntimeError unless its status is 2xx."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
    body = await reader.readexactly(length)
    if not lines[0].split(b" ", 2)[1].startswith(b"2"):
        raise RuntimeError(f"{head.decode()}{body.decode(errors='replace')}")
    return body
