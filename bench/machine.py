"""What a figure depends on besides the code: the machine and the versions, and how busy it was at the start."""

import os
import platform
import sqlite3
from importlib.metadata import version
from pathlib import Path

import psutil


def facts() -> list[str]:
    """Return one line for each fact."""
    one, five, fifteen = os.getloadavg()
    memory = psutil.virtual_memory().total / 2**30
    return [
        f"{len(os.sched_getaffinity(0))} cores ({_processor()}), {memory:.0f} GiB, Linux {platform.release()}",
        f"Python {platform.python_version()}, Django {version('django')}, SQLite {sqlite3.sqlite_version},"
        f" Huey {version('huey')}",
        f"Load average at the start {one:.2f} {five:.2f} {fifteen:.2f}",
    ]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
