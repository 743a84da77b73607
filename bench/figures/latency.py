"""How soon a command starts on an idle node: after the API's 202, and after the due time of a slot."""

import asyncio
import random
import time
from collections.abc import Iterator
from pathlib import Path

from bench import node
from bench.effort import WORKERS, Effort, progress
from bench.http_client import Caller, exchange
from bench.results import Figure, Target, number, quantile

NAME = "stamp.sh"
# bash's own clock: it costs no process. The rename makes the file appear with its content.
SCRIPT = """#!/usr/bin/env bash
echo "$EPOCHREALTIME" > "{folder}/.$K1_TASK_ID"
mv "{folder}/.$K1_TASK_ID" "{folder}/$K1_TASK_ID"
"""
AT_A_TIME = 4  # schedules due within one second


def latency(effort: Effort) -> Iterator[Figure]:
    """Milliseconds until the script's first line, so the start of bash is in it.

    Less than nothing: it ran before the answer had reached the client, for a task may start once it is committed.
    """
    with node.node(workers=WORKERS) as running:
        folder = running.folder / "started"
        folder.mkdir()
        (running.handler_root / NAME).write_text(SCRIPT.format(folder=folder))
        handler = f"bash {NAME}"
        caller = Caller(running.port, running.key())
        after_202 = asyncio.run(posts_to_starts(caller, handler, folder, effort.pick(250, 60)))
        progress(f"after the 202: p50 {quantile(after_202, 0.5):.1f} ms, p99 {quantile(after_202, 0.99):.1f} ms")
        after_slot = running.inside(
            "slots_to_starts", samples=effort.pick(120, 24), at_a_time=AT_A_TIME, handler=handler, folder=str(folder)
        )
    yield judged("202 → process start, p50", after_202, 0.50, Target(80, "less"))
    yield judged("202 → process start, p99", after_202, 0.99, Target(300, "less"))
    yield judged("slot due → process start, p50", after_slot, 0.50)
    yield judged("slot due → process start, p99", after_slot, 0.99, Target(500, "less"))


def judged(name: str, samples: list[float], share: float, target: Target | None = None) -> Figure:
    spread = f"{number(min(samples))} – {number(max(samples))}, {len(samples)} samples"
    return Figure(name, quantile(samples, share), " ms", spread, target)


async def posts_to_starts(caller: Caller, handler: str, folder: Path, samples: int) -> list[float]:
    """Post one task after the other to an idle node; return the milliseconds from each answer to its start."""
    reader, writer = await asyncio.open_connection("127.0.0.1", caller.port)
    delays = []
    try:
        for index in range(samples + 1):
            name = f"posted-{index}"
            await exchange(reader, writer, caller.post("/api/v2/tasks", {"task_id": name, "handler": handler}))
            answered = time.time()
            started = await asyncio.wait_for(when_started(folder / name), 20)
            if index:  # the first finds cold caches
                delays.append((started - answered) * 1000)
            # At rest again, and never in step with what looks at the queue every so often.
            await asyncio.sleep(random.uniform(0.15, 0.35))
    finally:
        writer.close()
    return delays


async def when_started(file: Path) -> float:
    while not file.exists():
        await asyncio.sleep(0.005)
    return float(file.read_text())
