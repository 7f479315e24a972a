"""Fields that the wheel passes over on its way down a page must not change by accident."""

from __future__ import annotations

from PySide6.QtCore import QEvent, QObject, Qt
from PySide6.QtWidgets import QWidget


class _Guard(QObject):
    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if event.type() == QEvent.Type.Wheel and isinstance(watched, QWidget) and not watched.hasFocus():
            event.ignore()  # what the field lies on scrolls
            return True
        return super().eventFilter(watched, event)


def leave_wheel_to_page(field: QWidget) -> None:
    """Let the wheel turn a field only while the field has the focus, and not give it the focus."""
    field.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
    field.installEventFilter(_Guard(field))
