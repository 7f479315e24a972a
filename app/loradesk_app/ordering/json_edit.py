"""The text of an ordering file: line numbers, colours, and marks at the lines that the checker talks about."""

from __future__ import annotations

import re
from collections.abc import Mapping

from PySide6.QtCore import QEvent, QMimeData, QPoint, QRect, QSize, Qt, Signal
from PySide6.QtGui import (
    QColor,
    QFont,
    QFontDatabase,
    QHelpEvent,
    QKeyEvent,
    QKeySequence,
    QPainter,
    QPaintEvent,
    QResizeEvent,
    QSyntaxHighlighter,
    QTextBlock,
    QTextCharFormat,
    QTextCursor,
    QTextDocument,
    QTextOption,
)
from PySide6.QtWidgets import QApplication, QPlainTextEdit, QToolTip, QWidget

from loradesk_app.ordering.rows import changed_span
from loradesk_app.ordering.rows_model import SEVERITY_ICONS, SOFT
from loradesk_app.theme import Theme

_TOKEN = re.compile(r'(?P<key>"(?:[^"\\]|\\.)*")(?=\s*:)|(?P<text>"(?:[^"\\]|\\.)*"?)|(?P<word>[-\w.+]+)')
_AHEAD = 40  # lines coloured beyond those in sight
_COLORED = 1

Mark = tuple[str, str]
"""Severity and message."""


