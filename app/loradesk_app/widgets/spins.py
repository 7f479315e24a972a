"""Number fields as the style sheet knows them."""

from __future__ import annotations

from typing import TypeVar

from PySide6.QtWidgets import QDoubleSpinBox, QSpinBox

from loradesk_app.widgets.wheel import leave_wheel_to_page

TEXT_MARGIN = 8  # a style sheet's padding does not reach the text of a spin box that has styled arrows


def whole_spin(low: int, high: int, step: int = 1, lowest: str = "", suffix: str = "") -> QSpinBox:
    """A field for whole numbers; `lowest` is shown instead of the lowest one."""
    spin = QSpinBox()
    spin.setRange(low, high)
    spin.setSingleStep(step)
    spin.setSuffix(suffix)
    return _dressed(spin, lowest)


def decimal_spin(low: float, high: float, step: float = 0.05, lowest: str = "") -> QDoubleSpinBox:
    """A field for numbers with two decimals; `lowest` is shown instead of the lowest one."""
    spin = QDoubleSpinBox()
    spin.setDecimals(2)
    spin.setRange(low, high)
    spin.setSingleStep(step)
    return _dressed(spin, lowest)


Spin = TypeVar("Spin", QSpinBox, QDoubleSpinBox)


def _dressed(spin: Spin, lowest: str) -> Spin:
    spin.setProperty("kind", "stepper")
    spin.setSpecialValueText(lowest)
    spin.setKeyboardTracking(False)
    leave_wheel_to_page(spin)
    spin.lineEdit().setTextMargins(TEXT_MARGIN, 0, 0, 0)
    return spin
