"""How busy this machine is, smoothed so that one spike blocks nothing."""

import math

import psutil

TIME_CONSTANT_SECONDS = 10.0


def smoothed(before: float, sample: float, seconds: float) -> float:
    """Return the moving average after `sample`, taken `seconds` after the last one."""
    return before + (sample - before) * (1 - math.exp(-seconds / TIME_CONSTANT_SECONDS))


class LoadMeter:
    """Measures at each call; the first seconds of a node count as idle, for its own start is what keeps it busy."""

    def __init__(self, now: float) -> None:
        self._cpu_percent = 0.0
        self._measured_at = now
        psutil.cpu_percent()  # the figures count from here

    def measure(self, now: float) -> tuple[float, float]:
        """Return (smoothed CPU %, memory %)."""
        sample = psutil.cpu_percent()
        self._cpu_percent = smoothed(self._cpu_percent, sample, now - self._measured_at)
        self._measured_at = now
        return self._cpu_percent, psutil.virtual_memory().percent
