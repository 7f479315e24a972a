"""Asks for which modules `layers` is to be made anew."""

from __future__ import annotations

from collections.abc import Callable, Collection

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QDialog, QHBoxLayout, QVBoxLayout, QWidget
from shiboken6 import isValid

from loradesk_app.background import Background
from loradesk_app.ordering import sources
from loradesk_app.ordering.notice_bar import NoticeBar
from loradesk_app.ordering.source_field import SourceField
from loradesk_app.ordering.sources import BaseFacts
from loradesk_app.ordering.target_tree import TargetTree
from loradesk_app.theme import Theme
from loradesk_app.widgets.buttons import push_button
from loradesk_app.widgets.labels import label
from loradesk_engine.ordering.words import counted


class RegenerateDialog(QDialog):
    """The base's modules as a tree; those in the file, or those of its adapters, are chosen."""

    regenerate_requested = Signal(object, tuple)  # BaseFacts, module paths

    def __init__(
        self,
        theme: Theme,
        background: Background,
        base_model_id: str,
        base: BaseFacts | None,
        chosen: Collection[str],
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        self.setWindowTitle("Regenerate layers")
        self._background = background
        self._base: BaseFacts | None = None
        self._chosen = frozenset(chosen)
        self.source = SourceField("Base model", "Folder with config.json, or organisation/model")
        self.source.set_text(base_model_id)
        self.read_button = push_button("Read")
        self.read_button.setToolTip("Read the configuration; a hub id is looked up on the network")
        self.read_button.clicked.connect(lambda: self.read(self.source.text()))
        self.base_text = label("", "muted", wrap=True)
        self.notice = NoticeBar(theme)
        self.tree = TargetTree()
        self.tree.chosen_changed.connect(self._show)
        self.summary = label("", "heading")
        self.done_button = push_button("Regenerate", "primary")
        self.done_button.setDefault(True)
        self.done_button.clicked.connect(self.accept)
        cancel = push_button("Cancel")
        cancel.clicked.connect(self.reject)
        place = QHBoxLayout()
        place.addWidget(self.source, 1)
        place.addWidget(self.read_button)
        foot = QHBoxLayout()
        foot.addWidget(self.summary, 1)
        foot.addWidget(cancel)
        foot.addWidget(self.done_button)
        column = QVBoxLayout(self)
        column.setContentsMargins(24, 20, 24, 18)
        column.setSpacing(12)
        column.addWidget(label("Regenerate layers", "large"))
        column.addWidget(
            label("The layers are numbered in the order in which the base model registers them.", "muted", wrap=True)
        )
        column.addWidget(self.notice)
        column.addLayout(place)
        column.addWidget(self.base_text)
        column.addWidget(self.tree, 1)
        column.addLayout(foot)
        self.resize(560, 560)
        if base is not None:
            self._take(base)
        self._show()

    def read(self, source: str) -> None:
        """Read a base model's configuration."""
        if source:
            self.read_button.setEnabled(False)
            self.base_text.setText("Reading…")
            self._background.run(
                lambda: sources.read_base_facts(source), self._alive(self._take), self._alive(self._fail)
            )

    def accept(self) -> None:
        if self._base is not None and self.done_button.isEnabled():
            self.regenerate_requested.emit(self._base, self.tree.chosen())
            super().accept()

    def _take(self, base: BaseFacts) -> None:
        self.read_button.setEnabled(True)
        self.base_text.setText(base.title)
        self.notice.clear()
        self._base = None if base.problem else base
        self.tree.set_linears(base.modules, self._chosen)
        self._show()

    def _fail(self, error: Exception) -> None:
        self.read_button.setEnabled(True)
        self.base_text.setText("")
        self.notice.show_error("base", error)

    def _alive(self, slot: Callable[..., None]) -> Callable[..., None]:
        """The slot, as long as this dialog is there."""
        return lambda result: slot(result) if isValid(self) else None

    def _show(self) -> None:
        chosen = len(self.tree.chosen())
        self.summary.setText(counted(chosen, "layer") if self._base is not None else "")
        self.done_button.setEnabled(self._base is not None and chosen > 0)
