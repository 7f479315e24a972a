"""What the main window has of the log: its window, and a dialog when there was a defect."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QObject, Qt, QTimer, Signal, Slot
from PySide6.QtWidgets import QWidget
from shiboken6 import isValid

from loradesk_app.background import Background
from loradesk_app.theme import Theme
from loradesk_engine.files import write_atomic
from loradesk_engine.log.entry import Entry
from loradesk_engine.log.trail import Trail

if TYPE_CHECKING:
    from loradesk_app.log.defect_dialog import DefectDialog
    from loradesk_app.log.log_window import LogWindow

logger = logging.getLogger(__name__)
BROKEN_DIALOG = "The dialog for a defect cannot be shown"

COUNT_MS = 500  # between two changes of the dialog's count: a defect in painting comes with every frame


class LogDesk(QObject):
    """Opens the log's window, and one dialog at a time for defects, whichever thread they came about in.

    Args:
        trail: the log of this run.
        model_sentence: what can be said of the model now.
        confirm_saved: saves the conversation and calls back with a sentence of what came of it.
        get_setting: a setting by its key.
    """

    _noticed = Signal(object)  # Entry
    saved = Signal(str)
    save_failed = Signal(object)  # OSError

    def __init__(
        self,
        theme: Theme,
        trail: Trail,
        background: Background,
        *,
        model_sentence: Callable[[], str],
        confirm_saved: Callable[[Callable[[str], None]], None],
        get_setting: Callable[[str], Any],
        parent: QWidget,
    ) -> None:
        super().__init__(parent)
        self._theme, self._trail, self._background, self._parent = theme, trail, background, parent
        self._model_sentence, self._confirm_saved, self._get_setting = model_sentence, confirm_saved, get_setting
        self.window: LogWindow | None = None
        self.dialog: DefectDialog | None = None
        self._more = 0
        self._ended = False
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(COUNT_MS)
        self._timer.timeout.connect(self.refresh)
        self._noticed.connect(self._take, Qt.ConnectionType.QueuedConnection)  # never inside what has just failed
        trail.watch(self._notice)

    def open(self) -> LogWindow:
        """Open the log's window."""
        if self.window is None:
            from loradesk_app.log.log_window import LogWindow  # not before the first paint

            self.window = LogWindow(self._theme, self._trail, self._background, self._parent)
            self.window.report_requested.connect(self.open_report)
        self.window.show()
        self.window.raise_()
        self.window.activateWindow()
        return self.window

    def open_report(self) -> None:
        """Show what a report would hold, and let it be saved."""
        from loradesk_app.log.report import report_settings
        from loradesk_app.log.report_dialog import ReportDialog
        from loradesk_engine.serving.machine import machine_facts

        window = self.open()
        entries, _total = self._trail.ring.since(0)
        dialog = ReportDialog(report_settings(self._get_setting), entries, window)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.save_requested.connect(self._save)
        dialog.open()

        def show_facts(facts: dict[str, str]) -> None:
            if isValid(dialog):  # it may be closed by now
                dialog.set_facts(facts)

        self._background.run(machine_facts, show_facts, lambda _error: show_facts({"versions": "They cannot be read."}))

    def end(self) -> None:
        """The window closes: no dialogs any more."""
        self._ended = True
        self._trail.unwatch(self._notice)
        self._timer.stop()
        for each in (self.dialog, self.window):
            if each is not None:
                each.close()

    def refresh(self) -> None:
        """Bring what the dialog says up to date."""
        if self.dialog is None or self._ended:
            return
        try:
            self.dialog.show_model(self._model_sentence())
            if self._more:
                self.dialog.show_more(self._more)
        except Exception:
            self._give_up()  # first: what is logged now must open no dialog
            logger.exception(BROKEN_DIALOG)

    def _save(self, path: str, data: bytes) -> None:
        write = partial(write_atomic, path, data)
        self._background.run(write, lambda _none: self.saved.emit(path), self.save_failed.emit)

    def _notice(self, entry: Entry) -> None:
        """Called in any thread."""
        with contextlib.suppress(RuntimeError):  # the window is gone
            self._noticed.emit(entry)

    @Slot(object)
    def _take(self, entry: Entry) -> None:
        if self._ended:
            return
        if self.dialog is not None:
            self._more += 1
            if not self._timer.isActive():
                self._timer.start()
            return
        try:
            self._show(entry)
        except Exception:
            self._give_up()  # first: what is logged now must open no dialog
            logger.exception(BROKEN_DIALOG)

    def _show(self, entry: Entry) -> None:
        from loradesk_app.log.defect_dialog import DefectDialog

        self._more = 0
        place = self._trail.folder if self._trail.problem else self._trail.file.path
        dialog = self.dialog = DefectDialog(self._theme, entry, str(place), self._parent)
        dialog.log_requested.connect(self._open_at_defect)
        dialog.finished.connect(self._forget)
        dialog.show_model(self._model_sentence())
        dialog.show()
        self._confirm_saved(lambda sentence: self._show_saved(dialog, sentence))

    def _show_saved(self, dialog: DefectDialog, sentence: str) -> None:
        if dialog is self.dialog:
            dialog.show_chat(sentence)

    def _open_at_defect(self) -> None:
        self.open().show_last_defect()

    def _forget(self, _result: int) -> None:
        dialog, self.dialog = self.dialog, None
        if dialog is not None:
            dialog.deleteLater()

    def _give_up(self) -> None:
        """The dialog itself is broken: the log has both defects, and no further dialog is tried."""
        self._ended = True
        self._trail.unwatch(self._notice)
