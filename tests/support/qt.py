"""pytest-qt's robot with patience, and the end of the widgets that a test leaves behind."""

from __future__ import annotations

from functools import partialmethod

from PySide6.QtCore import QEvent
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from support.clock import PATIENCE

MILLISECONDS = int(PATIENCE * 1000)


class PatientQtBot(QtBot):
    """Waits for `PATIENCE` where a test names no timeout; pytest-qt's 5 s may pass on a busy machine."""

    waitCallback = partialmethod(QtBot.waitCallback, timeout=MILLISECONDS)
    waitExposed = partialmethod(QtBot.waitExposed, timeout=MILLISECONDS)
    waitSignal = partialmethod(QtBot.waitSignal, timeout=MILLISECONDS)
    waitSignals = partialmethod(QtBot.waitSignals, timeout=MILLISECONDS)
    waitUntil = partialmethod(QtBot.waitUntil, timeout=MILLISECONDS)


def delete_widgets() -> None:
    """Delete every window and menu. pyqtgraph's menus have no parent and outlive their plots; each style sheet that is
    set goes through all widgets, so tests would get slower and slower.
    """
    QApplication.processEvents()
    for widget in QApplication.topLevelWidgets():
        widget.deleteLater()
    QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
