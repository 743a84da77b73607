"""Measure the figures and print them: python -m bench [NAME …] [--pairs N] [--quick] [--save].

Everything runs on this machine's loopback, in temporary folders that are removed, and nothing else is written unless
--save is given: then docs/benchmarks.md is written anew. Each ratio is taken within this one run, over pairs of
measurements whose order alternates. All figures take about half an hour, the quick ones a few minutes; what else the
machine does in that time shows in the spread.
"""

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from types import FrameType

from bench import machine
from bench.effort import Effort, Measure
from bench.figures import access, api, batches, breakers, commands, database, latency, queue, recovery, rest, webhooks
from bench.node import PROJECT
from bench.results import Report

FIGURES: dict[str, Measure] = {
    "noop": queue.noop,
    "noop-http": queue.noop_http,
    "noop-postgresql": queue.noop_postgresql,
    "batch": batches.batch,
    "batch-http": batches.over_http,
    "commands": commands.commands,
    "latency": latency.latency,
    "claim": database.claim,
    "cron": database.cron,
    "settle": breakers.settle,
    "parked": breakers.parked,
    "breaker-seen": breakers.seen,
    "redrive": recovery.redrive,
    "retry-stats": recovery.retry_stats,
    "api-list": api.api_list,
    "key-check": access.key_check,
    "webhook-rate": webhooks.rate,
    "webhook-soon": webhooks.soon,
    "webhook-fair": webhooks.fair,
    "idle": rest.idle,
}
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAVED = PROJECT / "docs" / "benchmarks.md"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").partition(":")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which figures: {', '.join(FIGURES)} (default: all)")
    parser.add_argument("--pairs", type=int, help="interleaved pairs for each ratio (default: 10, quick: 3)")
    parser.add_argument("--quick", action="store_true", help="fewer tasks, pairs and samples")
    parser.add_argument("--save", action="store_true", help=f"write {SAVED.relative_to(PROJECT)} anew")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in FIGURES]
    if unknown or (options.pairs is not None and options.pairs < 1):
        parser.error(f"no figure is called {', '.join(unknown)}" if unknown else "--pairs must be at least 1")
    for each in STOP_SIGNALS:
        signal.signal(each, exit_on_signal)
    report = Report(
        machine.facts(),
        shlex.join(["python", "-m", "bench", *arguments]),
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )
    print("\n".join(report.facts), end="\n\n", flush=True)
    failed = []
    with ExitStack() as stack:
        effort = Effort(options.pairs or (3 if options.quick else 10), options.quick, stack)
        for name in options.names or FIGURES:
            print(name, file=sys.stderr, flush=True)
            try:
                for figure in FIGURES[name](effort):
                    report.figures.append(figure)
                    print("  ".join(cell for cell in figure.cells() if cell), flush=True)
            except Exception as error:
                failed.append(name)
                print(f"{name} could not be measured: {error}", *getattr(error, "__notes__", ()), sep="\n", flush=True)
        report.facts.insert(2, f"PostgreSQL {effort.postgresql_version}")
    print("", report.table(), "", *report.facts, sep="\n")
    if options.save and not failed:
        SAVED.write_text(page(report))
    return 1 if failed else 0


PAGE = """# Benchmarks

Measured {date} with `{command}`.

{facts}

{table}

Ratios are medians over pairs of measurements taken by turns in this one run; the spread is the least and the greatest.
What each figure means and how it is taken stands in the docstrings of `bench/figures/`.
"""


def page(report: Report) -> str:
    facts = "\n".join(f"- {fact}" for fact in report.facts)
    return PAGE.format(date=report.date, command=report.command, facts=facts, table=report.table())


def exit_on_signal(number: int, _frame: FrameType | None) -> None:
    """End the run, and with it the nodes, consumers and servers it has started; a second signal must not stop that."""
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
