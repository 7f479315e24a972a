"""Labels as the style sheet knows them, and one that shortens its text to the width it gets."""

from __future__ import annotations

from html import escape

from PySide6.QtCore import QSize, Qt
from PySide6.QtGui import QPainter, QPaintEvent, QResizeEvent
from PySide6.QtWidgets import QLabel, QStyle, QStyleOption, QWidget


def label(text: str, kind: str = "", *, wrap: bool = False, parent: QWidget | None = None) -> QLabel:
    """A label; `kind` is `muted`, `small`, `heading`, `title`, `large`, `caption`, `danger` or nothing."""
    result = QLabel(text, parent)
    result.setTextFormat(Qt.TextFormat.PlainText)
    result.setWordWrap(wrap)
    if kind:
        result.setProperty("kind", kind)
    return result


def field_caption(text: str, field: QWidget, kind: str = "") -> QLabel:
    """The label of a field in a form; its mnemonic goes to the field, and its text stands level with the field's."""
    result = label(text, kind)
    result.setBuddy(field)
    result.setMinimumHeight(field.sizeHint().height())
    return result


def plain_tip(text: str) -> str:
    """A tooltip that says a text as it is and breaks its long lines, which Qt does for rich text only.

    Names and paths come from files, and one with a tag in it would be taken for rich text. They have no blanks to break
    at; a zero-width space after each slash lets them wrap.
    """
    lines = escape(text, quote=False).replace("/", "/\u200b").replace("\n", "<br>")
    return f"<qt>{lines}</qt>" if text else ""


class ElidedLabel(QLabel):
    """One line that ends in an ellipsis when there is no room; the whole text is then its tooltip."""

    def __init__(
        self,
        text: str = "",
        kind: str = "",
        parent: QWidget | None = None,
        elide: Qt.TextElideMode = Qt.TextElideMode.ElideRight,
    ) -> None:
        super().__init__(text, parent)
        self.setTextFormat(Qt.TextFormat.PlainText)
        self._elide = elide
        self._tip = ""
        if kind:
            self.setProperty("kind", kind)

    def setToolTip(self, text: str) -> None:
        """A tooltip of its own, instead of the whole text when that is cut."""
        self._tip = text
        super().setToolTip(text)

    def minimumSizeHint(self) -> QSize:
        return QSize(self.fontMetrics().horizontalAdvance("…") + 8, super().minimumSizeHint().height())

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        if not self._tip:
            cut = self.fontMetrics().horizontalAdvance(self.text()) > self.contentsRect().width()
            super().setToolTip(plain_tip(self.text()) if cut else "")

    def paintEvent(self, _event: QPaintEvent) -> None:
        option = QStyleOption()
        option.initFrom(self)
        painter = QPainter(self)
        style = self.style()
        style.drawPrimitive(QStyle.PrimitiveElement.PE_Widget, option, painter, self)
        rect = self.contentsRect()
        text = self.fontMetrics().elidedText(self.text(), self._elide, rect.width())
        style.drawItemText(
            painter, rect, int(self.alignment()), option.palette, self.isEnabled(), text, self.foregroundRole()
        )
        painter.end()
