"""Where messages are written."""

from __future__ import annotations

import math

from PySide6.QtCore import QEvent, QSize, Qt, Signal
from PySide6.QtGui import QFocusEvent, QKeyEvent, QResizeEvent, QTextCursor
from PySide6.QtWidgets import QFrame, QHBoxLayout, QPlainTextEdit, QSizePolicy, QVBoxLayout, QWidget

from loradesk_app.theme import Theme
from loradesk_app.widgets.buttons import icon_button, push_button
from loradesk_app.widgets.labels import label

MAX_LINES = 8
MAX_HISTORY = 50
HINT_WIDTH = 420  # narrower, the hint would be cut


class MessageEdit(QPlainTextEdit):
    """A text field that grows with its text; Enter and Up mean more than in a plain one."""

    submitted = Signal()
    older_requested = Signal()
    newer_requested = Signal()
    focus_changed = Signal(bool)

    def __init__(self) -> None:
        super().__init__()
        self.send_key = "enter"
        self.setProperty("kind", "input")
        self.setAccessibleName("Message")
        self.setTabChangesFocus(True)
        self._placeholder = ""
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.document().documentLayout().documentSizeChanged.connect(lambda _size: self._fit())
        self._fit()

    def set_placeholder(self, text: str) -> None:
        """What the empty field says: one line, for a second one has no room."""
        self._placeholder = text
        self._fit_placeholder()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        enter = event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter)
        shift = bool(event.modifiers() & Qt.KeyboardModifier.ShiftModifier)
        control = bool(event.modifiers() & Qt.KeyboardModifier.ControlModifier)
        if enter and not shift and control == (self.send_key == "ctrl+enter"):
            self.submitted.emit()
        elif enter:
            self.insertPlainText("\n")
            self.ensureCursorVisible()
        elif event.key() == Qt.Key.Key_Up and self.textCursor().blockNumber() == 0 and self._on_first_line():
            self.older_requested.emit()
        elif event.key() == Qt.Key.Key_Down and self.textCursor().blockNumber() == self.blockCount() - 1:
            self.newer_requested.emit()
        else:
            super().keyPressEvent(event)

    def changeEvent(self, event: QEvent) -> None:
        super().changeEvent(event)
        if event.type() in (QEvent.Type.FontChange, QEvent.Type.StyleChange):
            self._fit()

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._fit_placeholder()

    def focusInEvent(self, event: QFocusEvent) -> None:
        super().focusInEvent(event)
        self.focus_changed.emit(True)

    def focusOutEvent(self, event: QFocusEvent) -> None:
        super().focusOutEvent(event)
        self.focus_changed.emit(False)

    def sizeHint(self) -> QSize:
        return QSize(200, self.height())

    def minimumSizeHint(self) -> QSize:
        return QSize(80, self.fontMetrics().lineSpacing() + 14)

    def _fit_placeholder(self) -> None:
        room = self.viewport().width() - 2 * math.ceil(self.document().documentMargin()) - 2
        shown = self.fontMetrics().elidedText(self._placeholder, Qt.TextElideMode.ElideRight, room)
        self.setPlaceholderText(shown)

    def _on_first_line(self) -> bool:
        cursor = self.textCursor()
        return not cursor.movePosition(QTextCursor.MoveOperation.Up)

    def _fit(self) -> None:
        self._fit_placeholder()
        # A plain text document measures its height in lines, wrapped ones counted.
        lines = max(1, min(MAX_LINES, round(self.document().size().height())))
        overflow = round(self.document().size().height()) > MAX_LINES
        policy = Qt.ScrollBarPolicy.ScrollBarAsNeeded if overflow else Qt.ScrollBarPolicy.ScrollBarAlwaysOff
        self.setVerticalScrollBarPolicy(policy)
        self.setFixedHeight(self.fontMetrics().lineSpacing() * lines + int(self.document().documentMargin() * 2) + 6)


