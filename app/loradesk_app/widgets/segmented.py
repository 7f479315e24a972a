"""One of a few choices, side by side."""

from __future__ import annotations

from collections.abc import Iterable

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QButtonGroup, QFrame, QHBoxLayout, QPushButton, QWidget


class Segmented(QFrame):
    """Buttons of which one is checked. `chosen` tells only what the user did, not `set_current`."""

    chosen = Signal(str)

    def __init__(self, choices: Iterable[tuple[str, str, str]], name: str, parent: QWidget | None = None) -> None:
        """`choices`: key, text, tooltip; `name`: what screen readers call the whole."""
        super().__init__(parent)
        self.setProperty("kind", "segmented")
        self.setAccessibleName(name)
        self._group = QButtonGroup(self)
        self._buttons: dict[str, QPushButton] = {}
        row = QHBoxLayout(self)
        row.setContentsMargins(3, 3, 3, 3)
        row.setSpacing(2)
        for key, text, tip in choices:
            button = QPushButton(text)
            button.setCheckable(True)
            button.setAutoDefault(False)
            button.setToolTip(tip)
            button.setAccessibleName(f"{name}: {text.replace('&', '')}")
            button.setCursor(Qt.CursorShape.PointingHandCursor)
            button.clicked.connect(lambda _checked, key=key: self.chosen.emit(key))
            self._group.addButton(button)
            self._buttons[key] = button
            row.addWidget(button)

    def current(self) -> str | None:
        """Key of the checked choice."""
        return next((key for key, button in self._buttons.items() if button.isChecked()), None)

    def set_current(self, key: str | None) -> None:
        """Check a choice, or none."""
        self._group.setExclusive(key is not None)
        for name, button in self._buttons.items():
            button.setChecked(name == key)
        self._group.setExclusive(True)

    def buttons(self) -> tuple[QPushButton, ...]:
        return tuple(self._buttons.values())

    def button(self, key: str) -> QPushButton:
        return self._buttons[key]
