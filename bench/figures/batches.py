"""Tasks of a batch beside single tasks."""

from collections.abc import Iterator, Mapping

from bench import node
from bench.effort import WORKERS, Effort
from bench.figures.queue import NOOP
from bench.results import Figure, Target, over, over_pairs

AT_LEAST = Target(0.8, "more")


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
