"""What parts cost as the database grows: a claim with 500,000 tasks queued, a fire pass with 10,000 schedules."""

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager

from bench import node
from bench.effort import Effort, progress
from bench.results import Figure, Target, over

BUNDLE = 50
FEW = 1_000
SCHEDULES = 10_000
DUE = 1_000


def claim(effort: Effort) -> Iterator[Figure]:
    """The milliseconds of one claim of 50 with many queued ÷ with few, claimed by turns."""
    many = effort.pick(500_000, 100_000)
    for name, database in places(effort):
        with ExitStack() as stack:
            small = stack.enter_context(node.site(stack.enter_context(database())))
            large = stack.enter_context(node.site(stack.enter_context(database())))
            small.inside("fill", count=FEW)
            large.inside("fill", count=many)
            progress(f"{name}: filled")
            pairs = []
            for _ in range(effort.pick(7, 3)):
                pairs.append(tuple(site.inside("claim", bundle=BUNDLE, rounds=40)["alone"] for site in (large, small)))
        note = (
            f"{statistics.median(pair[1] for pair in pairs):.2f} ms with {FEW:,} queued,"
            f" {statistics.median(pair[0] for pair in pairs):.2f} ms with {many:,}"
        )
        yield over(
            f"claim of {BUNDLE}, {name}",
            [a / b for a, b in pairs],
            "×",
            target=Target(2, "less"),
            note=note,
            what="pairs",
        )


def cron(effort: Effort) -> Iterator[Figure]:
    """The seconds of one fire pass over 1,000 due schedules of 10,000: ledger rows, gates and tasks."""
    for name, database in places(effort):
        with ExitStack() as stack:
            site = stack.enter_context(node.site(stack.enter_context(database())))
            taken = site.inside("fire_passes", schedules=SCHEDULES, due=DUE, passes=effort.pick(9, 3))
        yield over(f"fire {DUE:,} of {SCHEDULES:,}, {name}", taken, " s", target=Target(1, "less"), what="passes")


@contextmanager
def in_its_folder() -> Iterator[Mapping[str, str] | None]:
    """Give the environment of a database on SQLite: none."""
    yield None


def places(effort: Effort) -> list[tuple[str, Callable[[], AbstractContextManager[Mapping[str, str] | None]]]]:
    return [("SQLite", in_its_folder), ("PostgreSQL", effort.postgresql().database)]
