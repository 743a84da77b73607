"""The Python handlers every node has, for trying a schedule and for measuring the queue."""

import time

from scheduling.registry import Context, handler

STEP_SECONDS = 0.05


@handler("noop")
def noop(**parameters: object) -> None:
    """Do nothing, with any parameters."""


@handler("sleep")
def sleep(context: Context, seconds: float = 1.0) -> None:
    """Wait `seconds`; it can be paused, and paused time is not slept."""
    left = seconds
    while left > 0:
        context.checkpoint()
        step = min(STEP_SECONDS, left)
        time.sleep(step)
        left -= step
