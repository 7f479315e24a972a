"""The requests that the server has answered, newest first."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QAbstractTableModel, QModelIndex, QObject, QPersistentModelIndex, Qt

from loradesk_app.theme import Theme

if TYPE_CHECKING:
    from loradesk_engine.serving.http.record import RequestRecord

COL_TIME, COL_REQUEST, COL_STATUS, COL_SECONDS, COL_TOKENS, COL_DETAILS = range(6)
HEADERS = ("Time", "Request", "Status", "Seconds", "Tokens", "Details")
NUMBERS = (COL_STATUS, COL_SECONDS, COL_TOKENS)
RIGHT = int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
MAX_ROWS = 500
Index = QModelIndex | QPersistentModelIndex


class LogModel(QAbstractTableModel):
    """A row a request; the oldest are let go."""

    def __init__(self, theme: Theme, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self._records: list[RequestRecord] = []

    def add(self, record: RequestRecord) -> None:
        """Put a request on top."""
        self.beginInsertRows(QModelIndex(), 0, 0)
        self._records.insert(0, record)
        self.endInsertRows()
        if len(self._records) > MAX_ROWS:
            self.beginRemoveRows(QModelIndex(), MAX_ROWS, len(self._records) - 1)
            del self._records[MAX_ROWS:]
            self.endRemoveRows()

    def clear(self) -> None:
        """Let go of all."""
        self.beginResetModel()
        self._records.clear()
        self.endResetModel()

    def rowCount(self, parent: Index | None = None) -> int:
        return 0 if parent is not None and parent.isValid() else len(self._records)

    def columnCount(self, parent: Index | None = None) -> int:
        return 0 if parent is not None and parent.isValid() else len(HEADERS)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if orientation == Qt.Orientation.Horizontal and role == Qt.ItemDataRole.DisplayRole:
            return HEADERS[section]
        if role == Qt.ItemDataRole.TextAlignmentRole and section in NUMBERS:
            return RIGHT
        return None

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        record = self._records[index.row()]
        if role == Qt.ItemDataRole.DisplayRole:
            return _text(record, index.column())
        if role == Qt.ItemDataRole.ToolTipRole:
            note = f"\n{record.note}" if record.note else ""
            return f"{record.method} {record.path} from {record.client}{note}"
        if role == Qt.ItemDataRole.TextAlignmentRole and index.column() in NUMBERS:
            return RIGHT
        if role == Qt.ItemDataRole.ForegroundRole:
            if index.column() == COL_STATUS and record.status >= 400:
                return self._theme.color("danger")
            if index.column() == COL_TIME or (index.column() == COL_DETAILS and record.note):
                return self._theme.color("muted")
        return None


def _text(record: RequestRecord, column: int) -> str:
    if column == COL_TIME:
        return time.strftime("%H:%M:%S", time.localtime(record.time))
    if column == COL_REQUEST:
        return f"{record.method} {record.path}"
    if column == COL_STATUS:
        return str(record.status)
    if column == COL_SECONDS:
        return f"{record.seconds:.2f}"
    if column == COL_TOKENS:
        return f"{record.prompt_tokens} + {record.completion_tokens}" if record.prompt_tokens else ""
    if record.note:
        return record.note
    return ", ".join(name if weight == 1 else f"{name} {weight:g}" for name, weight in record.adapters.items())
