"""A real node, started as the README says, for tests that use it, kill parts of it and look at what is left."""

import atexit
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import psutil
from django.conf import settings as ours

from k1node.lib.board import BUSY, Board
from tests import databases

PROJECT = Path(__file__).resolve().parent.parent.parent
HEALS_WITHIN = 30.0  # seconds, as promised


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(check: Callable[[], Any], *, within: float = HEALS_WITHIN, what: str = "it") -> Any:
    """Return the first true value of `check`, asked for again and again; fail when there is none in time."""
    end = time.monotonic() + within
    while True:
        with suppress(OSError, psutil.NoSuchProcess, LookupError, ValueError):
            if found := check():
                return found
        assert time.monotonic() < end, f"{what} did not happen within {within:g} s"
        time.sleep(0.1)


# What nodes of one PostgreSQL share and must be given.
SECRETS = {
    "SECRET_KEY": "only-for-tests-" + "0123456789abcdef" * 3,
    "JWT_SECRET": "only-for-tests-of-tokens-" + "fedcba9876543210" * 3,
    "K1NODE_KEYRING": "b25seS1mb3ItdGVzdHMtb25seS1mb3ItdGVzdHMtb24=",
    "K1NODE_AUDIT_KEY": "only-for-tests-of-the-log-" + "02468ace13579bdf" * 3,
}


@dataclass
class RunningNode:
    data: Path
    root: Path
    settings: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    key: str = ""

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
        return {
            **kept,
            "K1NODE_DATA": str(self.data),
            "K1NODE_HANDLER_ROOT": str(self.root),
            "PORT": str(self.port),
            "K1NODE_MAX_CPU_PERCENT": "100",
            "K1NODE_MAX_MEMORY_PERCENT": "100",
            "K1NODE_DRAIN_SECONDS": "3",
            "K1NODE_KILL_GRACE_SECONDS": "2",
            "RATE_LIMIT_REQUESTS": "10000000",
            "RATE_LIMIT_BURST": "10000000",
            **self.settings,
        }

    # --- life ---

    def start(self) -> None:
        with (self.data / "up.log").open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(PROJECT / "manage.py"), "up"],
                env=self.environment,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        until(self._is_up, within=60, what="readiness")
        if not self.key:
            self.key = self.command("createapikey", "tests", "--scope", "admin").splitlines()[-1]

    def stop(self) -> int:
        """Ask the node to end and return its exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(60)

    def end_for_sure(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
        for process in self.everything():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self.process is not None:
            self.process.wait(10)

    def command(self, *arguments: str) -> str:
        return subprocess.run(
            [sys.executable, str(PROJECT / "manage.py"), *arguments],
            env=self.environment,
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout

    def log(self) -> str:
        return (self.data / "up.log").read_text()

    def _is_up(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            raise RuntimeError(f"up has ended: {self.log()[-3000:]}")
        return self.is_ready()

    def is_ready(self) -> bool:
        return self.request("GET", "/readyz")[0] == 200

    # --- API ---

    def request(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")

    def call(self, method: str, path: str, body: object = None) -> Any:
        """Return the answer's body; anything but a 2xx is a failure."""
        status, answer = self.request(method, f"/api/v2{path}", body)
        assert 200 <= status < 300, (status, answer)
        return answer

    def submit(self, handler: str, **fields: object) -> str:
        return str(self.call("POST", "/tasks", {"handler": handler, **fields})["task_id"])

    def task(self, task_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.call("GET", f"/tasks/{task_id}")
        return found

    def has_status(self, task_id: str, *statuses: str) -> bool:
        return self.task(task_id)["status"] in statuses

    def wait_for(self, task_id: str, *statuses: str, within: float = HEALS_WITHIN) -> dict[str, Any]:
        until(lambda: self.has_status(task_id, *statuses), within=within, what=f"{task_id} in {statuses}")
        return self.task(task_id)

    # --- processes ---

    def everything(self) -> list[psutil.Process]:
        """Return every process whose environment names this node's data folder."""
        mark = f"K1NODE_DATA={self.data}".encode()
        found = []
        for process in psutil.process_iter():
            with suppress(OSError, psutil.Error):
                if process.pid != os.getpid() and mark in Path(f"/proc/{process.pid}/environ").read_bytes().split(
                    b"\0"
                ):
                    found.append(process)
        return found

    def named(self, command: str) -> psutil.Process:
        """Return the child of `up` that runs this management command."""
        assert self.process is not None
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if child.cmdline()[-1:] == [command]][0]

    @property
    def board(self) -> Board:
        return Board(self.data / "run" / "board")

    def sentinel(self) -> psutil.Process:
        return min(self.named("cluster").children(), key=lambda child: child.create_time())

    def workers(self, *, busy: bool) -> list[psutil.Process]:
        board = self.board
        return [
            psutil.Process(slot.pid)
            for _, slot in board.slots()
            if (slot.state == BUSY) == busy and board.is_alive(slot)
        ]

    def helpers(self) -> tuple[psutil.Process, psutil.Process]:
        """Return the cluster's monitor and pusher: the sentinel's children that are no workers, in their order."""
        slots = {slot.pid for _, slot in self.board.slots()}
        others = [child for child in self.sentinel().children() if child.pid not in slots]
        monitor, pusher = sorted(others, key=lambda child: (child.create_time(), child.pid))
        return monitor, pusher


