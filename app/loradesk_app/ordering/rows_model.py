"""What the tables of `order` and `preload_adapters` have in common: rows of a document with marks, to be dragged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PySide6.QtCore import (
    QAbstractTableModel,
    QByteArray,
    QMimeData,
    QModelIndex,
    QObject,
    QPersistentModelIndex,
    Qt,
    Signal,
)

from loradesk_app.ordering.analysis import by_place
from loradesk_app.ordering.document import Document
from loradesk_app.ordering.rows import changed_span
from loradesk_app.theme import Theme
from loradesk_engine.ordering.finding import Finding
from loradesk_engine.ordering.schema import pointer

MIME = "application/x-loradesk-ordering-rows"
SEVERITY_ICONS = {"error": ("ordering-error", "danger"), "warning": ("warning", "warning")}
SEVERITY_ICONS["info"] = ("ordering-info", "muted")
SOFT = {"error": "danger_soft", "warning": "warning_soft"}
Index = QModelIndex | QPersistentModelIndex


class RowsModel(QAbstractTableModel):
    """Rows of one list of a document. Subclasses say which, and what an edit or a move does to the document.

    Every change goes to the document, and comes back from it: the model never changes its rows by itself.
    """

    KEY = ""
    HEADERS: tuple[str, ...] = ()
    rows_moved = Signal(list)  # where they are now

    def __init__(self, document: Document, theme: Theme, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.document, self._theme = document, theme
        self._rows: Sequence[Any] = self._wanted()
        self._marks: dict[str, list[Finding]] = {}
        document.changed.connect(self._follow)
        document.findings_changed.connect(self._take_marks)
        theme.changed.connect(self._repaint)
        self._take_marks()

    # -- for subclasses -----------------------------------------------------------------------------------------

    def _wanted(self) -> Sequence[Any]:
        """The rows that the document has."""
        raise NotImplementedError

    def text(self, row: int, column: int) -> str:
        raise NotImplementedError

    def edit(self, row: int, column: int, text: str) -> None:
        raise NotImplementedError

    def move(self, rows: list[int], target: int) -> list[int]:
        raise NotImplementedError

    def remove(self, rows: list[int]) -> None:
        raise NotImplementedError

    def places(self, row: int, _column: int) -> tuple[str, ...]:
        """JSON pointers of what a cell shows."""
        return (pointer(self.KEY, row),)

    # -- moving -------------------------------------------------------------------------------------------------

    def move_rows(self, rows: list[int], target: int) -> None:
        """Move rows before another; `rows_moved` tells where they are then."""
        if rows and self.document.is_readable:
            self.rows_moved.emit(self.move(rows, target))

    def shift(self, rows: list[int], step: int) -> None:
        """Move rows up (-1) or down (1) by one."""
        if not rows:
            return
        target = min(rows) - 1 if step < 0 else max(rows) + 2
        if 0 <= target <= len(self._rows):
            self.move_rows(rows, target)

    # -- Qt -----------------------------------------------------------------------------------------------------

    def rowCount(self, parent: Index | None = None) -> int:
        return 0 if parent is not None and parent.isValid() else len(self._rows)

    def columnCount(self, parent: Index | None = None) -> int:
        return 0 if parent is not None and parent.isValid() else len(self.HEADERS)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if not index.isValid():
            return None
        row, column = index.row(), index.column()
        if role == Qt.ItemDataRole.DisplayRole and column == 0:
            return f"{row + 1:,}"
        if column == 0:
            if role == Qt.ItemDataRole.ForegroundRole:
                return self._theme.color("muted")
            if role == Qt.ItemDataRole.TextAlignmentRole:
                return Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        elif role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.EditRole):
            return self.text(row, column)
        if role == Qt.ItemDataRole.AccessibleTextRole:
            marks = " ".join(finding.message for finding in self.marks(row, column))
            return f"{row + 1 if column == 0 else self.text(row, column)} {marks}".strip()
        return self._mark(row, column, role)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if role == Qt.ItemDataRole.DisplayRole and orientation == Qt.Orientation.Horizontal:
            return self.HEADERS[section]
        if role == Qt.ItemDataRole.TextAlignmentRole:
            side = Qt.AlignmentFlag.AlignRight if section == 0 else Qt.AlignmentFlag.AlignLeft
            return side | Qt.AlignmentFlag.AlignVCenter
        return None

    def flags(self, index: Index) -> Qt.ItemFlag:
        if not index.isValid():
            return Qt.ItemFlag.ItemIsDropEnabled  # between rows only
        flags = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable
        if self.document.is_readable:
            flags |= Qt.ItemFlag.ItemIsDragEnabled
            if index.column() > 0:
                flags |= Qt.ItemFlag.ItemIsEditable
        return flags

    def setData(self, index: Index, value: Any, role: int = Qt.ItemDataRole.EditRole) -> bool:
        if role != Qt.ItemDataRole.EditRole or not index.isValid() or index.column() == 0:
            return False
        self.edit(index.row(), index.column(), str(value))
        return True

    def supportedDropActions(self) -> Qt.DropAction:
        return Qt.DropAction.MoveAction

    def mimeTypes(self) -> list[str]:
        return [MIME]

    def mimeData(self, indexes: Sequence[QModelIndex]) -> QMimeData:
        rows = sorted({index.row() for index in indexes})
        data = QMimeData()
        data.setData(MIME, QByteArray(f"{id(self)} {' '.join(map(str, rows))}".encode()))
        data.setText("\n".join(self.text(row, 1) for row in rows))
        return data

    def dragged_rows(self, data: QMimeData) -> list[int]:
        """The rows of this table in what is dragged; none if it comes from elsewhere."""
        owner, *rows = bytes(data.data(MIME).data()).decode("ascii", "replace").split() or [""]
        return [int(row) for row in rows] if owner == str(id(self)) else []

    def marks(self, row: int, column: int) -> list[Finding]:
        """Findings about a cell, the worst first; the first column stands for the whole row."""
        columns = range(1, len(self.HEADERS)) if column == 0 else (column,)
        places = dict.fromkeys(place for one in columns for place in self.places(row, one))
        return [finding for place in places for finding in self._marks.get(place, ())]

    # ------------------------------------------------------------------------------------------------------------

    def _mark(self, row: int, column: int, role: int) -> Any:
        wanted = (
            Qt.ItemDataRole.DecorationRole,
            Qt.ItemDataRole.ToolTipRole,
            Qt.ItemDataRole.BackgroundRole,
        )
        if role not in wanted or not self._marks:
            return None
        marks = self.marks(row, column)
        if not marks:
            return None
        severity = marks[0].severity
        if role == Qt.ItemDataRole.ToolTipRole:
            return "\n".join(dict.fromkeys(finding.message for finding in marks))
        if role == Qt.ItemDataRole.DecorationRole:
            return self._theme.icon(*SEVERITY_ICONS[severity]) if column > 0 else None
        return self._theme.color(SOFT[severity]) if severity in SOFT else None

    def _follow(self) -> None:
        """Show the document's rows; only what differs is told, so that selection and scrolling stay."""
        old, new = self._rows, self._wanted()
        start, old_end, new_end = changed_span(old, new)
        if len(old) == len(new):
            self._rows = new
        else:
            # Removing and inserting what differs keeps the rows around it; the model is consistent in between.
            common = min(old_end, new_end)
            if old_end > common:
                self.beginRemoveRows(QModelIndex(), common, old_end - 1)
                self._rows = [*old[:common], *old[old_end:]]
                self.endRemoveRows()
            if new_end > common:
                self.beginInsertRows(QModelIndex(), common, new_end - 1)
                self._rows = new
                self.endInsertRows()
            self._rows = new
            self._repaint()
            return
        if start < new_end:
            self.dataChanged.emit(self.index(start, 0), self.index(new_end - 1, len(self.HEADERS) - 1))

    def _take_marks(self) -> None:
        mine = pointer(self.KEY) + "/"
        marks = {place: found for place, found in by_place(self.document.findings).items() if place.startswith(mine)}
        if marks != self._marks:
            self._marks = marks
            self._repaint()

    def _repaint(self) -> None:
        if self._rows:
            self.dataChanged.emit(self.index(0, 0), self.index(len(self._rows) - 1, len(self.HEADERS) - 1))
