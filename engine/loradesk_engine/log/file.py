"""The log file of one run: readable by its user only, of bounded size, and never in the way."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from loradesk_engine.log.entry import INDENT, Entry

MAX_FILE = 5 * 2**19
"""Bytes; then the file becomes `NAME.1.log` in place of an older one, so that a run has twice as much at most."""


class LogFile:
    """Takes entries; what cannot be written is counted, and tried no more than once an entry.

    Args:
        path: the file; its folder is made.
        limit: bytes after which it is rotated.

    Attributes:
        problem: why the last entry could not be written; empty when it could.
    """

    def __init__(self, path: Path, limit: int = MAX_FILE) -> None:
        self.path = path
        self.problem = ""
        self._limit = limit
        self._handle: int | None = None
        self._size = 0
        self._missing = 0

    def write(self, entry: Entry) -> None:
        """Append an entry. An error is kept in `problem`; nothing is raised."""
        data = f"{entry.text}\n".encode("utf-8", "replace")
        try:
            if self._size and self._size + len(data) > self._limit:
                self._rotate()
            if self._handle is None:
                self._open()
            if self._missing:
                self._append(f"\n{INDENT}({self._missing:,} entries are missing here: {self.problem})\n".encode())
            self._append(data)
        except OSError as problem:
            self._missing += 1
            self.problem = problem.strerror or str(problem)
            self.close()
        else:
            self.problem, self._missing = "", 0

    def close(self) -> None:
        """Close the file; the next entry opens it again."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with contextlib.suppress(OSError):
                os.close(handle)

    def _open(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        self._handle = os.open(self.path, flags, 0o600)
        if hasattr(os, "fchmod"):
            os.fchmod(self._handle, 0o600)  # also where it was there before
        self._size = os.fstat(self._handle).st_size

    def _rotate(self) -> None:
        self.close()
        os.replace(self.path, self.path.with_suffix(".1.log"))
        self._size = 0

    def _append(self, data: bytes) -> None:
        assert self._handle is not None
        while data:  # a full disk may take a part of it
            written = os.write(self._handle, data)
            self._size += written
            data = data[written:]
