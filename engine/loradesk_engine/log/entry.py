"""One entry of the log, in memory and as lines of a file."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from loradesk_engine.log.levels import PACKAGES
from loradesk_engine.log.redaction import without_secrets, without_values
from loradesk_engine.log.traces import format_error

MAX_LINE = 4000
INDENT = "    "
_HEAD = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}) ([A-Z]+) +([^\s:]+): (.*)")
_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160), 0x2028, 0x2029) if chr(code) != "\n"}
_LEVELS = logging.getLevelNamesMapping()


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry.

    Attributes:
        time: seconds since 1970.
        level: as in `logging`.
        logger: the module that wrote it.
        message: one line.
        detail: further lines, above all a traceback; empty for none.
    """

    time: float
    level: int
    logger: str
    message: str
    detail: str = ""

    @classmethod
    def of(cls, record: logging.LogRecord) -> Entry:
        """The entry of a record, without keys, tokens and quoted values."""
        try:
            text = record.getMessage()
        except Exception:  # noqa: BLE001 - the log cannot log its own failure
            text = f"A line of the log could not be made, at {record.module}:{record.lineno}."
        if not is_ours(record.name):
            text = without_values(text)
        message, _, rest = text.partition("\n")
        details = [rest] if rest else []
        if record.exc_info and record.exc_info[1] is not None:
            details.append(format_error(record.exc_info[1]))
        detail = "\n".join(line[:MAX_LINE] for line in "\n".join(details).expandtabs(4).split("\n"))
        return cls(record.created, record.levelno, record.name, _clean(message[:MAX_LINE]), _clean(detail))

    @property
    def level_name(self) -> str:
        return logging.getLevelName(self.level)

    @property
    def source(self) -> str:
        """The part of the program, in a word: `engine`, `server`, `store`, ...; or the name of another library."""
        for prefix, name in SOURCES:
            if self.logger == prefix or self.logger.startswith(f"{prefix}."):
                return name
        return self.logger.split(".")[0]

    @property
    def text(self) -> str:
        """As in the file: a head, and the lines of the detail indented."""
        stamp = datetime.fromtimestamp(self.time).isoformat(" ", "milliseconds")
        lines = [f"{stamp} {self.level_name:<8}{self.logger}: {self.message}"]
        if self.detail:
            lines += [INDENT + line for line in self.detail.split("\n")]
        return "\n".join(lines)


SOURCES = (
    ("loradesk_engine.serving.http", "server"),
    ("loradesk_engine.cli", "terminal"),
    ("loradesk_engine", "engine"),
    ("loradesk_desk", "store"),
    ("loradesk_app", "window"),
)


def is_ours(logger: str) -> bool:
    """Whether a logger is of a module of Loradesk."""
    return logger.partition(".")[0] in PACKAGES


def parse_entries(lines: Iterable[str]) -> Iterator[Entry]:
    """The entries in the lines of a file; lines that belong to none are passed over."""
    head: re.Match[str] | None = None
    detail: list[str] = []
    for line in lines:
        found = _HEAD.fullmatch(line.rstrip("\n"))
        if found is None:
            if head is not None and line.startswith(INDENT):
                detail.append(line.rstrip("\n").removeprefix(INDENT))
            continue
        if head is not None:
            yield _entry(head, detail)
        head, detail = found, []
    if head is not None:
        yield _entry(head, detail)


def _entry(head: re.Match[str], detail: list[str]) -> Entry:
    try:
        time = datetime.fromisoformat(head[1]).timestamp()
    except ValueError:  # a damaged line
        time = 0.0
    return Entry(time, _LEVELS.get(head[2], logging.INFO), head[3], head[4], "\n".join(detail))


def _clean(text: str) -> str:
    return without_secrets(text).translate(_CONTROLS)
