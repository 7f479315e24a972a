"""Makes a new ordering file in three steps: base model, adapters, target modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QKeyEvent
from PySide6.QtWidgets import QCheckBox, QDialog, QFormLayout, QHBoxLayout, QStackedWidget, QVBoxLayout, QWidget
from shiboken6 import isValid

from loradesk_app.background import Background
from loradesk_app.ordering import sources
from loradesk_app.ordering.analysis import State
from loradesk_app.ordering.document import Document
from loradesk_app.ordering.notice_bar import NoticeBar
from loradesk_app.ordering.order_model import COL_NAME, OrderModel
from loradesk_app.ordering.preload_model import PreloadModel
from loradesk_app.ordering.rows_table import RowsTable
from loradesk_app.ordering.source_field import SourceField
from loradesk_app.ordering.sources import BaseFacts, FoundAdapters
from loradesk_app.ordering.target_tree import TargetTree
from loradesk_app.theme import Theme
from loradesk_app.widgets.buttons import icon_button, push_button
from loradesk_app.widgets.labels import ElidedLabel, field_caption, label
from loradesk_app.widgets.segmented import Segmented
from loradesk_engine.errors import OrderingError
from loradesk_engine.ordering.build import new_file
from loradesk_engine.ordering.modules import number_layers
from loradesk_engine.ordering.schema import OrderingFile, PreloadAdapter
from loradesk_engine.ordering.words import counted, listed

BASE, ADAPTERS, MODULES = range(3)
_TITLES = ("Base model", "Adapters", "Target modules")


class NewFileDialog(QDialog):
    """Collects what `created` then tells. Reading bases and adapters happens in the background."""

    created = Signal(object, object, object)  # OrderingFile, BaseFacts, FoundAdapters or None

    def __init__(self, theme: Theme, background: Background, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("New ordering file")
        self._theme, self._background = theme, background
        self._base: BaseFacts | None = None
        self._found: FoundAdapters | None = None
        self._reading = 0
        self.draft = Document(state=State(OrderingFile("")), parent=self)

        self.kind = Segmented(
            (
                ("xlora", "X-LoRA", "A classifier mixes the adapters for every token; order and layers are needed"),
                ("lora", "LoRA", "Adapters that are loaded at start and switched at run time"),
            ),
            "For",
        )
        self.kind.set_current("xlora")
        self.kind.chosen.connect(lambda _key: self._show_step())
        self.base = SourceField("Base model", "Folder with config.json, or organisation/model")
        self.base.changed.connect(lambda _text: self._forget_base())
        self.base_id = SourceField("Name in the file", "As above")
        self.base_id.browse.hide()
        self.base_text = label("", "muted", wrap=True)
        self.base_text.hide()
        self.adapters = SourceField("Adapters", "Folder with adapters, X-LoRA checkpoint, or organisation/repository")
        self.adapters.submitted.connect(self.find_adapters)
        self.found_text = ElidedLabel("", "muted")
        self.order_model = OrderModel(self.draft, theme, self)
        self.order = RowsTable(self.order_model, "Adapters in order")
        self.preload_model = PreloadModel(self.draft, theme, self)
        self.preload = RowsTable(self.preload_model, "Adapters to preload")
        self.tree = TargetTree()
        self.tree.chosen_changed.connect(self._show_step)
        self.with_layers = QCheckBox("Write layers into the file")
        self.with_layers.setChecked(True)
        self.with_layers.toggled.connect(lambda _on: self._show_step())
        self.summary = label("", "heading", wrap=True)
        self.notice = NoticeBar(theme)
        self.title = label("", "large")
        self.step_text = label("", "muted")
        self.back_button = push_button("Back")
        self.back_button.clicked.connect(self.back)
        self.next_button = push_button("Next", "primary")
        self.next_button.clicked.connect(self.next)
        self.cancel_button = push_button("Cancel")
        self.cancel_button.clicked.connect(self.reject)
        self.draft.changed.connect(self._show_step)
        self._lay_out()
        self._show_step()
        self.base.setFocus()

    # -- what the user does -------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        return self.pages.currentIndex()

    def next(self) -> None:
        """On to the next step; from the first one only when the base's configuration is known."""
        if not self.next_button.isEnabled():
            return
        self.notice.clear()
        if self.step == BASE and self._base is None:
            source = self.base.text()
            self._read(lambda: sources.read_base_facts(source), self._take_base)
        elif self.step == MODULES:
            self._create()
        else:
            self._go_to(self.step + 1)

    def back(self) -> None:
        self._go_to(max(self.step - 1, BASE))

    def find_adapters(self, source: str) -> None:
        """Look for adapters in a folder or repository."""
        if source and self._base is not None:
            self.found_text.setText("Looking…")
            config = self._base.config
            self._read(lambda: sources.find_adapters(source, config), self._take_adapters)

    def add_adapter(self) -> None:
        """Add a row to fill in by hand."""
        if self.kind.current() == "xlora":
            self.order.edit_cell(self.draft.add_name(), COL_NAME)
        else:
            self.preload.edit_cell(self.draft.add_preload("adapter", ""), COL_NAME)

    def remove_adapters(self) -> None:
        self._table().remove_selected()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            self.next()
        else:
            super().keyPressEvent(event)

    # ------------------------------------------------------------------------------------------------------------

    def _take_base(self, base: BaseFacts) -> None:
        self._base = base
        self.base_text.setText(base.title)
        self.base_text.setVisible(not base.problem)
        if base.problem:
            self._base = None
            self.notice.show_notice("base", base.problem, error=True)
            self._show_step()
            return
        self.base_id.set_text(self.base_id.text() or base.model_id)
        self.tree.set_linears(base.modules, self._adapted(base))
        self._go_to(ADAPTERS)

    def _take_adapters(self, found: FoundAdapters) -> None:
        self._found = found
        self.draft.set_names(found.names)
        adapters = [PreloadAdapter(name, found.places.get(name, found.source)) for name in found.modules]
        self.draft.remove_preloads(range(len(self.draft.ordering.preload_adapters or ())))
        for adapter in adapters:
            self.draft.add_preload(adapter.name, adapter.adapter_model_id)
        text = f"Found {counted(len(found.modules), 'adapter')}: {listed(found.names)}."
        self.found_text.setText(text)
        if found.problems:
            self.notice.show_notice(
                "adapters",
                f"{counted(len(found.problems), 'adapter')} could not be read.",
                detail=" ".join(found.problems[:3]),
            )
        elif found.order is None and self.kind.current() == "xlora" and len(found.modules) > 1:
            self.notice.show_notice(
                "adapters",
                "The checkpoint does not say in which order its adapters were trained.",
                detail="Put them in that order: drag the rows, or use Alt+Up and Alt+Down.",
            )
        if self._base is not None:
            self.tree.choose(self._adapted(self._base))
        self._show_step()

    def _adapted(self, base: BaseFacts) -> set[str]:
        """Modules that the adapters adapt; without adapters, the attention's query and value projections."""
        if self._found is not None:
            return set().union(*self._found.modules.values())
        usual = ("q_proj", "v_proj", "qkv_proj")
        return {path for path in base.linears if path.endswith(usual)}

    def _create(self) -> None:
        assert self._base is not None, "the first step reads it"
        xlora = self.kind.current() == "xlora"
        draft = self.draft.ordering
        layers = number_layers(self.tree.chosen()) if self.with_layers.isChecked() or xlora else None
        base_id = self.base_id.text() or self._base.model_id
        try:
            ordering = new_file(
                base_id, draft.order if xlora else None, layers, None if xlora else draft.preload_adapters
            )
        except OrderingError as problem:
            self.notice.show_error("create", problem)
            return
        self.created.emit(ordering, self._base, self._found)
        self.accept()

    def _read(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        self._reading += 1
        number = self._reading
        self._show_step()

        def finished(result: object) -> None:
            if isValid(self) and number == self._reading:
                self._reading = 0
                done(result)

        def failed(error: Exception) -> None:
            if isValid(self) and number == self._reading:
                self._reading = 0
                self.found_text.setText("")
                self.notice.show_error("read", error)
                self._show_step()

        self._background.run(work, finished, failed)

    def _forget_base(self) -> None:
        self._base = None
        self.base_text.setText("")
        self.base_text.hide()
        self.base_id.set_text("")
        self.notice.clear()
        self._show_step()

    def _go_to(self, step: int) -> None:
        self.pages.setCurrentIndex(step)
        self._show_step()
        (self.base, self.adapters, self.tree)[step].setFocus()

    def _table(self) -> RowsTable:
        return self.order if self.kind.current() == "xlora" else self.preload

    def _show_row_tools(self) -> None:
        some = bool(self._table().selected_rows())
        for button in self._row_tools:
            button.setEnabled(some)

    def _show_step(self) -> None:
        if not hasattr(self, "pages"):
            return
        xlora, step = self.kind.current() == "xlora", self.step
        self.title.setText(_TITLES[step])
        self.step_text.setText(f"Step {step + 1} of 3")
        self.back_button.setVisible(step > BASE)
        self.tables.setCurrentWidget(self.order if xlora else self.preload)
        self._show_row_tools()
        self.with_layers.setVisible(not xlora)
        needs_layers = xlora or self.with_layers.isChecked()
        self.tree.setEnabled(needs_layers)
        chosen = self.tree.chosen() if needs_layers else ()
        names = self.draft.ordering.order if xlora else self.draft.ordering.preload_adapters
        self.summary.setText(f"{counted(len(chosen), 'layer')}, {counted(len(names or ()), 'adapter')}")
        if self._reading:
            self.next_button.setText("Reading…")
        else:
            self.next_button.setText("Create" if step == MODULES else "Next")
        ready = (bool(self.base.text()), bool(names) or not xlora, bool(chosen) or not needs_layers)[step]
        self.next_button.setEnabled(ready and not self._reading)

    def _lay_out(self) -> None:
        first = QWidget()
        form = QFormLayout(first)
        form.setContentsMargins(0, 0, 0, 0)
        form.setVerticalSpacing(10)
        form.setHorizontalSpacing(14)
        form.addRow(field_caption("For", self.kind), _left(self.kind))
        form.addRow(field_caption("&Base model", self.base), self.base)
        form.addRow("", self.base_text)
        form.addRow(field_caption("&Name in the file", self.base_id), self.base_id)
        form.addRow(
            "", label("What others will find it by: a hub id, rather than a folder of yours.", "small", wrap=True)
        )

        second = QWidget()
        column = QVBoxLayout(second)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(10)
        column.addWidget(self.adapters)
        column.addWidget(self.found_text)
        self.tables = QStackedWidget()
        self.tables.addWidget(self.order)
        self.tables.addWidget(self.preload)
        column.addWidget(self.tables, 1)
        tools = QHBoxLayout()
        self.add_button = push_button("Add by name")
        self.add_button.clicked.connect(self.add_adapter)
        up = icon_button(self._theme, "ordering-up", "Move up (Alt+Up)")
        up.clicked.connect(lambda: self._table().shift_selected(-1))
        down = icon_button(self._theme, "ordering-down", "Move down (Alt+Down)")
        down.clicked.connect(lambda: self._table().shift_selected(1))
        remove = icon_button(self._theme, "trash", "Remove the selected adapters (Del)")
        remove.clicked.connect(self.remove_adapters)
        tools.addWidget(self.add_button)
        tools.addStretch(1)
        self._row_tools = (up, down, remove)
        for button in self._row_tools:
            tools.addWidget(button)
        for table in (self.order, self.preload):
            table.selectionModel().selectionChanged.connect(lambda _new, _old: self._show_row_tools())
        column.addLayout(tools)

        third = QWidget()
        column = QVBoxLayout(third)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(10)
        column.addWidget(
            label("The modules that the adapters adapt; every adapter's own are chosen already.", "muted", wrap=True)
        )
        column.addWidget(self.with_layers)
        column.addWidget(self.tree, 1)
        column.addWidget(self.summary)

        self.pages = QStackedWidget()
        for page in (first, second, third):
            self.pages.addWidget(page)
        head = QHBoxLayout()
        head.addWidget(self.title, 1)
        head.addWidget(self.step_text)
        foot = QHBoxLayout()
        foot.addWidget(self.cancel_button)
        foot.addStretch(1)
        foot.addWidget(self.back_button)
        foot.addWidget(self.next_button)
        column = QVBoxLayout(self)
        column.setContentsMargins(24, 20, 24, 18)
        column.setSpacing(14)
        column.addLayout(head)
        column.addWidget(self.notice)
        column.addWidget(self.pages, 1)
        column.addLayout(foot)
        self.resize(600, 520)
        self.setMinimumSize(460, 400)


def _left(widget: QWidget) -> QWidget:
    """A widget that keeps its own width."""
    box = QWidget()
    row = QHBoxLayout(box)
    row.setContentsMargins(0, 0, 0, 0)
    row.addWidget(widget)
    row.addStretch(1)
    return box
