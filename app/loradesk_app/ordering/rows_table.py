"""A table whose rows are reordered by dragging and by Alt+Up and Alt+Down."""

from __future__ import annotations

from PySide6.QtCore import QItemSelection, QItemSelectionModel, Qt, Signal
from PySide6.QtGui import QDragEnterEvent, QDragMoveEvent, QDropEvent, QKeyEvent
from PySide6.QtWidgets import QAbstractItemView, QHeaderView, QTableView, QWidget

from loradesk_app.ordering.rows_model import MIME, RowsModel

ROW_HEIGHT = 30
MIN_HEIGHT = 66


class RowsTable(QTableView):
    """Shows a `RowsModel`; the keys and drops of the user become calls of it."""

    folders_dropped = Signal(list)  # local paths that came from outside

    def __init__(
        self, model: RowsModel, name: str, *, takes_folders: bool = False, parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self._model = model
        self._takes_folders = takes_folders
        self.setModel(model)
        self.setAccessibleName(name)
        self.setShowGrid(False)
        self.setMinimumHeight(MIN_HEIGHT)
        self.setWordWrap(False)
        self.setTabKeyNavigation(False)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.setEditTriggers(
            QAbstractItemView.EditTrigger.DoubleClicked
            | QAbstractItemView.EditTrigger.EditKeyPressed
            | QAbstractItemView.EditTrigger.AnyKeyPressed
        )
        self.setDragEnabled(True)
        self.setAcceptDrops(True)
        self.setDropIndicatorShown(True)
        self.setDragDropOverwriteMode(False)
        self.setDragDropMode(QAbstractItemView.DragDropMode.DragDrop)
        self.setDefaultDropAction(Qt.DropAction.MoveAction)
        self.verticalHeader().hide()
        self.verticalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        self.verticalHeader().setDefaultSectionSize(ROW_HEIGHT)
        header = self.horizontalHeader()
        header.setHighlightSections(False)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Fixed)
        header.resizeSection(0, 52)
        for column in range(1, model.columnCount()):
            header.setSectionResizeMode(column, QHeaderView.ResizeMode.Stretch)
        model.rows_moved.connect(self.select_rows)

    def selected_rows(self) -> list[int]:
        return sorted(index.row() for index in self.selectionModel().selectedRows())

    def select_rows(self, rows: list[int]) -> None:
        """Select rows and bring them into sight."""
        model, count = self._model, self._model.rowCount()
        selection = QItemSelection()
        rows = [row for row in rows if row < count]
        for row in rows:
            selection.select(model.index(row, 0), model.index(row, model.columnCount() - 1))
        flags = QItemSelectionModel.SelectionFlag
        if rows:
            self.selectionModel().setCurrentIndex(model.index(rows[0], 1), flags.NoUpdate)
            self.scrollTo(model.index(rows[-1], 1))
            self.scrollTo(model.index(rows[0], 1))
        self.selectionModel().select(selection, flags.ClearAndSelect)

    def edit_cell(self, row: int, column: int) -> None:
        """Begin to edit a cell, as a double click would."""
        self.select_rows([row])
        index = self._model.index(row, column)
        self.setCurrentIndex(index)
        self.edit(index)

    def remove_selected(self) -> None:
        """Remove the selected rows; what follows them is selected next."""
        rows = self.selected_rows()
        if rows and self._model.document.is_readable:
            self._model.remove(rows)
            if self._model.rowCount():
                self.select_rows([min(rows[0], self._model.rowCount() - 1)])

    def shift_selected(self, step: int) -> None:
        """Move the selected rows up (-1) or down (1)."""
        self._model.shift(self.selected_rows(), step)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        alt = event.modifiers() == Qt.KeyboardModifier.AltModifier
        if alt and event.key() in (Qt.Key.Key_Up, Qt.Key.Key_Down):
            self.shift_selected(-1 if event.key() == Qt.Key.Key_Up else 1)
        elif event.key() == Qt.Key.Key_Delete:
            self.remove_selected()
        elif self.state() == QAbstractItemView.State.EditingState:
            super().keyPressEvent(event)  # the editor lets Return through to us and closes a little later
            return
        elif event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and self.currentIndex().isValid():
            self.edit(self.currentIndex().siblingAtColumn(max(self.currentIndex().column(), 1)))
        else:
            super().keyPressEvent(event)
            return
        event.accept()

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        if self._accepts(event):
            super().dragEnterEvent(event)
            event.acceptProposedAction()
        else:
            event.ignore()  # the window may want it: a dropped ordering file is opened

    def dragMoveEvent(self, event: QDragMoveEvent) -> None:
        super().dragMoveEvent(event)
        if self._accepts(event):
            event.accept()

    def dropEvent(self, event: QDropEvent) -> None:
        rows = self._model.dragged_rows(event.mimeData())
        if rows:
            target = self._target(event)
            # The model moves the rows by itself; a move action would make the view remove them once more.
            event.setDropAction(Qt.DropAction.CopyAction)
            event.accept()
            self._model.move_rows(rows, target)
        elif self._folders(event):
            event.acceptProposedAction()
            self.folders_dropped.emit(self._folders(event))
        else:
            event.ignore()
        self.setState(QAbstractItemView.State.NoState)
        self.viewport().update()

    def _target(self, event: QDropEvent) -> int:
        """The row before which a drop falls."""
        index = self.indexAt(event.position().toPoint())
        if not index.isValid():
            return self._model.rowCount()
        rect = self.visualRect(index)
        return index.row() + (event.position().y() > rect.center().y())

    def _accepts(self, event: QDropEvent) -> bool:
        data = event.mimeData()
        if not self._model.document.is_readable:
            return False
        return bool(self._model.dragged_rows(data)) if data.hasFormat(MIME) else bool(self._folders(event))

    def _folders(self, event: QDropEvent) -> list[str]:
        if not self._takes_folders:
            return []
        paths = [url.toLocalFile() for url in event.mimeData().urls() if url.isLocalFile()]
        return [path for path in paths if not path.lower().endswith(".json")]
