"""The pane of the live scalings: what one reads, and the buttons around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QFileDialog, QFrame, QHBoxLayout, QMenu, QStackedLayout, QVBoxLayout, QWidget

from loradesk_app.scalings.legend import Legend
from loradesk_app.scalings.sketch import Sketch
from loradesk_app.theme import Theme
from loradesk_app.widgets.buttons import icon_button
from loradesk_app.widgets.focus import chain
from loradesk_app.widgets.labels import label

if TYPE_CHECKING:  # the plots import pyqtgraph and numpy, which the window can do without until it is painted
    from collections.abc import Callable

    from loradesk_app.scalings.plots import ScalingPlots
    from loradesk_app.scalings.scalings_model import ScalingsModel
    from loradesk_engine.events import ModelInfo, RequestStarted, TokensGenerated

_NO_XLORA = (
    "Load an X-LoRA model to see, token by token, how much of each adapter its classifier mixes in: "
    "a curve for each adapter, and below it every layer of one of them."
)
_NO_TOKENS = "Send a message. Each token of it, and of the answer, will appear here with its mix of adapters."
PICTURES = {"png": "PNG picture (*.png)", "csv": "CSV table (*.csv)", "npz": "NumPy archive (*.npz)"}


def warm_up() -> None:
    """Import what the plots need; slow, so it runs off the GUI thread."""
    import loradesk_app.scalings.plots  # noqa: F401


class ScalingsPane(QFrame):
    """Shows the scalings of the conversation's sequence as they come."""

    save_requested = Signal(str, object)  # path, function that gives the bytes
    levels_picked = Signal(list)  # mean scalings of a token that was clicked

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setProperty("kind", "pane")
        self._theme = theme
        self._info: ModelInfo | None = None
        self.plots: ScalingPlots | None = None
        self._model: ScalingsModel | None = None

        self.title = label("Scalings", "heading")
        self.pause_button = icon_button(theme, "pause", "Hold the picture still")
        self.pause_button.setCheckable(True)
        self.pause_button.toggled.connect(self.set_paused)
        self.follow_button = icon_button(theme, "follow", "Follow the newest token")
        self.follow_button.setCheckable(True)
        self.follow_button.setChecked(True)
        self.follow_button.clicked.connect(self.follow)
        self.fit_button = icon_button(theme, "fit", "Show all tokens")
        self.fit_button.clicked.connect(self.fit)
        self.clear_button = icon_button(theme, "trash", "Clear")
        self.clear_button.clicked.connect(self.clear)
        self.export_button = icon_button(theme, "export", "Export as PNG, CSV or NPZ")
        self.export_button.setPopupMode(self.export_button.ToolButtonPopupMode.InstantPopup)
        menu = QMenu(self.export_button)
        for kind, text in PICTURES.items():
            action = menu.addAction(f"{text.split(' (')[0]}…")
            action.triggered.connect(lambda _checked=False, kind=kind: self._ask_where(kind))
        self.export_button.setMenu(menu)
        self._buttons = (
            self.pause_button,
            self.follow_button,
            self.fit_button,
            self.clear_button,
            self.export_button,
        )
        head = QHBoxLayout()
        head.setContentsMargins(16, 8, 8, 0)
        head.setSpacing(2)
        head.addWidget(self.title)
        head.addStretch(1)
        for button in self._buttons:
            head.addWidget(button)

        self._empty = QWidget()
        self._empty_text = label(_NO_XLORA, "muted", wrap=True)
        self._empty_text.setAlignment(Qt.AlignmentFlag.AlignHCenter)
        middle = QVBoxLayout(self._empty)
        middle.setContentsMargins(32, 8, 32, 24)
        middle.setSpacing(14)
        middle.addStretch(1)
        middle.addWidget(Sketch(theme), 0, Qt.AlignmentFlag.AlignHCenter)
        middle.addWidget(self._empty_text)
        middle.addStretch(1)
        self.legend = Legend(theme)
        self.legend.chosen.connect(self.show_layers_of)
        self._full = QWidget()
        self._full_column = QVBoxLayout(self._full)
        self._full_column.setContentsMargins(12, 0, 8, 10)
        self._full_column.setSpacing(4)
        self._full_column.addWidget(self.legend)
        holder = QWidget()
        self._stack = QStackedLayout(holder)
        self._stack.addWidget(self._empty)
        self._stack.addWidget(self._full)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)
        column.addLayout(head)
        column.addWidget(holder, 1)
        self._show_state()

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self.legend.set_pane_height(self.height())

    def tab_stops(self) -> tuple[QWidget, ...]:
        return self._buttons

    # -- what the user does -------------------------------------------------------------------------------------

    @property
    def model(self) -> ScalingsModel:
        """The data; made when first needed."""
        if self._model is None:
            from loradesk_app.scalings.scalings_model import ScalingsModel

            self._model = ScalingsModel(self)
            self._model.changed.connect(self._show_state)
        return self._model

    def set_paused(self, paused: bool) -> None:
        self._theme.bind_icon(self.pause_button, "play" if paused else "pause", "accent" if paused else "muted")
        self.pause_button.setToolTip("Go on" if paused else "Hold the picture still")
        if self.plots:
            self.plots.set_paused(paused)

    def follow(self) -> None:
        self.follow_button.setChecked(True)
        self.pause_button.setChecked(False)
        if self.plots:
            self.plots.follow()

    def fit(self) -> None:
        if self.plots:
            self.plots.fit()

    def show_layers_of(self, adapter: int) -> None:
        """Choose the adapter whose layers are shown."""
        if self.plots:
            self.plots.adapter.setCurrentIndex(adapter)

    def clear(self) -> None:
        """Forget the tokens so far; the next ones appear as they come."""
        if self._model is not None:
            self._model.clear()

    def export(self, kind: str, path: str) -> None:
        """Save as `png`, `csv` or `npz`. The data is copied now and written elsewhere."""
        if kind == "png":
            self.save_requested.emit(path, _png_of(self._full))
            return
        from loradesk_app.scalings.export import Snapshot, to_csv, to_npz

        data = Snapshot.of(self.model)
        write = to_csv if kind == "csv" else to_npz
        self.save_requested.emit(path, lambda: write(data))

    def _ask_where(self, kind: str) -> None:
        path, _ = QFileDialog.getSaveFileName(self, "Export the scalings", f"scalings.{kind}", PICTURES[kind])
        if path:
            self.export(kind, path if path.lower().endswith(f".{kind}") else f"{path}.{kind}")

    # -- what the engine tells ----------------------------------------------------------------------------------

    def show_model(self, info: ModelInfo | None) -> None:
        xlora = info is not None and info.mode == "xlora"
        self._info = info if xlora else None
        if info is not None and xlora:
            names = tuple(adapter.name for adapter in info.adapters)
            self.model.set_axes(names, info.layer_paths)
            self.legend.set_names(names)
            self._build()
        elif self._model is not None:
            self._model.set_axes((), ())
        self._show_state()

    def show_started(self, event: RequestStarted) -> None:
        if self._info is not None:
            self.model.begin(event.prompt_tokens)

    def show_tokens(self, event: TokensGenerated) -> None:
        if self._info is not None and event.scalings is not None:
            self.model.append(event.scalings_start, event.scalings, event.scaling_token_texts)

    # ------------------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        if self.plots is None:
            from loradesk_app.scalings.plots import ScalingPlots

            self.plots = ScalingPlots(self._theme, self.model)
            self.plots.following_changed.connect(self.follow_button.setChecked)
            self.plots.token_picked.connect(lambda token: self.levels_picked.emit(self.model.mean(token).tolist()))
            self._full_column.addWidget(self.plots, 1)
            chain(self.export_button, self.plots.adapter)
            self.plots.set_paused(self.pause_button.isChecked())
        else:
            self.plots.set_axes()

    def _show_state(self) -> None:
        shown = self._info is not None and self._model is not None and len(self._model) > 0
        self._empty_text.setText(_NO_TOKENS if self._info is not None else _NO_XLORA)
        self._stack.setCurrentWidget(self._full if shown else self._empty)
        for button in self._buttons:
            button.setVisible(shown)


def _png_of(widget: QWidget) -> Callable[[], bytes]:
    """The picture is taken now; it is packed when called, elsewhere."""
    picture = widget.grab().toImage()

    def pack() -> bytes:
        from PySide6.QtCore import QBuffer, QByteArray, QIODevice
        from PySide6.QtGui import QImageWriter

        data = QByteArray()
        buffer = QBuffer(data)
        buffer.open(QIODevice.OpenModeFlag.WriteOnly)
        QImageWriter(buffer, b"png").write(picture)
        return bytes(data.data())

    return pack
