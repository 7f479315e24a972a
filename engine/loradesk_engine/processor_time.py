"""A limit on a thread's processor time. On a busy machine the same work takes longer, but no more processor time, so
such a limit gives the same result whatever else runs.
"""

from __future__ import annotations

import time


class ProcessorTimeLimit:
    """Processor time that the thread which makes this object may spend. Only that thread may ask.

    Args:
        seconds: how much it is, from now on.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.thread_time() + seconds
        self._earliest = time.monotonic() + seconds

    def is_over(self) -> bool:
        """Whether the time is spent. May be asked often: reading a thread's clock is a system call, so it is read only
        once so much time has passed that it can be spent.
        """
        now = time.monotonic()
        if now < self._earliest:
            return False
        left = self._end - time.thread_time()
        self._earliest = now + left
        return left <= 0
