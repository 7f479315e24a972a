"""A field for a path, with a button to look for it and a place to drop it."""

from __future__ import annotations

from PySide6.QtCore import Signal
from PySide6.QtGui import QDragEnterEvent, QDropEvent
from PySide6.QtWidgets import QFileDialog, QHBoxLayout, QLineEdit, QMenu, QWidget

from loradesk_app.widgets.buttons import push_button


class DropLineEdit(QLineEdit):
    """A line edit that takes a dropped file or folder as its path."""

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        if dropped_path(event):
            event.acceptProposedAction()
        else:
            super().dragEnterEvent(event)

    def dropEvent(self, event: QDropEvent) -> None:
        path = dropped_path(event)
        if path:
            self.setText(path)
            event.acceptProposedAction()
        else:
            super().dropEvent(event)


class PathField(QWidget):
    """`files` is a name filter when a file may be chosen; `folders` whether a folder may."""

    changed = Signal(str)

    def __init__(self, name: str, placeholder: str, *, folders: bool = True, files: str = "") -> None:
        super().__init__()
        self._name, self._filter = name, files
        self.edit = DropLineEdit()
        self.edit.setPlaceholderText(placeholder)
        self.edit.setAccessibleName(name)
        self.edit.setClearButtonEnabled(True)
        self.edit.textChanged.connect(self.changed)
        self.browse = push_button("Browse…")
        self.browse.setAccessibleName(f"Browse for {name}")
        if folders and files:
            menu = QMenu(self.browse)
            menu.addAction("Folder…", self._browse_folder)
            menu.addAction("File…", self._browse_file)
            self.browse.setProperty("kind", "menu")
            self.browse.setMenu(menu)
        else:
            self.browse.clicked.connect(self._browse_folder if folders else self._browse_file)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(8)
        row.addWidget(self.edit, 1)
        row.addWidget(self.browse)
        self.setFocusProxy(self.edit)

    def text(self) -> str:
        return self.edit.text()

    def set_text(self, text: str) -> None:
        self.edit.setText(text)

    def _browse_folder(self) -> None:
        self._take(QFileDialog.getExistingDirectory(self, self._name, self.text()))

    def _browse_file(self) -> None:
        self._take(QFileDialog.getOpenFileName(self, self._name, self.text(), self._filter)[0])

    def _take(self, path: str) -> None:
        if path:
            self.set_text(path)


def dropped_path(event: QDropEvent) -> str:
    """The first local path in what is dragged."""
    return next((url.toLocalFile() for url in event.mimeData().urls() if url.isLocalFile()), "")
