"""How one turn looks: a bubble for what the user said, a plain column for the answer."""

from __future__ import annotations

import time

from PySide6.QtCore import QEvent, Qt, QTimer, Signal
from PySide6.QtGui import QEnterEvent, QGuiApplication, QResizeEvent
from PySide6.QtWidgets import QFrame, QHBoxLayout, QVBoxLayout, QWidget

from loradesk_app.chat.conversation import Turn
from loradesk_app.chat.highlighter import CodeHighlighter
from loradesk_app.theme import Theme
from loradesk_app.widgets.buttons import icon_button
from loradesk_app.widgets.chip import Chip
from loradesk_app.widgets.flow_layout import FlowLayout
from loradesk_app.widgets.labels import ElidedLabel, label
from loradesk_app.widgets.problem_box import ProblemBox
from loradesk_app.widgets.text_block import TextBlock

MODE_NAMES = {"none": "base model", "lora": "LoRA", "xlora": "X-LoRA"}
SMALL_SHARE = 0.05  # an expert below this took no part worth a chip
MAX_CHIPS = 6
CHIP_SECONDS = 0.3  # while an answer grows, its shares change with every token


class QuestionView(QWidget):
    """What the user said, at the right."""

    edit_requested = Signal()

    def __init__(self, theme: Theme, turn: Turn) -> None:
        super().__init__()
        self.setAccessibleName("You said")
        self.text = TextBlock(turn.text)
        self._bubble = QFrame()
        self._bubble.setProperty("kind", "bubble")
        inner = QHBoxLayout(self._bubble)
        inner.setContentsMargins(14, 10, 14, 8)
        inner.addWidget(self.text)
        self.copy_button = icon_button(theme, "copy", "Copy this message", kind="quiet")
        self.copy_button.clicked.connect(lambda: QGuiApplication.clipboard().setText(self.text.toPlainText()))
        self.copy_button.hide()  # shown under the pointer; its place stays
        keep = self.copy_button.sizePolicy()
        keep.setRetainSizeWhenHidden(True)
        self.copy_button.setSizePolicy(keep)
        self.edit_button = icon_button(theme, "edit", "Edit this message and ask again (Ctrl+E)", kind="quiet")
        self.edit_button.clicked.connect(self.edit_requested)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(2)
        row.addStretch(1)
        row.addWidget(self.copy_button)
        row.addWidget(self.edit_button)
        row.addSpacing(4)
        row.addWidget(self._bubble)

    def tab_stops(self) -> tuple[QWidget, ...]:
        return (self.copy_button, self.edit_button, self.text)

    def set_last(self, last: bool, busy: bool) -> None:
        """Only the last question can be edited, and not while it is being answered."""
        self.edit_button.setVisible(last and not busy)

    def enterEvent(self, event: QEnterEvent) -> None:
        super().enterEvent(event)
        self.copy_button.show()

    def leaveEvent(self, event: QEvent) -> None:
        super().leaveEvent(event)
        self.copy_button.hide()

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        room = int(self.width() * 0.86) - 80
        self._bubble.setFixedWidth(max(44, min(room, self.text.natural_width() + 34)))


