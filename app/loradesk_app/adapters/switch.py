"""The round switch at the head of a channel."""

from __future__ import annotations

from PySide6.QtCore import QRectF, QSize, Qt, Signal
from PySide6.QtGui import QMouseEvent, QPainter, QPaintEvent, QPen
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
        return QSize(max(34, metrics.horizontalAdvance(self.text()) + 16), metrics.height() + 9)

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
        ink = theme.color("muted")
        if lit:
            # whichever of black and white reads better on this colour
            ink = Qt.GlobalColor.black if color.lightnessF() > 0.45 or theme.is_dark else Qt.GlobalColor.white
        painter.setPen(ink)
        font = painter.font()
        font.setBold(True)
        font.setPointSizeF(max(font.pointSizeF() * 0.85, 6.0))
        painter.setFont(font)
        painter.drawText(body, Qt.AlignmentFlag.AlignCenter, self.text())
        painter.end()
