"""Commands: a two-line script through the queue, beside xargs starting the same script as often."""

import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench import node
from bench.effort import WORKERS, Effort
from bench.results import Figure, Target, over, over_pairs

SCRIPT = "#!/usr/bin/env bash\necho done\n"
NAME = "two_lines.sh"


def commands(effort: Effort) -> Iterator[Figure]:
    """A node's runs a second ÷ those of `xargs -P2 -n1 bash SCRIPT`; in bundles, and each task claimed alone."""
    count = effort.pick(2_000, 1_000)
    pairs = effort.interleave(lambda: by_node(count), lambda: by_xargs(count))
    note = f"{count:,} runs of {SCRIPT.splitlines()[1]!r}, {WORKERS} workers"
    yield over_pairs("commands ÷ xargs", pairs, target=Target(0.6, "more"), aim=0.8, note=note)
    yield over("commands", [ours for ours, _ in pairs], "/s")
    yield over("commands, xargs", [theirs for _, theirs in pairs], "/s")
    pairs = effort.interleave(lambda: by_node(count, solo=True), lambda: by_xargs(count))
    yield over_pairs("commands one by one ÷ xargs", pairs, target=Target(0.3, "more"))
    yield over("commands one by one", [ours for ours, _ in pairs], "/s")


def by_node(count: int, *, solo: bool = False) -> float:
    with node.node(workers=WORKERS) as running:
        (running.handler_root / NAME).write_text(SCRIPT)
        answer = running.inside(
            "drain", count=count, handler=f"bash {NAME}", workers=WORKERS, solo=solo, up=running.pid
        )
    return count / float(answer["seconds"])


def by_xargs(count: int) -> float:
    with tempfile.TemporaryDirectory(prefix="k1bench-") as folder:
        script = Path(folder, NAME)
        script.write_text(SCRIPT)
        numbers = "".join(f"{number}\n" for number in range(count))
        began = time.perf_counter()
        subprocess.run(
            ["xargs", f"-P{WORKERS}", "-n1", "bash", str(script)],
            input=numbers,
            text=True,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return count / (time.perf_counter() - began)
