"""How much memory the chosen load will take, against what is free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtWidgets import QProgressBar, QVBoxLayout, QWidget

from loradesk_app.widgets.labels import label
from loradesk_engine.units import byte_size

if TYPE_CHECKING:
    from loradesk_engine.events import MemoryEstimate, Problem

STEPS = 1000
SMALL_PARTS = 0.01  # of the whole; under this, parts are shown together


class MemoryBox(QWidget):
    """A sentence, a bar and the parts; the sentence is a warning where the load does not fit."""

    TOP = 6

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.sentence = label("", wrap=True)
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.bar.setRange(0, STEPS)
        self.bar.setAccessibleName("Memory needed, as a part of what is free")
        self.parts = label("", "small", wrap=True)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, self.TOP, 0, 0)
        column.setSpacing(6)
        for part in (self.sentence, self.bar, self.parts):
            column.addWidget(part)
        self.show_unknown("")

    def show_unknown(self, why: str) -> None:
        """Nothing can be said yet."""
        self._show(why, "muted", None, "")

    def show_problem(self, problem: Problem) -> None:
        """Why there is no estimate; the load itself would tell it in full."""
        self.show_unknown(f"No estimate: {problem.problem}")

    def show_estimate(self, estimate: MemoryEstimate) -> None:
        needed, free = byte_size(estimate.needed), byte_size(estimate.free)
        share = estimate.needed / estimate.free if estimate.free > 0 else 1.0
        if estimate.fits:
            sentence = f"{needed} of the {free} free on {estimate.device}"
        else:
            sentence = (
                f"It will not fit: {needed} are needed, {free} are free on {estimate.device}. "
                "Try a shorter context, another precision or device, or a smaller model."
            )
        self._show(sentence, "" if estimate.fits else "danger", share, parts_text(estimate))

    def _show(self, sentence: str, kind: str, share: float | None, parts: str) -> None:
        self.sentence.setText(sentence)
        if self.sentence.property("kind") != kind:
            self.sentence.setProperty("kind", kind)
            self.sentence.style().unpolish(self.sentence)
            self.sentence.style().polish(self.sentence)
        self.bar.setVisible(share is not None)
        if share is not None:
            self.bar.setValue(round(min(max(share, 0.0), 1.0) * STEPS))
            self.bar.setProperty("kind", kind)
            self.bar.style().unpolish(self.bar)
            self.bar.style().polish(self.bar)
        self.parts.setText(parts)
        self.parts.setVisible(bool(parts))


def parts_text(estimate: MemoryEstimate) -> str:
    """The parts in one line; those that hardly count are added up."""
    shown: list[tuple[str, int]] = []
    small: list[tuple[str, int]] = []
    for part in estimate.parts:
        note = " (already loaded)" if part.already_held else ""
        entry = f"{part.name}: {byte_size(part.nbytes)}{note}"
        (shown if part.nbytes >= estimate.needed * SMALL_PARTS else small).append((entry, part.nbytes))
    texts = [entry for entry, _ in shown]
    if len(small) == 1:
        texts.append(small[0][0])
    elif small:
        texts.append(f"{len(small)} small parts: {byte_size(sum(nbytes for _, nbytes in small))}")
    return " · ".join(texts)
