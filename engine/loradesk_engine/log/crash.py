"""What is left of a run that ended hard: the stacks that `faulthandler` writes, or nothing but an open file."""

from __future__ import annotations

import contextlib
import faulthandler
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

SUFFIX = ".crash"
MAX_CHARACTERS = 20_000


@dataclass(frozen=True)
class Crash:
    """A run that did not end as it should.

    Attributes:
        run: name of its files.
        stacks: where each thread was; empty when the process was killed from outside.
    """

    run: str
    stacks: str


class CrashFile:
    """Takes the stacks of a crash. It exists while the process lives, and is deleted at an orderly end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None
        self._enabled = False

    def open(self) -> None:
        """Let a crash of this process be written there, unless somebody else takes crashes already.

        Raises:
            OSError: the file cannot be made.
        """
        self._file = open(  # noqa: SIM115 - it stays open as long as the process lives
            self.path, "xb", buffering=0, opener=lambda path, flags: os.open(path, flags, 0o600)
        )
        if not faulthandler.is_enabled():  # under PYTHONFAULTHANDLER they go to stderr
            faulthandler.enable(self._file)
            self._enabled = True

    def close(self) -> None:
        """The end is an orderly one."""
        if self._file is None:
            return
        if self._enabled:
            faulthandler.disable()
            self._enabled = False
        self._file.close()
        self._file = None
        with contextlib.suppress(OSError):
            self.path.unlink()


def take_crashes(folder: Path, program: str) -> Iterator[Crash]:
    """Runs of this program that did not end as they should; each is reported once, and its file deleted."""
    for path in sorted(folder.glob(f"{program}-*{SUFFIX}")):
        if _lives(path):
            continue
        with contextlib.suppress(OSError):
            with open(path, encoding="utf-8", errors="replace") as file:
                stacks = file.read(MAX_CHARACTERS)
            path.unlink()
            yield Crash(path.stem, stacks.strip())


def _lives(path: Path) -> bool:
    """Whether the process that a crash file belongs to is still there."""
    number = path.stem.rpartition("-")[2]
    if not number.isdecimal() or int(number) == os.getpid():
        return True
    if os.name != "posix":
        try:  # Windows lets nobody delete a file that is open
            path.rename(path)
        except OSError:
            return True
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
