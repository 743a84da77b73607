"""Handlers for the node under measurement; it imports this module through K1NODE_HANDLER_MODULES."""

import time
from pathlib import Path

from scheduling.registry import handler

LOOK_SECONDS = 0.002


@handler("bench.gate")
def gate(path: str) -> None:
    """Hold a worker until the file `path` exists, so that the queue can be filled while nobody takes from it."""
    file = Path(path)
    while not file.exists():
        time.sleep(LOOK_SECONDS)
