"""A strip above a document that says what has happened and offers what can be done; it never blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from PySide6.QtCore import QSize, Qt
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from loradesk_app.theme import Theme
from loradesk_app.widgets.buttons import icon_button, push_button
from loradesk_app.widgets.labels import label
from loradesk_engine.errors import LoradeskError

Choice = tuple[str, Callable[[], object]]


class NoticeBar(QFrame):
    """One message at a time, with up to three buttons."""

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self._icon = ("warning", "warning")
        self._sign = QLabel()
        self._sign.setFixedSize(18, 18)
        self.message = label("", wrap=True)
        self.detail = label("", "muted", wrap=True)
        for part in (self.message, self.detail):
            part.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.buttons: list[QPushButton] = []
        self.close_button = icon_button(theme, "close", "Dismiss", kind="quiet", role="text")
        self.close_button.clicked.connect(self.clear)
        words = QVBoxLayout()
        words.setSpacing(2)
        words.addWidget(self.message)
        words.addWidget(self.detail)
        self._row = QHBoxLayout(self)
        self._row.setContentsMargins(12, 8, 8, 8)
        self._row.setSpacing(10)
        self._row.addWidget(self._sign, 0, Qt.AlignmentFlag.AlignTop)
        self._row.addLayout(words, 1)
        self._row.addWidget(self.close_button, 0, Qt.AlignmentFlag.AlignTop)
        self.topic = ""
        theme.changed.connect(self._show_sign)
        self.hide()

    def show_notice(
        self, topic: str, message: str, *choices: Choice, detail: str = "", error: bool = False, lasting: bool = False
    ) -> None:
        """Say something; `topic` lets `clear` take back this message and no later one; `lasting`: until `clear`."""
        self.topic = topic
        self._icon = ("ordering-error", "danger") if error else ("warning", "warning")
        self.setProperty("kind", "problem" if error else "notice")
        self.style().unpolish(self)
        self.style().polish(self)
        self.message.setText(message)
        self.detail.setText(detail)
        self.detail.setVisible(bool(detail))
        self.setAccessibleName(f"{message} {detail}".strip())
        for button in self.buttons:
            self._row.removeWidget(button)
            button.hide()
            button.deleteLater()
        self.buttons = []
        for text, action in choices:
            button = push_button(text)
            button.clicked.connect(partial(self._act, action, lasting))
            self._row.insertWidget(self._row.count() - 1, button)
            self.buttons.append(button)
        self.close_button.setVisible(not lasting)
        self._show_sign()
        self.show()

    def show_error(self, topic: str, error: Exception, *choices: Choice) -> None:
        """Say what went wrong, where, and what helps."""
        if isinstance(error, LoradeskError):
            where = ", ".join(part for part in (error.file, error.field) if part)
            detail = " ".join(part for part in (f"{where}." if where else "", error.remedy or "") if part)
            self.show_notice(topic, error.problem, *choices, detail=detail, error=True)
        else:
            self.show_notice(topic, f"{type(error).__name__}: {error}", *choices, error=True)

    def clear(self, topic: str | None = None) -> None:
        """Take the message away; with a topic, only if it is about that."""
        if topic is None or topic == self.topic:
            self.topic = ""
            self.hide()

    def _act(self, action: Callable[[], object], lasting: bool, _checked: bool = False) -> None:
        if not lasting:
            self.clear()
        action()

    def _show_sign(self) -> None:
        pixmap = self._theme.icon(*self._icon).pixmap(QSize(18, 18), self.devicePixelRatioF())
        self._sign.setPixmap(pixmap)
