"""The only file of the tests that reads a clock. How fast a machine is, and what else runs on it, decides no test.

To wait for another thread or process: `wait_until`, or `PATIENCE` where a call takes a timeout. To bound what something
costs: count its steps, bytes or calls, or give it a clock of your own; where only time shows it, `processor_time`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE = 120.0  # seconds; only guards against waiting for ever
PAUSE = 0.01


def wait_until(condition: Callable[[], object], what: str = "what is waited for") -> None:
    """Wait for a condition that another thread or process brings about.

    Raises:
        AssertionError: it does not come within `PATIENCE`; the message names `what`.
    """
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what} does not come"
        time.sleep(PAUSE)


def pause(seconds: float) -> None:
    """Do nothing for a while: for work that another thread may do meanwhile, never for work that it must have done."""
    time.sleep(seconds)


@contextmanager
def processor_time(limit: float, what: str = "it") -> Iterator[None]:
    """What is done inside takes less processor time of this thread than `limit` (seconds). Other processes and threads
    do not count, but processors differ: set it at ten times the aim or more. The message names `what`.
    """
    start = time.thread_time()
    yield
    spent = time.thread_time() - start
    assert spent < limit, f"{what} takes {spent:.1f} s of processor time, over {limit:g} s"
