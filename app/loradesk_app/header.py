"""The strip at the top of the window: what is loaded, in which mode, and the few buttons for everything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QHBoxLayout, QLabel, QSizePolicy, QWidget

from loradesk_app.theme import Theme, logo
from loradesk_app.widgets.buttons import icon_button, push_button
from loradesk_app.widgets.segmented import Segmented

if TYPE_CHECKING:
    from loradesk_engine.events import ModelInfo

MODES = (
    ("none", "Base", "The base model by itself"),
    ("lora", "LoRA", "Adapters that you switch and weight"),
    ("xlora", "X-LoRA", "Adapters that a classifier mixes for every token"),
)
MODEL_WIDTH = 220


class Header(QWidget):
    """Says what the user wishes; `show_model` says what is."""

    loader_requested = Signal()
    mode_requested = Signal(str)
    new_requested = Signal()
    theme_requested = Signal()
    side_requested = Signal()

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme = theme
        self._mode: str | None = None
        mark = QLabel()
        mark.setPixmap(logo(26, 2.0))
        self.model_button = push_button("", "flat")
        self.model_button.setAccessibleName("Loaded model; opens the loader")
        self.model_button.setLayoutDirection(Qt.LayoutDirection.RightToLeft)  # the arrow stands after the name
        self.model_button.setSizePolicy(QSizePolicy.Policy.Maximum, QSizePolicy.Policy.Fixed)
        theme.bind_icon(self.model_button, "chevron-down", "muted")
        self.model_button.clicked.connect(self.loader_requested)
        self.modes = Segmented(MODES, "Mode")
        self.modes.chosen.connect(self._wish_mode)
        self.new_button = icon_button(theme, "new-chat", "New conversation (Ctrl+N)")
        self.new_button.clicked.connect(self.new_requested)
        self.theme_button = icon_button(theme, "moon", "")
        self.theme_button.clicked.connect(self.theme_requested)
        self.side_button = icon_button(theme, "panel", "Show or hide the side panel (Ctrl+B)")
        self.side_button.setCheckable(True)
        self.side_button.clicked.connect(self.side_requested)
        row = QHBoxLayout(self)
        row.setContentsMargins(6, 4, 2, 8)
        row.setSpacing(6)
        row.addWidget(mark)
        row.addSpacing(2)
        row.addWidget(self.model_button)
        row.addStretch(1)
        row.addWidget(self.modes)
        row.addStretch(1)
        for button in (self.new_button, self.theme_button, self.side_button):
            row.addWidget(button)
        theme.changed.connect(self._show_theme)
        self._show_theme()
        self.show_model(None)

    def tab_stops(self) -> tuple[QWidget, ...]:
        return (self.model_button, *self.modes.buttons(), self.new_button, self.theme_button, self.side_button)

    def show_model(self, info: ModelInfo | None) -> None:
        """What is loaded now."""
        name = info.name if info else "Load a model"
        shown = self.fontMetrics().elidedText(name, Qt.TextElideMode.ElideMiddle, MODEL_WIDTH)
        self.model_button.setText(shown.replace("&", "&&"))
        self.model_button.setToolTip(f"{info.base}\nLoad another model (Ctrl+O)" if info else "Load a model (Ctrl+O)")
        self._mode = info.mode if info else None
        self.modes.setEnabled(info is not None)
        self.modes.set_current(self._mode)

    def show_wished_mode(self, mode: str) -> None:
        """The mode that a load is on its way to."""
        self.modes.set_current(mode)

    def show_actual_mode(self) -> None:
        """Back to the mode that is loaded."""
        self.modes.set_current(self._mode)

    def show_side(self, shown: bool) -> None:
        self.side_button.setChecked(shown)

    def _wish_mode(self, mode: str) -> None:
        if mode != self._mode:
            self.mode_requested.emit(mode)

    def _show_theme(self) -> None:
        dark = self._theme.is_dark
        what = f"Switch to {'light' if dark else 'dark'} colours (Ctrl+Shift+D)"
        self._theme.bind_icon(self.theme_button, "sun" if dark else "moon", "muted")
        self.theme_button.setToolTip(what)
        self.theme_button.setAccessibleName(what.split(" (", maxsplit=1)[0])
