"""Handlers for the node under measurement; it imports this module through K1NODE_HANDLER_MODULES."""

import time
from pathlib import Path

from scheduling.registry import Context, handler

LOOK_SECONDS = 0.002


@handler("bench.gate")
def gate(path: str) -> None:
    """Hold a worker until the file `path` exists, so that the queue can be filled while nobody takes from it."""
    file = Path(path)
    while not file.exists():
        time.sleep(LOOK_SECONDS)


@handler("bench.sometimes")
def sometimes(context: Context) -> None:
    """Fail at the first attempt of one task in ten."""
    if context.attempt == 1 and context.task_id.endswith("7"):
        raise RuntimeError("one in ten")


@handler("bench.failing")
def failing() -> None:
    time.sleep(0.01)
    raise RuntimeError("down")
