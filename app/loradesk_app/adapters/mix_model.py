"""The mix as an item model: one row a channel, with every change that can be made to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QAbstractListModel, QModelIndex, QObject, QPersistentModelIndex, Qt, Signal

if TYPE_CHECKING:
    from loradesk_engine.events import AdapterInfo

Settings = dict[str, tuple[bool, float, bool]]
"""Adapter -> on, weight, solo."""

CHANNEL_ROLE = Qt.ItemDataRole.UserRole + 1
UNITY = 1.0
MAX_WEIGHT = 2.0


@dataclass
class Channel:
    """One adapter on the desk.

    Attributes:
        info: the adapter, as the engine describes it.
        on: whether its switch is on.
        weight: where its fader stands, 0 to 2.
        solo: whether it is heard alone (with others that are solo).
        level: X-LoRA: mean scaling of the newest token.
    """

    info: AdapterInfo
    on: bool = False
    weight: float = UNITY
    solo: bool = False
    level: float = 0.0


class MixModel(QAbstractListModel):
    """Channels in the model's order.

    `mix_changed` says that the user changed what is heard; `weights()` is then what the engine should have.

    A channel whose fader stands at 0 stays on: the engine computes nothing for it and leaves it out of what it reports,
    but it is the fader that silences it, and moving the fader up makes it audible again. So the engine's report cannot
    be compared with what was sent; an activation that was sent from here is recognised by its tag.
    """

    mix_changed = Signal()
    levels_changed = Signal()  # apart from dataChanged: it comes with every token, and only the meters care

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._channels: list[Channel] = []
        self._mode = "none"
        self._unsent = False  # whether the mix has changed since it was last sent
        self._sent: dict[str, Settings] = {}  # tag of an activation without an outcome -> the channels it was made of
        self._known: Settings = {}  # the channels as the engine has them

    # -- what is there ------------------------------------------------------------------------------------------

    def rowCount(self, parent: QModelIndex | QPersistentModelIndex | None = None) -> int:
        return 0 if parent is not None and parent.isValid() else len(self._channels)

    def data(self, index: QModelIndex | QPersistentModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if not index.isValid():
            return None
        channel = self._channels[index.row()]
        if role == Qt.ItemDataRole.DisplayRole:
            return channel.info.name
        return channel if role == CHANNEL_ROLE else None

    def channel(self, row: int) -> Channel:
        return self._channels[row]

    @property
    def mode(self) -> str:
        return self._mode

    def names(self) -> tuple[str, ...]:
        return tuple(channel.info.name for channel in self._channels)

    def is_heard(self, row: int) -> bool:
        """Whether a channel takes part: solo wins over the switches."""
        channel = self._channels[row]
        return channel.solo if self._any_solo() else channel.on

    def weights(self) -> dict[str, float]:
        """Adapter -> weight of all channels that are heard: what `Activate` takes."""
        heard = (channel for row, channel in enumerate(self._channels) if self.is_heard(row))
        return {channel.info.name: channel.weight for channel in heard}

    # -- what the user does -------------------------------------------------------------------------------------

    def set_on(self, row: int, on: bool) -> None:
        if self._channels[row].on != on:
            self._channels[row].on = on
            self._tell()

    def toggle(self, row: int) -> None:
        """Switch a channel; ends solo, so that the switch is heard."""
        if 0 <= row < len(self._channels):
            for channel in self._channels:
                channel.solo = False
            self.set_on(row, not self._channels[row].on)

    def set_weight(self, row: int, weight: float) -> None:
        weight = round(min(max(weight, 0.0), MAX_WEIGHT), 2)
        if self._channels[row].weight != weight:
            self._channels[row].weight = weight
            self._tell(mix=self.is_heard(row))

    def set_solo(self, row: int, solo: bool) -> None:
        if self._channels[row].solo != solo:
            self._channels[row].solo = solo
            self._tell()

    def solo_only(self, row: int) -> None:
        """Hear one channel alone; once more, and all are as they were."""
        alone = [number for number, channel in enumerate(self._channels) if channel.solo] != [row]
        for number, channel in enumerate(self._channels):
            channel.solo = alone and number == row
        self._tell()

    def switch_all(self, on: bool) -> None:
        """All switches on or off, no solo."""
        for channel in self._channels:
            channel.on, channel.solo = on, False
        self._tell()

    def reset(self) -> None:
        """All faders back to 1."""
        for channel in self._channels:
            channel.weight = UNITY
        self._tell()

    # -- what the engine tells ----------------------------------------------------------------------------------

    def set_adapters(self, adapters: Sequence[AdapterInfo], mode: str) -> None:
        """Channels of a freshly loaded model. In X-LoRA mode all are on: the classifier decides."""
        self.beginResetModel()
        self._channels = [Channel(info, on=mode == "xlora") for info in adapters]
        self._mode = mode
        self._forget_sent()
        self._known = self._settings()
        self.endResetModel()

    def update_adapters(self, adapters: Sequence[AdapterInfo]) -> None:
        """Adapters came or went at run time; the others keep their switches and faders."""
        had_solo = self._any_solo()
        kept = {channel.info.name: channel for channel in self._channels}
        self.beginResetModel()
        self._channels = [kept.get(info.name, Channel(info)) for info in adapters]
        for channel, info in zip(self._channels, adapters, strict=True):
            channel.info = info
        # What was known of a removed adapter is not true of a later one of its name.
        self._known = {info.name: self._known[info.name] for info in adapters if info.name in kept.keys() & self._known}
        self.endResetModel()
        if had_solo and not self._any_solo():  # the removed one was alone: the others are heard again
            self._tell()

    def note_sent(self, tag: str | None) -> None:
        """The mix was sent under this tag; None: there is no engine to send it to."""
        self._unsent = False
        if tag is not None:
            self._sent[tag] = self._settings()

    def take_activation(self, weights: Mapping[str, float], tag: str | None = None) -> None:
        """The engine reports what is active. The outcome of our own activation must not pull back a fader that has
        moved on; somebody else's is shown, unless ours follows and replaces it.
        """
        own = self._sent.pop(tag, None) if tag is not None else None
        self._known = own if own is not None else self._settings_for(weights)
        if own is None and not self._is_ahead():
            self._show_known()

    def take_failure(self, tag: str | None) -> None:
        """A command failed. If it was the newest activation from here, the channels go back to what the engine has."""
        if tag is not None and self._sent.pop(tag, None) is not None and not self._is_ahead():
            self._show_known()

    def set_levels(self, levels: Sequence[float]) -> None:
        """X-LoRA: mean scalings of the newest token, in the model's order."""
        if len(levels) == len(self._channels):
            for channel, level in zip(self._channels, levels, strict=True):
                channel.level = float(level)
            self.levels_changed.emit()

    # ------------------------------------------------------------------------------------------------------------

    def _is_ahead(self) -> bool:
        """Whether the desk shows something that the engine has yet to take over."""
        return self._unsent or bool(self._sent)

    def _forget_sent(self) -> None:
        self._sent.clear()
        self._unsent = False

    def _settings(self) -> Settings:
        return {channel.info.name: (channel.on, channel.weight, channel.solo) for channel in self._channels}

    def _settings_for(self, weights: Mapping[str, float]) -> Settings:
        """Switches and faders that amount to these weights, without solo; faders of inactive channels stay."""
        return {
            channel.info.name: (channel.info.name in weights, weights.get(channel.info.name, channel.weight), False)
            for channel in self._channels
        }

    def _show_known(self) -> None:
        for channel in self._channels:
            current = (channel.on, channel.weight, channel.solo)
            channel.on, channel.weight, channel.solo = self._known.get(channel.info.name, current)
        self._tell(mix=False)

    def _any_solo(self) -> bool:
        return any(channel.solo for channel in self._channels)

    def _tell(self, mix: bool = True) -> None:
        if self._channels:
            self.dataChanged.emit(self.index(0), self.index(len(self._channels) - 1))
        if mix:
            self._unsent = True
            self.mix_changed.emit()
