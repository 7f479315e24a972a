"""The two plots: curves of the adapters over the tokens, and the layers of one adapter below."""

from __future__ import annotations

from html import escape

import numpy as np
import pyqtgraph as pg
from pyqtgraph.GraphicsScene.mouseEvents import MouseClickEvent
from PySide6.QtCore import QEvent, QObject, QPoint, QPointF, QRectF, Qt, QTimer, Signal
from PySide6.QtGui import QFont, QPen, QTransform
from PySide6.QtWidgets import QComboBox, QHBoxLayout, QLabel, QSplitter, QVBoxLayout, QWidget

from loradesk_app.scalings.color_scale import ColorScale
from loradesk_app.scalings.scalings_model import MANY, ScalingsModel
from loradesk_app.scalings.token_axis import TokenAxis, visible
from loradesk_app.theme import Theme
from loradesk_app.widgets.elided_combo import ElidedCombo
from loradesk_app.widgets.labels import label

FRAME_MS = 50
LEFT_AXIS = 34
MAX_COLUMNS = 1200
FIRST_WINDOW = 48  # tokens shown before the sequence is longer
MIN_WINDOW = 6
STEPS_ACROSS = 12
COLOR_MAP = "viridis"
TIP_ROWS = 8  # the strongest; the tip of 64 adapters would be taller than the screen
LABEL_HEIGHT = 80  # of the curves; lower, the word would lie on them
CROWD, FAINT = 16, 110  # with more curves, those beside the one that is looked at are drawn so faint, of 255


