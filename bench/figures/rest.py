"""What a node costs that has nothing to do."""

import time
from collections.abc import Iterator

from bench import node, processes
from bench.effort import WORKERS, Effort
from bench.results import Figure, Target, over

SETTLE_SECONDS = 10.0


def idle(effort: Effort) -> Iterator[Figure]:
    """CPU of all its processes in percent of one core, and their memory."""
    seconds = effort.pick(30, 10)
    shares = []
    with node.node(workers=WORKERS) as running:
        time.sleep(SETTLE_SECONDS)
        for _ in range(effort.pick(3, 1)):
            shares.append(cpu_percent(running.pid, seconds))
        memory = [process.memory_full_info() for process in processes.tree(running.pid)]
    yield over(
        "node at rest, CPU", shares, " % of a core", target=Target(3, "less"), note=f"over {seconds} s", what="periods"
    )
    for name, sizes in (("PSS", [each.pss for each in memory]), ("RSS", [each.rss for each in memory])):
        total = sum(sizes) / 2**20
        yield Figure(f"node at rest, {name}", total, " MiB", f"{len(sizes)} processes, {WORKERS} workers")


def cpu_percent(pid: int, seconds: float) -> float:
    """Return the CPU of a tree of processes over the next seconds, that of children that come and go included."""
    before, began = processes.cpu_seconds(pid), time.monotonic()
    time.sleep(seconds)
    return (processes.cpu_seconds(pid) - before) / (time.monotonic() - began) * 100
