"""Buttons as the style sheet knows them."""

from __future__ import annotations

from PySide6.QtCore import QSize, Qt
from PySide6.QtWidgets import QPushButton, QToolButton, QWidget

from loradesk_app.theme import Theme


def icon_button(
    theme: Theme, icon: str, what: str, *, role: str = "muted", kind: str = "", parent: QWidget | None = None
) -> QToolButton:
    """A button that is only an icon; `what` is its tooltip and what screen readers say."""
    button = QToolButton(parent)
    button.setIconSize(QSize(18, 18))
    button.setToolTip(what)
    button.setAccessibleName(what.split(" (")[0])
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
