"""Earlier runs, whose log files are in the folder still. All of it touches the disk: not for the GUI thread."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from loradesk_engine.log.entry import Entry, parse_entries
from loradesk_engine.log.folder import log_files
from loradesk_engine.log.ring import MAX_ENTRIES

_NAME = re.compile(r"(?P<program>[\w.\-]+)-(?P<time>\d{8}-\d{6})-\d+")


@dataclass(frozen=True)
class LogRun:
    """One run's files.

    Attributes:
        title: for showing, as in `window, 30 Nov 14:31`.
        files: oldest first.
    """

    title: str
    files: tuple[Path, ...]


def find_runs(folder: Path, present: Path) -> list[LogRun]:
    """The runs in the folder, the newest first, without the one whose file is `present`."""
    files: dict[str, list[Path]] = {}
    for path in log_files(folder):
        files.setdefault(path.name.partition(".")[0], []).append(path)
    files.pop(present.stem, None)
    found = []
    for name, paths in files.items():
        match = _NAME.fullmatch(name)
        if match is not None:
            began = datetime.fromisoformat(match["time"].replace("-", "T"))
            title = f"{match['program']}, {began.day} {began:%b %H:%M}"
            found.append((began, LogRun(title, tuple(sorted(paths, key=lambda path: path.suffixes != [".1", ".log"])))))
    return [run for _, run in sorted(found, key=lambda pair: pair[0], reverse=True)]


def read_run(run: LogRun) -> list[Entry]:
    """The entries of a run.

    Raises:
        OSError: its files cannot be read, or are gone.
    """
    entries: list[Entry] = []
    for path in run.files:
        with open(path, encoding="utf-8", errors="replace") as file:
            entries += parse_entries(file)
    return entries[-MAX_ENTRIES:]
