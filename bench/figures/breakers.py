"""What recovery costs: settling with breaker and retries, claims beside a hundred thousand parked tasks."""

import statistics
from collections.abc import Iterator
from contextlib import ExitStack

from bench import node
from bench.effort import WORKERS, Effort, progress
from bench.figures.database import BUNDLE, FEW, places
from bench.results import Figure, Target, over, over_pairs


def settle(effort: Effort) -> Iterator[Figure]:
    """Tasks a second with a breaker, one task in ten tried twice ÷ no breaker, one attempt each.

    Both are Python handlers that do nothing, drained by two workers; the first side runs a tenth more attempts.
    """
    count = effort.pick(40_000, 20_000)

    def drained(handler: str, breaker: str, policy: str) -> float:
        with node.node(workers=WORKERS) as running:
            running.inside("add_policies")
            answer = running.inside(
                "drain", count=count, handler=handler, workers=WORKERS, up=running.pid, breaker=breaker, policy=policy
            )
        return count / float(answer["seconds"])

    pairs = effort.interleave(
        lambda: drained("bench.sometimes", "shared", "bench-at-once"), lambda: drained("noop", "", "bench-once")
    )
    note = f"{count:,} tasks, one in ten fails at its first attempt and is tried again"
    yield over_pairs("settle with recovery ÷ without", pairs, target=Target(0.8, "more"), note=note)
    pairs = effort.interleave(
        lambda: drained("noop", "shared", "bench-once"), lambda: drained("noop", "", "bench-once")
    )
    note = f"{count:,} tasks, all of which succeed"
    yield over_pairs("settle with a breaker ÷ without", pairs, target=Target(0.8, "more"), note=note)


def parked(effort: Effort) -> Iterator[Figure]:
    """The milliseconds of one claim of 50 beside many tasks of an open breaker ÷ without them, claimed by turns."""
    many = 100_000
    for name, database in places(effort):
        with ExitStack() as stack:
            alone = stack.enter_context(node.site(stack.enter_context(database())))
            beside = stack.enter_context(node.site(stack.enter_context(database())))
            parking = beside.inside("park", count=many, name="down")["seconds"]
            progress(f"{name}: {many:,} parked in {parking:.1f} s")
            for site in (alone, beside):
                site.inside("fill", count=FEW if site is alone else many + FEW)
            pairs = []
            for _ in range(effort.pick(7, 3)):
                pairs.append(tuple(site.inside("claim", bundle=BUNDLE, rounds=40)["alone"] for site in (beside, alone)))
        note = f"{statistics.median(pair[1] for pair in pairs):.2f} ms without; all were parked in {parking:.1f} s"
        yield over(
            f"claim beside {many:,} behind an open breaker, {name}",
            [a / b for a, b in pairs],
            "×",
            target=Target(2, "less"),
            note=note,
            what="pairs",
        )


def seen(effort: Effort) -> Iterator[Figure]:
    """The seconds from the opening of a breaker to the last start of a task that names it, on a busy node."""
    workers = 4
    for name, database in places(effort):
        with ExitStack() as stack:
            running = stack.enter_context(node.node(workers=workers, database=stack.enter_context(database())))
            running.inside("add_policies")
            samples = [
                running.inside("seen_open", name=f"b-{number}", workers=workers) for number in range(effort.pick(10, 4))
            ]
        yield over(
            f"breaker seen open by {workers} workers, {name}",
            [max(samples)],
            " s",
            target=Target(1, "less"),
            note=f"the longest of {len(samples)}",
        )
