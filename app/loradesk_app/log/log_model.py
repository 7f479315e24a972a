"""The entries of a run as the log's window shows them: of bounded number, filtered by level and source."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from PySide6.QtCore import QAbstractTableModel, QModelIndex, QObject, QPersistentModelIndex, Qt
from PySide6.QtGui import QFontDatabase

from loradesk_app.theme import Theme
from loradesk_app.widgets.labels import plain_tip
from loradesk_engine.log.entry import Entry
from loradesk_engine.log.ring import MAX_ENTRIES

COL_TIME, COL_LEVEL, COL_SOURCE, COL_MESSAGE = range(4)
HEADERS = ("Time", "Level", "From", "Message")
DETAIL_ROLE = Qt.ItemDataRole.UserRole + 1
UNFOLDED_ROLE = Qt.ItemDataRole.UserRole + 2
GROUND_ROLE = Qt.ItemDataRole.UserRole + 3
"""Name of the colour behind a row; empty for none."""
ICONS = {
    logging.DEBUG: ("lines", "muted"),
    logging.INFO: ("ordering-info", "muted"),
    logging.WARNING: ("warning", "warning"),
    logging.ERROR: ("ordering-error", "danger"),
}
GROUNDS = {logging.WARNING: "warning_soft", logging.ERROR: "danger_soft"}
TEXTS = {logging.WARNING: "warning", logging.ERROR: "danger"}
Index = QModelIndex | QPersistentModelIndex


class LogModel(QAbstractTableModel):
    """A row an entry, the oldest first; beyond `limit` entries the oldest are dropped."""

    def __init__(self, theme: Theme, limit: int = MAX_ENTRIES, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self._limit = limit
        self._all: deque[Entry] = deque()
        self._first = 0  # number of the oldest entry; numbers count on when entries are dropped
        self._shown: list[tuple[int, Entry]] = []  # number, entry
        self._unfolded: set[int] = set()
        self._level = logging.DEBUG
        self._source = ""
        self._fixed = QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont)
        self.levels: Counter[int] = Counter()
        self.sources: Counter[str] = Counter()

    @property
    def limit(self) -> int:
        """Most entries that are kept."""
        return self._limit

    # -- contents -----------------------------------------------------------------------------------------------

    @property
    def total(self) -> int:
        """How many entries are kept, shown or not."""
        return len(self._all)

    def add(self, entries: Sequence[Entry]) -> None:
        """Append entries."""
        entries = entries[-self._limit :]
        self._drop(len(self._all) + len(entries) - self._limit)
        start = self._first + len(self._all)
        self._all.extend(entries)
        self._count(entries, +1)
        new = [(number, entry) for number, entry in enumerate(entries, start) if self._fits(entry)]
        if new:
            self.beginInsertRows(QModelIndex(), len(self._shown), len(self._shown) + len(new) - 1)
            self._shown += new
            self.endInsertRows()

    def set_entries(self, entries: Iterable[Entry]) -> None:
        """Show another run."""
        self.beginResetModel()
        self._first, self._all = 0, deque(entries, maxlen=None)
        while len(self._all) > self._limit:
            self._all.popleft()
        self._unfolded.clear()
        self.levels.clear()
        self.sources.clear()
        self._count(self._all, +1)
        self._filter()
        self.endResetModel()

    def set_filter(self, level: int, source: str) -> None:
        """Show entries of this level and above; of one source, or of all if it is empty."""
        if (level, source) != (self._level, self._source):
            self.beginResetModel()
            self._level, self._source = level, source
            self._filter()
            self.endResetModel()

    def entry(self, row: int) -> Entry:
        return self._shown[row][1]

    def entries(self) -> list[Entry]:
        """The entries that are shown."""
        return [entry for _, entry in self._shown]

    def find(self, text: str, start: int = 0) -> list[int]:
        """The rows, from `start` on, whose message, detail or source has the text in it, in any case of letters."""
        wanted = text.casefold()
        return [
            row
            for row in range(start, len(self._shown))
            if wanted in self._shown[row][1].message.casefold()
            or wanted in self._shown[row][1].detail.casefold()
            or wanted in self._shown[row][1].source
        ]

    # -- folding ------------------------------------------------------------------------------------------------

    def unfold(self, row: int, unfolded: bool) -> None:
        """Show or hide the detail of a row that has one."""
        number, entry = self._shown[row]
        if entry.detail and unfolded != (number in self._unfolded):
            (self._unfolded.add if unfolded else self._unfolded.discard)(number)
            self.dataChanged.emit(self.index(row, 0), self.index(row, COL_MESSAGE), [UNFOLDED_ROLE])

    def is_unfolded(self, row: int) -> bool:
        return self._shown[row][0] in self._unfolded

    def unfolded_rows(self) -> list[int]:
        """The rows whose detail is shown."""
        if not self._unfolded:
            return []
        return [row for row, (number, _) in enumerate(self._shown) if number in self._unfolded]

    # -- Qt -----------------------------------------------------------------------------------------------------

    def rowCount(self, parent: Index | None = None) -> int:
        return 0 if parent is not None and parent.isValid() else len(self._shown)

    def columnCount(self, parent: Index | None = None) -> int:
        return 0 if parent is not None and parent.isValid() else len(HEADERS)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if orientation == Qt.Orientation.Horizontal and role == Qt.ItemDataRole.DisplayRole:
            return HEADERS[section]
        return None

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        number, entry = self._shown[index.row()]
        column = index.column()
        level = _known_level(entry.level)
        match role:
            case Qt.ItemDataRole.DisplayRole:
                return _text(entry, column)
            case Qt.ItemDataRole.ToolTipRole:
                day = datetime.fromtimestamp(entry.time).strftime("%d %B %Y")
                return plain_tip(f"{day}, {entry.logger}\n{entry.message}")
            case Qt.ItemDataRole.FontRole:
                return self._fixed if column in (COL_TIME, COL_MESSAGE) else None
            case Qt.ItemDataRole.DecorationRole:
                return self._theme.icon(*ICONS[level]) if column == COL_LEVEL else None
            case Qt.ItemDataRole.ForegroundRole:
                role_name = TEXTS.get(level, "muted") if column == COL_LEVEL else "muted"
                return self._theme.color("text" if column == COL_MESSAGE else role_name)
        if role == DETAIL_ROLE:
            return entry.detail
        if role == UNFOLDED_ROLE:
            return number in self._unfolded
        return GROUNDS.get(level, "") if role == GROUND_ROLE else None

    def _fits(self, entry: Entry) -> bool:
        return entry.level >= self._level and self._source in ("", entry.source)

    def _filter(self) -> None:
        self._shown = [(number, entry) for number, entry in enumerate(self._all, self._first) if self._fits(entry)]

    def _drop(self, count: int) -> None:
        """Drop the oldest entries."""
        if count <= 0:
            return
        first = self._first + count
        rows = next((row for row, (number, _) in enumerate(self._shown) if number >= first), len(self._shown))
        if rows:
            self.beginRemoveRows(QModelIndex(), 0, rows - 1)
            del self._shown[:rows]
            self.endRemoveRows()
        dropped = [self._all.popleft() for _ in range(min(count, len(self._all)))]
        self._count(dropped, -1)
        self._first = first
        self._unfolded = {number for number in self._unfolded if number >= first}

    def _count(self, entries: Iterable[Entry], sign: int) -> None:
        for entry in entries:
            self.levels[_known_level(entry.level)] += sign
            self.sources[entry.source] += sign


def _known_level(level: int) -> int:
    """One of the four levels that are told apart."""
    return min(max(level // 10 * 10, logging.DEBUG), logging.ERROR)


def _text(entry: Entry, column: int) -> str:
    if column == COL_TIME:
        return datetime.fromtimestamp(entry.time).strftime("%H:%M:%S.%f")[:-3]
    if column == COL_LEVEL:
        return logging.getLevelName(_known_level(entry.level)).lower()
    return entry.source if column == COL_SOURCE else entry.message
