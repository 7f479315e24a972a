"""Which colour and line is which adapter's, in as many lines as leave room for the curves."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QFrame, QScrollArea, QSizePolicy, QWidget

from loradesk_app.theme import Theme
from loradesk_app.widgets.chip import Chip
from loradesk_app.widgets.flow_layout import FlowLayout

SPACING = 5
WIDEST = 190  # pixels of a name; the whole of it is the tooltip
SHARE = 0.2  # of the pane's height; adapters that need more of it scroll


class Legend(QScrollArea):
    """Chips to click, which show an adapter's layers."""

    chosen = Signal(int)

    def __init__(self, theme: Theme) -> None:
        super().__init__()
        self._theme = theme
        self._pane_height = 0
        content = QWidget()
        self._row = FlowLayout(content, spacing=SPACING)
        self.setWidget(content)
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)  # the box of adapters below can be reached by keys
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)

    def set_names(self, names: tuple[str, ...]) -> None:
        """The adapters, in their order."""
        self._row.clear()
        for number, name in enumerate(names):
            chip = Chip(self._theme, name, number, f"Colour of {name}; click to see its layers", WIDEST)
            chip.setCursor(Qt.CursorShape.PointingHandCursor)
            chip.clicked.connect(lambda number=number: self.chosen.emit(number))
            self._row.addWidget(chip)
        self._fit()

    def set_pane_height(self, height: int) -> None:
        """Of the pane that it is in."""
        self._pane_height = height
        self._fit()

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._fit()

    def _fit(self) -> None:
        first = self._row.itemAt(0)
        if first is None:
            self.setFixedHeight(0)
            return
        line = first.sizeHint().height() + SPACING
        lines = max(1, int(self._pane_height * SHARE) // line)
        self.setFixedHeight(min(self._row.heightForWidth(self.viewport().width()), lines * line - SPACING))
