"""What recognising a caller costs."""

from collections.abc import Iterator
from contextlib import ExitStack

from bench import node
from bench.effort import Effort
from bench.figures.database import places
from bench.results import Figure, Target, over


def key_check(effort: Effort) -> Iterator[Figure]:
    """The microseconds of CPU of checking a key beyond the one query that it makes.

    Both are measured in one process by turns: `keys.examine` of a usable key among others, and its statement alone.
    """
    for name, database in places(effort):
        with ExitStack() as stack:
            site = stack.enter_context(node.site(stack.enter_context(database())))
            answer = site.inside("check_keys", rounds=effort.pick(20, 8), checks=effort.pick(2_000, 1_000))
        yield over(
            f"key check beyond its query, {name}",
            answer["beyond"],
            " µs",
            target=Target(50, "less"),
            note=f"the query alone: {answer['query']:.0f} µs of CPU",
            what="rounds",
        )
