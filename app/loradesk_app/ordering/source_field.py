"""A field for a folder, file or hub id, with a button to look for it that does not block."""

from __future__ import annotations

from PySide6.QtCore import QEvent, Signal
from PySide6.QtGui import QKeyEvent, QKeySequence
from PySide6.QtWidgets import QFileDialog, QHBoxLayout, QLineEdit, QWidget

from loradesk_app.widgets.buttons import push_button
from loradesk_app.widgets.drop_edit import DropEdit, tell_whole_text


class SourceField(QWidget):
    """`submitted` tells what the user entered or chose, when that is done."""

    changed = Signal(str)
    submitted = Signal(str)

    def __init__(self, name: str, placeholder: str, browse: str = "Browse…") -> None:
        super().__init__()
        self._name = name
        self._told = ""
        self.edit = _DropEdit()
        self.edit.setPlaceholderText(placeholder)
        self.edit.setAccessibleName(name)
        self.edit.textChanged.connect(self.changed)
        tell_whole_text(self.edit)
        self.edit.editingFinished.connect(self.submit)
        self.browse = push_button(browse)
        self.browse.setAccessibleName(f"Browse for {name}")
        self.browse.clicked.connect(self._browse)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(8)
        row.addWidget(self.edit, 1)
        row.addWidget(self.browse)
        self.setFocusProxy(self.edit)

    def text(self) -> str:
        return self.edit.text().strip()

    def set_text(self, text: str) -> None:
        """Fill in, without telling it as the user's."""
        self._told = text.strip()
        if text != self.edit.text():
            self.edit.setText(text)

    def take(self, text: str) -> None:
        """Fill in what the user chose."""
        if text:
            self.edit.setText(text)
            self.submit()

    def submit(self) -> None:
        """Tell what the user entered, if that has not been told yet."""
        if self.text() != self._told:
            self._told = self.text()
            self.submitted.emit(self._told)

    def _browse(self) -> None:
        ask_for_folder(self, self._name, self.text(), self.take)


class SharedUndoEdit(QLineEdit):
    """A line edit that leaves the keys of undo and redo to the document, unless it has typing of its own to undo."""

    def event(self, event: QEvent) -> bool:
        if event.type() == QEvent.Type.ShortcutOverride and isinstance(event, QKeyEvent):
            keys = QKeySequence.StandardKey
            idle_undo = event.matches(keys.Undo) and not self.isUndoAvailable()
            idle_redo = event.matches(keys.Redo) and not self.isRedoAvailable()
            if idle_undo or idle_redo:
                event.ignore()
                return True
        return super().event(event)


class _DropEdit(SharedUndoEdit, DropEdit):
    """Takes a dropped folder as its text."""


def ask_for_folder(parent: QWidget, title: str, start: str, chosen: object) -> QFileDialog:
    """Ask for a folder; `chosen` is called with it. Returns at once."""
    dialog = QFileDialog(parent, title, start)
    dialog.setFileMode(QFileDialog.FileMode.Directory)
    dialog.setOption(QFileDialog.Option.ShowDirsOnly)
    dialog.fileSelected.connect(chosen)
    dialog.finished.connect(dialog.deleteLater)
    dialog.open()
    return dialog
