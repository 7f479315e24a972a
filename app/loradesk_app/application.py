"""The Qt application, which macOS tells what to open; other systems start the program with an argument."""

from __future__ import annotations

from PySide6.QtCore import QEvent, Signal
from PySide6.QtGui import QFileOpenEvent
from PySide6.QtWidgets import QApplication


class Application(QApplication):
    """Named as the desktop knows it. Ends when it is told to: the engine ends behind the closed window."""

    file_opened = Signal(str)  # a local path

    def __init__(self, arguments: list[str]) -> None:
        super().__init__(arguments)
        self.setApplicationName("Loradesk")
        self.setApplicationDisplayName("Loradesk")
        self.setOrganizationName("Loradesk")
        self.setDesktopFileName("loradesk")
        self.setQuitOnLastWindowClosed(False)

    def event(self, event: QEvent) -> bool:
        if isinstance(event, QFileOpenEvent) and event.file():
            self.file_opened.emit(event.file())
            return True
        return super().event(event)
