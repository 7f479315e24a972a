"""Colours, style sheet and icons, light and dark."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from string import Template
from typing import Any

from PySide6.QtCore import QByteArray, QObject, QRectF, QSize, Qt, Signal
from PySide6.QtGui import QColor, QFont, QIcon, QPainter, QPalette, QPixmap
from PySide6.QtSvg import QSvgRenderer
from PySide6.QtWidgets import QApplication
from shiboken6 import isValid

from loradesk_resources import resource_path


@dataclass(frozen=True)
class Tokens:
    """The colours everything is painted with."""

    window: str  # behind the panes
    surface: str  # panes and dialogs
    raised: str  # strips, cards
    field: str  # where one types
    border: str
    border_strong: str
    text: str
    muted: str  # second-rank text; at least 4.5:1 on window and surface
    disabled: str  # text of what cannot be used now; faint, but one can still read what is chosen
    accent: str
    accent_hover: str
    on_accent: str
    accent_soft: str
    bubble: str  # what the user said
    code: str
    danger: str
    danger_soft: str
    danger_line: str
    warning: str
    warning_soft: str
    warning_line: str


LIGHT = Tokens(
    window="#F1F2F6",
    surface="#FFFFFF",
    raised="#F7F8FB",
    field="#FFFFFF",
    border="#DFE2EA",
    border_strong="#C3C8D4",
    text="#1A1E28",
    muted="#5A6272",
    disabled="#858C9B",
    accent="#4F46E5",
    accent_hover="#4037C8",
    on_accent="#FFFFFF",
    accent_soft="#E9E8FD",
    bubble="#EBEAFD",
    code="#F1F2F6",
    danger="#B3261E",
    danger_soft="#FCECEA",
    danger_line="#E9B3AE",
    warning="#8A5A00",
    warning_soft="#FFF4DC",
    warning_line="#E3C788",
)

DARK = Tokens(
    window="#121419",
    surface="#191C22",
    raised="#20242C",
    field="#14171C",
    border="#2C313B",
    border_strong="#474E5C",
    text="#E8EAF0",
    muted="#9DA5B5",
    disabled="#6F7787",
    accent="#8F8BFF",
    accent_hover="#A5A2FF",
    on_accent="#14141F",
    accent_soft="#2A2950",
    bubble="#2B2A4C",
    code="#12151A",
    danger="#FF9388",
    danger_soft="#321D1F",
    danger_line="#6E3A3A",
    warning="#F2C46D",
    warning_soft="#2D2514",
    warning_line="#665428",
)

# Okabe and Ito's palette, which colour-blind people can tell apart, in the order that keeps neighbours far apart;
# darkened for white ground and lightened for black ground, hue for hue.
ADAPTER_LIGHT = ("#D9700A", "#0072B2", "#00875F", "#B4508C", "#3FA0D8", "#A88A00", "#C23B22", "#6B6F7B")
ADAPTER_DARK = ("#F5A04A", "#4FA8E8", "#2FC79A", "#E394C4", "#9AD6F7", "#EBD855", "#FF7F66", "#B4B9C6")

# Of the first eight adapters, the next eight, and so on.
LINES = (Qt.PenStyle.SolidLine, Qt.PenStyle.DashLine, Qt.PenStyle.DotLine, Qt.PenStyle.DashDotLine)


class Theme(QObject):
    """The look in force; `changed` tells when colours or text size became other ones."""

    changed = Signal()

    def __init__(self, app: QApplication, mode: str = "system", font_scale: int = 100) -> None:
        super().__init__(app)
        self._app = app
        self._mode = mode
        self._base_font = QFont(app.font())
        self._font_scale = font_scale
        self._bound: list[tuple[Any, str, str]] = []
        app.setStyle("Fusion")
        app.styleHints().colorSchemeChanged.connect(self._follow_system)
        self._apply()

    @property
    def mode(self) -> str:
        """`system`, `light` or `dark`."""
        return self._mode

    @property
    def is_dark(self) -> bool:
        if self._mode == "system":
            return self._app.styleHints().colorScheme() == Qt.ColorScheme.Dark
        return self._mode == "dark"

    @property
    def tokens(self) -> Tokens:
        return DARK if self.is_dark else LIGHT

    def color(self, role: str) -> QColor:
        """The colour of a token, by its name in `Tokens`."""
        return QColor(getattr(self.tokens, role))

    def adapter_color(self, index: int) -> QColor:
        """The colour of the adapter at a place in the model's order; the same in strips, chips and plots."""
        colors = ADAPTER_DARK if self.is_dark else ADAPTER_LIGHT
        return QColor(colors[index % len(colors)])

    def adapter_line(self, index: int) -> Qt.PenStyle:
        """The line of an adapter: colours come again after eight, with another line."""
        return LINES[index // len(ADAPTER_LIGHT) % len(LINES)]

    def set_mode(self, mode: str) -> None:
        if mode != self._mode:
            self._mode = mode
            self._apply()

    def set_font_scale(self, percent: int) -> None:
        if percent != self._font_scale:
            self._font_scale = percent
            self._apply()

    def icon(self, name: str, role: str = "text") -> QIcon:
        """One of our drawings in the colour of a token."""
        return _tinted_icon(name, getattr(self.tokens, role), self.tokens.disabled)

    def bind_icon(self, target: Any, name: str, role: str = "text") -> None:
        """Give a button or action an icon that follows the theme; a second call replaces the first."""
        self._bound = [entry for entry in self._bound if isValid(entry[0]) and entry[0] is not target]
        self._bound.append((target, name, role))
        target.setIcon(self.icon(name, role))

    def _follow_system(self, _scheme: Qt.ColorScheme) -> None:
        if self._mode == "system":
            self._apply()

    def _apply(self) -> None:
        hints = self._app.styleHints()
        scheme = {"light": Qt.ColorScheme.Light, "dark": Qt.ColorScheme.Dark}.get(self._mode, Qt.ColorScheme.Unknown)
        hints.blockSignals(True)  # our own wish is not news from the system
        hints.setColorScheme(scheme)
        hints.blockSignals(False)
        font = QFont(self._base_font)
        points = self._base_font.pointSizeF() * self._font_scale / 100
        if points > 0:
            font.setPointSizeF(points)
        self._app.setFont(font)
        self._app.setPalette(_palette(self.tokens))
        self._app.setStyleSheet(style_sheet(self.tokens, self.is_dark, max(points, 6.0)))
        self._bound = [entry for entry in self._bound if isValid(entry[0])]
        for target, name, role in self._bound:
            target.setIcon(self.icon(name, role))
        self.changed.emit()


def style_sheet(tokens: Tokens, dark: bool, points: float) -> str:
    """The application's style sheet with its colours and sizes filled in."""
    return _template().substitute(
        asdict(tokens),
        icons=resource_path("icons").as_posix(),
        check="check-dark" if dark else "check-light",
        small=f"{points * 0.9:.2f}pt",
        base=f"{points:.2f}pt",
        large=f"{points * 1.25:.2f}pt",
        title=f"{points * 1.7:.2f}pt",
    )


def app_icon() -> QIcon:
    """The application's own icon, at the sizes that window systems ask for."""
    icon = QIcon()
    for size in (16, 24, 32, 48, 64, 128):
        icon.addPixmap(_render(_svg("loradesk"), QSize(size, size), 1.0))
    return icon


def logo(size: int, ratio: float) -> QPixmap:
    """The application's icon as a picture of `size` logical pixels."""
    return _render(_svg("loradesk"), QSize(size, size), ratio)


@lru_cache(maxsize=1)
def _template() -> Template:
    return Template(resource_path("style", "app.qss").read_text("utf-8"))


@lru_cache(maxsize=64)
def _svg(name: str) -> bytes:
    return resource_path("icons", f"{name}.svg").read_bytes()


@lru_cache(maxsize=256)
def _tinted_icon(name: str, color: str, disabled: str) -> QIcon:
    icon = QIcon()
    for ratio in (1.0, 2.0):
        for mode, tint in ((QIcon.Mode.Normal, color), (QIcon.Mode.Disabled, disabled)):
            drawing = _svg(name).replace(b"#000000", tint.encode())
            icon.addPixmap(_render(drawing, QSize(18, 18), ratio), mode)
    return icon


def _render(drawing: bytes, size: QSize, ratio: float) -> QPixmap:
    picture = QPixmap(size * ratio)
    picture.setDevicePixelRatio(ratio)
    picture.fill(Qt.GlobalColor.transparent)
    painter = QPainter(picture)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    QSvgRenderer(QByteArray(drawing)).render(painter, QRectF(0, 0, size.width(), size.height()))
    painter.end()
    return picture


def _palette(tokens: Tokens) -> QPalette:
    role, group = QPalette.ColorRole, QPalette.ColorGroup
    palette = QPalette()
    for which, color in (
        (role.Window, tokens.window),
        (role.WindowText, tokens.text),
        (role.Base, tokens.field),
        (role.AlternateBase, tokens.raised),
        (role.Text, tokens.text),
        (role.Button, tokens.raised),
        (role.ButtonText, tokens.text),
        (role.BrightText, tokens.danger),
        (role.ToolTipBase, tokens.raised),
        (role.ToolTipText, tokens.text),
        (role.PlaceholderText, tokens.muted),
        (role.Highlight, tokens.accent),
        (role.HighlightedText, tokens.on_accent),
        (role.Accent, tokens.accent),
        (role.Link, tokens.accent),
        (role.LinkVisited, tokens.accent),
        (role.Light, tokens.surface),
        (role.Midlight, tokens.raised),
        (role.Mid, tokens.border),
        (role.Dark, tokens.border_strong),
        (role.Shadow, tokens.border_strong),
    ):
        palette.setColor(which, QColor(color))
    for which in (role.WindowText, role.Text, role.ButtonText):
        palette.setColor(group.Disabled, which, QColor(tokens.disabled))
    return palette
