"""A line edit that takes what is dropped on it as its text."""

from __future__ import annotations

from PySide6.QtGui import QDragEnterEvent, QDropEvent
from PySide6.QtWidgets import QLineEdit

from loradesk_app.widgets.labels import plain_tip


class DropEdit(QLineEdit):
    """Takes a dropped file or folder as its text."""

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        if dropped_paths(event):
            event.acceptProposedAction()
        else:
            super().dragEnterEvent(event)

    def dropEvent(self, event: QDropEvent) -> None:
        paths = dropped_paths(event)
        if paths:
            self.setText(paths[0])
            self.setFocus()
            event.acceptProposedAction()
        else:
            super().dropEvent(event)


def tell_whole_text(edit: QLineEdit) -> None:
    """Let the pointer over a field tell all of what it holds: paths and hub ids are often longer than it."""
    edit.textChanged.connect(lambda text: edit.setToolTip(plain_tip(text)))


def dropped_paths(event: QDropEvent) -> list[str]:
    """The local paths in what is dragged."""
    return [url.toLocalFile() for url in event.mimeData().urls() if url.isLocalFile()]
