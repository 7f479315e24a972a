"""Says that something went wrong that should not have, what is safe, and where the log is."""

from __future__ import annotations

from PySide6.QtCore import QSize, Qt, Signal
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QDialog, QHBoxLayout, QLabel, QVBoxLayout, QWidget

from loradesk_app.log.report import without_home
from loradesk_app.theme import Theme
from loradesk_app.widgets.buttons import push_button
from loradesk_app.widgets.labels import label
from loradesk_engine.log.entry import Entry

WIDTH = 520


class DefectDialog(QDialog):
    """Shows one defect, and how many there have been since. It keeps nothing from being used."""

    log_requested = Signal()

    def __init__(self, theme: Theme, entry: Entry, log_place: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Something went wrong")
        self.setMinimumWidth(WIDTH)
        self._theme = theme
        self._entry = entry
        self._sign = QLabel()
        self._show_sign()
        theme.changed.connect(self._show_sign)
        self.title = label(f"A defect in the {entry.source}", "large", wrap=True)
        self.what = label(what_happened(entry), wrap=True)
        self.what.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.count = label("", "muted", wrap=True)
        self.count.hide()
        self.model_line = label("", wrap=True)
        self.chat_line = label("Checking whether the conversation is saved…", wrap=True)
        self.place = label(f"The log has the traceback: {log_place}".replace("/", "/\u200b"), "small", wrap=True)
        self.place.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.open_log = push_button("Open the log")
        self.open_log.clicked.connect(self.log_requested)
        self.copy_details = push_button("Copy details")
        self.copy_details.clicked.connect(self._copy)
        self.close_button = push_button("Close", "primary")
        self.close_button.setDefault(True)
        self.close_button.clicked.connect(self.accept)
        texts = QVBoxLayout()
        texts.setSpacing(8)
        for part in (self.title, self.what, self.count, self.model_line, self.chat_line, self.place):
            texts.addWidget(part)
        head = QHBoxLayout()
        head.setSpacing(14)
        head.addWidget(self._sign, 0, Qt.AlignmentFlag.AlignTop)
        head.addLayout(texts, 1)
        buttons = QHBoxLayout()
        buttons.setSpacing(8)
        buttons.addWidget(self.open_log)
        buttons.addWidget(self.copy_details)
        buttons.addStretch(1)
        buttons.addWidget(self.close_button)
        column = QVBoxLayout(self)
        column.setContentsMargins(22, 20, 22, 16)
        column.setSpacing(16)
        column.addLayout(head)
        column.addStretch(1)
        column.addLayout(buttons)
        self.close_button.setFocus()

    def show_more(self, count: int) -> None:
        """There have been so many defects since the one that is shown."""
        times = "once more" if count == 1 else f"{count:,} more times"
        self.count.setText(f"Something went wrong {times} since; the log has it all.")
        self.count.show()
        self.adjustSize()

    def show_model(self, sentence: str) -> None:
        """What became of the model."""
        self.model_line.setText(sentence)
        self.model_line.setVisible(bool(sentence))

    def show_chat(self, sentence: str) -> None:
        """What became of the conversation."""
        self.chat_line.setText(sentence)
        self.adjustSize()

    def _show_sign(self) -> None:
        icon = self._theme.icon("ordering-error", "danger")
        self._sign.setPixmap(icon.pixmap(QSize(28, 28), self.devicePixelRatioF()))

    def _copy(self) -> None:
        QGuiApplication.clipboard().setText(without_home(self._entry.text))


def what_happened(entry: Entry) -> str:
    """The error in a line: what failed, and the last line of its traceback."""
    last = entry.detail.rstrip().rpartition("\n")[2].strip()
    return entry.message if not last or last in entry.message else f"{entry.message}: {last}"