class JsonEdit(QPlainTextEdit):
    """Shows a text and tells what the user makes of it. Its history is the document's: it has none of its own."""

    edited = Signal()  # by the user, not by `set_text`
    undo_requested = Signal()
    redo_requested = Signal()

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self._shown = ""
        self._setting = False
        self._marks: dict[int, Mark] = {}
        self.setAccessibleName("JSON text")
        self.setUndoRedoEnabled(False)
        self.setTabChangesFocus(True)
        self.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        self.setWordWrapMode(QTextOption.WrapMode.NoWrap)
        self._gutter = _Gutter(self)
        self._colors = _Highlighter(self.document(), self)
        self.textChanged.connect(self._note_change)
        self.blockCountChanged.connect(lambda _count: self._fit_gutter())
        self.updateRequest.connect(self._scroll_gutter)
        self.verticalScrollBar().valueChanged.connect(lambda _value: self._colors.color_visible())
        theme.changed.connect(self._restyle)
        self._restyle()

    # -- text ---------------------------------------------------------------------------------------------------

    def text(self) -> str:
        """The text as it stands, with its no-break spaces, which `toPlainText` would replace."""
        return self.document().toRawText().replace("\u2029", "\n")

    @property
    def has_edits(self) -> bool:
        """Whether the user changed the text since `set_text` or `note_taken`."""
        return self.text() != self._shown

    def set_text(self, text: str) -> None:
        """Show a text; only the lines that differ are replaced, so that cursor and scrolling stay where they are."""
        old = self.text()
        self._shown = text
        if text == old:
            return
        self._setting = True
        before, after = old.split("\n"), text.split("\n")
        start, old_end, new_end = changed_span(before, after)
        if old_end - start > 2_000:
            self._replace_all(text)
        else:
            self._replace_lines(before, after, start, old_end, new_end)
        if not old:
            self.moveCursor(QTextCursor.MoveOperation.Start)
        self._setting = False
        self._colors.color_visible()

    def note_taken(self) -> None:
        """The document has taken the text over."""
        self._shown = self.text()

    def set_marks(self, marks: Mapping[int, Mark]) -> None:
        """Line (from 1) -> what is wrong there."""
        if dict(marks) != self._marks:
            self._marks = dict(marks)
            self.viewport().update()
            self._gutter.update()

    def mark(self, line: int) -> Mark | None:
        return self._marks.get(line)

    def go_to(self, line: int, column: int = 1, *, select: bool = True) -> None:
        """Put the cursor at a place and bring it into sight."""
        block = self.document().findBlockByNumber(min(max(line, 1), self.blockCount()) - 1)
        cursor = QTextCursor(block)
        cursor.movePosition(
            QTextCursor.MoveOperation.Right, QTextCursor.MoveMode.MoveAnchor, min(column - 1, block.length() - 1)
        )
        if select:
            cursor.movePosition(QTextCursor.MoveOperation.EndOfBlock, QTextCursor.MoveMode.KeepAnchor)
        self.setTextCursor(cursor)
        self.centerCursor()

    # -- events -------------------------------------------------------------------------------------------------

    def keyPressEvent(self, event: QKeyEvent) -> None:
        if event.matches(QKeySequence.StandardKey.Undo):
            self.undo_requested.emit()
        elif event.matches(QKeySequence.StandardKey.Redo):
            self.redo_requested.emit()
        else:
            super().keyPressEvent(event)
            return
        event.accept()

    def canInsertFromMimeData(self, source: QMimeData) -> bool:
        return not source.hasUrls() and super().canInsertFromMimeData(source)  # a file is opened, not pasted as text

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        rect = self.contentsRect()
        self._gutter.setGeometry(QRect(rect.left(), rect.top(), self._gutter.width_needed(), rect.height()))
        self._colors.color_visible()

    def paintEvent(self, event: QPaintEvent) -> None:
        if self._marks:
            painter = QPainter(self.viewport())
            for block, rect in self.visible_blocks():
                mark = self._marks.get(block.blockNumber() + 1)
                if mark is not None and mark[0] in SOFT:
                    painter.fillRect(rect, self._theme.color(SOFT[mark[0]]))
            painter.end()
        super().paintEvent(event)

    def viewportEvent(self, event: QEvent) -> bool:
        if isinstance(event, QHelpEvent) and self._show_tip(event):
            return True
        return super().viewportEvent(event)

    def visible_blocks(self) -> list[tuple[QTextBlock, QRect]]:
        """Lines in sight with their place in the viewport."""
        result, block = [], self.firstVisibleBlock()
        offset = self.contentOffset()
        while block.isValid():
            rect = self.blockBoundingGeometry(block).translated(offset)
            if rect.top() > self.viewport().height():
                break
            result.append((block, QRect(0, round(rect.top()), self.viewport().width(), round(rect.height()))))
            block = block.next()
        return result

    # ------------------------------------------------------------------------------------------------------------

    def _show_tip(self, event: QHelpEvent) -> bool:
        mark = self._marks.get(self.cursorForPosition(event.pos()).blockNumber() + 1)
        if mark is None:
            return False
        QToolTip.showText(event.globalPos(), mark[1], self)
        return True

    def _note_change(self) -> None:
        if not self._setting and self.has_edits:
            self.edited.emit()

    def _replace_all(self, text: str) -> None:
        line, scroll = self.textCursor().blockNumber() + 1, self.verticalScrollBar().value()
        self.setPlainText(text)
        self.go_to(line, select=False)
        self.verticalScrollBar().setValue(scroll)

    def _replace_lines(self, before: list[str], after: list[str], start: int, old_end: int, new_end: int) -> None:
        """Replace lines start..old_end by those of the new text, with one edit of the document."""
        scroll = self.verticalScrollBar().value()
        cursor = QTextCursor(self.document())
        cursor.beginEditBlock()
        lines = "\n".join(after[start:new_end])
        if old_end < len(before):  # a line follows: replace up to its beginning
            cursor.setPosition(self.document().findBlockByNumber(start).position())
            cursor.setPosition(self.document().findBlockByNumber(old_end).position(), QTextCursor.MoveMode.KeepAnchor)
            cursor.insertText(lines + "\n" if new_end > start else "")
        elif start > 0:  # a line stands before: replace from its end
            last = self.document().findBlockByNumber(start - 1)
            cursor.setPosition(last.position() + last.length() - 1)
            cursor.movePosition(QTextCursor.MoveOperation.End, QTextCursor.MoveMode.KeepAnchor)
            cursor.insertText("\n" + lines if new_end > start else "")
        else:
            cursor.select(QTextCursor.SelectionType.Document)
            cursor.insertText(lines)
        cursor.endEditBlock()
        self.verticalScrollBar().setValue(scroll)

    def _fit_gutter(self) -> None:
        self.setViewportMargins(self._gutter.width_needed(), 0, 0, 0)

    def _scroll_gutter(self, rect: QRect, dy: int) -> None:
        if dy:
            self._gutter.scroll(0, dy)
        else:
            self._gutter.update(0, rect.y(), self._gutter.width(), rect.height())

    def _restyle(self) -> None:
        font = QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont)
        font.setStyleHint(QFont.StyleHint.Monospace)
        family = font.family()
        points = max(self._theme_points() * 0.95, 6.0)
        self.setStyleSheet(
            f'QPlainTextEdit {{ padding: 0; font-family: "{family}", monospace; font-size: {points:.1f}pt; }}'
        )
        self._colors.set_colors(
            {name: self._theme.color(role) for name, role in (("key", "accent"), ("word", "warning"))}
        )
        self._fit_gutter()

    def _theme_points(self) -> float:
        return QApplication.font().pointSizeF()


