"""The sender of a real node: what it owes to its receivers however it dies, and what is left of it."""

import asyncio
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.node.running import PROJECT, RunningNode, running_node, until
from tests.webhooks import receivers as made
from tests.webhooks.receivers import Receivers

pytestmark = pytest.mark.node

SUBSCRIBE = """
from django.db import transaction
from tests.factories import make_webhook
from webhooks import fanout
with transaction.atomic():
    fanout.begin()
    make_webhook(url="http://127.0.0.1:{port}/hook", events=["schedule.deleted"], max_in_flight=8, max_retries=20)
"""
PUBLISH = """
import time
from datetime import UTC, datetime
from k1node.events import log
from k1node.lib import sql
for number in range({first}, {first} + {count}):
    data = {{"schedule_id": f"sched-{{number}}"}}
    sql.in_transaction(lambda: log.publish("schedule.deleted", data, now=datetime.now(UTC)))
    time.sleep({pause})
"""
LOOK = """
from collections import Counter
from webhooks.models import Delivery
print(sorted(Counter(Delivery.objects.values_list("state", flat=True)).items()))
"""


@pytest.fixture
def receivers() -> Iterator[Receivers]:
    with made.receivers() as each:
        yield each


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RunningNode]:
    with running_node(tmp_path, WEBHOOK_ALLOW_PRIVATE="1", K1NODE_MAX_CONCURRENT="1") as node:
        yield node


def shell(node: RunningNode, code: str) -> str:
    return node.command("shell", "--verbosity", "0", "-c", code)


def publishing(node: RunningNode, first: int, count: int, *, pause: float) -> "subprocess.Popen[bytes]":
    """Start a process that publishes events one after the other."""
    code = PUBLISH.format(first=first, count=count, pause=pause)
    command = [sys.executable, str(PROJECT / "manage.py"), "shell", "--verbosity", "0", "-c", code]
    return subprocess.Popen(command, env=node.environment)


def ids_by_event(receivers: Receivers) -> dict[str, set[str]]:
    """Return under which ids each event has arrived."""
    found = defaultdict(set)
    for request in list(receivers.requests):
        found[request.json["data"]["schedule_id"]].add(request["webhook-id"])
    return found


def unhurried(chance: random.Random) -> made.Behaviour:
    """Answer after a while, so that most kills meet a request that is under way."""
    behave = made.answer()

    async def later(request: made.Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(chance.uniform(0, 0.2))
        await behave(request, writer)

    return later


def sender(node: RunningNode) -> psutil.Process:
    process: psutil.Process = until(lambda: node.named("sender"), what="a sender")
    return process


def test_kill_9_of_the_sender_at_any_moment_loses_nothing(node: RunningNode, receivers: Receivers) -> None:
    chance = random.Random(5)
    shell(node, SUBSCRIBE.format(port=receivers.serve(unhurried(chance))))
    publisher = publishing(node, 0, 300, pause=0.1)
    kills = 0
    until(lambda: receivers.requests, what="the first request")

    while publisher.poll() is None:
        time.sleep(chance.uniform(0.5, 2.5))
        with suppress(IndexError, psutil.NoSuchProcess):  # it is being started again
            node.named("sender").kill()
            kills += 1

    assert publisher.wait() == 0
    wanted = {f"sched-{number}" for number in range(300)}
    until(lambda: set(ids_by_event(receivers)) == wanted, within=90, what="every event's arrival")
    until(lambda: "('delivered', 300)]" in shell(node, LOOK), within=90, what="every delivery's end")
    assert kills >= 3
    assert {len(ids) for ids in ids_by_event(receivers).values()} == {1}
    assert len({ids.pop() for ids in ids_by_event(receivers).values()}) == 300


def test_kill_9_of_up_leaves_no_sender_and_the_next_one_goes_on(node: RunningNode, receivers: Receivers) -> None:
    shell(node, SUBSCRIBE.format(port=receivers.serve(unhurried(random.Random(6)))))
    publisher = publishing(node, 0, 40, pause=0.05)
    until(lambda: receivers.requests, what="the first request")
    before = sender(node)
    assert node.process is not None

    node.process.kill()
    node.process.wait()

    until(lambda: not before.is_running() or before.status() == psutil.STATUS_ZOMBIE, what="the sender's end")
    assert publisher.wait() == 0
    node.start()
    until(lambda: len(ids_by_event(receivers)) == 40, what="every event's arrival")
    assert {len(ids) for ids in ids_by_event(receivers).values()} == {1}


def test_a_sender_that_hangs_is_replaced(node: RunningNode, receivers: Receivers) -> None:
    shell(node, SUBSCRIBE.format(port=receivers.serve(made.answer())))
    before = sender(node)

    before.send_signal(signal.SIGSTOP)
    assert publishing(node, 0, 1, pause=0).wait() == 0

    until(lambda: node.named("sender").pid != before.pid, within=60, what="another sender")
    until(lambda: receivers.requests, what="the event's arrival")
    assert "Sender hangs and is killed" in node.log()


def test_a_stop_gives_a_request_time_and_gives_back_the_rest(node: RunningNode, receivers: Receivers) -> None:
    async def slowly(request: made.Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(1 if request.json["data"]["schedule_id"] == "sched-0" else 60)
        writer.write(made.HEAD + b"\r\n")

    shell(node, SUBSCRIBE.format(port=receivers.serve(slowly)))
    assert publishing(node, 0, 2, pause=0).wait() == 0
    until(lambda: len(receivers.requests) == 2, what="both requests")

    assert node.stop() == 0

    assert node.everything() == []
    assert shell(node, LOOK).strip() == "[('delivered', 1), ('pending', 1)]"
