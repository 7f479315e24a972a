"""What reading a file may cost: processor time, and memory in proportion to the file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.clock import processor_time

CPU_SECONDS = 20.0  # ten times what the slowest of them takes, or more
ROOM, TIMES = 64 * 2**20, 64
"""Address space that a load may take: for what torch and the libraries set aside, and for each byte of the files."""


@contextmanager
def limited_memory(size: int) -> Iterator[None]:
    """No more address space beyond what is taken now than files of `size` bytes may cost, where the system can be told
    so."""
    if not sys.platform.startswith("linux"):
        yield
        return
    import resource

    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM + TIMES * size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def cheap_reading(path: Path) -> Iterator[None]:
    """What is done inside with a file takes no more memory than its size allows, and no more than `CPU_SECONDS`."""
    with processor_time(CPU_SECONDS), limited_memory(path.stat().st_size):
        yield