class _Gutter(QWidget):
    """Line numbers, and the signs of marked lines."""

    def __init__(self, edit: JsonEdit) -> None:
        super().__init__(edit)
        self._edit = edit
        self.setAccessibleName("Line numbers")

    def width_needed(self) -> int:
        digits = max(3, len(str(self._edit.blockCount())))
        return self._edit.fontMetrics().horizontalAdvance("9") * digits + 34

    def sizeHint(self) -> QSize:
        return QSize(self.width_needed(), 0)

    def paintEvent(self, _event: QPaintEvent) -> None:
        edit = self._edit
        painter = QPainter(self)
        painter.fillRect(self.rect(), edit._theme.color("raised"))
        painter.setFont(edit.font())
        current = edit.textCursor().blockNumber()
        line = edit.fontMetrics().height()  # the last line's rectangle has a margin below
        for block, rect in edit.visible_blocks():
            number = block.blockNumber()
            place = QRect(0, rect.top(), self.width() - 10, line)
            painter.setPen(edit._theme.color("text" if number == current else "muted"))
            painter.drawText(place, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, str(number + 1))
            mark = edit.mark(number + 1)
            if mark is not None:
                size = min(16, line)
                corner = QPoint(4, rect.top() + (line - size) // 2)
                edit._theme.icon(*SEVERITY_ICONS[mark[0]]).paint(painter, QRect(corner, QSize(size, size)))
        painter.end()


class _Highlighter(QSyntaxHighlighter):
    """Colours keys and numbers, only around the lines in sight: a file may have many thousands."""

    def __init__(self, document: QTextDocument, edit: JsonEdit) -> None:
        super().__init__(document)
        self._edit = edit
        self._formats: dict[str, QTextCharFormat] = {}

    def set_colors(self, colors: Mapping[str, QColor]) -> None:
        self._formats = {}
        for name, color in colors.items():
            self._formats[name] = QTextCharFormat()
            self._formats[name].setForeground(color)
        block = self.document().firstBlock()
        while block.isValid():
            block.setUserState(-1)
            block = block.next()
        self.color_visible()

    def color_visible(self) -> None:
        """Colour lines that have come into sight."""
        first, last = self._range()
        block = self.document().findBlockByNumber(first)
        while block.isValid() and block.blockNumber() <= last:
            if block.userState() != _COLORED:
                self.rehighlightBlock(block)
            block = block.next()

    def highlightBlock(self, text: str) -> None:
        first, last = self._range()
        if not first <= self.currentBlock().blockNumber() <= last:
            self.setCurrentBlockState(-1)
            return
        self.setCurrentBlockState(_COLORED)
        for match in _TOKEN.finditer(text[:2_000]):
            look = self._formats.get(match.lastgroup or "")
            if look is not None:
                self.setFormat(match.start(), match.end() - match.start(), look)

    def _range(self) -> tuple[int, int]:
        first = self._edit.firstVisibleBlock().blockNumber()
        height = max(self._edit.fontMetrics().height(), 1)
        return max(first - _AHEAD, 0), first + self._edit.viewport().height() // height + _AHEAD
