"""A text that is as tall as what it says: for messages in a scrolling column."""

from __future__ import annotations

import math

from PySide6.QtCore import QSize, Qt
from PySide6.QtGui import QResizeEvent, QTextBlockFormat, QTextCursor, QTextOption, QWheelEvent
from PySide6.QtWidgets import QFrame, QSizePolicy, QTextEdit, QWidget

LINE_HEIGHT = 125  # percent; the fonts' own spacing is too tight for reading


class TextBlock(QTextEdit):
    """Plain text with its blanks kept, selectable, without scroll bars of its own."""

    def __init__(self, text: str = "", parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setProperty("kind", "message")
        self.setReadOnly(True)
        self.setAcceptRichText(False)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setWordWrapMode(QTextOption.WrapMode.WrapAtWordBoundaryOrAnywhere)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        self.setTextInteractionFlags(
            Qt.TextInteractionFlag.TextSelectableByMouse | Qt.TextInteractionFlag.TextSelectableByKeyboard
        )
        self.setTabChangesFocus(True)
        self.viewport().setAutoFillBackground(False)
        self.document().setDocumentMargin(0)
        self.document().documentLayout().documentSizeChanged.connect(lambda _size: self._fit())
        self.set_text(text)

    def set_text(self, text: str) -> None:
        """Show another text."""
        self.setPlainText(text)
        spacing = QTextBlockFormat()
        spacing.setLineHeight(LINE_HEIGHT, QTextBlockFormat.LineHeightTypes.ProportionalHeight.value)
        cursor = QTextCursor(self.document())
        cursor.select(QTextCursor.SelectionType.Document)
        cursor.mergeBlockFormat(spacing)  # lines added later take it over

    def append_text(self, text: str) -> None:
        """Add to the end; the user's selection stays."""
        cursor = QTextCursor(self.document())
        cursor.movePosition(QTextCursor.MoveOperation.End)
        cursor.insertText(text)

    def natural_width(self) -> int:
        """Width that shows every line without wrapping."""
        metrics = self.fontMetrics()
        lines = self.toPlainText().split("\n")
        return max((metrics.horizontalAdvance(line) for line in lines), default=0) + 4

    def sizeHint(self) -> QSize:
        return QSize(self.natural_width(), self._height())

    def minimumSizeHint(self) -> QSize:
        return QSize(40, self.fontMetrics().height())

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._fit()

    def wheelEvent(self, event: QWheelEvent) -> None:
        event.ignore()  # the column scrolls, not the message

    def _height(self) -> int:
        return max(math.ceil(self.document().size().height()), self.fontMetrics().height())

    def _fit(self) -> None:
        height = self._height()
        if self.height() != height or self.maximumHeight() != height:
            self.setFixedHeight(height)
