"""The latest entries of this run, in memory."""

from __future__ import annotations

import threading
from collections import deque
from itertools import islice

from loradesk_engine.log.entry import Entry

MAX_ENTRIES = 100_000


class Ring:
    """Keeps the latest entries; any thread may write and read."""

    def __init__(self, limit: int = MAX_ENTRIES) -> None:
        self._entries: deque[Entry] = deque(maxlen=limit)
        self._lock = threading.Lock()
        self._total = 0

    @property
    def total(self) -> int:
        """How many entries there have been."""
        return self._total

    def add(self, entry: Entry) -> None:
        with self._lock:
            self._entries.append(entry)
            self._total += 1

    def since(self, total: int) -> tuple[list[Entry], int]:
        """The entries after the first `total` that are still kept, and how many there have been by now."""
        with self._lock:
            new = min(self._total - total, len(self._entries))
            return list(islice(self._entries, len(self._entries) - new, None)), self._total
