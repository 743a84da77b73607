"""What the API's own layers cost: the key, the scope, the limit."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench import node, processes
from bench.effort import WORKERS, Effort
from bench.http_client import Caller
from bench.results import Figure, Target, over, over_pairs

CONNECTIONS = 4
ROWS = 20
OURS, PLAIN = "/api/v2/scheduler/schedules", "/schedules"


def api_list(effort: Effort) -> Iterator[Figure]:
    """Requests a second for 20 schedules: the API's list ÷ a plain view of the same rows, under the same server.

    The API's has a key, a scope, a limit, a version, an id and a line in the log; the plain one (bench/bare_web.py) is
    a view of Django REST framework with the framework's own settings. Each runs in a web process of its own, on the
    same database.
    """
    count = effort.pick(1500, 600)
    with node.node(workers=WORKERS) as running, plain_web(running) as port:
        ours, theirs = Caller(running.port, running.key()), Caller(port, "")
        for index in range(ROWS):
            body = {"task_id": f"s-{index}", "handler": "python:noop", "schedule_type": "cron"}
            ours.send([ours.post(OURS, {**body, "schedule_expr": "0 2 * * *"})], connections=1)

        pairs = effort.interleave(lambda: rate(ours, OURS, count), lambda: rate(theirs, PLAIN, count))
    note = f"{count:,} requests each, {CONNECTIONS} connections"
    yield over_pairs("GET of 20 schedules ÷ a plain view", pairs, target=Target(0.65, "more"), note=note)
    yield over("GET of 20 schedules", [ours for ours, _ in pairs], "/s")
    yield over("GET of 20 schedules, plain view", [theirs for _, theirs in pairs], "/s")


def rate(caller: Caller, path: str, count: int) -> float:
    caller.send([caller.get(path)] * CONNECTIONS * 4, connections=CONNECTIONS)  # warm connections and caches
    began = time.monotonic()
    caller.send([caller.get(path)] * count, connections=CONNECTIONS)
    return count / (time.monotonic() - began)


@contextmanager
def plain_web(running: node.Node) -> Iterator[int]:
    """Serve the plain view on the node's database; give its port."""
    port = node.free_port()
    environment = {
        **running.environment,
        "PORT": str(port),
        "K1NODE_ROLE": "web",
        "DJANGO_SETTINGS_MODULE": "bench.bare_settings",
    }
    process = subprocess.Popen(
        [sys.executable, str(node.PROJECT / "manage.py"), "web"],
        cwd=node.PROJECT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with processes.running(process):
        processes.wait_until(lambda: node.answers(port, "/healthz"), 30, "the plain view's server")
        yield port
