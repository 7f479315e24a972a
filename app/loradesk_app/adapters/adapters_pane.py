"""The mixing desk: one channel strip per adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PySide6.QtCore import Qt, QTimer, Signal
from PySide6.QtWidgets import QFrame, QHBoxLayout, QStackedLayout, QVBoxLayout, QWidget

from loradesk_app.adapters.add_adapter_dialog import AddAdapterDialog
from loradesk_app.adapters.channel_strip import ChannelStrip
from loradesk_app.adapters.desk_scroll import DeskScroll
from loradesk_app.adapters.mix_model import MixModel
from loradesk_app.theme import Theme
from loradesk_app.widgets.buttons import icon_button, push_button
from loradesk_app.widgets.focus import chain
from loradesk_app.widgets.labels import ElidedLabel, label

if TYPE_CHECKING:
    from loradesk_engine.events import (
        AdapterInfo,
        AdaptersActivated,
        AdaptersChanged,
        CommandFailed,
        ModelInfo,
        TokensGenerated,
    )

SEND_MS = 50
FEW = 4  # so many strips are kept side by side; more of them scroll

_EMPTY = {
    "": "No model is loaded yet.",
    "none": "The base model runs by itself.\nChoose LoRA or X-LoRA above to put adapters on the desk.",
    "lora": "No adapters yet.\nAdd one, and switch it on while you chat.",
    "xlora": "This X-LoRA model brings no adapters.",
}


class AdaptersPane(QFrame):
    """Shows a `MixModel` and sends its changes, at most one each 50 ms while a fader moves."""

    weights_requested = Signal(dict)
    add_requested = Signal(object)  # AdapterSource
    remove_requested = Signal(str)

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setProperty("kind", "pane")
        self._theme = theme
        self.model = MixModel(self)
        self.strips: list[ChannelStrip] = []
        self.dialog: AddAdapterDialog | None = None
        self._throttle = QTimer(self)
        self._throttle.setSingleShot(True)
        self._throttle.setInterval(SEND_MS)
        self._throttle.timeout.connect(self._send_if_waiting)
        self._waiting = False

        self.title = label("Adapters", "heading")
        self.count = ElidedLabel("", "small")
        self.all_on = push_button("All on", "tight")
        self.all_on.clicked.connect(lambda: self.model.switch_all(True))
        self.all_off = push_button("All off", "tight")
        self.all_off.clicked.connect(lambda: self.model.switch_all(False))
        self.reset = icon_button(theme, "refresh", "All faders back to 1")
        self.reset.clicked.connect(self.model.reset)
        self.add_button = icon_button(theme, "plus", "Add an adapter (Ctrl+Shift+A)")
        self.add_button.clicked.connect(self.ask_for_adapter)
        head = QHBoxLayout()
        head.setContentsMargins(16, 8, 8, 0)
        head.setSpacing(2)
        head.addWidget(self.title)
        head.addSpacing(4)
        head.addWidget(self.count, 1)
        for button in (self.all_on, self.all_off, self.reset, self.add_button):
            head.addWidget(button)

        content = QWidget()
        self._row = QHBoxLayout(content)
        self._row.setContentsMargins(0, 2, 0, 6)
        self._row.setSpacing(6)
        self._row.addStretch(0)
        self.desk_scroll = DeskScroll(content)
        empty = QWidget()
        self._empty_text = label("", "muted", wrap=True)
        self._empty_text.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self._empty_add = push_button("Add an adapter…")
        self._empty_add.clicked.connect(self.ask_for_adapter)
        middle = QVBoxLayout(empty)
        middle.setContentsMargins(24, 8, 24, 24)
        middle.setSpacing(14)
        middle.addStretch(1)
        middle.addWidget(self._empty_text)
        middle.addWidget(self._empty_add, 0, Qt.AlignmentFlag.AlignHCenter)
        middle.addStretch(1)
        holder = QWidget()
        self._stack = QStackedLayout(holder)
        self._stack.addWidget(empty)
        self._stack.addWidget(self.desk_scroll)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(6)
        column.addLayout(head)
        inset = QHBoxLayout()  # strips that are cut off end inside the pane's border
        inset.setContentsMargins(10, 0, 10, 4)
        inset.addWidget(holder)
        column.addLayout(inset, 1)

        self.model.modelReset.connect(self._rebuild)
        self.model.dataChanged.connect(lambda _first, _last: self._show())
        self.model.levels_changed.connect(self._show_levels)
        self.model.mix_changed.connect(self._note_mix)
        self.setAcceptDrops(False)
        self.show_model(None)

    def tab_stops(self) -> tuple[QWidget, ...]:
        return (self.all_on, self.all_off, self.reset, self.add_button)

    # -- what the user does -------------------------------------------------------------------------------------

    def toggle(self, row: int) -> None:
        """Switch the adapter on a channel, if there is one."""
        self.model.toggle(row)

    def ask_for_adapter(self) -> None:
        """Open the dialog that asks for one more adapter."""
        if self.model.mode != "lora":
            return
        self.dialog = AddAdapterDialog(self.model.names(), self)
        self.dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.dialog.add_requested.connect(self.add_requested)
        self.dialog.open()

    # -- what the engine tells ----------------------------------------------------------------------------------

    def show_model(self, info: ModelInfo | None) -> None:
        self._throttle.stop()
        self._waiting = False
        mode = info.mode if info else "none"
        self._empty_text.setText(_EMPTY[mode if info else ""])
        self._empty_add.setVisible(info is not None and mode == "lora")
        self.model.set_adapters(info.adapters if info else (), mode)

    def show_adapters(self, event: AdaptersChanged) -> None:
        adapters: Sequence[AdapterInfo] = event.adapters
        self.model.update_adapters(adapters)

    def show_activation(self, event: AdaptersActivated) -> None:
        self.model.take_activation(event.weights, event.tag)

    def show_failure(self, event: CommandFailed) -> None:
        self.model.take_failure(event.tag)

    def note_sent(self, tag: str | None) -> None:
        """The weights that were requested last were sent under this tag."""
        self.model.note_sent(tag)

    def show_tokens(self, event: TokensGenerated) -> None:
        if event.scalings is not None and len(event.scalings):
            self.model.set_levels(event.scalings[-1].mean(axis=0).tolist())

    def settle_meters(self) -> None:
        """No answer is under way any more."""
        for strip in self.strips:
            strip.meter.settle()

    # ------------------------------------------------------------------------------------------------------------

    def _rebuild(self) -> None:
        for strip in self.strips:
            strip.hide()
            self._row.removeWidget(strip)
            strip.deleteLater()
        self.strips = []
        for row in range(self.model.rowCount()):
            strip = ChannelStrip(self._theme, row, compact=self.model.rowCount() <= FEW)
            strip.on_requested.connect(lambda on, row=row: self.model.set_on(row, on))
            strip.solo_requested.connect(lambda solo, row=row: self.model.set_solo(row, solo))
            strip.solo_only_requested.connect(lambda row=row: self.model.solo_only(row))
            strip.weight_requested.connect(lambda weight, row=row: self.model.set_weight(row, weight))
            strip.remove_requested.connect(self.remove_requested)
            self.strips.append(strip)
            self._row.insertWidget(row, strip, 1)
        chain(self.add_button, *(stop for strip in self.strips for stop in strip.tab_stops()))
        self._stack.setCurrentIndex(1 if self.strips else 0)
        lora = self.model.mode == "lora"
        self.add_button.setVisible(lora)
        for widget in (self.all_on, self.all_off, self.reset):
            widget.setVisible(bool(self.strips))
        self._show()

    def _show(self) -> None:
        heard = 0
        for row, strip in enumerate(self.strips):
            is_heard = self.model.is_heard(row)
            heard += is_heard
            strip.show_channel(self.model.channel(row), self.model.mode, is_heard)
        self.count.setText(f"{heard} of {len(self.strips)} on" if self.strips else "")

    def _show_levels(self) -> None:
        for row, strip in enumerate(self.strips):
            strip.meter.set_level(row, self.model.channel(row).level)

    def _note_mix(self) -> None:
        self._waiting = True
        if not self._throttle.isActive():
            self._send_if_waiting()

    def _send_if_waiting(self) -> None:
        if self._waiting:
            self._waiting = False
            self.weights_requested.emit(self.model.weights())
            self._throttle.start()
