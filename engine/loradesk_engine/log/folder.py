"""The folder of the log files, and what is kept in it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

VARIABLE = "LORADESK_LOG_FOLDER"
MAX_RUNS = 7
MAX_BYTES = 10 * 2**20
"""Of the whole folder, about: half of it for the run that begins, half for earlier ones."""


def log_folder() -> Path:
    """Where log files of this user belong on this system; the variable `LORADESK_LOG_FOLDER` names another place."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
        return Path(base) / "Loradesk" / "Logs"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Logs" / "Loradesk"
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "Loradesk" / "log"


def new_name(program: str) -> str:
    """The name of this run's files, without an ending: `window-20260131-142501-4711`."""
    return f"{program}-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"


def log_files(folder: Path) -> list[Path]:
    """The log files, the one written to last first."""
    with contextlib.suppress(OSError):
        found = [(entry.stat().st_mtime, Path(entry.path)) for entry in _entries(folder) if entry.name.endswith(".log")]
        return [path for _, path in sorted(found, reverse=True)]
    return []


def prune(folder: Path) -> None:
    """Delete old files, so that at most `MAX_RUNS` runs of each program are kept, the present one included."""
    kept: dict[str, set[str]] = {}
    size = 0
    for path in log_files(folder):
        run = path.name.partition(".")[0]
        runs = kept.setdefault(run.partition("-")[0], set())
        with contextlib.suppress(OSError):
            size += path.stat().st_size
            if len(runs) < MAX_RUNS:
                runs.add(run)
            if run not in runs or size > MAX_BYTES // 2:
                path.unlink()


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from entries
