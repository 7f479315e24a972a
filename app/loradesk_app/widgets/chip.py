"""A small rounded tag with a coloured dot."""

from __future__ import annotations

from PySide6.QtCore import QPointF, QRectF, QSize, Qt, Signal
from PySide6.QtGui import QMouseEvent, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QSizePolicy, QWidget

from loradesk_app.theme import Theme
from loradesk_app.widgets.labels import plain_tip

PADDING, LINE_WIDTH = 9, 18


class Chip(QWidget):
    """Name, colour of an adapter and a number, painted in one piece; what there is no room for ends in an ellipsis.

    An adapter whose colour another one has already is marked with its line instead of a dot.
    """

    clicked = Signal()

    def __init__(self, theme: Theme, text: str, color_index: int | None, tip: str = "", widest: int = 0) -> None:
        """`widest`: pixels that it may ask for, 0 for all its text needs."""
        super().__init__()
        self._theme, self._text, self._index, self._widest = theme, text, color_index, widest
        self.setToolTip(plain_tip(tip))
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
        width = metrics.horizontalAdvance(self._text) + self._mark_room() + 2 * PADDING
        return QSize(min(width, self._widest or width), metrics.height() + 6)

    def mousePressEvent(self, event: QMouseEvent) -> None:
        if event.button() == Qt.MouseButton.LeftButton:
            self.clicked.emit()
        else:
            super().mousePressEvent(event)

    def paintEvent(self, _event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        rect = QRectF(self.rect()).adjusted(0.5, 0.5, -0.5, -0.5)
        painter.setPen(self._theme.color("border"))
        painter.setBrush(self._theme.color("raised"))
        painter.drawRoundedRect(rect, rect.height() / 2, rect.height() / 2)
        self._paint_mark(painter)
        left = PADDING + self._mark_room()
        painter.setPen(self._theme.color("muted"))
        room = QRectF(left, 0, self.width() - left - PADDING + 1, self.height())
        shown = self.fontMetrics().elidedText(self._text, Qt.TextElideMode.ElideMiddle, int(room.width()))
        painter.drawText(room, Qt.AlignmentFlag.AlignVCenter, shown)
        painter.end()

    def _mark_room(self) -> int:
        if self._index is None:
            return 0
        return (self.fontMetrics().height() // 2 if self._has_dot() else LINE_WIDTH) + 5

    def _has_dot(self) -> bool:
        return self._index is None or self._theme.adapter_line(self._index) == Qt.PenStyle.SolidLine

    def _paint_mark(self, painter: QPainter) -> None:
        if self._index is None:
            return
        color = self._theme.adapter_color(self._index)
        if self._has_dot():
            size = self.fontMetrics().height() / 2
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(color)
            painter.drawEllipse(QRectF(PADDING, (self.height() - size) / 2, size, size))
        else:
            painter.setPen(QPen(color, 2.2, self._theme.adapter_line(self._index), Qt.PenCapStyle.FlatCap))
            middle = self.height() / 2
            painter.drawLine(QPointF(PADDING, middle), QPointF(PADDING + LINE_WIDTH, middle))
