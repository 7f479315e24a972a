"""What the heatmap's colours mean."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import QRectF, QSize, Qt
from PySide6.QtGui import QLinearGradient, QPainter, QPaintEvent
from PySide6.QtWidgets import QSizePolicy, QWidget

from loradesk_app.theme import Theme

BAR_WIDTH = 56


class ColorScale(QWidget):
    """A small bar from the least to the largest value."""

    def __init__(self, theme: Theme, colors: Any) -> None:
        super().__init__()
        self._theme = theme
        self._stops = [(place / 16, colors.map(place / 16, mode="qcolor")) for place in range(17)]
        self._low, self._high = 0.0, 1.0
        self.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Fixed)
        self.setAccessibleName("Colour scale")
        font = self.font()
        font.setPointSizeF(max(font.pointSizeF() * 0.85, 6.0))
        self.setFont(font)
        theme.changed.connect(self.update)

    def set_levels(self, low: float, high: float) -> None:
        if (low, high) != (self._low, self._high):
            self._low, self._high = low, high
            self.updateGeometry()
            self.update()

    def sizeHint(self) -> QSize:
        metrics = self.fontMetrics()
        texts = sum(metrics.horizontalAdvance(f"{value:.2g}") for value in (self._low, self._high))
        return QSize(BAR_WIDTH + texts + 12, metrics.height() + 2)

    def paintEvent(self, _event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        metrics = self.fontMetrics()
        left = metrics.horizontalAdvance(f"{self._low:.2g}") + 5
        bar = QRectF(left, self.height() / 2 - 4, BAR_WIDTH, 8)
        shade = QLinearGradient(bar.topLeft(), bar.topRight())
        for place, color in self._stops:
            shade.setColorAt(place, color)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(shade)
        painter.drawRoundedRect(bar, 3, 3)
        painter.setPen(self._theme.color("muted"))
        middle = Qt.AlignmentFlag.AlignVCenter
        painter.drawText(QRectF(0, 0, left, self.height()), middle, f"{self._low:.2g}")
        painter.drawText(QRectF(bar.right() + 5, 0, 60, self.height()), middle, f"{self._high:.2g}")
        painter.end()
