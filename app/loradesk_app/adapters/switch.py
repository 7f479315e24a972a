"""The round switch at the head of a channel."""

from __future__ import annotations

from PySide6.QtCore import QRectF, QSize, Qt, Signal
from PySide6.QtGui import QColor, QMouseEvent, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QAbstractButton, QWidget

from loradesk_app.theme import Theme


class ChannelSwitch(QAbstractButton):
    """A lit button in the adapter's colour. Shift-click wishes for solo instead of switching."""

    solo_requested = Signal()

    def __init__(self, theme: Theme, text: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme, self._index = theme, 0
        self.setText(text)
        self.setCheckable(True)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        theme.changed.connect(self.update)

    def set_color(self, index: int) -> None:
        self._index = index
        self.update()

    def sizeHint(self) -> QSize:
        metrics = self.fontMetrics()
        return QSize(max(26, metrics.horizontalAdvance(self.text()) + 16), metrics.height() + 9)

    def minimumSizeHint(self) -> QSize:
        return QSize(24, self.sizeHint().height())

    def mousePressEvent(self, event: QMouseEvent) -> None:
        if event.modifiers() & Qt.KeyboardModifier.ShiftModifier and event.button() == Qt.MouseButton.LeftButton:
            self.solo_requested.emit()
            event.accept()
            return
        super().mousePressEvent(event)

    def paintEvent(self, _event: QPaintEvent) -> None:
        theme = self._theme
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        body = QRectF(self.rect()).adjusted(1, 1, -1, -1)
        color = theme.adapter_color(self._index)
        lit = self.isChecked()
        fill = theme.color("surface")
        if lit:
            fill = color
        painter.setBrush(fill)
        edge = theme.color("accent") if self.hasFocus() else (color if lit else theme.color("border_strong"))
        painter.setPen(QPen(edge, 1.8 if self.hasFocus() else 1))
        painter.drawRoundedRect(body, 6, 6)
        painter.setPen(readable_on(color) if lit else theme.color("muted"))
        font = painter.font()
        font.setBold(True)
        font.setPointSizeF(max(font.pointSizeF() * 0.85, 6.0))
        painter.setFont(font)
        painter.drawText(body, Qt.AlignmentFlag.AlignCenter, self.text())
        painter.end()


def readable_on(ground: QColor) -> QColor:
    """Black or white, whichever has the higher contrast on a colour; a near tie goes to white."""

    def linear(part: float) -> float:
        return part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4

    light = 0.2126 * linear(ground.redF()) + 0.7152 * linear(ground.greenF()) + 0.0722 * linear(ground.blueF())
    return QColor("#FFFFFF") if light < 0.28 else QColor("#101010")
