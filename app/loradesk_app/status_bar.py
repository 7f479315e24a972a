"""The line at the bottom: what goes on, how fast, and what it takes."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QLabel, QStatusBar, QWidget

from loradesk_app.widgets.labels import ElidedLabel, label
from loradesk_engine.units import byte_size

if TYPE_CHECKING:
    from loradesk_engine.events import LookAhead, MemoryMeasured, ModelInfo, RequestFinished, TokensGenerated

MODE_NAMES = {"none": "Base", "lora": "LoRA", "xlora": "X-LoRA"}
SPEED_SECONDS = 1.5  # the live speed is that of the last moments
GAP, MARGIN = 10, 16  # around a part, and around the whole line


class StatusBar(QStatusBar):
    """State at the left; speed, memory and device at the right."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setSizeGripEnabled(False)
        self._arrivals: deque[tuple[float, int]] = deque()
        self.state = ElidedLabel("Starting…")
        self.model = label("")
        self.speed = label("")
        self.memory = label("")
        self.device = label("")
        self.server = label("")
        self.addWidget(self.state, 1)
        self._parts = (self.server, self.model, self.speed, self.memory, self.device)
        for part in self._parts:
            self.addPermanentWidget(part)
            part.hide()

    def show_state(self, text: str) -> None:
        """What goes on, in a word or two."""
        self.state.setText(text)
        self._fit()

    def show_model(self, info: ModelInfo | None) -> None:
        self._set(self.model, f"{info.name} · {MODE_NAMES[info.mode]}" if info else "")
        self._set(self.device, f"{info.device} · {info.dtype}" if info else "")
        if info:
            facts = (
                f"{info.architecture}, {amount(info.parameters)} parameters, {byte_size(info.weight_bytes)} of weights"
            )
            self.model.setToolTip(f"{facts}\nContext {info.context:,} tokens, loaded in {info.load_seconds:.1f} s")
        self._set(self.speed, "")

    def show_server(self, url: str) -> None:
        """Where the local server listens; empty: it is off."""
        self._set(self.server, f"Serving {url.removeprefix('http://')}" if url else "")

    def show_started(self) -> None:
        self._arrivals.clear()

    def show_tokens(self, event: TokensGenerated) -> None:
        now = time.monotonic()
        self._arrivals.append((now, len(event.token_ids)))
        while self._arrivals and now - self._arrivals[0][0] > SPEED_SECONDS:
            self._arrivals.popleft()
        span = now - self._arrivals[0][0]
        if span > 0.2:
            # The first entry's tokens were there when the span began.
            tokens = sum(count for _, count in self._arrivals) - self._arrivals[0][1]
            self._set(self.speed, speed_text(tokens / span, event.look_ahead))

    def show_finished(self, event: RequestFinished) -> None:
        if event.tokens_per_second:
            self._set(self.speed, speed_text(event.tokens_per_second, event.look_ahead))

    def show_memory(self, event: MemoryMeasured) -> None:
        parts = [f"Memory {byte_size(event.process)}"]
        if event.device:
            parts.append(f"device {byte_size(event.device)}")
        if event.cache:
            parts.append(f"cache {byte_size(event.cache)}")
        self._set(self.memory, " · ".join(parts))
        self.memory.setToolTip("Memory of the process, on the accelerator, and of the key-value caches")

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._fit()

    def _set(self, part: QLabel, text: str) -> None:
        part.setText(text)
        self._fit()

    def _fit(self) -> None:
        """Show the parts that there is room for; half a number or half a word would tell nothing."""
        shown = [part for part in self._parts if part.text()]
        room = self.width() - MARGIN - self.state.sizeHint().width()
        for part in (self.model, self.device, self.memory, self.server):  # in this order: the header has the model
            if sum(each.sizeHint().width() + GAP for each in shown) <= room:
                break
            if part in shown:
                shown.remove(part)
        for part in self._parts:
            part.setVisible(part in shown)
        left_out = [part.text() for part in self._parts if part.text() and part not in shown]
        self.state.setToolTip("\n".join(left_out))


def speed_text(tokens_per_second: float, look_ahead: LookAhead | None) -> str:
    """The speed, and in X-LoRA mode how often look-ahead was right, which the speed depends on."""
    speed = f"{tokens_per_second:.1f} tokens/s"
    return speed if look_ahead is None else f"{speed} · look-ahead {look_ahead.rate:.0%}"


def amount(count: int) -> str:
    """A large count for people: `7.2 billion`, `135 million`."""
    for limit, unit in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if count >= limit:
            value = count / limit
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return str(count)
