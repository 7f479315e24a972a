"""A field for a path, with a button to look for it and a place to drop it."""

from __future__ import annotations

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QFileDialog, QHBoxLayout, QMenu, QWidget

from loradesk_app.widgets.buttons import push_button
from loradesk_app.widgets.drop_edit import DropEdit, tell_whole_text


class PathField(QWidget):
    """`files` is a name filter when a file may be chosen; `folders` whether a folder may."""

    changed = Signal(str)

    def __init__(self, name: str, placeholder: str, *, folders: bool = True, files: str = "") -> None:
        super().__init__()
        self._name, self._filter = name, files
        self.edit = DropEdit()
        self.edit.setPlaceholderText(placeholder)
        self.edit.setAccessibleName(name)
        self.edit.setClearButtonEnabled(True)
        self.edit.textChanged.connect(self.changed)
        tell_whole_text(self.edit)
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