class ScalingPlots(QWidget):
    """Draws a `ScalingsModel`, at most once a frame and only what is in view."""

    token_picked = Signal(int)
    following_changed = Signal(bool)

    def __init__(self, theme: Theme, model: ScalingsModel, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._theme, self._model = theme, model
        self._paused = False
        self._following = True
        self._window = float(FIRST_WINDOW)
        self._moving = False
        self._shown_range = (0.0, 0.0)
        self._y_range = (0.0, 0.0, 0)
        self._heat_top = 0.0  # so far, of the adapter shown: the colours stay what they mean while the view moves on
        self._prompt_place = (False, False, 0.0, 0.0)
        self.curves: list[pg.PlotCurveItem] = []

        self.axis = TokenAxis(model.text)
        self.top = pg.PlotWidget(axisItems={"bottom": self.axis})
        self.bottom = pg.PlotWidget()
        self.image = pg.ImageItem(axisOrder="row-major")
        self.image.setColorMap(pg.colormap.get(COLOR_MAP))
        self.bottom.addItem(self.image)
        self.prompt_lines = (pg.InfiniteLine(angle=90), pg.InfiniteLine(angle=90))
        self.cursor_lines = (pg.InfiniteLine(angle=90), pg.InfiniteLine(angle=90))
        self.prompt_label = pg.TextItem("answer", anchor=(0, 0))
        for plot, prompt, cursor in zip((self.top, self.bottom), self.prompt_lines, self.cursor_lines, strict=True):
            _calm(plot)
            plot.addItem(prompt, ignoreBounds=True)
            plot.addItem(cursor, ignoreBounds=True)
            prompt.setZValue(5)
            cursor.setZValue(6)
            prompt.hide()
            cursor.hide()
        self.top.addItem(self.prompt_label, ignoreBounds=True)
        self.prompt_label.hide()
        self.top.setAccessibleName("Mean scaling of each adapter over the tokens")
        self.bottom.setAccessibleName("Scalings of one adapter, layers over tokens")
        self.bottom.getPlotItem().invertY(True)
        self.bottom.getPlotItem().hideAxis("bottom")
        self.bottom.setXLink(self.top)

        self.adapter = ElidedCombo()
        self.adapter.setAccessibleName("Adapter shown layer by layer")
        self.adapter.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToContents)
        self.adapter.currentIndexChanged.connect(lambda _index: self._show_adapter())
        self.scale = ColorScale(theme, pg.colormap.get(COLOR_MAP))
        head = QHBoxLayout()
        head.setContentsMargins(8, 0, 4, 0)
        head.setSpacing(8)
        caption = label("Layers of", "small")
        head.addWidget(caption)
        head.addWidget(self.adapter)
        head.addStretch(1)
        head.addWidget(self.scale)
        lower = QWidget()
        lower_column = QVBoxLayout(lower)
        lower_column.setContentsMargins(0, 2, 0, 0)
        lower_column.setSpacing(6)
        lower_column.addLayout(head)
        lower_column.addWidget(self.bottom, 1)
        splitter = QSplitter(Qt.Orientation.Vertical)
        splitter.setChildrenCollapsible(False)
        splitter.addWidget(self.top)
        splitter.addWidget(lower)
        splitter.setStretchFactor(0, 5)
        splitter.setStretchFactor(1, 4)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(splitter)

        self.tip = QLabel(self, Qt.WindowType.ToolTip)
        self.tip.setTextFormat(Qt.TextFormat.RichText)
        self.tip.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        self.tip.setMargin(8)
        self.tip.hide()
        self._redraw_soon = QTimer(self)
        self._redraw_soon.setSingleShot(True)
        self._redraw_soon.setInterval(FRAME_MS)
        self._redraw_soon.timeout.connect(self.redraw)

        model.changed.connect(self._note_change)
        self.top.sigXRangeChanged.connect(self._note_range)
        self.top.scene().sigMouseMoved.connect(lambda place: self._hover(self.top, place))
        self.bottom.scene().sigMouseMoved.connect(lambda place: self._hover(self.bottom, place))
        for plot in (self.top, self.bottom):
            plot.scene().sigMouseClicked.connect(lambda event, plot=plot: self._pick(plot, event))
            plot.installEventFilter(self)
            plot.viewport().installEventFilter(self)
        theme.changed.connect(self.restyle)
        self.set_axes()
        self.restyle()

    # -- what the user does -------------------------------------------------------------------------------------

    @property
    def paused(self) -> bool:
        return self._paused

    @property
    def following(self) -> bool:
        return self._following

    def set_paused(self, paused: bool) -> None:
        """Hold the picture still; the data goes on growing."""
        self._paused = paused
        if not paused:
            self.redraw()

    def follow(self) -> None:
        """Go to the newest token and stay there."""
        self._set_following(True)
        self._window = max(self._window, MIN_WINDOW)
        self.redraw()

    def fit(self) -> None:
        """Show the whole sequence."""
        self._window = max(float(len(self._model)), MIN_WINDOW)
        self._set_following(True)
        self.redraw()

    # -- drawing ------------------------------------------------------------------------------------------------

    def set_axes(self) -> None:
        """Take over the model's adapters and layers."""
        for curve in self.curves:
            self.top.removeItem(curve)
        self.curves = []
        for _ in self._model.adapters:
            curve = pg.PlotCurveItem(antialias=True)
            self.top.addItem(curve)
            self.curves.append(curve)
        self.adapter.blockSignals(True)
        self.adapter.clear()
        self.adapter.addItems(list(self._model.adapters))
        self.adapter.blockSignals(False)
        self._window = float(FIRST_WINDOW)
        self._heat_top = 0.0
        self._set_following(True)
        self.restyle()

    def redraw(self) -> None:
        """Draw what is in view now."""
        self._redraw_soon.stop()
        if self._following:
            self._go_to_end()
        model = self._model
        low, high = self.top.getViewBox().viewRange()[0]
        columns = min(MAX_COLUMNS, max(50, int(self.top.getViewBox().width())))
        adapter = max(0, self.adapter.currentIndex())
        part = model.slice(low, high, adapter, columns) if model.adapters else None
        if part is None:
            return
        for number, curve in enumerate(self.curves):
            curve.setData(part.x, part.means[:, number])
        self._fit_y()
        self._draw_heat(part.heat, part.start, part.step)
        self._draw_prompt_end()
        self.axis.update()

    def restyle(self) -> None:
        """Take over the theme's colours."""
        theme = self._theme
        small = QFont(self.font())
        small.setPointSizeF(max(small.pointSizeF() * 0.85, 6.0))
        for plot in (self.top, self.bottom):
            plot.setBackground(theme.color("surface"))
            for side in ("left", "bottom"):
                axis = plot.getAxis(side)
                axis.setPen(theme.color("border_strong"))
                axis.setTextPen(theme.color("muted"))
                axis.setStyle(tickFont=small, tickLength=3)
                axis.setFont(small)
        self.axis.ink, self.axis.strong = theme.color("muted"), theme.color("text")
        self.axis.line = theme.color("border_strong")
        self._style_curves()
        for line in self.prompt_lines:
            line.setPen(pg.mkPen(theme.color("muted"), width=1, style=Qt.PenStyle.DashLine))
        for line in self.cursor_lines:
            line.setPen(pg.mkPen(theme.color("text"), width=1))
        self.prompt_label.setColor(theme.color("muted"))
        self.prompt_label.setFont(small)
        self.tip.setStyleSheet(
            f"background: {theme.tokens.raised}; color: {theme.tokens.text};"
            f"border: 1px solid {theme.tokens.border_strong};"
        )
        for plot in (self.top, self.bottom):
            plot.getPlotItem().showGrid(y=plot is self.top, alpha=0.12)
        self.redraw()

    def _show_adapter(self) -> None:
        """Another adapter's layers."""
        self._heat_top = 0.0
        self._style_curves()
        self.redraw()

    def _style_curves(self) -> None:
        """An adapter's colour and line each; among many, the one whose layers are shown stands out."""
        many = len(self.curves) > MANY
        for number, curve in enumerate(self.curves):
            chosen = many and number == self.adapter.currentIndex()
            color = self._theme.adapter_color(number)
            if len(self.curves) > CROWD and not chosen:
                color.setAlpha(FAINT)
            pen = QPen(color, 3.2 if chosen else 2.2, self._theme.adapter_line(number))
            pen.setCosmetic(True)
            curve.setPen(pen)
            curve.setZValue(1 if chosen else 0)

    def _draw_heat(self, heat: np.ndarray, start: int, step: int) -> None:
        if not heat.size:
            self.image.clear()
            return
        self._heat_top = max(self._heat_top, float(heat.max()))
        low, high = min(0.0, float(heat.min())), self._model.ceiling(self._heat_top)
        self.image.setImage(heat, levels=(low, high), autoLevels=False)
        place = QTransform()
        place.translate(start - 0.5, -0.5)
        place.scale(step, 1)
        self.image.setTransform(place)
        self.scale.set_levels(low, high)

    def _fit_y(self) -> None:
        """Both heights, when they changed: 0 to 1 unless scalings lie outside, and every layer."""
        bottom, top = self._model.limits()
        layers = len(self._model.layer_paths)
        if (bottom, top, layers) != self._y_range:
            self._y_range = (bottom, top, layers)
            reach = top - bottom
            # There is room above the curves for the word at the end of the prompt.
            self.top.setYRange(bottom - 0.03 * reach, top + 0.16 * reach, padding=0)
            self.bottom.setYRange(-0.5, layers - 0.5, padding=0)

    def _draw_prompt_end(self) -> None:
        shown = 0 < self._model.prompt_tokens <= self._model.end and len(self._model) > 0
        named = shown and self.top.getViewBox().height() >= LABEL_HEIGHT
        place = (shown, named, self._model.prompt_tokens - 0.5, self.top.getViewBox().viewRange()[1][1])
        if place == self._prompt_place:
            return
        self._prompt_place = place
        for line in self.prompt_lines:
            line.setVisible(shown)
            line.setValue(place[2])
        self.prompt_label.setVisible(named)
        self.prompt_label.setPos(place[2], place[3])

    def _go_to_end(self) -> None:
        first, end = self._model.first, self._model.end
        window = max(self._window, MIN_WINDOW)
        # The range moves on in steps: a picture whose axes stay is much cheaper to draw than one that glides.
        step = max(1, round(window / STEPS_ACROSS))
        end = first + -(-(end - first) // step) * step
        high = max(end, first + min(window, FIRST_WINDOW)) - 0.5
        low = first - 0.5 if window >= len(self._model) else high - window
        if (low, high) != self._shown_range:
            self._shown_range = (low, high)
            self._moving = True
            self.top.setXRange(low, high, padding=0.01)
            self._moving = False

    # -- events -------------------------------------------------------------------------------------------------

    def _note_change(self) -> None:
        if not len(self._model):
            self._window = float(FIRST_WINDOW)
            self._heat_top = 0.0
            self._hide_tip()
        elif self._following and self._window >= FIRST_WINDOW:
            # Short sequences are shown whole; longer ones scroll by unless the user widened the view.
            self._window = max(self._window, min(float(len(self._model)), 2 * FIRST_WINDOW))
        first, end = self._model.first, max(self._model.end, self._model.first + FIRST_WINDOW)
        span = end - first
        self.top.setLimits(xMin=first - 0.5 - span * 0.05, xMax=end + span * 0.15, minXRange=MIN_WINDOW)
        if not self._paused and not self._redraw_soon.isActive():
            self._redraw_soon.start()

    def _note_range(self) -> None:
        if self._moving:
            return
        self._shown_range = (0.0, 0.0)
        low, high = self.top.getViewBox().viewRange()[0]
        self._window = high - low
        at_end = high >= self._model.end - 1
        self._set_following(at_end)
        if not self._redraw_soon.isActive():
            self._redraw_soon.start()

    def _set_following(self, following: bool) -> None:
        if following != self._following:
            self._following = following
            self.following_changed.emit(following)

    def _pick(self, plot: pg.PlotWidget, event: MouseClickEvent) -> None:
        token = self._token_at(plot, event.scenePos())
        if token is not None:
            self.token_picked.emit(token)

    def _hover(self, plot: pg.PlotWidget, place: QPointF) -> None:
        token = self._token_at(plot, place)
        if token is None:
            self._hide_tip()
            return
        layer = None
        if plot is self.bottom:
            row = round(plot.getViewBox().mapSceneToView(place).y())
            layer = row if 0 <= row < len(self._model.layer_paths) else None
        self.show_token(token, layer, plot.mapToGlobal(plot.mapFromScene(place)))

    def show_token(self, token: int, layer: int | None, near: QPoint) -> None:
        """Point at a token in both plots and say what it is."""
        for line in self.cursor_lines:
            line.setValue(token)
            line.show()
        self.axis.mark(token)
        self.tip.setText(self.describe(token, layer))
        self.tip.adjustSize()
        x = near.x() + 16
        if x + self.tip.width() > self.mapToGlobal(QPoint(self.width(), 0)).x():
            x = near.x() - 16 - self.tip.width()
        self.tip.move(x, near.y() + 12)
        self.tip.show()

    def describe(self, token: int, layer: int | None = None) -> str:
        """What the tip says about a token: its text and every adapter's mean, or one layer's value."""
        model = self._model
        text = visible(model.text(token) or "")
        part = "prompt" if token < model.prompt_tokens else "answer"
        muted = self._theme.tokens.muted
        lines = [f'<b>{escape(text)}</b> <span style="color:{muted}">token {token}, {part}</span>']
        if layer is not None:
            adapter = max(0, self.adapter.currentIndex())
            lines.append(f'<span style="color:{muted}">{escape(model.layer_paths[layer])}</span>')
            lines.append(f"{escape(model.adapters[adapter])} <b>{model.value(token, layer, adapter):.3f}</b>")
            return "<br>".join(lines)
        ranked = sorted(enumerate(model.mean(token)), key=lambda pair: -pair[1])
        for number, value in ranked[:TIP_ROWS]:
            color = self._theme.adapter_color(number).name()
            lines.append(f'<span style="color:{color}">●</span> {escape(model.adapters[number])} <b>{value:.3f}</b>')
        if len(ranked) > TIP_ROWS:
            rest, most = len(ranked) - TIP_ROWS, ranked[TIP_ROWS][1]
            lines.append(f'<span style="color:{muted}">{rest} more, at most {most:.3f} each</span>')
        return "<br>".join(lines)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if event.type() in (QEvent.Type.Leave, QEvent.Type.Hide):
            self._hide_tip()
        return super().eventFilter(watched, event)

    def _token_at(self, plot: pg.PlotWidget, place: QPointF) -> int | None:
        box = plot.getViewBox()
        if not QRectF(box.sceneBoundingRect()).contains(place):
            return None
        token = round(box.mapSceneToView(place).x())
        return token if self._model.first <= token < self._model.end else None

    def _hide_tip(self) -> None:
        self.tip.hide()
        self.axis.mark(None)
        for line in self.cursor_lines:
            line.hide()


def _calm(plot: pg.PlotWidget) -> None:
    """Without what pyqtgraph offers and nobody here needs: its menu, its button, zooming along y."""
    item = plot.getPlotItem()
    plot.setMenuEnabled(False)
    item.hideButtons()
    plot.setMouseEnabled(x=True, y=False)
    item.getViewBox().disableAutoRange()
    left = plot.getAxis("left")
    left.setWidth(LEFT_AXIS)
    # Its numbers and grid change seldom and cost as much to draw as two curves.
    left.setCacheMode(pg.QtWidgets.QGraphicsItem.CacheMode.DeviceCoordinateCache)
    plot.setMinimumHeight(70)
    plot.setFocusPolicy(Qt.FocusPolicy.NoFocus)  # it takes no keys, so Tab goes past it
    plot.setFrameShape(pg.PlotWidget.Shape.NoFrame)
    item.setContentsMargins(0, 4, 8, 0)
