"""A node of light fakes: `fake_node.py keep FOLDER` keeps them as `manage.py up` keeps the real ones.

The fake cluster is a parent, a sentinel below it and two workers below that, which take slots. A worker that finds
FOLDER/job starts a command with a child of its own session, is busy until FOLDER/job-done exists, and leaves if its
cluster is retired by then.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from k1node.lib import lifeline  # noqa: E402
from k1node.lib.board import Board, WorkerSlot  # noqa: E402
from k1node.node.keeper import Keeper, Plan  # noqa: E402

WORKERS = 2


def keep(folder: Path) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    def program(name: str) -> list[str]:
        return [sys.executable, __file__, name, str(folder)]

    plan = Plan(
        clock=program("clock"),
        sender=program("sender"),
        cluster=program("cluster"),
        web=program("web"),
        web_address=("127.0.0.1", 9),
        workers=WORKERS,
        drain_seconds=1,
        kill_grace_seconds=1,
        data=folder,
    )
    sys.exit(Keeper(plan, Board(folder / "board")).run())


def end_with_up() -> None:
    lifeline.watch(lambda: os.kill(os.getpid(), signal.SIGKILL))


def clock(folder: Path) -> None:
    end_with_up()
    board = Board(folder / "board")
    while True:
        board.clock_beat()
        time.sleep(0.1)


def sender(folder: Path) -> None:
    end_with_up()
    board = Board(folder / "board")
    while True:
        board.sender_beat()
        time.sleep(0.1)


def web(_folder: Path) -> None:
    end_with_up()
    signal.pause()


def cluster(folder: Path) -> None:
    os.register_at_fork(after_in_child=end_with_up)
    end_with_up()
    board = Board(folder / "board")
    number = int(os.environ["K1NODE_CLUSTER"])
    sentinel_pid = os.fork()
    if sentinel_pid == 0:
        sentinel(board, number, folder)
    signal.signal(signal.SIGTERM, lambda *_: (folder / "stop").touch())
    os.waitpid(sentinel_pid, 0)


def sentinel(board: Board, number: int, folder: Path) -> None:
    workers = set()
    for _ in range(WORKERS):
        pid = os.fork()
        if pid == 0:
            work(board, board.take_slot(number), folder)
            os._exit(0)
        workers.add(pid)
    entry = board.cluster(number)
    assert entry is not None
    while workers:
        entry.sentinel_at = entry.pusher_at = time.monotonic()
        pid, _status = os.waitpid(-1, os.WNOHANG)
        workers.discard(pid)
        time.sleep(0.05)
    os._exit(0)


def work(board: Board, slot: WorkerSlot, folder: Path) -> None:
    job, done = folder / "job", folder / "job-done"
    while not ((folder / "stop").exists() or board.drain_until or slot.is_retired):
        if job.exists() and slot.begin(max_running=1):
            job.rename(folder / "job-taken")
            command = subprocess.Popen(["sh", "-c", "setsid sleep 60 & wait"], start_new_session=True)
            slot.running(1, 1)
            slot.group(command.pid)
            (folder / "worker").write_text(f"{os.getpid()} {command.pid}")
            while not done.exists():
                time.sleep(0.05)
            command.kill()
            slot.end()
            (folder / "settled").touch()
        time.sleep(0.05)
    slot.leave()


if __name__ == "__main__":
    {"keep": keep, "clock": clock, "sender": sender, "web": web, "cluster": cluster}[sys.argv[1]](Path(sys.argv[2]))
