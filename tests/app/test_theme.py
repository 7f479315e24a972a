"""The look: contrast, style sheet and icons."""

from __future__ import annotations

import pytest
from PySide6.QtGui import QColor, QPixmap

from loradesk_app.theme import ADAPTER_DARK, ADAPTER_LIGHT, DARK, LIGHT, style_sheet
from loradesk_resources import resource_path


def luminance(color: QColor) -> float:
    parts = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (color.redF(), color.greenF(), color.blueF())
    ]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(QColor(one)), luminance(QColor(other))), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("tokens", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("ground", ["window", "surface", "raised", "field"])
def test_text_reads_well_on_every_ground(tokens, ground):
    assert contrast(tokens.text, getattr(tokens, ground)) > 10
    assert contrast(tokens.muted, getattr(tokens, ground)) > 4.5
    assert contrast(tokens.disabled, getattr(tokens, ground)) > 2.9


@pytest.mark.parametrize("tokens", [LIGHT, DARK], ids=["light", "dark"])
def test_signals_read_well(tokens):
    assert contrast(tokens.on_accent, tokens.accent) > 4.5
    assert contrast(tokens.text, tokens.danger_soft) > 7
    assert contrast(tokens.text, tokens.warning_soft) > 7
    assert contrast(tokens.danger, tokens.window) > 4.5
    assert contrast(tokens.text, tokens.bubble) > 7


@pytest.mark.parametrize(("colors", "ground"), [(ADAPTER_LIGHT, LIGHT.surface), (ADAPTER_DARK, DARK.surface)])
def test_adapter_colours_stand_out_from_the_ground(colors, ground):
    assert len(set(colors)) == len(colors)
    assert min(contrast(color, ground) for color in colors) > 2.8


def test_the_style_sheet_is_filled_in(qapp):
    sheet = style_sheet(DARK, True, 10)
    assert "$" not in sheet.split("*/", 1)[1]
    assert DARK.accent in sheet


@pytest.mark.parametrize("path", sorted(resource_path("icons").glob("*.svg")), ids=lambda path: path.stem)
def test_every_icon_can_be_drawn(path, qapp):
    assert not QPixmap(str(path)).isNull()


def test_icons_follow_the_theme(theme, qtbot):
    from PySide6.QtWidgets import QToolButton

    button = QToolButton()
    qtbot.addWidget(button)
    theme.bind_icon(button, "send")
    before = button.icon().pixmap(18, 18).toImage()
    theme.set_mode("dark")
    assert button.icon().pixmap(18, 18).toImage() != before
