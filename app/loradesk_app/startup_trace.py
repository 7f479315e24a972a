"""How long a start takes, counted from the start of the process."""

from __future__ import annotations

import os
import time

STAGES = ("interpreter up", "Qt imported", "window shown", "first paint", "worker ready", "model loaded")


def process_start() -> float:
    """When the system started this process, in seconds since the epoch."""
    try:
        with open("/proc/self/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])
        with open("/proc/uptime", "rb") as file:
            uptime = float(file.read().split()[0])
        return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        import psutil

        created: float = psutil.Process().create_time()
        return created


class StartupTrace:
    """Prints each stage with its milliseconds when it is reached, once. Silent unless it is switched on."""

    def __init__(self, started: float) -> None:
        self._up = time.time()
        self._started = started
        self._marks: dict[str, float] = {}
        self.on = False

    def mark(self, stage: str, at: float | None = None) -> None:
        if stage in self._marks:
            return
        self._marks[stage] = milliseconds = ((at or time.time()) - self._started) * 1000
        if self.on:
            print(f"{stage:<16}{milliseconds:8.0f} ms", flush=True)

    def seconds(self, stage: str) -> float:
        """When a stage was reached, in seconds since the start of the process."""
        return self._marks[stage] / 1000

    def mark_interpreter(self) -> None:
        """The interpreter was up when this object was made."""
        self.mark("interpreter up", self._up)
