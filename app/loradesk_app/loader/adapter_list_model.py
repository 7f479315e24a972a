"""The LoRA adapters to load, as a table that can be edited."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from PySide6.QtCore import QAbstractTableModel, QModelIndex, QObject, QPersistentModelIndex, Qt

from loradesk_engine.commands import AdapterSource

COL_NAME, COL_SOURCE = 0, 1
_HEADERS = ("Name", "Folder or hub id")
Index = QModelIndex | QPersistentModelIndex


class AdapterListModel(QAbstractTableModel):
    """Rows of name and source."""

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._rows: list[AdapterSource] = []

    def adapters(self) -> tuple[AdapterSource, ...]:
        return tuple(self._rows)

    def set_adapters(self, adapters: tuple[AdapterSource, ...]) -> None:
        self.beginResetModel()
        self._rows = list(adapters)
        self.endResetModel()

    def add(self, source: str, name: str = "") -> int:
        """Add an adapter, named after its folder and made unique; returns its row."""
        base = name or PurePath(source.rstrip("/\\")).name or "adapter"
        taken = {adapter.name for adapter in self._rows}
        name, number = base, 2
        while name in taken:
            name, number = f"{base}-{number}", number + 1
        row = len(self._rows)
        self.beginInsertRows(QModelIndex(), row, row)
        self._rows.append(AdapterSource(name, source))
        self.endInsertRows()
        return row

    def remove(self, rows: set[int]) -> None:
        for row in sorted(rows, reverse=True):
            self.beginRemoveRows(QModelIndex(), row, row)
            del self._rows[row]
            self.endRemoveRows()

    def rowCount(self, parent: Index | None = None) -> int:
        return 0 if parent is not None and parent.isValid() else len(self._rows)

    def columnCount(self, parent: Index | None = None) -> int:
        return 0 if parent is not None and parent.isValid() else len(_HEADERS)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if not index.isValid():
            return None
        adapter = self._rows[index.row()]
        text = adapter.name if index.column() == COL_NAME else adapter.source
        shown = (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.EditRole, Qt.ItemDataRole.ToolTipRole)
        return text if role in shown else None

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if role == Qt.ItemDataRole.DisplayRole and orientation == Qt.Orientation.Horizontal:
            return _HEADERS[section]
        return None

    def flags(self, index: Index) -> Qt.ItemFlag:
        flags = super().flags(index)
        return flags | Qt.ItemFlag.ItemIsEditable if index.isValid() else flags

    def setData(self, index: Index, value: Any, role: int = Qt.ItemDataRole.EditRole) -> bool:
        if role != Qt.ItemDataRole.EditRole or not index.isValid():
            return False
        old, text = self._rows[index.row()], str(value).strip()
        name, source = (text, old.source) if index.column() == COL_NAME else (old.name, text)
        self._rows[index.row()] = AdapterSource(name, source)
        self.dataChanged.emit(index, index)
        return True
