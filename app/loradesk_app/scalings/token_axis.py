"""An axis that names the tokens when there is room, and counts them when there is not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyqtgraph as pg
from PySide6.QtCore import QPointF, QRectF, Qt
from PySide6.QtGui import QColor, QPainter, QPen

TOKEN_ROOM = 12.0  # pixels a token needs for its text, which stands upright
TEXT_HEIGHT, NUMBER_HEIGHT = 58, 22


class TokenAxis(pg.AxisItem):
    """Bottom axis over token indices; `text_of` gives a token's text or None."""

    def __init__(self, text_of: Callable[[int], str | None]) -> None:
        super().__init__("bottom")
        self._text_of = text_of
        self.ink = QColor("#888888")
        self.strong = QColor("#000000")
        self.line = QColor("#888888")
        self.marked: int | None = None
        self.setHeight(NUMBER_HEIGHT)

    @property
    def names_tokens(self) -> bool:
        """Whether the texts are shown at the present zoom."""
        return self._room() >= TOKEN_ROOM

    def setRange(self, low: float, high: float) -> None:
        super().setRange(low, high)
        height = TEXT_HEIGHT if self.names_tokens else NUMBER_HEIGHT
        if self.height() != height and self.fixedHeight != height:
            self.setHeight(height)

    def mark(self, token: int | None) -> None:
        """Show one token's text stronger."""
        if token != self.marked:
            self.marked = token
            self.update()

    def paint(self, painter: QPainter, _option: Any, _widget: Any) -> None:
        bounds = self.mapRectFromParent(self.geometry())
        painter.setFont(self.font())
        painter.setPen(QPen(self.line, 1))
        painter.drawLine(bounds.topLeft(), bounds.topRight())
        low, high = self.range
        if high <= low:
            return
        scale = bounds.width() / (high - low)
        if self.names_tokens:
            self._paint_texts(painter, bounds, low, high, scale)
        else:
            self._paint_numbers(painter, bounds, low, high, scale)

    def _paint_texts(self, painter: QPainter, bounds: QRectF, low: float, high: float, scale: float) -> None:
        metrics = painter.fontMetrics()
        room = int(bounds.height() - 8)
        for token in range(math.ceil(low), math.floor(high) + 1):
            text = self._text_of(token)
            if text is None:
                continue
            x = bounds.left() + (token - low) * scale
            painter.setPen(self.strong if token == self.marked else self.ink)
            painter.drawLine(QPointF(x, bounds.top()), QPointF(x, bounds.top() + 3))
            painter.save()
            painter.translate(x, bounds.top() + 5)
            painter.rotate(-90)
            shown = metrics.elidedText(visible(text), Qt.TextElideMode.ElideRight, room)
            box = QRectF(-room, -metrics.height() / 2, room, metrics.height())
            painter.drawText(box, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, shown)
            painter.restore()

    def _paint_numbers(self, painter: QPainter, bounds: QRectF, low: float, high: float, scale: float) -> None:
        step = nice_step(64 / scale)
        painter.setPen(self.ink)
        for token in range(math.ceil(low / step) * step, math.floor(high) + 1, step):
            if token < 0:
                continue
            x = bounds.left() + (token - low) * scale
            painter.drawLine(QPointF(x, bounds.top()), QPointF(x, bounds.top() + 3))
            box = QRectF(x - 32, bounds.top() + 4, 64, bounds.height() - 4)
            painter.drawText(box, Qt.AlignmentFlag.AlignHCenter | Qt.AlignmentFlag.AlignTop, f"{token:,}")

    def _room(self) -> float:
        low, high = self.range
        return self.geometry().width() / (high - low) if high > low else 0.0


def visible(text: str) -> str:
    """A token's text with its blanks made visible where they are all there is."""
    if not text.strip():
        return text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣") or "∅"
    return text.strip(" ").replace("\n", "⏎").replace("\t", "⇥")


def nice_step(least: float) -> int:
    """1, 2 or 5 times a power of ten, at least as large as `least`."""
    power = 1
    while True:
        for factor in (1, 2, 5):
            if factor * power >= least:
                return factor * power
        power *= 10
