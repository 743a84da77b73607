"""How much a run measures: the full figures, or a quick look that shows whether they are in reach."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

from bench import databases
from bench.results import Figure

WORKERS = 2


@dataclass
class Effort:
    pairs: int
    quick: bool
    stack: ExitStack
    _server: databases.Server | None = field(default=None, init=False)

    def pick(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def postgresql(self) -> databases.Server:
        """Return the PostgreSQL of this run, started when first needed."""
        if self._server is None:
            self._server = self.stack.enter_context(databases.postgresql())
        return self._server

    @property
    def postgresql_version(self) -> str:
        return "not used" if self._server is None else self._server.version()

    def interleave(
        self, ours: Callable[[], float], theirs: Callable[[], float], *, pairs: int | None = None
    ) -> list[tuple[float, float]]:
        """Measure in pairs whose order alternates, so that a busy neighbour meets both sides alike."""
        measured = []
        for number in range(pairs or self.pairs):
            if number % 2:
                other = theirs()
                pair = (ours(), other)
            else:
                pair = (ours(), theirs())
            measured.append(pair)
            progress(f"pair {number + 1}: {pair[0]:,.1f} and {pair[1]:,.1f}, ratio {pair[0] / pair[1]:.2f}")
        return measured


def progress(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


Measure = Callable[[Effort], Iterator[Figure]]
