"""The scalings of a whole sequence, growing token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PySide6.QtCore import QObject, Signal

FloatArray = npt.NDArray[np.float32]
START_CAPACITY = 256
MANY = 8  # with more adapters, each has so little of the whole that an axis up to 1 would show flat lines
CEILINGS = (0.1, 0.25, 0.5)


@dataclass(frozen=True)
class Slice:
    """What is drawn: at most as many columns as there is room for.

    Attributes:
        x: token index of each point of the curves.
        means: [points, adapters]; where tokens outnumber columns, lows and highs take turns, so that peaks stay.
        start, step: token index of the heatmap's first column, and tokens in each.
        heat: [layers, columns] of the chosen adapter, averaged over the tokens of a column.
    """

    x: FloatArray
    means: FloatArray
    start: int
    step: int
    heat: FloatArray


class ScalingsModel(QObject):
    """Scalings [tokens, layers, adapters] of one sequence, prompt and answer, with the tokens' texts.

    Buffers double when full, so appending costs the same however long the sequence is.
    `changed` follows every change of the data.
    """

    changed = Signal()

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.adapters: tuple[str, ...] = ()
        self.layer_paths: tuple[str, ...] = ()
        self.prompt_tokens = 0
        self.first = 0  # index in the sequence of the first token that is here
        self._count = 0
        self._texts: list[str] = []
        self._rows: FloatArray = np.zeros((0, 0, 0), np.float32)
        self._means: FloatArray = np.zeros((0, 0), np.float32)

    # -- what is there ------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._count

    @property
    def end(self) -> int:
        """Index after the newest token."""
        return self.first + self._count

    @property
    def rows(self) -> FloatArray:
        """[tokens, layers, adapters], of the tokens `first` to `end`."""
        return self._rows[: self._count]

    @property
    def means(self) -> FloatArray:
        """[tokens, adapters], averaged over the layers."""
        return self._means[: self._count]

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(self._texts)

    def text(self, token: int) -> str | None:
        """Text of a token by its index in the sequence; None when it is not here."""
        place = token - self.first
        return self._texts[place] if 0 <= place < self._count else None

    def mean(self, token: int) -> FloatArray:
        mean: FloatArray = self._means[token - self.first]
        return mean

    def value(self, token: int, layer: int, adapter: int) -> float:
        return float(self._rows[token - self.first, layer, adapter])

    def limits(self) -> tuple[float, float]:
        """Where an axis for the means begins and ends; scalings without a softmax may lie outside 0 and 1."""
        if not self._count:
            return 0.0, 1.0
        return min(0.0, float(self.means.min())), self.ceiling(float(self.means.max()))

    def ceiling(self, largest: float) -> float:
        """Where an axis that holds a value ends: at 1 or with it; among many adapters at one of a few steps below."""
        steps = CEILINGS if len(self.adapters) > MANY else ()
        return next((step for step in steps if largest <= step), max(1.0, largest))

    def slice(self, low: float, high: float, adapter: int, columns: int) -> Slice:
        """The tokens between two places on the axis, thinned to a number of columns."""
        begin = int(np.clip(np.floor(low) - self.first, 0, self._count))
        end = int(np.clip(np.ceil(high) + 1 - self.first, begin, self._count))
        step = max(1, -(-(end - begin) // max(columns, 1)))
        # Columns start at multiples of the step, so that they do not shimmer while the view follows the newest token.
        begin = begin // step * step
        means, rows = self.means[begin:end], self.rows[begin:end]
        if step == 1:
            x = np.arange(begin, end, dtype=np.float32) + self.first
            heat = rows[:, :, adapter].T if rows.size else np.zeros((len(self.layer_paths), 0))
            return Slice(x, means, self.first + begin, 1, np.ascontiguousarray(heat, np.float32))
        starts = np.arange(0, end - begin, step)
        lows, highs = np.minimum.reduceat(means, starts), np.maximum.reduceat(means, starts)
        points = np.stack([lows, highs], axis=1).reshape(-1, means.shape[1])
        x = np.repeat(starts + begin + self.first, 2) + np.tile([0.25 * step, 0.75 * step], len(starts))
        sums = np.add.reduceat(rows[:, :, adapter], starts)
        sizes = np.diff(np.append(starts, end - begin))
        heat = np.ascontiguousarray((sums / sizes[:, None]).T, np.float32)
        return Slice(x.astype(np.float32), points, self.first + begin, step, heat)

    # -- changes ------------------------------------------------------------------------------------------------

    def set_axes(self, adapters: Sequence[str], layer_paths: Sequence[str]) -> None:
        """Another model: names of the adapters and of the layers, in the order of the scalings' axes."""
        self.adapters, self.layer_paths = tuple(adapters), tuple(layer_paths)
        self.clear()

    def clear(self) -> None:
        """Forget all tokens."""
        self.first = self._count = self.prompt_tokens = 0
        self._texts = []
        self._rows = np.zeros((0, len(self.layer_paths), len(self.adapters)), np.float32)
        self._means = np.zeros((0, len(self.adapters)), np.float32)
        self.changed.emit()

    def begin(self, prompt_tokens: int) -> None:
        """A request starts; its answer begins after this many tokens."""
        self.prompt_tokens = prompt_tokens
        self.changed.emit()

    def append(self, start: int, rows: FloatArray, texts: Sequence[str]) -> None:
        """Put tokens at a place in the sequence; what was there from that place on is replaced.

        Args:
            start: index of the first of them in the sequence.
            rows: [tokens, layers, adapters]
            texts: of the same tokens.
        """
        if rows.ndim != 3 or rows.shape[1:] != (len(self.layer_paths), len(self.adapters)) or not len(rows):
            return  # of a model that is gone
        if not self.first <= start <= self.end:
            self.first, self._count, self._texts = start, 0, []
        place = start - self.first
        count = place + len(rows)
        self._reserve(count)
        self._rows[place:count] = rows
        self._means[place:count] = rows.mean(axis=1)
        self._texts[place:] = [*texts, *[""] * (len(rows) - len(texts))][: len(rows)]
        self._count = count
        self.changed.emit()

    def _reserve(self, count: int) -> None:
        if count <= len(self._rows):
            return
        capacity = max(START_CAPACITY, count, len(self._rows) * 2)
        rows = np.zeros((capacity, *self._rows.shape[1:]), np.float32)
        means = np.zeros((capacity, self._means.shape[1]), np.float32)
        rows[: self._count], means[: self._count] = self.rows, self.means
        self._rows, self._means = rows, means
