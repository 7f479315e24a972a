"""Buttons as the style sheet knows them."""

from __future__ import annotations

from PySide6.QtCore import QSize, Qt
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QPushButton, QToolButton, QWidget

from loradesk_app.theme import Theme


def icon_button(
    theme: Theme, icon: str, what: str, *, role: str = "muted", kind: str = "", parent: QWidget | None = None
) -> QToolButton:
    """A button that is only an icon; `what` is its tooltip and what screen readers say."""
    button = QToolButton(parent)
    button.setIconSize(QSize(18, 18))
    button.setToolTip(what)
    button.setAccessibleName(what.split(" (", maxsplit=1)[0])
    button.setFocusPolicy(Qt.FocusPolicy.TabFocus)
    if kind:
        button.setProperty("kind", kind)
    theme.bind_icon(button, icon, role)
    return button


def push_button(text: str, kind: str = "", parent: QWidget | None = None) -> QPushButton:
    """A button with a text; `kind` is `primary`, `flat`, `tight` (flat and narrow), `link`, `example` or nothing."""
    button = QPushButton(text, parent)
    if kind:
        button.setProperty("kind", kind)
    button.setAutoDefault(False)
    return button


class ElidedButton(QPushButton):
    """A button whose text gets an ellipsis where there is no room for it; it may become narrow.

    Args:
        kind: as of `push_button`.
        padding: of the style sheet, left and right, border included.
        spare_height: what it is higher than its text.
    """

    def __init__(self, whole: str, kind: str, padding: int, spare_height: int, elide: Qt.TextElideMode) -> None:
        super().__init__()
        self.whole = whole
        self._padding, self._spare_height, self._elide = padding, spare_height, elide
        self.setProperty("kind", kind)
        self.setAutoDefault(False)
        self.setAccessibleName(whole)

    def sizeHint(self) -> QSize:
        metrics = self.fontMetrics()
        width = metrics.horizontalAdvance(self.whole) + 2 * self._padding
        return QSize(width, metrics.height() + self._spare_height)

    def minimumSizeHint(self) -> QSize:
        return QSize(120, self.sizeHint().height())

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self.setText(self.shown().replace("&", "&&"))

    def shown(self) -> str:
        """What there is room for."""
        room = self.width() - 2 * self._padding + 2  # widths are rounded
        return self.fontMetrics().elidedText(self.whole, self._elide, room)
