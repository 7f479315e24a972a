"""How the next token is drawn: presets, the single values, and the system prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from PySide6.QtCore import QPoint, QSignalBlocker, Qt, Signal
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import (
    QDoubleSpinBox,
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QPlainTextEdit,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from loradesk_app.chat.presets import DEFAULT, preset_name, presets
from loradesk_app.widgets.buttons import push_button
from loradesk_app.widgets.labels import label
from loradesk_app.widgets.segmented import Segmented
from loradesk_app.widgets.spins import decimal_spin, whole_spin
from loradesk_engine.commands import Sampling

MAX_SEED = 2**31 - 1  # what a QSpinBox holds; the engine takes more

_FIELDS: tuple[tuple[str, str, float, float, float, str, str], ...] = (
    # name, label, low, high, step, what the lowest value is called, tooltip
    ("temperature", "&Temperature", 0, 5, 0.05, "0 (greedy)", "Higher is bolder. 0 always takes the likeliest token."),
    ("top_k", "Top-&k", 0, 1000, 1, "all", "Draw only from the k likeliest tokens."),
    ("top_p", "Top-&p", 0.01, 1, 0.01, "", "Draw from the smallest set of tokens that reaches this probability."),
    ("min_p", "&Min-p", 0, 1, 0.01, "off", "Leave out tokens less likely than this share of the likeliest."),
    ("repetition_penalty", "&Repetition penalty", 0.5, 3, 0.01, "", "Above 1, words already used become less likely."),
    ("max_tokens", "Ma&ximum tokens", 0, 131072, 64, "until the context is full", "Most tokens of one answer."),
    ("seed", "S&eed", -1, MAX_SEED, 1, "new each time", "The same seed gives the same answer on the same device."),
)
_WHOLE = {"top_k", "max_tokens", "seed"}


class SamplingPopover(QFrame):
    """A small window over the composer; every edit counts at once."""

    sampling_changed = Signal(object)
    system_changed = Signal(str)

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent, Qt.WindowType.Popup)
        self.setProperty("kind", "popover")
        self.setAccessibleName("Sampling")
        self._sampling = DEFAULT
        self.presets = Segmented([(p.name, p.name, p.description) for p in presets()], "Sampling preset")
        self.presets.chosen.connect(self._take_preset)
        self._what = label("", "small", wrap=True)
        grid = QGridLayout()
        grid.setHorizontalSpacing(14)
        grid.setVerticalSpacing(7)
        grid.setColumnStretch(0, 1)
        self.fields: dict[str, QSpinBox | QDoubleSpinBox] = {}
        for row, (name, text, low, high, step, lowest, tip) in enumerate(_FIELDS):
            field = self._field(name, low, high, step, lowest, tip)
            caption = label(text)
            caption.setBuddy(field)
            caption.setToolTip(tip)
            grid.addWidget(caption, row, 0)
            grid.addWidget(field, row, 1)
            self.fields[name] = field
        self.system = QPlainTextEdit()
        self.system.setPlaceholderText("Instructions for the model, put before the conversation (optional)")
        self.system.setAccessibleName("System prompt")
        self.system.setTabChangesFocus(True)
        self.system.setFixedHeight(self.fontMetrics().lineSpacing() * 3 + 18)
        self.system.textChanged.connect(lambda: self.system_changed.emit(self.system.toPlainText()))
        reset = push_button("Reset to defaults", "link")
        reset.clicked.connect(lambda: self._change(DEFAULT))
        head = QHBoxLayout()
        head.addWidget(label("Sampling", "heading"))
        head.addStretch(1)
        head.addWidget(reset)
        column = QVBoxLayout(self)
        column.setContentsMargins(16, 12, 16, 16)
        column.setSpacing(10)
        column.addLayout(head)
        column.addWidget(self.presets)
        column.addWidget(self._what)
        column.addLayout(grid)
        column.addWidget(label("System prompt", "caption"))
        column.addWidget(self.system)
        self.set_sampling(DEFAULT)

    @property
    def sampling(self) -> Sampling:
        return self._sampling

    def set_sampling(self, sampling: Sampling) -> None:
        """Show these values; `sampling_changed` is not sent."""
        self._sampling = sampling
        for name, field in self.fields.items():
            value = getattr(sampling, name)
            with QSignalBlocker(field):
                field.setValue({"max_tokens": 0, "seed": -1}[name] if value is None else value)
        name = preset_name(sampling)
        self.presets.set_current(name if name != "Custom" else None)
        descriptions = {preset.name: preset.description for preset in presets()}
        self._what.setText(descriptions.get(name, "Values of your own."))

    def set_system(self, text: str) -> None:
        with QSignalBlocker(self.system):
            self.system.setPlainText(text)

    def open_above(self, anchor: QWidget) -> None:
        """Open with the lower left corner at an anchor, kept on the screen."""
        self.adjustSize()
        corner = anchor.mapToGlobal(QPoint(0, 0))
        screen = QGuiApplication.screenAt(corner) or QGuiApplication.primaryScreen()
        area = screen.availableGeometry()
        left = max(area.left(), min(corner.x(), area.right() - self.width()))
        top = max(area.top(), corner.y() - self.height() - 6)
        self.move(left, top)
        self.show()
        self.fields["temperature"].setFocus()

    def _field(
        self, name: str, low: float, high: float, step: float, lowest: str, tip: str
    ) -> QSpinBox | QDoubleSpinBox:
        field: QSpinBox | QDoubleSpinBox
        if name in _WHOLE:
            field = whole_spin(int(low), int(high), int(step), lowest)
        else:
            field = decimal_spin(low, high, step, lowest)
        field.setToolTip(tip)
        field.setAccessibleName(name.replace("_", " "))
        field.setMinimumWidth(170)
        field.valueChanged.connect(lambda value, name=name: self._edit(name, value))
        return field

    def _edit(self, name: str, value: float) -> None:
        kept: float | None = round(value, 4) if name not in _WHOLE else int(value)
        if (name == "max_tokens" and value == 0) or (name == "seed" and value == -1):
            kept = None
        edited: dict[str, Any] = {name: kept}
        self._change(replace(self._sampling, **edited))

    def _take_preset(self, name: str) -> None:
        chosen = next(preset for preset in presets() if preset.name == name)
        self._change(chosen.applied_to(self._sampling))

    def _change(self, sampling: Sampling) -> None:
        self.set_sampling(sampling)
        self.sampling_changed.emit(sampling)
