"""A real node for a measurement: `manage.py up` with web, clock and workers, on a folder and a port of its own."""

import base64
import http.client
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import processes

PROJECT = Path(__file__).resolve().parent.parent
READY_SECONDS = 90.0
SCOPES = ("scheduler:write", "scheduler:trigger", "error-recovery:read", "batch:write")
REQUESTS_PER_HOUR = 10_000_000  # as good as none

# What the node sees of the environment this runs in; everything else is set below.
INHERITED = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "VIRTUAL_ENV")


@dataclass(frozen=True)
class Site:
    """A data folder with its database, and the environment to work on them; no process."""

    folder: Path
    environment: Mapping[str, str]

    @property
    def handler_root(self) -> Path:
        return self.folder / "handlers"

    def manage(self, *arguments: str) -> str:
        """Run a command of manage.py and return what it prints."""
        return self._run(str(PROJECT / "manage.py"), *arguments)

    def inside(self, command: str, **arguments: object) -> Any:
        """Run one of the functions of bench.inside on this site's database and return its answer."""
        return json.loads(self._run("-m", "bench.inside", command, json.dumps(arguments)).splitlines()[-1])

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=PROJECT, env=dict(self.environment), capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout


@dataclass(frozen=True)
class Node(Site):
    """A running node."""

    port: int
    pid: int  # of `up`

    def key(self) -> str:
        """Return a new API key."""
        scopes = [word for scope in SCOPES for word in ("--scope", scope)]
        printed = self.manage("createapikey", "bench", *scopes, "--rate-limit", str(REQUESTS_PER_HOUR))
        return printed.splitlines()[-1].strip()


@contextmanager
def site(database: Mapping[str, str] | None = None, **settings: object) -> Iterator[Site]:
    """Give a migrated data folder; `database` is the environment that reaches a PostgreSQL."""
    with _folder(database, settings) as (folder, environment):
        new = Site(folder, environment)
        new.manage("migrate", "--verbosity", "0")
        yield new


@contextmanager
def node(*, workers: int, database: Mapping[str, str] | None = None, **settings: object) -> Iterator[Node]:
    """Give a running node that says it is ready; it is stopped and removed at exit."""
    port = free_port()
    settings |= {"PORT": port, "K1NODE_WORKERS": workers}
    with (
        _folder(database, settings) as (folder, environment),
        (folder / "up.log").open("wb") as log,
        processes.running(
            subprocess.Popen(
                [sys.executable, str(PROJECT / "manage.py"), "up"],
                cwd=PROJECT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        ) as process,
    ):
        try:
            processes.wait_until(
                lambda: process.poll() is not None or is_ready(port), READY_SECONDS, "the node to be ready", every=0.2
            )
            if process.poll() is not None:
                raise RuntimeError(f"`up` has ended with exit code {process.returncode}")
            yield Node(folder, environment, port, process.pid)
        except BaseException as error:
            tail = (folder / "up.log").read_text(errors="replace").splitlines()[-40:]
            error.add_note("The node's log ends:\n" + "\n".join(tail))
            raise


@contextmanager
def _folder(
    database: Mapping[str, str] | None, settings: Mapping[str, object]
) -> Iterator[tuple[Path, dict[str, str]]]:
    with tempfile.TemporaryDirectory(prefix="k1bench-") as name:
        folder = Path(name)
        (folder / "handlers").mkdir()
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
        environment |= {
            "DJANGO_SETTINGS_MODULE": "k1node.settings",
            "SECRET_KEY": secrets.token_urlsafe(48),
            "K1NODE_AUDIT_KEY": secrets.token_urlsafe(48),
            "K1NODE_KEYRING": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "JWT_SECRET": secrets.token_urlsafe(48),
            "K1NODE_DATA": str(folder / "data"),
            "K1NODE_HANDLER_ROOT": str(folder / "handlers"),
            "K1NODE_HANDLER_MODULES": "bench.handlers",
            "K1NODE_MAX_CPU_PERCENT": "100",
            "K1NODE_MAX_MEMORY_PERCENT": "100",
            "RATE_LIMIT_REQUESTS": "10000000",
            "RATE_LIMIT_BURST": "10000000",
        }
        environment |= {name: str(value) for name, value in settings.items()}
        yield folder, environment | dict(database or {})


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def is_ready(port: int) -> bool:
    """Say whether the node on this port is ready."""
    return answers(port, "/readyz")


def answers(port: int, path: str) -> bool:
    """Say whether `path` is answered with 200 on this port."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
