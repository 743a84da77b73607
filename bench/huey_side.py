"""Measuring Huey: SqliteHuey without results and two worker processes, as its documentation advises for such work."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import processes
from bench.huey_note import NOTE
from bench.node import PROJECT

START_SECONDS = 3.0  # until an empty consumer waits for work


@dataclass(frozen=True, slots=True)
class Ran:
    seconds: float
    cpu_seconds: float  # of the consumer, its start included


def drain(count: int, *, workers: int, synchronous: str = "") -> Ran:
    """Fill the queue, start the consumer, and measure from the first execution to the last."""
    with _folder(synchronous) as (folder, environment):
        _produce(count, {**environment, "BENCH_HUEY_SYNCHRONOUS": "OFF"})  # the filling is not measured
        with _consumer(workers, environment) as pid:
            first, last = _wait_for(count, folder)
            return Ran(last - first, processes.cpu_seconds(pid))


def with_enqueue(count: int, *, workers: int, synchronous: str = "") -> float:
    """Enqueue beside a consumer that waits, and return the seconds from the first enqueue to the last execution."""
    with _folder(synchronous) as (folder, environment):
        # -m: it looks for work at least every 0.1 s, and not after a rest of up to ten.
        with _consumer(workers, environment, "-m", "0.1"):
            time.sleep(START_SECONDS)
            began = _produce(count, environment)
            _, last = _wait_for(count, folder)
        return last - began


@contextmanager
def _folder(synchronous: str) -> Iterator[tuple[Path, dict[str, str]]]:
    with tempfile.TemporaryDirectory(prefix="k1bench-huey-") as name:
        yield Path(name), {**os.environ, "BENCH_HUEY_FOLDER": name, "BENCH_HUEY_SYNCHRONOUS": synchronous}


@contextmanager
def _consumer(workers: int, environment: dict[str, str], *options: str) -> Iterator[int]:
    # -q: a log line for each task would cost it a tenth.
    command = [str(Path(sys.executable).with_name("huey_consumer")), "bench.huey_app.huey"]
    command += ["-w", str(workers), "-k", "process", "-q", *options]
    with processes.running(
        subprocess.Popen(
            command,
            cwd=PROJECT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ),
        how=signal.SIGINT,
    ) as process:
        yield process.pid


def _produce(count: int, environment: dict[str, str]) -> float:
    done = subprocess.run(
        [sys.executable, "-m", "bench.huey_produce", str(count)],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def _wait_for(count: int, folder: Path) -> tuple[float, float]:
    """Return when the first and the last of `count` tasks ran."""

    def notes() -> list[tuple[int, float, float]]:
        read = [file.read_bytes() for file in folder.glob("*.ran")]
        return [NOTE.unpack(each) for each in read if len(each) == NOTE.size]

    processes.wait_until(lambda: sum(ran for ran, _, _ in notes()) >= count, 600, "Huey to run its tasks")
    ran = [note for note in notes() if note[0]]
    return min(first for _, first, _ in ran), max(last for _, _, last in ran)
