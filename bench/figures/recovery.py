"""What operators wait for: a redrive of ten thousand dead letters, the figures of the retry engine over millions."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack

from bench import node
from bench.effort import WORKERS, Effort, progress
from bench.figures.database import places
from bench.http_client import Caller, exchange
from bench.results import Figure, Target, number, over, quantile

ENTRIES = 10_000
STORED = 5_000_000
INTERVALS = ("1h", "24h", "7d")


def redrive(effort: Effort) -> Iterator[Figure]:
    """The seconds from the start of a redrive to its last new task, by the clock of a node that runs them meanwhile."""
    for name, database in places(effort):
        with ExitStack() as stack:
            running = stack.enter_context(node.node(workers=WORKERS, database=stack.enter_context(database())))
            taken = [running.inside("redrive", count=ENTRIES, name=f"r{turn}") for turn in range(effort.pick(5, 2))]
        yield over(
            f"redrive of {ENTRIES:,} dead letters, {name}",
            [each["seconds"] for each in taken],
            " s",
            target=Target(10, "less"),
            note=f"planned in {max(each['planned'] for each in taken):.2f} s at most",
        )


def retry_stats(effort: Effort) -> Iterator[Figure]:
    """The milliseconds of GET /metrics/retry-stats beside millions of attempts and a week of full minutes."""
    stored = effort.pick(STORED, STORED // 10)
    for name, database in places(effort):
        with ExitStack() as stack:
            running = stack.enter_context(node.node(workers=WORKERS, database=stack.enter_context(database())))
            seconds = running.inside("store_attempts", count=stored)
            progress(f"{name}: {stored:,} attempts stored in {seconds:.0f} s")
            caller = Caller(running.port, running.key())
            for interval in INTERVALS:
                path = f"/api/v2/metrics/retry-stats?interval={interval}"
                samples = asyncio.run(answers(caller, path, effort.pick(500, 100)))
                spread = f"{number(min(samples))} – {number(max(samples))}, {len(samples)} samples"
                yield Figure(
                    f"retry-stats of {interval}, {name}, p99",
                    quantile(samples, 0.99),
                    " ms",
                    spread,
                    Target(50, "less"),
                    note=f"{stored:,} attempts; p50 {quantile(samples, 0.5):.1f} ms",
                )


async def answers(caller: Caller, path: str, count: int) -> list[float]:
    """Return the milliseconds of GETs of a path, one after the other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", caller.port)
    taken = []
    try:
        for index in range(count + 5):
            began = time.perf_counter()
            await exchange(reader, writer, caller.get(path))
            if index >= 5:  # the first find cold caches
                taken.append((time.perf_counter() - began) * 1000)
    finally:
        writer.close()
    return taken
