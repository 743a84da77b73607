"""`manage.py up` itself, with its real children, on a folder and a port of its own."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings

from k1node.node import process_table

pytestmark = pytest.mark.node

START_SECONDS = 180  # with all migrations, beside other tests


class Up:
    def __init__(self, data: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.log = data / "up.log"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("K1", "DB_", "PYTEST"))},
            "K1NODE_DATA": str(data),
            "PORT": str(self.port),
            "K1NODE_WORKERS": "2",
            "K1NODE_DRAIN_SECONDS": "2",
            "ALLOWED_HOSTS": "127.0.0.1",
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(self.command(), env=self.environment, stdout=log, stderr=subprocess.STDOUT)
        self.seen: set[int] = set()

    def command(self) -> list[str]:
        return [sys.executable, str(settings.BASE_DIR / "manage.py"), "up"]

    def wait_until_it_answers(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=2):
                    break
            except OSError:
                time.sleep(0.1)
        else:
            pytest.fail(self.log.read_text())
        self.seen |= process_table.descendants(process_table.read(), {self.process.pid})

    def alive(self) -> set[int]:
        table = process_table.read()
        return {pid for pid in self.seen if pid in table and not table[pid].is_dead}

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(timeout=30)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        end = time.monotonic() + 20
        while self.alive() and time.monotonic() < end:
            time.sleep(0.1)  # the children see that `up` is gone


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    up = Up(tmp_path)
    yield up
    up.end()


def test_a_node_starts_from_nothing_refuses_a_second_and_stops_without_a_trace(up: Up) -> None:
    up.wait_until_it_answers()

    second = subprocess.run(up.command(), env=up.environment, capture_output=True, text=True, timeout=30, check=False)
    assert (second.returncode, f"process {up.process.pid}" in second.stderr) == (1, True)

    assert (up.stop(), up.alive()) == (0, set())
    first = up.log.read_text()
    assert re.search(r"Password +[0-9a-z]{20}\n", first)
    assert f"http://localhost:{up.port}/admin/" in first

    again = Up(up.log.parent)
    try:
        again.wait_until_it_answers()
        assert again.stop() == 0
        assert "Password" not in again.log.read_text()
    finally:
        again.end()
