"""Tasks of a batch beside single tasks."""

import asyncio
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bench import node
from bench.effort import WORKERS, Effort
from bench.figures.queue import NOOP
from bench.http_client import Caller, exchange
from bench.results import Figure, Target, over, over_pairs

AT_LEAST = Target(0.8, "more")
BATCHES = "/api/v2/tasks/batch"
SMALL, LARGE = 1_000, 10_000
LOOK_SECONDS = 0.5
READS = 10


def batch(effort: Effort) -> Iterator[Figure]:
    """No-op tasks of one batch, without limit or order, ÷ as many single ones: tasks a second, on both databases."""
    count = effort.pick(20_000, 10_000)
    server = effort.postgresql()
    pairs = effort.interleave(lambda: drained(count, as_batch=True), lambda: drained(count))
    yield over_pairs("batch ÷ single", pairs, target=AT_LEAST, note=f"{count:,} tasks, {WORKERS} workers, SQLite")
    yield over("batch", [ours for ours, _ in pairs], "/s")

    def on_postgresql(*, as_batch: bool) -> float:
        with server.database() as database:
            return drained(count, database, workers=2 * WORKERS, as_batch=as_batch)

    pairs = effort.interleave(lambda: on_postgresql(as_batch=True), lambda: on_postgresql(as_batch=False))
    note = f"{count:,} tasks, {2 * WORKERS} workers, PostgreSQL {server.version()}"
    yield over_pairs("batch ÷ single, PostgreSQL", pairs, target=AT_LEAST, note=note)
    yield over("batch, PostgreSQL", [ours for ours, _ in pairs], "/s")


def drained(
    count: int, database: Mapping[str, str] | None = None, *, workers: int = WORKERS, as_batch: bool = False
) -> float:
    """Return the tasks a second of a new node."""
    with node.node(workers=workers, database=database) as running:
        answer = running.inside("drain", count=count, handler=NOOP, workers=workers, up=running.pid, as_batch=as_batch)
    return count / float(answer["seconds"])


def over_http(effort: Effort) -> Iterator[Figure]:
    """Batches of no-op tasks through the API of a node on SQLite: accepted, worked through, and read.

    Worked through: from the first byte of the POST to the last finish, ÷ what the same workers do with as many single
    tasks that are on the queue already.
    """
    accepted: list[float] = []
    read: list[float] = []

    def posted() -> float:
        with node.node(workers=WORKERS) as running:
            followed(running, "warm", 10)
            batch = followed(running, "large", LARGE)
        accepted.append(batch.accepted_ms)
        read.extend(batch.read_ms)
        return LARGE / batch.seconds

    with node.node(workers=WORKERS) as running:
        followed(running, "warm", 10)
        small = [followed(running, f"small-{number}", SMALL).accepted_ms for number in range(effort.pick(20, 7))]
    pairs = effort.interleave(posted, lambda: drained(LARGE))
    yield over(f"batch of {SMALL:,} accepted", small, " ms", target=Target(300, "less"))
    yield over(f"batch of {LARGE:,} accepted", accepted, " ms", target=Target(2_500, "less"))
    yield over_pairs(f"{LARGE:,} no-op tasks, POST → completed ÷ plain queue", pairs, target=AT_LEAST)
    yield over(f"GET of a batch of {LARGE:,}", read, " ms", target=Target(50, "less"), what="requests")


@dataclass(frozen=True, slots=True)
class Followed:
    """What became of a batch."""

    accepted_ms: float  # until its 202
    seconds: float  # until its last task had finished
    read_ms: list[float]  # of some reads after its end


def followed(running: node.Node, name: str, count: int) -> Followed:
    """Submit a batch of no-op tasks and wait for its end."""
    caller = Caller(running.port, running.key())
    tasks = [{"task_id": f"{name}-{number}"} for number in range(count)]
    request = caller.post(BATCHES, {"batch_id": name, "tasks": tasks, "defaults": {"handler": NOOP}})
    began, accepted, reads = asyncio.run(_exchanged(running.port, request, caller.get(f"{BATCHES}/{name}")))
    return Followed(accepted, float(running.inside("last_finish", batch=name)) - began, reads)


async def _exchanged(port: int, request: bytes, look: bytes) -> tuple[float, float, list[float]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        began = time.time()
        accepted = await _took_ms(reader, writer, request)
        while json.loads(await exchange(reader, writer, look))["ended_at"] is None:
            await asyncio.sleep(LOOK_SECONDS)
        await asyncio.sleep(1)  # the node is at rest
        reads = [await _took_ms(reader, writer, look) for _ in range(READS)]
    finally:
        writer.close()
    return began, accepted, reads


async def _took_ms(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> float:
    asked = time.monotonic()
    await exchange(reader, writer, request)
    return (time.monotonic() - asked) * 1000
