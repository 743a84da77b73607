"""A figure, what was measured for it, and whether that is enough."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Target:
    """What the median (or the given quantile) of the samples must be: at least or at most `value`."""

    value: float
    better: Literal["more", "less"]

    def is_met(self, measured: float) -> bool:
        return measured >= self.value if self.better == "more" else measured <= self.value

    def text(self, unit: str) -> str:
        return f"{'≥' if self.better == 'more' else '≤'} {number(self.value)}{unit}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. `measured` is judged by `target`; without one it is there for orientation."""

    name: str
    measured: float
    unit: str  # with its leading space, if it wants one
    spread: str
    target: Target | None = None
    aim: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        return "PASS" if self.target.is_met(self.measured) else "SHORT"

    def cells(self) -> list[str]:
        target = self.target.text(self.unit) if self.target is not None else ""
        if self.aim is not None:
            target += f", aim {number(self.aim)}{self.unit}" if target else f"aim {number(self.aim)}{self.unit}"
        return [self.name, f"{number(self.measured)}{self.unit}", self.spread, target, self.verdict, self.note]


HEADINGS = ["figure", "measured", "spread", "target", "", "remarks"]


@dataclass
class Report:
    """The figures of one run, in the order measured."""

    facts: list[str]
    command: str
    date: str
    figures: list[Figure] = field(default_factory=list)

    def table(self) -> str:
        """Return the figures as a Markdown table, aligned for reading as text."""
        rows = [HEADINGS, *(figure.cells() for figure in self.figures)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
        lines = [
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
        ]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return "\n".join(lines)


def over_pairs(
    name: str, pairs: Sequence[tuple[float, float]], *, target: Target, aim: float | None = None, note: str = ""
) -> Figure:
    """Return the median ratio of interleaved (ours, theirs) pairs as a figure."""
    return over(name, [ours / theirs for ours, theirs in pairs], "×", target=target, aim=aim, note=note, what="pairs")


def over(
    name: str,
    samples: Sequence[float],
    unit: str,
    *,
    target: Target | None = None,
    aim: float | None = None,
    note: str = "",
    what: str = "runs",
) -> Figure:
    """Return the median of `samples` as a figure, with the least and the greatest."""
    spread = f"{number(min(samples))} – {number(max(samples))}, {len(samples)} {what}"
    return Figure(name, statistics.median(samples), unit, spread, target, aim, note)


def quantile(samples: Sequence[float], share: float) -> float:
    """Return the smallest sample that at least `share` of all do not exceed."""
    return sorted(samples)[max(0, math.ceil(share * len(samples)) - 1)]


def number(value: float) -> str:
    """Return `value` with the digits that mean something."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
