"""A hint of what the plots will look like."""

from __future__ import annotations

from PySide6.QtCore import QPointF, Qt
from PySide6.QtGui import QPainter, QPainterPath, QPaintEvent, QPen
from PySide6.QtWidgets import QWidget

from loradesk_app.theme import Theme

_HILLS = ((0, 0.22, 0.9), (1, 0.52, 0.75), (2, 0.8, 0.6))  # adapter, middle, height


class Sketch(QWidget):
    """Three faint curves, each with its hill."""

    def __init__(self, theme: Theme) -> None:
        super().__init__()
        self._theme = theme
        self.setFixedSize(160, 56)
        theme.changed.connect(self.update)

    def paintEvent(self, _event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setOpacity(0.55)
        floor, width = self.height() - 4.0, float(self.width())
        for adapter, middle, height in _HILLS:
            top, x, reach = 4 + (1 - height) * floor, middle * width, 0.2 * width
            path = QPainterPath(QPointF(2, floor))
            path.lineTo(x - reach, floor)
            path.cubicTo(x - reach / 2, floor, x - reach / 2, top, x, top)
            path.cubicTo(x + reach / 2, top, x + reach / 2, floor, x + reach, floor)
            path.lineTo(width - 2, floor)
            pen = QPen(self._theme.adapter_color(adapter), 2.2)
            pen.setCapStyle(Qt.PenCapStyle.RoundCap)
            painter.setPen(pen)
            painter.drawPath(path)
        painter.end()
