"""The page of `layers`: a search, a tree, and a lock that has to be opened on purpose."""

from __future__ import annotations

from PySide6.QtCore import QItemSelectionModel, QSize, Qt, QTimer, Signal
from PySide6.QtGui import QKeyEvent
from PySide6.QtWidgets import (
    QAbstractItemView,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QTreeView,
    QVBoxLayout,
    QWidget,
)

from loradesk_app.ordering.document import Document
from loradesk_app.ordering.layers_model import COL_INDEX, COL_MODULE, LayersModel
from loradesk_app.ordering.source_field import SharedUndoEdit
from loradesk_app.theme import Theme
from loradesk_app.widgets.buttons import icon_button, push_button
from loradesk_app.widgets.labels import label
from loradesk_engine.ordering.words import counted

SEARCH_MS = 120
MIN_HEIGHT = 66
EXPAND_LIMIT = 600  # rows; a longer result is left folded, so that it can be looked over


class LayersView(QWidget):
    """Shows a document's layers."""

    regenerate_requested = Signal()

    def __init__(self, document: Document, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._document, self._theme = document, theme
        self.model = LayersModel(document, theme, self)
        self._open: set[str] = set()
        self.search = SharedUndoEdit()
        self.search.setPlaceholderText("Search by block, module or index")
        self.search.setAccessibleName("Search layers")
        self.search.setClearButtonEnabled(True)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(SEARCH_MS)
        self._timer.timeout.connect(self._filter)
        self.search.textChanged.connect(lambda _text: self._timer.start())
        self.regenerate_button = push_button("Regenerate…")
        self.regenerate_button.setToolTip("Make the layers anew from the base model (Ctrl+G)")
        self.regenerate_button.clicked.connect(self.regenerate_requested)
        self.tree = _Tree(self.model)
        self.tree.remove_requested.connect(self.remove_selected)
        self.count = label("", "small")
        self._sign = QLabel()
        self._sign.setFixedSize(18, 18)
        self.lock_text = label("", "small", wrap=True)
        self.lock_button = push_button("Edit anyway", "link")
        self.lock_button.clicked.connect(self.toggle_lock)
        self.remove_button = icon_button(theme, "trash", "Remove the selected layers (Del)", kind="quiet")
        self.remove_button.clicked.connect(self.remove_selected)

        head = QHBoxLayout()
        head.setSpacing(8)
        head.addWidget(self.search, 1)
        head.addWidget(self.regenerate_button)
        lock = QHBoxLayout()
        lock.setSpacing(6)
        lock.addWidget(self._sign)
        lock.addWidget(self.lock_text, 1)
        lock.addWidget(self.remove_button)
        lock.addWidget(self.lock_button)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(8)
        column.addLayout(head)
        column.addLayout(lock)
        column.addWidget(self.tree, 1)
        column.addWidget(self.count)
        self.model.modelAboutToBeReset.connect(self._note_open)
        self.model.modelReset.connect(self._after_reset)
        self.model.locked_changed.connect(lambda _locked: self._show_lock())
        document.changed.connect(self._show_lock)
        theme.changed.connect(self._show_lock)
        self._show_lock()
        self._after_reset()

    def toggle_lock(self) -> None:
        """Open the lock, or close it again."""
        self.model.set_locked(not self.model.is_locked)

    def remove_selected(self) -> None:
        """Remove the selected modules, and all modules of the selected blocks."""
        if self.model.is_locked or not self._document.is_readable:
            return
        rows = self.tree.selectionModel().selectedRows(COL_MODULE)
        self._document.remove_layers({path for index in rows for path in self.model.paths(index)})

    def show_layer(self, path: str) -> None:
        """Select a layer and bring it into sight; a search that hides it ends."""
        index = self.model.index_of(path)
        if not index.isValid() and self.search.text():
            self.search.clear()
            self._filter()
            index = self.model.index_of(path)
        if index.isValid():
            flags = QItemSelectionModel.SelectionFlag
            self.tree.selectionModel().setCurrentIndex(index, flags.ClearAndSelect | flags.Rows)
            self.tree.scrollTo(index, QAbstractItemView.ScrollHint.PositionAtCenter)

    # ------------------------------------------------------------------------------------------------------------

    def _filter(self) -> None:
        self._timer.stop()
        self.model.set_filter(self.search.text())

    def _note_open(self) -> None:
        if not self.search.text() and not self.model.filter:
            rows = (self.model.index(row, 0) for row in range(self.model.rowCount()))
            self._open = {str(index.data()) for index in rows if self.tree.isExpanded(index)}

    def _after_reset(self) -> None:
        shown, total = self.model.shown, self.model.total
        if self.search.text():
            self.count.setText(f"{shown:,} of {counted(total, 'layer')}")
            if shown <= EXPAND_LIMIT:
                self.tree.expandAll()
        else:
            text = f"{counted(total, 'layer')} in {counted(self.model.block_count, 'block')}" if total else "No layers"
            self.count.setText(text)
            for row in range(self.model.rowCount()):
                index = self.model.index(row, 0)
                if str(index.data()) in self._open:
                    self.tree.expand(index)
            if self.model.rowCount() and not self._open:
                self.tree.expand(self.model.index(0, 0))

    def _show_lock(self) -> None:
        locked, readable = self.model.is_locked, self._document.is_readable
        icon = ("ordering-lock", "muted") if locked else ("warning", "warning")
        self._sign.setPixmap(self._theme.icon(*icon).pixmap(QSize(18, 18), self.devicePixelRatioF()))
        self.lock_text.setText(
            "Generated from the base model, and locked."
            if locked
            else "Unlocked. A wrong path or index makes an X-LoRA model answer nonsense, without an error."
        )
        self.lock_button.setText("Edit anyway" if locked else "Lock")
        self.lock_button.setEnabled(readable)
        self.remove_button.setVisible(not locked)
        self.regenerate_button.setEnabled(readable)


class _Tree(QTreeView):
    """Del removes; Enter edits."""

    remove_requested = Signal()

    def __init__(self, model: LayersModel) -> None:
        super().__init__()
        self.setModel(model)
        self.setAccessibleName("Layers")
        self.setUniformRowHeights(True)
        self.setMinimumHeight(MIN_HEIGHT)
        self.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.setEditTriggers(QAbstractItemView.EditTrigger.DoubleClicked | QAbstractItemView.EditTrigger.EditKeyPressed)
        self.setExpandsOnDoubleClick(True)
        self.header().setStretchLastSection(False)
        self.header().setSectionResizeMode(COL_MODULE, QHeaderView.ResizeMode.Stretch)
        self.header().setSectionResizeMode(COL_INDEX, QHeaderView.ResizeMode.Fixed)
        self.header().resizeSection(COL_INDEX, 110)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        if event.key() == Qt.Key.Key_Delete:
            self.remove_requested.emit()
            event.accept()
        else:
            super().keyPressEvent(event)
