"""An error as people can use it: what is wrong, where, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QFrame, QGridLayout, QHBoxLayout, QLabel, QVBoxLayout, QWidget

from loradesk_app.theme import Theme
from loradesk_app.widgets.buttons import icon_button, push_button
from loradesk_app.widgets.labels import label

if TYPE_CHECKING:
    from loradesk_engine.events import Problem


class ProblemBox(QFrame):
    """Shows one `Problem`: sentence, file, field and remedy apart, with buttons to copy and to act."""

    dismissed = Signal()
    action_requested = Signal()

    def __init__(self, theme: Theme, action: str = "", dismissable: bool = True, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setProperty("kind", "problem")
        self._text = ""
        self.sentence = label("", wrap=True)
        self.file = _part()
        self.field = _part()
        self.remedy = _part()
        self._names = {self.file: label("File", "caption"), self.field: label("Where", "caption")}
        self._names[self.remedy] = label("What to do", "caption")

        grid = QGridLayout()
        grid.setHorizontalSpacing(12)
        grid.setVerticalSpacing(4)
        grid.setColumnStretch(1, 1)
        for row, part in enumerate((self.file, self.field, self.remedy)):
            grid.addWidget(self._names[part], row, 0, Qt.AlignmentFlag.AlignTop)
            grid.addWidget(part, row, 1)

        self.copy_button = icon_button(theme, "copy", "Copy the error text", kind="quiet", role="text")
        self.copy_button.clicked.connect(lambda: QGuiApplication.clipboard().setText(self._text))
        self.close_button = icon_button(theme, "close", "Dismiss", kind="quiet", role="text")
        self.close_button.clicked.connect(self.dismissed)
        self.close_button.setVisible(dismissable)
        self.action_button = push_button(action)
        self.action_button.clicked.connect(self.action_requested)
        self.action_button.setVisible(bool(action))
        self.setAccessibleName("Error")

        head = QHBoxLayout()
        head.setSpacing(4)
        head.addWidget(self.sentence, 1, Qt.AlignmentFlag.AlignVCenter)
        head.addWidget(self.copy_button, 0, Qt.AlignmentFlag.AlignTop)
        head.addWidget(self.close_button, 0, Qt.AlignmentFlag.AlignTop)
        column = QVBoxLayout(self)
        column.setContentsMargins(16, 12, 12, 12)
        column.setSpacing(6)
        column.addLayout(head)
        column.addLayout(grid)
        column.addSpacing(2)
        column.addWidget(self.action_button, 0, Qt.AlignmentFlag.AlignLeft)
        self.hide()

    def show_problem(self, problem: Problem, addition: str = "") -> None:
        """Show a problem; `addition` is a sentence about what it means for the user."""
        self._text = str(problem)
        self.sentence.setText(f"{problem.problem} {addition}".strip())
        for part, text in ((self.file, problem.file), (self.field, problem.field), (self.remedy, problem.remedy)):
            # Long paths have no blanks to break at; a zero-width space after each slash lets them wrap.
            part.setText((text or "").replace("/", "/\u200b") if part is self.file else text or "")
            part.setVisible(bool(text))
            self._names[part].setVisible(bool(text))
        self.setAccessibleName(f"Error: {self._text}")
        self.show()


def _part() -> QLabel:
    result = label("", wrap=True)
    result.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return result
