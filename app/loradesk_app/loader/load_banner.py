"""A strip over the panes: how a load goes on, or why it failed. The panes below go on working."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QFrame, QHBoxLayout, QProgressBar, QSizePolicy, QVBoxLayout, QWidget

from loradesk_app.theme import Theme
from loradesk_app.widgets.buttons import icon_button, push_button
from loradesk_app.widgets.labels import ElidedLabel, label
from loradesk_app.widgets.problem_box import ProblemBox

if TYPE_CHECKING:
    from loradesk_engine.events import LoadFailed, LoadProgressed, ModelInfo, Problem

STEPS = 1000


class LoadProgress(QWidget):
    """Stage, bar and Cancel."""

    cancel_requested = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.stage = ElidedLabel("")
        self.percent = label("", "small")
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.bar.setAccessibleName("Load progress")
        self.cancel_button = push_button("Cancel")
        self.cancel_button.setAccessibleName("Cancel loading")
        self.cancel_button.clicked.connect(self._cancel)
        texts = QHBoxLayout()
        texts.addWidget(self.stage, 1)
        texts.addWidget(self.percent)
        column = QVBoxLayout()
        column.setSpacing(6)
        column.addLayout(texts)
        column.addWidget(self.bar)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(14)
        row.addLayout(column, 1)
        row.addWidget(self.cancel_button)

    def start(self, stage: str) -> None:
        self.cancel_button.setEnabled(True)
        self.show_stage(stage, None)

    def show_stage(self, stage: str, fraction: float | None) -> None:
        """A stage's sentence; without a fraction the bar only shows that something goes on."""
        self.stage.setText(stage)
        self.bar.setRange(0, 0 if fraction is None else STEPS)
        if fraction is not None:
            self.bar.setValue(round(min(max(fraction, 0.0), 1.0) * STEPS))
        self.percent.setText("" if fraction is None else f"{fraction:.0%}")

    def _cancel(self) -> None:
        self.cancel_button.setEnabled(False)
        self.stage.setText("Cancelling…")
        self.cancel_requested.emit()


class LoadBanner(QWidget):
    """Nothing, a load's progress, its error, or the warnings of what was loaded."""

    cancel_requested = Signal()
    loader_requested = Signal()

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._warnings: tuple[str, ...] = ()
        self._none_active = ""
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Maximum)
        self._frame = QFrame()
        self._frame.setProperty("kind", "banner")
        self.progress = LoadProgress()
        self.progress.cancel_requested.connect(self.cancel_requested)
        inner = QHBoxLayout(self._frame)
        inner.setContentsMargins(16, 10, 12, 10)
        inner.addWidget(self.progress)
        self.problem = ProblemBox(theme, action="Open the loader")
        self.problem.dismissed.connect(self.clear)
        self.problem.action_requested.connect(self.loader_requested)
        self.notice = QFrame()
        self.notice.setProperty("kind", "notice")
        self.notice_text = label("", wrap=True)
        close = icon_button(theme, "close", "Dismiss", kind="quiet", role="text")
        close.clicked.connect(self.clear)
        row = QHBoxLayout(self.notice)
        row.setContentsMargins(16, 8, 10, 8)
        row.addWidget(self.notice_text, 1)
        row.addWidget(close)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 8)
        for part in (self._frame, self.problem, self.notice):
            column.addWidget(part)
        self.clear()

    def start(self, what: str) -> None:
        """A load begins."""
        self.progress.start(f"Loading {what}…")
        self._show_only(self._frame)

    def show_progress(self, event: LoadProgressed) -> None:
        if self._frame.isVisible():
            self.progress.show_stage(event.stage, event.fraction)

    def show_loaded(self, info: ModelInfo) -> None:
        self._warnings, self._none_active = info.warnings, ""
        if info.warnings:
            self._show_notice()
        elif not self._frame.isHidden():
            self.clear()  # a problem that came up meanwhile stays until somebody has read it

    def show_none_active(self, text: str) -> None:
        """That no adapter is active, below the load's warnings; empty: one is now."""
        if text != self._none_active and (text or not self.notice.isHidden()):
            self._none_active = text
            self._show_notice()

    def _show_notice(self) -> None:
        lines = (*self._warnings, self._none_active)
        self.notice_text.setText("\n".join(line for line in lines if line))
        self._show_only(self.notice if any(lines) else None)

    def show_failed(self, event: LoadFailed) -> None:
        kept = "The model loaded before is still there." if event.model_kept else ""
        self.show_problem(event.problem, kept)

    def show_problem(self, problem: Problem, addition: str = "", loader: bool = True) -> None:
        """Any problem that is not about one answer."""
        self.problem.action_button.setVisible(loader)
        self.problem.show_problem(problem, addition)
        self._show_only(self.problem)

    def clear(self) -> None:
        self._show_only(None)

    def _show_only(self, shown: QWidget | None) -> None:
        for part in (self._frame, self.problem, self.notice):
            part.setVisible(part is shown)
        self.setVisible(shown is not None)