SCRIPTS = {
    # Tells the file it is given about its life, line by line.
    "job.sh": 'echo "start $$" >> "$K1_PARAM_FILE"; sleep "$K1_PARAM_SECONDS"; echo "end $$" >> "$K1_PARAM_FILE"',
    # The same, but it ends when a file is there, and no sooner.
    "held.sh": (
        'echo "start $$" >> "$K1_PARAM_FILE"; until [ -e "$K1_PARAM_UNTIL" ]; do sleep 0.2; done; '
        'echo "end $$" >> "$K1_PARAM_FILE"'
    ),
    "hello.sh": 'echo "hello from $K1_TASK_ID"; cat',
}


# Each start would take some seconds of CPU for the migrations: nodes get a database that has them.


def _migrate(reach: dict[str, str]) -> None:
    """Make the tables of the database that this environment leads to."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    command = [sys.executable, str(PROJECT / "manage.py"), "migrate", "--verbosity", "0"]
    subprocess.run(command, env=kept | SECRETS | reach, check=True, timeout=120)


@cache
def _migrated_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="migrated-", dir=ours.K1NODE_DATA))
    _migrate({"K1NODE_DATA": str(folder)})
    return folder


@cache
def template() -> str:
    """Return the name of a migrated database on this run's PostgreSQL."""
    reach = _until_the_end.enter_context(databases.fresh())
    _migrate(reach | {"K1NODE_DATA": str(ours.K1NODE_DATA)})
    return reach["DB_NAME"]


_until_the_end = ExitStack()
atexit.register(_until_the_end.close)


@contextmanager
def running_node(folder: Path, **settings: str) -> Iterator[RunningNode]:
    """Give a started node with the SCRIPTS above, ended for sure at exit.

    Its database is a new one of the kind this run is about, unless the settings name one.
    """
    if databases.ON_POSTGRESQL and "DB_HOST" not in settings:
        with (
            databases.fresh(template()) as database,
            running_node(folder, **database, **SECRETS, **settings) as node,
        ):
            yield node
        return
    data, root = folder / "data", folder / "handlers"
    data.mkdir(parents=True)
    root.mkdir()
    if "DB_HOST" not in settings:
        for file in _migrated_folder().glob("k1node.sqlite3*"):
            shutil.copy(file, data)
            (data / file.name).chmod(0o600)
    for name, body in SCRIPTS.items():
        (root / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (root / name).chmod(0o755)
    node = RunningNode(data, root, settings)
    try:
        node.start()
        yield node
    except BaseException:
        if (data / "up.log").exists():
            print(node.log()[-8000:])
        raise
    finally:
        node.end_for_sure()


def start_job(node: RunningNode, file: Path, seconds: float) -> str:
    """Return the id of a job that runs now."""
    task_id = node.submit("bash job.sh", parameters={"file": str(file), "seconds": seconds}, retry_policy="aggressive")
    until(lambda: file.exists(), what="the job's start")
    return task_id


def lines(file: Path) -> list[str]:
    return [line.split()[0] for line in file.read_text().splitlines()]
