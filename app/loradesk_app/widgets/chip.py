"""A small rounded tag with a coloured dot."""

from __future__ import annotations

from PySide6.QtCore import QRectF, QSize, Qt
from PySide6.QtGui import QPainter, QPaintEvent
from PySide6.QtWidgets import QSizePolicy, QWidget

from loradesk_app.theme import Theme


class Chip(QWidget):
    """Name, colour of an adapter and a number, painted in one piece."""

    def __init__(self, theme: Theme, text: str, color_index: int | None, tip: str = "") -> None:
        super().__init__()
        self._theme, self._text, self._index = theme, text, color_index
        self.setToolTip(tip)
        self.setAccessibleName(tip or text)
        self.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Fixed)
        font = self.font()
        font.setPointSizeF(max(font.pointSizeF() * 0.88, 6.0))
        self.setFont(font)
        theme.changed.connect(self.update)

    def set_text(self, text: str) -> None:
        if text != self._text:
            self._text = text
            self.updateGeometry()
            self.update()

    @property
    def text(self) -> str:
        return self._text

    def sizeHint(self) -> QSize:
        metrics = self.fontMetrics()
        dot = metrics.height() // 2 + 6 if self._index is not None else 0
        return QSize(metrics.horizontalAdvance(self._text) + dot + 18, metrics.height() + 6)

    def paintEvent(self, _event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        rect = QRectF(self.rect()).adjusted(0.5, 0.5, -0.5, -0.5)
        painter.setPen(self._theme.color("border"))
        painter.setBrush(self._theme.color("raised"))
        painter.drawRoundedRect(rect, rect.height() / 2, rect.height() / 2)
        left = 9.0
        if self._index is not None:
            size = self.fontMetrics().height() / 2
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(self._theme.adapter_color(self._index))
            painter.drawEllipse(QRectF(left, (self.height() - size) / 2, size, size))
            left += size + 5
        painter.setPen(self._theme.color("muted"))
        painter.drawText(QRectF(left, 0, self.width() - left, self.height()), Qt.AlignmentFlag.AlignVCenter, self._text)
        painter.end()
