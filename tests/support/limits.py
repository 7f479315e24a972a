"""What reading a file may cost: processor time, and memory in proportion to the file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CPU_SECONDS = 5.0
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
