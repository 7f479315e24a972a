"""Scrolls the desk sideways when it has more strips than there is room for."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtGui import QWheelEvent
from PySide6.QtWidgets import QApplication, QScrollArea, QWidget

LEAST_HEIGHT = 110


class DeskScroll(QScrollArea):
    """A wheel has no other use here as long as the strips are whole, so it moves the desk along."""

    def __init__(self, content: QWidget) -> None:
        super().__init__()
        self.setWidgetResizable(True)
        self.setWidget(content)
        self.setMinimumHeight(LEAST_HEIGHT)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)  # Tab goes from strip to strip, and the desk follows

    def wheelEvent(self, event: QWheelEvent) -> None:
        upright = self.verticalScrollBar().maximum() > 0
        sideways = abs(event.angleDelta().x()) > abs(event.angleDelta().y())
        if upright or sideways or event.modifiers() & Qt.KeyboardModifier.AltModifier:
            super().wheelEvent(event)
        else:
            QApplication.sendEvent(self.horizontalScrollBar(), event)
