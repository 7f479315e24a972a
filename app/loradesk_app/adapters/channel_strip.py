"""One adapter's strip on the desk."""

from __future__ import annotations

from PySide6.QtCore import QEvent, QPointF, QSignalBlocker, Qt, Signal
from PySide6.QtGui import QContextMenuEvent, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QFrame, QHBoxLayout, QMenu, QVBoxLayout, QWidget

from loradesk_app.adapters.fader import STEPS, Fader, Meter
from loradesk_app.adapters.mix_model import MAX_WEIGHT, UNITY, Channel
from loradesk_app.adapters.switch import ChannelSwitch
from loradesk_app.theme import Theme
from loradesk_app.widgets.labels import ElidedLabel, plain_tip
from loradesk_app.widgets.spins import decimal_spin

# In heights of a line of text, so that strips grow with it.
COMPACT, ROOMY, WIDEST, LONGEST = 4.4, 6.4, 7.6, 11.5
KEYS = 9  # so many channels have a key


class ChannelStrip(QFrame):
    """Name, switch, solo, fader, meter and number of one channel; says what the user wishes, shows what is.

    `compact` lets it become narrower than most names: for a few strips that may fit side by side. Others, which scroll
    anyway, are as wide as their names: the middle of `expert-12-of-64` is what tells it from the next one.
    """

    on_requested = Signal(bool)
    solo_requested = Signal(bool)
    solo_only_requested = Signal()
    weight_requested = Signal(float)
    remove_requested = Signal(str)

    def __init__(self, theme: Theme, index: int, compact: bool = True, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme, self._index = theme, index
        self._removable = False
        self.setProperty("kind", "strip")
        self._compact = compact
        self.name = ElidedLabel("", "name", elide=Qt.TextElideMode.ElideMiddle)
        self.name.setAlignment(Qt.AlignmentFlag.AlignHCenter)
        self.switch = ChannelSwitch(theme, "ON")
        self.switch.set_color(index)
        self.switch.clicked.connect(self.on_requested)
        self.switch.solo_requested.connect(self.solo_only_requested)
        self.solo = ChannelSwitch(theme, "S")
        self.solo.set_color(5)
        self.solo.setToolTip("Solo: hear this adapter alone")
        self.solo.clicked.connect(self.solo_requested)
        self.fader = Fader(theme)
        self.fader.valueChanged.connect(lambda value: self.weight_requested.emit(value / STEPS))
        self.meter = Meter(theme)
        self.number = decimal_spin(0, MAX_WEIGHT)
        self.number.lineEdit().setTextMargins(4, 0, 0, 0)
        self.number.setToolTip("Weight. Double-click the fader to set it back to 1.")
        self.number.valueChanged.connect(self.weight_requested)

        head = QHBoxLayout()
        head.setSpacing(4)
        head.addWidget(self.switch, 2)
        head.addWidget(self.solo, 1)
        desk = QHBoxLayout()
        desk.setSpacing(4)
        desk.addStretch(1)
        desk.addWidget(self.fader)
        desk.addWidget(self.meter)
        desk.addStretch(1)
        self._column = column = QVBoxLayout(self)
        column.setContentsMargins(4, 12, 4, 8)
        column.setSpacing(7)
        column.addWidget(self.name)
        column.addLayout(head)
        column.addLayout(desk, 1)
        column.addWidget(self.number)
        self._set_widths()

    def changeEvent(self, event: QEvent) -> None:
        super().changeEvent(event)
        if event.type() in (QEvent.Type.FontChange, QEvent.Type.StyleChange):
            self._set_widths()

    def _set_widths(self) -> None:
        line = self.fontMetrics().height()
        least = COMPACT * line
        if not self._compact:
            sides = self._column.contentsMargins()
            named = self.name.sizeHint().width() + sides.left() + sides.right() + 2
            least = min(max(named, ROOMY * line), LONGEST * line)
        self.setMinimumWidth(round(least))
        self.setMaximumWidth(round(max(least, WIDEST * line)))

    def tab_stops(self) -> tuple[QWidget, ...]:
        return (self.switch, self.solo, self.fader, self.number)

    def show_channel(self, channel: Channel, mode: str, heard: bool) -> None:
        """Show a channel as it is; sends nothing."""
        info = channel.info
        if self.name.text() != info.name:
            self.name.setText(info.name)
            self._set_widths()
        self._removable = mode == "lora"
        self.setToolTip(plain_tip(channel_tip(channel, mode)))
        self.setAccessibleName(f"Adapter {info.name}")
        self.setAccessibleDescription(channel_tip(channel, mode))
        self.switch.setAccessibleName(f"{info.name} on")
        key = f" (Ctrl+{self._index + 1})" if self._index < KEYS else ""
        self.switch.setToolTip(plain_tip(f"Switch {info.name} on or off{key}; Shift-click: solo"))
        self.solo.setAccessibleName(f"{info.name} solo")
        self.fader.setAccessibleName(f"{info.name} weight")
        self.number.setAccessibleName(f"{info.name} weight as a number")
        self.switch.setChecked(channel.on)
        self.solo.setChecked(channel.solo)
        with QSignalBlocker(self.fader):
            self.fader.setValue(round(channel.weight * STEPS))
        self.fader.set_look(self._index, heard)
        with QSignalBlocker(self.number):
            self.number.setValue(channel.weight)
        self.meter.setVisible(mode == "xlora")
        self.meter.set_level(self._index, channel.level)

    def contextMenuEvent(self, event: QContextMenuEvent) -> None:
        self.menu().popup(event.globalPos())

    def menu(self) -> QMenu:
        """What can be done with this channel."""
        menu = QMenu(self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        menu.addAction("Set the weight back to 1", lambda: self.weight_requested.emit(UNITY))
        menu.addAction("Hear it alone", self.solo_only_requested.emit)
        menu.addSeparator()
        remove = menu.addAction("Remove the adapter", lambda: self.remove_requested.emit(self.name.text()))
        remove.setEnabled(self._removable)
        return menu

    def paintEvent(self, event: QPaintEvent) -> None:
        super().paintEvent(event)
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        pen = QPen(self._theme.adapter_color(self._index), 4, self._theme.adapter_line(self._index))
        solid = pen.style() == Qt.PenStyle.SolidLine
        pen.setCapStyle(Qt.PenCapStyle.RoundCap if solid else Qt.PenCapStyle.FlatCap)
        painter.setPen(pen)
        painter.drawLine(QPointF(12, 6), QPointF(self.width() - 12, 6))
        painter.end()


def channel_tip(channel: Channel, mode: str) -> str:
    """What is known about an adapter, for the tooltip."""
    info = channel.info
    lines = [
        info.name,
        f"Rank {info.rank}, {info.applied}",
        f"Targets: {', '.join(info.target_modules)}",
        f"Weights: {info.nbytes / 2**20:.1f} MiB",
        f"From: {info.source}",
    ]
    if mode == "xlora":
        lines.append("The weight multiplies the classifier's scalings: 1 as trained, 0 muted.")
    return "\n".join(lines)
