"""What the chat shows before the first message."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import (
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QScrollArea,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from loradesk_app.theme import Theme, logo
from loradesk_app.widgets.buttons import ElidedButton
from loradesk_app.widgets.labels import label

DEMO_EXAMPLES = (
    "Hello, who are you?",
    "What is 17 + 25?",
    "What is the capital of Japan?",
    "Turn this into JSON: Anna is 31 and lives in Rome.",
    "Speak like Shakespeare about the sea.",
    "What is 12 + 30, and what is the capital of France?",
)
ANY_EXAMPLES = (
    "Hello, who are you?",
    "Explain what an adapter does to a model.",
    "Write three short titles for a story about the sea.",
    "Turn this into JSON: Anna is 31 and lives in Rome.",
)
PADDING = 15  # of the style sheet, left and right, border included
TWO_COLUMNS, ONE_COLUMN = 560, 480
MARK_HEIGHT = 340  # lower, the prompts need the room more than the picture


class ExampleButton(ElidedButton):
    """A prompt to click; a text too long for the width ends in an ellipsis, and is the tooltip."""

    def __init__(self, prompt: str) -> None:
        super().__init__(prompt, "example", PADDING, 26, Qt.TextElideMode.ElideRight)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        self.setCursor(Qt.CursorShape.PointingHandCursor)

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self.setToolTip(self.whole if self.shown() != self.whole else "")


class EmptyState(QScrollArea):
    """A welcome with example prompts to click."""

    example_chosen = Signal(str)

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self.setWidgetResizable(True)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        content = QWidget()
        self._mark = QLabel()
        self._mark.setPixmap(logo(52, 2.0))
        self._title = label("Welcome to Loradesk", "title")
        self._what = label("", "muted", wrap=True)
        self._what.setAlignment(Qt.AlignmentFlag.AlignHCenter)
        self.examples = QWidget()
        self._grid = QGridLayout(self.examples)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setSpacing(10)
        column = QVBoxLayout(content)
        column.setContentsMargins(24, 24, 24, 12)
        column.setSpacing(10)
        column.addStretch(1)
        column.addWidget(self._mark, 0, Qt.AlignmentFlag.AlignHCenter)
        column.addWidget(self._title, 0, Qt.AlignmentFlag.AlignHCenter)
        column.addWidget(self._what)
        column.addSpacing(10)
        centred = QHBoxLayout()  # an alignment would keep the buttons at their smallest width
        centred.addStretch(1)
        centred.addWidget(self.examples, 100)
        centred.addStretch(1)
        column.addLayout(centred)
        column.addStretch(2)
        self.setWidget(content)
        self._buttons: list[ExampleButton] = []
        self.set_model("", "none", demo=False)

    def set_model(self, name: str, mode: str, demo: bool) -> None:
        """Say what is loaded and offer prompts that suit it."""
        if not name:
            what = "Put adapters on channels, mix them while you chat, and watch the mix token by token."
        elif mode == "xlora":
            what = f"{name} is ready. Its classifier mixes the adapters anew for every token: ask, and watch."
        elif mode == "lora":
            what = f"{name} is ready. Switch adapters on and off at the side, also while it answers."
        else:
            what = f"{name} is ready, without adapters."
        self._what.setText(what)
        for button in self._buttons:
            self._grid.removeWidget(button)
            button.deleteLater()
        self._buttons = []
        for text in DEMO_EXAMPLES if demo or not name else ANY_EXAMPLES:
            button = ExampleButton(text)
            button.clicked.connect(lambda _checked=False, text=text: self.example_chosen.emit(text))
            self._buttons.append(button)
        self._place()

    def buttons(self) -> list[str]:
        """The prompts offered now."""
        return [button.whole for button in self._buttons]

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._mark.setVisible(self.viewport().height() >= MARK_HEIGHT)
        self._place()

    def _place(self) -> None:
        widest = max((button.sizeHint().width() for button in self._buttons), default=0)
        room = self.viewport().width() - 48
        self.examples.setMaximumWidth(ONE_COLUMN if room < max(TWO_COLUMNS, widest * 2 + 10) else 2 * widest + 60)
        columns = 2 if room >= max(TWO_COLUMNS, widest * 2 + 10) else 1
        for number, button in enumerate(self._buttons):
            self._grid.addWidget(button, number // columns, number % columns)