class AnswerView(QWidget):
    """What the model said, with who said it, which adapters took part and how fast."""

    regenerate_requested = Signal()

    def __init__(self, theme: Theme, colors: dict[str, int]) -> None:
        super().__init__()
        self._theme, self._colors = theme, colors
        self._shown_chips: tuple[tuple[str, str], ...] = ()
        self._chip_widgets: list[Chip] = []
        self._chips_at = 0.0
        self.setAccessibleName("The model said")
        self.who = ElidedLabel("", "caption", elide=Qt.TextElideMode.ElideMiddle)
        self.chips = QWidget()
        self.chips.hide()
        self._chip_row = FlowLayout(self.chips, spacing=5)
        self.text = TextBlock()
        self._highlighter = CodeHighlighter(self.text.document(), theme)
        self.waiting = label("", "muted")
        self.problem = ProblemBox(theme, action="Try again", dismissable=False)
        self.problem.action_requested.connect(self.regenerate_requested)
        self.stats = ElidedLabel("", "small")
        self.copy_button = icon_button(theme, "copy", "Copy this answer", kind="quiet")
        self.copy_button.clicked.connect(self._copy)
        self.regenerate_button = icon_button(theme, "refresh", "Answer again (Ctrl+R)", kind="quiet")
        self.regenerate_button.clicked.connect(self.regenerate_requested)
        self._pulse = QTimer(self)
        self._pulse.setInterval(400)
        self._pulse.timeout.connect(self._step_dots)
        self._dots = 0
        self._waiting_for = ""

        self._footer = QWidget()
        footer = QHBoxLayout(self._footer)
        footer.setContentsMargins(0, 0, 0, 0)
        footer.setSpacing(2)
        footer.addWidget(self.stats)
        footer.addSpacing(6)
        footer.addWidget(self.copy_button)
        footer.addWidget(self.regenerate_button)
        footer.addStretch(1)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(6)
        column.addWidget(self.who)
        column.addWidget(self.waiting)
        column.addWidget(self.text)
        column.addWidget(self.problem)
        column.addWidget(self.chips)
        column.addWidget(self._footer)

    def show_turn(self, turn: Turn) -> None:
        """Show a turn; text that only grew is appended, so that selections and layout stay."""
        self.who.setText(f"{turn.model} · {MODE_NAMES.get(turn.mode, turn.mode)}" if turn.model else "")
        self.who.setVisible(bool(turn.model))
        shown = self.text.toPlainText()
        if turn.text.startswith(shown):
            if len(turn.text) > len(shown):
                self.text.append_text(turn.text[len(shown) :])
        else:
            self.text.set_text(turn.text)
        self.text.setVisible(bool(turn.text))
        self._show_waiting(turn)
        self._show_chips(turn)
        self.stats.setText(stats_text(turn))
        self._footer.setVisible(not turn.is_open or bool(turn.text))
        self.copy_button.setVisible(bool(turn.text))
        if turn.state == "failed" and turn.problem is not None:
            self.problem.show_problem(turn.problem)
        else:
            self.problem.hide()

    def tab_stops(self) -> tuple[QWidget, ...]:
        return (
            self.text,
            self.problem.copy_button,
            self.problem.action_button,
            self.copy_button,
            self.regenerate_button,
        )

    def set_last(self, last: bool, busy: bool) -> None:
        # A failed answer has its own button for this.
        self.regenerate_button.setVisible(last and not busy and self.problem.isHidden())

    def _show_waiting(self, turn: Turn) -> None:
        if turn.is_open and not turn.text:
            counted = f"Reading {turn.prompt_tokens} tokens" if turn.state == "streaming" else "Waiting for the model"
            self._waiting_for = counted
            self._step_dots()
            self._pulse.start()
        else:
            self._pulse.stop()
            self._waiting_for = ""
        failed_quietly = turn.state in ("stopped", "failed") and not turn.text and turn.problem is None
        if failed_quietly:
            self.waiting.setText("Stopped before the first word." if turn.state == "stopped" else "No answer came.")
        elif turn.state == "done" and not turn.text:
            self.waiting.setText("The model answered with nothing.")
            failed_quietly = True
        self.waiting.setVisible(bool(self._waiting_for) or failed_quietly)

    def _step_dots(self) -> None:
        self._dots = self._dots % 3 + 1
        self.waiting.setText(self._waiting_for + " " + "·" * self._dots)

    def _show_chips(self, turn: Turn) -> None:
        now = time.monotonic()
        if turn.is_open and now - self._chips_at < CHIP_SECONDS:
            return
        self._chips_at = now
        chips = chip_texts(turn)
        if chips == self._shown_chips:
            return
        same_names = [name for name, _ in chips] == [name for name, _ in self._shown_chips]
        self._shown_chips = chips
        if same_names:
            for chip, (_, text) in zip(self._chip_widgets, chips, strict=True):
                chip.set_text(text)
            self._chip_row.invalidate()
            return
        self._chip_row.clear()
        what = "mean scaling over this answer" if turn.mode == "xlora" else "weight"
        self._chip_widgets = [
            Chip(self._theme, text, self._colors.get(name), f"{name}: {what}") for name, text in chips
        ]
        for chip in self._chip_widgets:
            self._chip_row.addWidget(chip)
        self.chips.setVisible(bool(chips))
        self.chips.updateGeometry()

    def _copy(self) -> None:
        QGuiApplication.clipboard().setText(self.text.toPlainText())
        self._theme.bind_icon(self.copy_button, "check", "accent")
        QTimer.singleShot(1200, self, lambda: self._theme.bind_icon(self.copy_button, "copy", "muted"))


def chip_texts(turn: Turn) -> tuple[tuple[str, str], ...]:
    """(adapter, text) for each chip, the strongest first; experts that hardly took part are left out."""
    if turn.mode == "none" or not turn.shares:
        return ()
    ranked = sorted(turn.shares.items(), key=lambda item: -item[1])
    if turn.mode == "xlora":
        ranked = [(name, share) for name, share in ranked if share >= SMALL_SHARE] or ranked[:1]
        chips = [(name, f"{name} {share:.2f}") for name, share in ranked]
    else:
        chips = [(name, name if weight == 1 else f"{name} × {weight:.2f}") for name, weight in ranked]
    return tuple(chips[:MAX_CHIPS])


def stats_text(turn: Turn) -> str:
    """Count and speed of an answer, e.g. `48 tokens · 31.4 tokens/s · first after 0.21 s · stopped`."""
    parts = []
    if turn.tokens:
        parts.append(f"{turn.tokens} token{'s' if turn.tokens != 1 else ''}")
    if turn.tokens_per_second:
        parts.append(f"{turn.tokens_per_second:.1f} tokens/s")
    if turn.look_ahead:
        parts.append(f"look-ahead {turn.look_ahead:.0%}")
    if turn.first_token_seconds:
        parts.append(f"first after {turn.first_token_seconds:.2f} s")
    if turn.state == "stopped":
        parts.append("stopped")
    if turn.cut_short:
        parts.append("reached the token limit")
    return " · ".join(parts)
