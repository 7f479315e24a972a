"""A mixing-desk fader, and the level meter beside it."""

from __future__ import annotations

from PySide6.QtCore import QEvent, QPointF, QRectF, QSize, Qt
from PySide6.QtGui import QKeyEvent, QLinearGradient, QMouseEvent, QPainter, QPaintEvent, QPen, QWheelEvent
from PySide6.QtWidgets import QSizePolicy, QSlider, QWidget

from loradesk_app.theme import Theme

STEPS = 100  # steps in a weight of 1
CAP_HEIGHT, CAP_WIDTH = 18.0, 30.0
TOP_MARGIN = CAP_HEIGHT / 2 + 2
FALL = 0.82  # how much of a meter's old level stays each frame when the new one is lower


class Fader(QSlider):
    """A vertical slider from 0 to 2 in hundredths; double click sets it back to 1.

    It is a QSlider, so keys, wheel and screen readers work as everywhere; only look and mouse are its own.
    """

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(Qt.Orientation.Vertical, parent)
        self._theme = theme
        self._index = 0
        self._heard = True
        self._grab: float | None = None
        self.setRange(0, 2 * STEPS)
        self.setValue(STEPS)
        self.setSingleStep(5)
        self.setPageStep(25)
        self.setMinimumHeight(90)
        self.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Expanding)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        theme.changed.connect(self.update)

    def set_look(self, index: int, heard: bool) -> None:
        """Colour of which adapter, and whether it takes part."""
        if (index, heard) != (self._index, self._heard):
            self._index, self._heard = index, heard
            self.update()

    def sizeHint(self) -> QSize:
        return QSize(44, 150)

    def minimumSizeHint(self) -> QSize:
        return QSize(44, 90)

    def y_of(self, value: int) -> float:
        """Where the cap's middle is for a value."""
        room = self.height() - 2 * TOP_MARGIN
        return TOP_MARGIN + room * (1 - value / self.maximum())

    def mousePressEvent(self, event: QMouseEvent) -> None:
        if event.button() != Qt.MouseButton.LeftButton:
            event.ignore()
            return
        offset = event.position().y() - self.y_of(self.value())
        self._grab = offset if abs(offset) <= CAP_HEIGHT else 0.0  # beside the cap: it jumps to the pointer
        self.setSliderDown(True)
        self._drag(event)

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        if self._grab is not None:
            self._drag(event)

    def mouseReleaseEvent(self, _event: QMouseEvent) -> None:
        self._grab = None
        self.setSliderDown(False)

    def mouseDoubleClickEvent(self, _event: QMouseEvent) -> None:
        self.setValue(STEPS)

    def wheelEvent(self, event: QWheelEvent) -> None:
        if self.hasFocus():
            super().wheelEvent(event)
        else:
            event.ignore()  # scrolling over the desk must not move a fader by accident

    def keyPressEvent(self, event: QKeyEvent) -> None:
        if event.key() in (Qt.Key.Key_0, Qt.Key.Key_1, Qt.Key.Key_2):
            self.setValue((event.key() - Qt.Key.Key_0) * STEPS)
        else:
            super().keyPressEvent(event)

    def _drag(self, event: QMouseEvent) -> None:
        room = self.height() - 2 * TOP_MARGIN
        share = 1 - (event.position().y() - (self._grab or 0.0) - TOP_MARGIN) / max(room, 1)
        value = round(min(max(share, 0), 1) * self.maximum())
        self.setValue(STEPS if abs(value - STEPS) <= 2 else value)  # unity is easy to hit

    def paintEvent(self, _event: QPaintEvent) -> None:
        theme = self._theme
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        middle = self.width() / 2
        for value in range(0, 2 * STEPS + 1, STEPS // 4):
            whole = value % STEPS == 0
            reach = CAP_WIDTH / 2 if whole else CAP_WIDTH / 4
            painter.setPen(QPen(theme.color("border_strong" if whole else "border"), 1))
            y = round(self.y_of(value)) + 0.5
            painter.drawLine(QPointF(middle - reach, y), QPointF(middle + reach, y))
        top, bottom, at = self.y_of(2 * STEPS), self.y_of(0), self.y_of(self.value())
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(theme.color("border_strong"))
        painter.drawRoundedRect(QRectF(middle - 2, top, 4, bottom - top), 2, 2)
        color = theme.adapter_color(self._index) if self._heard else theme.color("muted")
        painter.setBrush(color)
        painter.drawRoundedRect(QRectF(middle - 2, at, 4, bottom - at), 2, 2)
        cap = QRectF(middle - CAP_WIDTH / 2, at - CAP_HEIGHT / 2, CAP_WIDTH, CAP_HEIGHT)
        shade = QLinearGradient(cap.topLeft(), cap.bottomLeft())
        shade.setColorAt(0, theme.color("surface").lighter(125 if theme.is_dark else 100))
        shade.setColorAt(1, theme.color("raised").darker(100 if theme.is_dark else 106))
        painter.setBrush(shade)
        edge = theme.color("accent") if self.hasFocus() else theme.color("border_strong")
        painter.setPen(QPen(edge, 1.6 if self.hasFocus() else 1))
        painter.drawRoundedRect(cap, 5, 5)
        painter.setPen(QPen(color, 2.4, Qt.PenStyle.SolidLine, Qt.PenCapStyle.RoundCap))
        painter.drawLine(QPointF(cap.left() + 6, at), QPointF(cap.right() - 6, at))
        painter.end()


class Meter(QWidget):
    """How much an expert is used for the newest token, 0 at the bottom to 1 at the top; falls back gently."""

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self._index = 0
        self._level = 0.0
        self._shown = 0.0
        self.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Expanding)
        self.setFixedWidth(10)
        theme.changed.connect(self.update)

    @property
    def level(self) -> float:
        return self._level

    def set_level(self, index: int, level: float) -> None:
        self._index, self._level = index, level
        shown = max(level, self._shown * FALL) if level < self._shown else level
        if abs(shown - self._shown) > 1e-4 or shown != level:
            self._shown = shown
            self.update()

    def event(self, event: QEvent) -> bool:
        if event.type() == QEvent.Type.ToolTip:
            self.setToolTip(f"Scaling of the newest token, averaged over the layers: {self._level:.3f}")
        return super().event(event)

    def settle(self) -> None:
        """No more tokens: show the last level itself."""
        self._shown = self._level
        self.update()

    def paintEvent(self, _event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        well = QRectF(1, TOP_MARGIN, self.width() - 2, self.height() - 2 * TOP_MARGIN)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(self._theme.color("border"))
        painter.drawRoundedRect(well, 3, 3)
        height = well.height() * min(max(self._shown, 0.0), 1.0)
        painter.setBrush(self._theme.adapter_color(self._index))
        painter.drawRoundedRect(QRectF(well.left(), well.bottom() - height, well.width(), height), 3, 3)
        painter.end()
