"""Paints the rows of the log: ground by level, found words, and the detail below its message."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PySide6.QtCore import QModelIndex, QObject, QPersistentModelIndex, QPoint, QRect, QRectF, Qt
from PySide6.QtGui import QColor, QFont, QFontDatabase, QFontMetrics, QIcon, QPainter
from PySide6.QtWidgets import QStyle, QStyledItemDelegate, QStyleOptionViewItem, QWidget

from loradesk_app.log.log_model import COL_LEVEL, COL_MESSAGE, COL_TIME, DETAIL_ROLE, GROUND_ROLE, UNFOLDED_ROLE
from loradesk_app.theme import Theme

if TYPE_CHECKING:
    Index = QModelIndex | QPersistentModelIndex

PADDING = 8
SLACK = 6  # widths of letters are rounded
ICON = 16
BOX = 8  # inset of the detail in its box, and of the box below it
CHEVRON = 24  # at the right of a row that unfolds
MARK_ALPHA = 158  # 62 %, as in the design


class LogDelegate(QStyledItemDelegate):
    """Set `needle` to mark what was searched, and `current` to the row of the current hit."""

    def __init__(self, theme: Theme, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self.needle = ""
        self.current = -1

    def row_height(self, metrics: QFontMetrics) -> int:
        """Height of a row that is folded."""
        return metrics.height() + 9

    def widths(self, view: QWidget, samples: Sequence[str]) -> list[int]:
        """Widths of the columns before the message, for the longest text that each may hold."""
        fixed = QFontMetrics(QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont))
        font = QFont(view.font())
        font.setBold(True)
        plain = QFontMetrics(font)
        time, level, source = samples
        return [
            fixed.horizontalAdvance(time) + 2 * PADDING + SLACK,
            plain.horizontalAdvance(level) + ICON + 6 + 2 * PADDING + SLACK,
            plain.horizontalAdvance(source) + 2 * PADDING + SLACK,
        ]

    def detail_height(self, detail: str, width: int, font: QFont) -> int:
        """What a detail adds to the height of its row, in a message column of this width."""
        metrics = QFontMetrics(font)
        return len(wrapped(detail, self._letters(width, metrics))) * metrics.lineSpacing() + 3 * BOX

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        painter.save()
        selected = bool(option.state & QStyle.StateFlag.State_Selected)
        ground = "accent_soft" if selected else index.data(GROUND_ROLE)
        rect: QRect = option.rect
        if ground:
            painter.fillRect(rect, self._theme.color(ground))
        painter.setPen(self._theme.color("border"))
        painter.drawLine(rect.bottomLeft(), rect.bottomRight())
        if selected and index.column() == COL_TIME:
            painter.fillRect(QRect(rect.left(), rect.top(), 3, rect.height()), self._theme.color("accent"))
        font = QFont(index.data(Qt.ItemDataRole.FontRole) or option.font)
        font.setBold(index.column() == COL_LEVEL and index.data(GROUND_ROLE) != "")
        painter.setFont(font)
        line = QRect(rect.left(), rect.top(), rect.width(), self.row_height(QFontMetrics(font)))
        self._paint_line(painter, line, index)
        if index.column() == COL_MESSAGE and index.data(UNFOLDED_ROLE):
            self._paint_detail(painter, rect.adjusted(PADDING, line.height(), -PADDING, -BOX), index.data(DETAIL_ROLE))
        painter.restore()

    def _paint_line(self, painter: QPainter, line: QRect, index: Index) -> None:
        left = line.left() + PADDING
        icon = index.data(Qt.ItemDataRole.DecorationRole)
        if isinstance(icon, QIcon):
            icon.paint(painter, QRect(left, line.center().y() - ICON // 2, ICON, ICON))
            left += ICON + 6
        folds = index.column() == COL_MESSAGE and bool(index.data(DETAIL_ROLE))
        room = line.right() - left - (CHEVRON if folds else PADDING)
        metrics = painter.fontMetrics()
        text = metrics.elidedText(index.data() or "", Qt.TextElideMode.ElideRight, room)
        if index.column() == COL_MESSAGE:
            current = index.row() == self.current
            self._paint_marks(painter, QPoint(left, line.top()), line.height(), text, current)
        painter.setPen(index.data(Qt.ItemDataRole.ForegroundRole))
        painter.drawText(QRect(left, line.top(), room + PADDING, line.height()), Qt.AlignmentFlag.AlignVCenter, text)
        if folds:
            painter.save()
            middle = QPoint(line.right() - CHEVRON // 2, line.center().y())
            painter.translate(middle)
            painter.rotate(0 if index.data(UNFOLDED_ROLE) else -90)
            self._theme.icon("chevron-down", "muted").paint(painter, QRect(-7, -7, 14, 14))
            painter.restore()

    def _paint_marks(self, painter: QPainter, corner: QPoint, height: int, text: str, current: bool) -> None:
        if not self.needle:
            return
        color = self._theme.color("accent_soft" if current else "warning_line")
        if not current:
            color.setAlpha(MARK_ALPHA)
        metrics = painter.fontMetrics()
        for found in re.finditer(re.escape(self.needle), text, re.IGNORECASE):
            start = corner.x() + metrics.horizontalAdvance(text[: found.start()])
            width = metrics.horizontalAdvance(found[0])
            mark = QRectF(start, corner.y() + 3, width, height - 6)
            painter.fillRect(mark, color)
            if current:
                painter.setPen(self._theme.color("accent"))
                painter.drawRect(mark)

    def _paint_detail(self, painter: QPainter, box: QRect, detail: str) -> None:
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QColor(self._theme.color("border_strong")))
        painter.setBrush(self._theme.color("surface"))
        painter.drawRoundedRect(QRectF(box).adjusted(0.5, 0.5, -0.5, -0.5), 6, 6)
        metrics = painter.fontMetrics()
        painter.setPen(self._theme.color("text"))
        top = box.top() + BOX
        for line in wrapped(detail, self._letters(box.width() + 2 * PADDING, metrics)):
            place = QPoint(box.left() + 12, top)
            self._paint_marks(painter, QPoint(place.x(), top - 2), metrics.lineSpacing() + 4, line, False)
            painter.setPen(self._theme.color("text"))
            painter.drawText(place + QPoint(0, metrics.ascent()), line)
            top += metrics.lineSpacing()

    @staticmethod
    def _letters(width: int, metrics: QFontMetrics) -> int:
        """Letters of a line of the detail; the font is one of equal widths."""
        return max(20, (width - 2 * PADDING - 24) // max(1, metrics.horizontalAdvance("m")))


def wrapped(text: str, letters: int) -> list[str]:
    """The lines of a text, those that are too long broken and indented."""
    lines: list[str] = []
    for line in text.split("\n"):
        lines.append(line[:letters])
        rest = line[letters:]
        while rest:
            lines.append(f"    {rest[: letters - 4]}")
            rest = rest[letters - 4 :]
    return lines
