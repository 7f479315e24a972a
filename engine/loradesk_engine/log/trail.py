"""The log of one run of the program: started once, stopped at its end."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import ClassVar

from loradesk_engine.log.crash import SUFFIX, CrashFile, take_crashes
from loradesk_engine.log.entry import Entry, is_ours
from loradesk_engine.log.file import LogFile
from loradesk_engine.log.folder import log_folder, new_name, prune
from loradesk_engine.log.hooks import Hooks
from loradesk_engine.log.levels import Levels
from loradesk_engine.log.redaction import protect
from loradesk_engine.log.ring import Ring

logger = logging.getLogger(__name__)

TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")

FULL_TRACES = 3
"""Times that the same traceback is logged in full; a defect in painting comes many times a second."""


class Trail:
    """Collects what is logged: in memory, in a file of the user's log folder, and on stderr if asked for.

    Args:
        program: first word of the file's name: `window`, or a subcommand.
        levels: how much is logged.
        folder: where the files are; None for the user's log folder.
        stderr: whether to show the lines on stderr, too.

    Attributes:
        ring: the entries of this run.
        file: the file of this run.
    """

    active: ClassVar[Trail | None] = None  # the one that runs in this process

    def __init__(
        self, program: str, levels: Levels | None = None, *, folder: Path | None = None, stderr: bool = False
    ) -> None:
        self.folder = folder or log_folder()
        name = new_name(program)
        self.ring = Ring()
        self.file = LogFile(self.folder / f"{name}.log")
        self._program = program
        self._levels = levels or Levels()
        self._stderr = stderr
        self._crash = CrashFile(self.folder / f"{name}{SUFFIX}")
        self._hooks = Hooks()
        self._handler = _Handler(self._take)
        self._before: dict[str, int] = {}
        self._traces: dict[int, int] = {}  # hash of a traceback -> times
        self._watchers: list[Callable[[Entry], None]] = []
        self.running = False

    @property
    def problem(self) -> str:
        """Why nothing can be written to the file; empty when it can."""
        return self.file.problem

    def start(self) -> None:
        """Begin to collect, and to log errors that nothing catches. A folder that cannot be written to breaks nothing:
        the entries are in memory then, and `problem` says why.
        """
        for name, level in self._levels.all().items():
            self._before[name] = logging.getLogger(name).level
            logging.getLogger(name).setLevel(level)
        for variable in TOKEN_VARIABLES:
            protect(os.environ.get(variable))
        logging.getLogger().addHandler(self._handler)
        self._hooks.install()
        self.running = True
        Trail.active = self
        logger.info("%s", _introduction(self._program))
        prune(self.folder)
        self._report_crashes()
        with contextlib.suppress(OSError):
            self._crash.open()

    def stop(self) -> None:
        """Stop collecting, at an orderly end of the program."""
        if not self.running:
            return
        self.running = False
        if Trail.active is self:
            Trail.active = None
        self._hooks.remove()
        logging.getLogger().removeHandler(self._handler)
        for name, level in self._before.items():
            logging.getLogger(name).setLevel(level)
        self._before.clear()
        self._crash.close()
        self.file.close()

    def discard(self) -> None:
        """Stop, and leave no file: nothing happened in this run."""
        self.stop()
        with contextlib.suppress(OSError):
            self.file.path.unlink()

    def watch(self, watcher: Callable[[Entry], None]) -> None:
        """Call `watcher` with the entry of each defect, in the thread in which it came about."""
        self._watchers.append(watcher)

    def unwatch(self, watcher: Callable[[Entry], None]) -> None:
        """Call it no more."""
        if watcher in self._watchers:
            self._watchers.remove(watcher)

    def __enter__(self) -> Trail:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and isinstance(error, Exception):
            logger.error("Ended by an error", exc_info=error)
        self.stop()

    def _take(self, entry: Entry) -> None:
        """Called with the handler's lock held: one thread at a time."""
        is_defect = entry.level >= logging.ERROR and bool(entry.detail)
        if entry.detail:
            key = hash((entry.message, entry.detail))
            times = self._traces[key] = self._traces.get(key, 0) + 1
            shorter = Entry(entry.time, entry.level, entry.logger, f"{entry.message} ({times} times by now)")
            if times <= FULL_TRACES:
                self._keep(entry)
            elif times & (times - 1) == 0:  # 4, 8, 16, ...
                self._keep(shorter)
        else:
            self._keep(entry)
        if is_defect:
            for watcher in tuple(self._watchers):
                watcher(entry)

    def _keep(self, entry: Entry) -> None:
        self.ring.add(entry)
        self.file.write(entry)
        if self._stderr:
            with contextlib.suppress(OSError, ValueError):  # its reader has left
                print(entry.text, file=sys.stderr, flush=True)

    def _report_crashes(self) -> None:
        for crash in take_crashes(self.folder, self._program):
            if crash.stacks:
                message = f"An earlier run ({crash.run}) crashed. Where its threads were:"
                logger.warning("%s\n%s", message, crash.stacks)
            else:
                logger.warning(
                    "An earlier run (%s) did not end in order: it was killed, or the power failed", crash.run
                )


class _Handler(logging.Handler):
    """Turns records into entries. Of other libraries only warnings and errors: what else they say may hold anything."""

    def __init__(self, take: Callable[[Entry], None]) -> None:
        super().__init__()
        self._take = take

    def emit(self, record: logging.LogRecord) -> None:
        if is_ours(record.name) or record.levelno >= logging.WARNING:
            self._take(Entry.of(record))


def _introduction(program: str) -> str:
    """What runs where, as far as it is known without torch."""
    try:
        number = version("loradesk")
    except PackageNotFoundError:  # run from a checkout that was never installed
        number = "from source"
    python = platform.python_version()
    system = f"{platform.system()} {platform.release()}"
    return (
        f"Loradesk {number}, {program}, process {os.getpid()}: Python {python}, {system}, {platform.machine()}, "
        f"{os.cpu_count()} processors"
    )
