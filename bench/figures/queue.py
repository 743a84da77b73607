"""No-op tasks through the whole path: beside Huey, posted over HTTP, and on PostgreSQL beside SQLite."""

from collections.abc import Iterator, Mapping

from bench import huey_side, node
from bench.effort import WORKERS, Effort
from bench.http_client import Caller
from bench.results import Figure, Target, over, over_pairs

NOOP = "python:noop"
CONNECTIONS = 8
EVENT = "bench.event"
SCHEDULES = 200
AT_LEAST = Target(1.6, "more")


def noop(effort: Effort) -> Iterator[Figure]:
    """Queued tasks drained by two workers: ours ÷ Huey's tasks a second.

    Both queues are filled first. Ours are timed from the start of the first task to the commit of the last settlement,
    Huey's from its first execution to its last. Huey is measured as it comes, which syncs its file at each commit, and
    as our workers write (synchronous=NORMAL, no sync at a commit): the harder comparison, and the one without the disk.
    """
    count = effort.pick(20_000, 10_000)
    fewer = count // 4  # its rate is the same, and a slow disk would make this take minutes
    ours_cpu, huey_cpu = [], []

    def ours() -> float:
        rate, cpu = drained(count)
        ours_cpu.append(cpu)
        return rate

    def theirs() -> float:
        ran = huey_side.drain(count, workers=WORKERS, synchronous="NORMAL")
        huey_cpu.append(ran.cpu_seconds / count * 1e6)
        return count / ran.seconds

    def theirs_as_it_comes() -> float:
        return fewer / huey_side.drain(fewer, workers=WORKERS).seconds

    pairs = effort.interleave(ours, theirs)
    note = f"{count:,} tasks, {WORKERS} workers; Huey with synchronous=NORMAL, as our workers have it"
    yield over_pairs("noop ÷ Huey, same durability", pairs, target=AT_LEAST, aim=2.0, note=note)
    ours_alone = [rate for rate, _ in pairs]
    yield over("noop", ours_alone, "/s", aim=10_000)
    yield over("noop, Huey, same durability", [rate for _, rate in pairs], "/s")
    pairs = effort.interleave(ours, theirs_as_it_comes)
    note = f"SqliteHuey as it comes: synchronous=FULL, {fewer:,} tasks"
    yield over_pairs("noop ÷ Huey", pairs, target=AT_LEAST, aim=2.0, note=note)
    yield over("noop, Huey", [rate for _, rate in pairs], "/s")
    yield over("noop, CPU a task", ours_cpu, " µs", note="all processes of the node")
    yield over("noop, CPU a task, Huey", huey_cpu, " µs", note="its start included")


def noop_postgresql(effort: Effort) -> Iterator[Figure]:
    """The same on PostgreSQL ÷ on SQLite."""
    count = effort.pick(20_000, 10_000)
    server = effort.postgresql()

    def on_postgresql() -> float:
        with server.database() as database:
            return drained(count, database)[0]

    pairs = effort.interleave(on_postgresql, lambda: drained(count)[0])
    yield over_pairs(
        "noop, PostgreSQL ÷ SQLite", pairs, target=Target(0.8, "more"), note=f"PostgreSQL {server.version()}"
    )
    yield over("noop, PostgreSQL", [ours for ours, _ in pairs], "/s", aim=10_000)
    yield over("noop, SQLite", [theirs for _, theirs in pairs], "/s")


def drained(count: int, database: Mapping[str, str] | None = None) -> tuple[float, float]:
    """Return the tasks a second of a new node, and its CPU in microseconds a task."""
    with node.node(workers=WORKERS, database=database) as running:
        answer = running.inside("drain", count=count, handler=NOOP, workers=WORKERS, up=running.pid)
    return count / float(answer["seconds"]), float(answer["cpu_seconds"]) / count * 1e6


def noop_http(effort: Effort) -> Iterator[Figure]:
    """Tasks posted over HTTP by one client and drained at the same time, ÷ Huey with its enqueueing counted in.

    From the first request (first enqueue) to the last settlement seen (last execution).
    """
    one_each = effort.pick(2_000, 1_000)
    pairs = effort.interleave(lambda: posted(one_each), lambda: enqueued_by_huey(one_each))
    note = f"POST /tasks, {one_each:,} requests of one task, {CONNECTIONS} connections"
    yield over_pairs("noop over HTTP ÷ Huey", pairs, target=Target(1.0, "more"), note=note)
    yield over("noop over HTTP", [ours for ours, _ in pairs], "/s")
    count = effort.pick(20_000, 10_000)
    pairs = effort.interleave(lambda: triggered(count), lambda: enqueued_by_huey(count))
    note = f"POST /scheduler/trigger, {count // SCHEDULES} requests of {SCHEDULES} tasks, {CONNECTIONS} connections"
    yield over_pairs("noop by triggers ÷ Huey", pairs, target=Target(1.0, "more"), note=note)
    yield over("noop by triggers", [ours for ours, _ in pairs], "/s")
    yield over("enqueue and run, Huey", [theirs for _, theirs in pairs], "/s")


def posted(count: int) -> float:
    with node.node(workers=WORKERS) as running:
        caller = Caller(running.port, running.key())
        requests = [
            caller.post("/api/v2/tasks", {"task_id": f"posted-{number}", "handler": NOOP}) for number in range(count)
        ]
        return sent(running, caller, requests, tasks=count)


def triggered(count: int) -> float:
    with node.node(workers=WORKERS) as running:
        caller = Caller(running.port, running.key())
        running.inside("add_event_schedules", event=EVENT, count=SCHEDULES, handler=NOOP)
        request = caller.post("/api/v2/scheduler/trigger", {"event": EVENT, "metadata": {}})
        return sent(running, caller, [request] * (count // SCHEDULES), tasks=count)


def sent(running: node.Node, caller: Caller, requests: list[bytes], *, tasks: int) -> float:
    """Return the tasks a second from the first request to the last settlement."""
    began = caller.send(requests, connections=CONNECTIONS)
    return tasks / (float(running.inside("await_completed", count=tasks)["done_at"]) - began)


def enqueued_by_huey(count: int) -> float:
    # Our web process syncs at each commit, and so does Huey as it comes.
    return count / huey_side.with_enqueue(count, workers=WORKERS)
