"""A receiver of webhooks for measurements: python -m bench.receiver PORT.

It answers 204 to everything but paths under /hang, which it never answers, and notes for each request when it came and
when the event it tells of had happened. GET /told/<path> returns these notes for `path` as JSON and forgets them.
"""

import asyncio
import json
import sys
import time
from collections import defaultdict
from contextlib import suppress
from datetime import datetime

NO_CONTENT = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"

# By path: (when it came, when the event had happened), in seconds since 1970.
arrivals: dict[str, list[tuple[float, float]]] = defaultdict(list)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").splitlines()
        method, path, _ = head[0].split(" ")
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
        body = await reader.readexactly(int(fields.get("content-length", 0)))
        if path.startswith("/hang"):
            await reader.read()  # until the sender gives up
        elif method == "GET":
            told = json.dumps(arrivals.pop(path.removeprefix("/told"), [])).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(told) + told)
        else:
            came = time.time()
            happened = datetime.fromisoformat(json.loads(body)["occurred_at"]).timestamp()
            arrivals[path.partition("?")[0]].append((came, happened))
            writer.write(NO_CONTENT)
        await writer.drain()
    writer.close()


async def serve(port: int) -> None:
    server = await asyncio.start_server(answer, "127.0.0.1", port, backlog=1024)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