class Composer(QFrame):
    """The message field with its buttons: sampling, send, and stop while an answer is under way."""

    submitted = Signal(str)
    stop_requested = Signal()
    edit_cancelled = Signal()
    sampling_requested = Signal()
    history_changed = Signal(list)
    draft_changed = Signal()

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setProperty("kind", "composer")
        self._history: list[str] = []
        self._place = 0
        self._draft = ""
        self._busy = False
        self.edit = MessageEdit()
        self.edit.set_placeholder("Message the model")
        self.edit.submitted.connect(self._submit)
        self.edit.older_requested.connect(lambda: self._browse(-1))
        self.edit.newer_requested.connect(lambda: self._browse(+1))
        self.edit.focus_changed.connect(self._mark_active)
        self.edit.textChanged.connect(self._note_text)

        self.sampling_button = push_button("", "flat")
        self.sampling_button.setToolTip("Sampling: how the next token is drawn (Ctrl+T)")
        self.sampling_button.setAccessibleName("Sampling settings")
        theme.bind_icon(self.sampling_button, "tune", "muted")
        self.sampling_button.clicked.connect(self.sampling_requested)
        self.hint = label("", "small")
        self.send_button = icon_button(theme, "send", "Send (Enter)", role="on_accent", kind="send")
        self.send_button.clicked.connect(self._submit)
        self.stop_button = icon_button(theme, "stop", "Stop answering (Esc)", role="surface", kind="stop")
        self.stop_button.clicked.connect(self.stop_requested)

        self._editing = QFrame()
        self._editing.setProperty("kind", "editing")
        strip = QHBoxLayout(self._editing)
        strip.setContentsMargins(10, 4, 4, 4)
        strip.addWidget(label("Editing your last message. Sending it replaces the answer.", "small"), 1)
        cancel_edit = icon_button(theme, "close", "Leave the message as it was (Esc)", kind="quiet")
        cancel_edit.clicked.connect(self.edit_cancelled)
        strip.addWidget(cancel_edit)

        row = QHBoxLayout()
        row.setSpacing(8)
        row.addWidget(self.sampling_button)
        row.addStretch(1)
        row.addWidget(self.hint)
        row.addWidget(self.stop_button)
        row.addWidget(self.send_button)
        column = QVBoxLayout(self)
        column.setContentsMargins(12, 8, 8, 8)
        column.setSpacing(4)
        column.addWidget(self._editing)
        column.addWidget(self.edit)
        column.addLayout(row)
        self.set_busy(False)
        self.set_editing(False)
        self.set_send_key("enter")

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self.hint.setVisible(self.width() >= HINT_WIDTH)

    def text(self) -> str:
        return self.edit.toPlainText()

    def set_text(self, text: str) -> None:
        """Put a text into the field, the cursor at its end."""
        self.edit.setPlainText(text)
        self.edit.moveCursor(QTextCursor.MoveOperation.End)

    def show_preset(self, name: str) -> None:
        """Name of the sampling preset in use."""
        self.sampling_button.setText(f" {name}")

    def set_busy(self, busy: bool) -> None:
        self._busy = busy
        self.stop_button.setVisible(busy)
        self.send_button.setVisible(not busy)
        self._note_text()

    def set_editing(self, editing: bool) -> None:
        """Show that the text replaces the last message."""
        self._editing.setVisible(editing)

    def set_send_key(self, key: str) -> None:
        self.edit.send_key = key
        names = ("Enter", "Shift+Enter") if key == "enter" else ("Ctrl+Enter", "Enter")
        self.hint.setText(f"{names[0]} sends · {names[1]} new line")
        self.send_button.setToolTip(f"Send ({names[0]})")

    def set_history(self, history: list[str]) -> None:
        self._history = [text for text in history if isinstance(text, str)][-MAX_HISTORY:]
        self._place = len(self._history)

    def _submit(self) -> None:
        text = self.text().strip()
        if not text or self._busy:
            return
        if not self._history or self._history[-1] != text:
            self._history = [*self._history, text][-MAX_HISTORY:]
            self.history_changed.emit(list(self._history))
        self._place = len(self._history)
        self._draft = ""
        self.edit.clear()
        self.submitted.emit(text)

    def _browse(self, step: int) -> None:
        """Go through what was sent before; the text begun stays at the newest end."""
        place = self._place + step
        if not 0 <= place <= len(self._history):
            return
        if self._place == len(self._history):
            self._draft = self.text()
        self._place = place
        self.set_text(self._draft if place == len(self._history) else self._history[place])

    def _note_text(self) -> None:
        self.send_button.setEnabled(bool(self.text().strip()) and not self._busy)
        self.draft_changed.emit()

    def _mark_active(self, active: bool) -> None:
        self.setProperty("active", active)
        self.style().unpolish(self)
        self.style().polish(self)
