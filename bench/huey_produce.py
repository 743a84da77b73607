"""Huey's producer: python -m bench.huey_produce COUNT enqueues and prints when it began, in seconds of the epoch.

A program of its own: tasks are named after the module they are defined in, which must not be __main__.
"""

import sys
import time

from bench.huey_app import noop


def produce(count: int) -> float:
    """Enqueue `count` tasks and return when the first was."""
    began = time.time()
    for _ in range(count):
        noop()
    return began


if __name__ == "__main__":
    print(produce(int(sys.argv[1])))
