"""The preferences, built from the table of settings."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QCheckBox, QComboBox, QDialog, QGridLayout, QVBoxLayout, QWidget

from loradesk_app.settings import SETTINGS, Setting, Settings
from loradesk_app.widgets.buttons import push_button
from loradesk_app.widgets.labels import label
from loradesk_app.widgets.spins import whole_spin


class PreferencesDialog(QDialog):
    """One row for every setting that has a label; each change counts at once."""

    def __init__(self, settings: Settings, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Preferences")
        self._settings = settings
        self.fields: dict[str, QWidget] = {}
        grid = QGridLayout()
        grid.setHorizontalSpacing(20)
        grid.setVerticalSpacing(2)
        grid.setColumnStretch(0, 1)
        shown = [setting for setting in SETTINGS if setting.label]
        for row, setting in enumerate(shown):
            field = self._field(setting)
            field.setAccessibleName(setting.label)
            field.setToolTip(setting.description)
            self.fields[setting.key] = field
            grid.addWidget(label(setting.label), row * 3, 0)
            grid.addWidget(label(setting.description, "small", wrap=True), row * 3 + 1, 0)
            grid.addWidget(field, row * 3, 1, 2, 1, Qt.AlignmentFlag.AlignVCenter)
            grid.setRowMinimumHeight(row * 3 + 2, 12)
        close = push_button("Done", "primary")
        close.setDefault(True)
        close.clicked.connect(self.accept)
        column = QVBoxLayout(self)
        column.setContentsMargins(24, 20, 24, 20)
        column.setSpacing(14)
        column.addWidget(label("Preferences", "large"))
        column.addLayout(grid)
        column.addStretch(1)
        column.addWidget(close, 0, Qt.AlignmentFlag.AlignRight)
        self.setMinimumWidth(520)

    def _field(self, setting: Setting) -> QWidget:
        value, key = self._settings.get(setting.key), setting.key
        if setting.kind == "bool":
            box = QCheckBox()
            box.setChecked(value)
            box.toggled.connect(lambda on: self._settings.set(key, on))
            return box
        if setting.choices:
            combo = QComboBox()
            for choice, text in setting.choices:
                combo.addItem(text, choice)
            combo.setCurrentIndex(combo.findData(value))
            combo.currentIndexChanged.connect(lambda _index: self._settings.set(key, combo.currentData()))
            return combo
        spin = whole_spin(int(setting.low), int(setting.high), step=10, suffix=" %")
        spin.setValue(value)
        spin.valueChanged.connect(lambda number: self._settings.set(key, number))
        return spin
