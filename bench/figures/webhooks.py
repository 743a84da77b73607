"""Webhooks: deliveries a second, how soon the first attempt is made, what one endpoint that hangs does to others."""

import http.client
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bench import node, processes
from bench.effort import WORKERS, Effort, progress
from bench.figures.latency import judged
from bench.results import Figure, Target, number, over, quantile

HEALTHY = 99
BACKLOG = 10_000  # of the endpoint that hangs
EVENT, OTHER_EVENT = "task.completed", "task.skipped"


@dataclass(frozen=True)
class Receiver:
    """A receiver in a process of its own."""

    port: int

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def told(self, path: str) -> list[tuple[float, float]]:
        """Return the arrivals at `path` since the last call."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", f"/told{path}")
            return [(came, happened) for came, happened in json.loads(connection.getresponse().read())]
        finally:
            connection.close()

    def await_told(self, path: str, count: int, seconds: float = 120) -> list[tuple[float, float]]:
        """Return the next `count` arrivals at `path`, or more."""
        found: list[tuple[float, float]] = []
        until = time.monotonic() + seconds
        while len(found) < count:
            if time.monotonic() > until:
                raise TimeoutError(f"{len(found)} of {count} deliveries came to {path} in {seconds:.0f} s")
            time.sleep(0.2)
            found += self.told(path)
        return found


@contextmanager
def receiver() -> Iterator[Receiver]:
    port = node.free_port()
    with processes.running(
        subprocess.Popen([sys.executable, "-m", "bench.receiver", str(port)], cwd=node.PROJECT, start_new_session=True)
    ):
        processes.wait_until(lambda: node.answers(port, "/told/nothing"), 20, "the receiver", every=0.1)
        yield Receiver(port)


def rate(effort: Effort) -> Iterator[Figure]:
    """Deliveries a second to one receiver that answers at once, from the first arrival to the last."""
    count = effort.pick(10_000, 3_000)
    with receiver() as there, node.node(workers=WORKERS, WEBHOOK_ALLOW_PRIVATE=1) as running:
        running.inside("add_webhooks", urls=[there.url("/fast")], event=EVENT, max_in_flight=32)
        samples = []
        for _ in range(effort.pick(5, 3)):
            running.inside("publish", name=EVENT, count=count)
            came = sorted(at for at, _ in there.await_told("/fast", count))
            samples.append((len(came) - 1) / (came[-1] - came[0]))
            progress(f"{samples[-1]:,.0f} deliveries a second")
    note = f"{count:,} events at once, one receiver, 32 requests in flight, SQLite"
    yield over("webhook deliveries, one receiver", samples, "/s", target=Target(300, "more"), note=note)


def soon(effort: Effort) -> Iterator[Figure]:
    """Milliseconds from an event to the arrival of its first attempt, at 50 events a second."""
    with receiver() as there, node.node(workers=WORKERS, WEBHOOK_ALLOW_PRIVATE=1) as running:
        running.inside("add_webhooks", urls=[there.url("/fast")], event=EVENT, max_in_flight=32)
        running.inside("publish", name=EVENT, count=50, per_second=50)
        there.await_told("/fast", 50)  # cold
        count = effort.pick(3_000, 750)
        running.inside("publish", name=EVENT, count=count, per_second=50)
        delays = [(came - happened) * 1000 for came, happened in there.await_told("/fast", count)]
    yield judged("event → first attempt at 50/s, p50", delays, 0.50)
    yield judged("event → first attempt at 50/s, p99", delays, 0.99, Target(1000, "less"))


def fair(effort: Effort) -> Iterator[Figure]:
    """The p99 of 99 healthy endpoints beside one that hangs with 10,000 deliveries queued ÷ without it."""
    seconds = effort.pick(15, 8)
    paths = [f"/healthy/{number}" for number in range(HEALTHY)]
    with receiver() as there, node.node(workers=WORKERS, WEBHOOK_ALLOW_PRIVATE=1) as running:
        running.inside("add_webhooks", urls=[there.url(path) for path in paths], event=EVENT)
        running.inside("add_webhooks", urls=[there.url("/hang")], event=OTHER_EVENT)
        running.inside("publish", name=OTHER_EVENT, count=BACKLOG)
        running.inside("await_deliveries", event=OTHER_EVENT, count=BACKLOG)

        def p99(hangs: bool) -> float:
            running.inside("arm_hanging", event=OTHER_EVENT, active=hangs)
            time.sleep(2)
            running.inside("publish", name=EVENT, count=seconds, per_second=1)
            came = [arrival for path in paths for arrival in there.await_told(path, seconds)]
            return quantile([(at - happened) * 1000 for at, happened in came], 0.99)

        p99(False)  # cold
        pairs = effort.interleave(lambda: p99(True), lambda: p99(False), pairs=effort.pairs)
    beside, alone = zip(*pairs, strict=True)
    spread = max(alone) / statistics.median(alone)
    note = (
        f"p99 {number(statistics.median(beside))} ms beside it, {number(min(alone))} – {number(max(alone))} ms without;"
        " the target is the spread of those without"
    )
    yield over(
        "healthy p99 beside one that hangs ÷ without",
        [statistics.median(beside) / statistics.median(alone)],
        "×",
        target=Target(spread, "less"),
        note=note,
        what=f"of {len(pairs)} pairs",
    )
