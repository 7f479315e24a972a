"""Shows exactly what a report holds before it is saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PySide6.QtCore import Signal
from PySide6.QtGui import QFontDatabase, QKeySequence, QShortcut
from PySide6.QtWidgets import QCheckBox, QDialog, QFileDialog, QHBoxLayout, QPlainTextEdit, QVBoxLayout, QWidget

from loradesk_app.log.report import PARTS, report_text
from loradesk_app.widgets.buttons import push_button
from loradesk_app.widgets.labels import label
from loradesk_engine.log.entry import Entry

FILE_NAME = "loradesk-report.txt"


class ReportDialog(QDialog):
    """Boxes for the parts of a report, and the report as it will be in the file."""

    save_requested = Signal(str, bytes)  # path, content

    def __init__(self, settings: Mapping[str, Any], entries: Sequence[Entry], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Save a report")
        self.resize(760, 600)
        self._settings, self._entries = settings, entries
        self._facts: Mapping[str, str] = {"": "Reading…"}
        self.boxes: dict[str, QCheckBox] = {}
        column = QVBoxLayout(self)
        column.setContentsMargins(20, 16, 20, 16)
        column.setSpacing(8)
        column.addWidget(label("What goes into the report", "heading"))
        for key, text in PARTS:
            box = self.boxes[key] = QCheckBox(text)
            box.setChecked(True)
            box.toggled.connect(self._show)
            column.addWidget(box)
        note = "The log holds no texts of conversations. Your home folder is shown as ~. Nothing is sent: you get one "
        note += "file to attach yourself. This is all that will be in it:"
        column.addWidget(label(note, "small", wrap=True))
        self.preview = QPlainTextEdit()
        self.preview.setReadOnly(True)
        self.preview.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        self.preview.setFont(QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont))
        self.preview.setAccessibleName("The report")
        column.addWidget(self.preview, 1)
        self.cancel = push_button("Cancel")
        self.cancel.clicked.connect(self.reject)
        self.save = push_button("Save…", "primary")
        self.save.setDefault(True)
        self.save.setEnabled(False)  # until all of it is shown
        self.save.clicked.connect(self._ask_where)
        QShortcut(QKeySequence(QKeySequence.StandardKey.Save), self, self._ask_where)
        buttons = QHBoxLayout()
        buttons.addStretch(1)
        buttons.addWidget(self.cancel)
        buttons.addWidget(self.save)
        column.addLayout(buttons)
        self._show()

    def set_facts(self, facts: Mapping[str, str]) -> None:
        """Versions and devices are known now."""
        self._facts = facts
        self.save.setEnabled(True)
        self._show()

    def _show(self) -> None:
        parts = [key for key, box in self.boxes.items() if box.isChecked()]
        self.text = report_text(parts, self._facts, self._settings, self._entries)
        self.preview.setPlainText(self.text)

    def _ask_where(self) -> None:
        if not self.save.isEnabled():
            return
        path, _ = QFileDialog.getSaveFileName(self, "Save a report", FILE_NAME, "Text (*.txt)")
        if path:
            self.save_requested.emit(path, self.text.encode("utf-8", "replace"))
            self.accept()
