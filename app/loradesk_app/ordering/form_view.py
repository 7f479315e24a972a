"""The form of a document: base model, what it is checked against, and a page each for order, preloads and layers."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QIcon
from PySide6.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QStackedWidget,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from loradesk_app.ordering.document import Document
from loradesk_app.ordering.layers_view import LayersView
from loradesk_app.ordering.order_model import COL_NAME, OrderModel
from loradesk_app.ordering.preload_model import COL_ID, PreloadModel
from loradesk_app.ordering.rows_model import SEVERITY_ICONS
from loradesk_app.ordering.rows_table import RowsTable
from loradesk_app.ordering.source_field import SourceField, ask_for_folder
from loradesk_app.ordering.sources import BaseFacts, FoundAdapters
from loradesk_app.theme import Theme
from loradesk_app.widgets.buttons import icon_button, push_button
from loradesk_app.widgets.labels import ElidedLabel, label
from loradesk_app.widgets.segmented import Segmented
from loradesk_engine.ordering.mode import guessed_mode
from loradesk_engine.ordering.schema import parse_pointer
from loradesk_engine.ordering.words import counted

PAGES = ("order", "preload_adapters", "layers")
_NAMES = {"order": "Order", "preload_adapters": "Preload", "layers": "Layers"}
_TIPS = {
    "order": "order: the adapters' names; for X-LoRA in the order used in training",
    "preload_adapters": "preload_adapters: LoRA adapters that are loaded at start",
    "layers": "layers: which module reads which layer of the scalings",
}
_RANK = {"error": 0, "warning": 1, "info": 2}


class FormView(QFrame):
    """Shows a document and hands in what the user does to it."""

    find_base_requested = Signal()
    compare_requested = Signal(str)  # folder or hub id of adapters
    preload_requested = Signal(str)  # folder whose adapters are to be preloaded
    regenerate_requested = Signal()
    page_chosen = Signal(str)

    def __init__(self, document: Document, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setProperty("kind", "pane")
        self.setAccessibleName("Form")
        self.document, self._theme = document, theme
        self.base = SourceField("Base model", "organisation/model or folder")
        self.base.submitted.connect(document.set_base)
        self.base_sign = QLabel()
        self.base_sign.setFixedSize(18, 18)
        self.base_text = ElidedLabel("", "small")
        self.find_base_button = push_button("Read…", "link")
        self.find_base_button.setToolTip("Read the base model's configuration, to check and regenerate layers with it")
        self.find_base_button.clicked.connect(self.find_base_requested)
        self.adapters_text = ElidedLabel("Adapters: not compared", "small")
        self.compare_button = push_button("Compare…", "link")
        self.compare_button.setToolTip("Check names and layers against an X-LoRA checkpoint or a folder of adapters")
        self.compare_button.clicked.connect(self.ask_for_adapters)
        self.mode = QComboBox()
        self.mode.setAccessibleName("Check as")
        for key, text in ((None, "Automatic"), ("lora", "LoRA"), ("xlora", "X-LoRA")):
            self.mode.addItem(text, key)
        self.mode.activated.connect(lambda _index: document.set_mode(self.mode.currentData()))

        self.pages = Segmented([(key, _NAMES[key], _TIPS[key]) for key in PAGES], "Part of the file")
        self.pages.chosen.connect(self.show_page)
        self.order_model = OrderModel(document, theme, self)
        self.order = RowsTable(self.order_model, "Order")
        self.preload_model = PreloadModel(document, theme, self)
        self.preload = RowsTable(self.preload_model, "Preload adapters", takes_folders=True)
        self.preload.folders_dropped.connect(self.add_folders)
        self.layers = LayersView(document, theme)
        self.layers.regenerate_requested.connect(self.regenerate_requested)
        self._stack = QStackedWidget()
        self._lay_out()
        document.changed.connect(self._show)
        document.findings_changed.connect(self._show_marks)
        document.context_changed.connect(self._show)
        theme.changed.connect(self._show_marks)
        self.show_page("order" if document.ordering.order or not document.ordering.preload_adapters else PAGES[1])
        self._show()

    # -- what the user does -------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Hand in what stands in a field that is still being edited."""
        self.base.submit()
        for editor in (self.order, self.preload, self.layers.tree):
            if editor.state() == QAbstractItemView.State.EditingState:
                editor.setFocus()  # a cell is handed in when it loses the keyboard

    def show_page(self, key: str) -> None:
        """Show `order`, `preload_adapters` or `layers`."""
        self.pages.set_current(key)
        self._stack.setCurrentIndex(PAGES.index(key))
        self.page_chosen.emit(key)

    @property
    def page(self) -> str:
        return PAGES[self._stack.currentIndex()]

    def add(self) -> None:
        """Add an entry to the table in sight and begin to edit it."""
        if not self.document.is_readable:
            return
        if self.page == "order":
            row = max(self.order.selected_rows(), default=self.order_model.rowCount() - 1) + 1
            row = self.document.add_name(row=row)
            self.order.edit_cell(row, COL_NAME)
        elif self.page == "preload_adapters":
            row = self.document.add_preload("adapter", "")
            self.preload.edit_cell(row, COL_ID)

    def remove(self) -> None:
        """Remove what is selected on the page in sight."""
        table = self.table()
        if table is not None:
            table.remove_selected()
        else:
            self.layers.remove_selected()

    def shift(self, step: int) -> None:
        """Move what is selected up (-1) or down (1)."""
        table = self.table()
        if table is not None:
            table.shift_selected(step)

    def browse_preload(self) -> None:
        """Choose the folder of the selected preload adapter, or of a new one."""
        rows = self.preload.selected_rows()
        start = self.preload_model.text(rows[0], COL_ID) if rows else ""

        def chosen(folder: str) -> None:
            if rows and rows[0] < self.preload_model.rowCount():
                self.document.change_preload_id(rows[0], folder)
            else:
                self.add_folders([folder])

        ask_for_folder(self, "Folder of the adapter", start, chosen)

    def add_folders(self, folders: list[str]) -> None:
        """Preload the adapters in these folders, named after them."""
        for folder in folders:
            self.document.add_preload(folder.rstrip("/\\").replace("\\", "/").rpartition("/")[2], folder)
        count = self.preload_model.rowCount()
        self.preload.select_rows(list(range(count - len(folders), count)))

    def ask_for_repository(self) -> None:
        """Choose a folder whose adapters are all to be preloaded."""
        ask_for_folder(self, "Folder of adapters", "", self.preload_requested.emit)

    def ask_for_adapters(self) -> None:
        """Choose the folder that holds the adapters."""
        ask_for_folder(self, "X-LoRA checkpoint or folder of adapters", "", self.compare_requested.emit)

    def go_to(self, place: str) -> None:
        """Show what a JSON pointer means: its page, and its row."""
        parts = parse_pointer(place)
        if not parts:
            return
        if parts[0] == "base_model_id":
            self.base.setFocus()
            return
        if parts[0] not in PAGES:
            return
        self.show_page(parts[0])
        table = self.table()
        if len(parts) < 2:
            return
        if table is None:
            self.layers.show_layer(parts[1])
        elif parts[1].isdecimal():
            table.select_rows([int(parts[1])])

    def table(self) -> RowsTable | None:
        """The table in sight; None on the page of layers."""
        return {"order": self.order, "preload_adapters": self.preload}.get(self.page)

    # -- what is known ------------------------------------------------------------------------------------------

    def show_base(self, base: BaseFacts | None) -> None:
        """Say what is known of the base model's configuration."""
        self.base_text.setText(base.title if base is not None else "Configuration: not here yet")

    def show_adapters(self, found: FoundAdapters | None, reading: bool = False) -> None:
        """Say which adapters the file is compared with."""
        if reading:
            self.adapters_text.setText("Adapters: reading…")
        elif found is None:
            self.adapters_text.setText("Adapters: not compared")
        else:
            self.adapters_text.setText(f"Compared with {counted(len(found.modules), 'adapter')}")
            self.adapters_text.setToolTip(found.source)

    # ------------------------------------------------------------------------------------------------------------

    def _show(self) -> None:
        ordering, readable = self.document.ordering, self.document.is_readable
        self.base.set_text(ordering.base_model_id)
        counts = (len(ordering.order or ()), len(ordering.preload_adapters or ()), len(ordering.layers or ()))
        for key, count in zip(PAGES, counts, strict=True):
            self.pages.button(key).setText(f"{_NAMES[key]}  {count:,}")
        mode = self.document.context.mode
        self.mode.setCurrentIndex(self.mode.findData(mode))
        guess = {"lora": "LoRA", "xlora": "X-LoRA"}.get(guessed_mode(ordering) or "")
        self.mode.setItemText(0, f"Automatic ({guess})" if guess else "Automatic")
        for part in (self.base, *self._tools):
            part.setEnabled(readable)
        self._order_hint.setVisible(readable and not counts[0])
        self._preload_hint.setVisible(readable and not counts[1])

    def _show_marks(self) -> None:
        worst: dict[str, str] = {}
        for finding in self.document.findings:
            for place in (finding.place, *finding.places[:1]):
                key = (parse_pointer(place) or ("",))[0]
                if key not in worst or _RANK[finding.severity] < _RANK[worst[key]]:
                    worst[key] = finding.severity
        for key in PAGES:
            severity = worst.get(key)
            button = self.pages.button(key)
            serious = severity in ("error", "warning")
            button.setIcon(self._theme.icon(*SEVERITY_ICONS[severity]) if severity and serious else QIcon())
        severity = worst.get("base_model_id")
        self.base_sign.setVisible(severity is not None)
        if severity is not None:
            self.base_sign.setPixmap(self._theme.icon(*SEVERITY_ICONS[severity]).pixmap(18, 18))
            self.base_sign.setToolTip(
                "\n".join(f.message for f in self.document.findings if f.place == "/base_model_id")
            )

    def _lay_out(self) -> None:
        self._tools: list[QWidget] = []
        grid = QGridLayout()
        grid.setHorizontalSpacing(10)
        grid.setVerticalSpacing(4)
        base_row = QHBoxLayout()
        base_row.setSpacing(6)
        base_row.addWidget(self.base, 1)
        base_row.addWidget(self.base_sign)
        caption = label("&Base model")
        caption.setTextFormat(Qt.TextFormat.AutoText)
        caption.setBuddy(self.base.edit)
        grid.addWidget(caption, 0, 0)
        grid.addLayout(base_row, 0, 1)
        facts = QHBoxLayout()
        facts.setSpacing(2)
        for text, button in (
            (self.base_text, self.find_base_button),
            (self.adapters_text, self.compare_button),
        ):
            facts.addWidget(text, 1)
            facts.addWidget(button)
            facts.addSpacing(8)
        grid.addLayout(facts, 1, 0, 1, 2)
        grid.setColumnStretch(1, 1)

        self._order_hint = label("No order. X-LoRA needs one; LoRA then starts with no adapter active.", "muted")
        self._preload_hint = label("No preload adapters. Only LoRA uses them; drop folders here to add some.", "muted")
        browse = push_button("Browse…")
        browse.setToolTip("Choose the folder of the selected adapter")
        browse.clicked.connect(self.browse_preload)
        self._stack.addWidget(self._table_page(self.order, self._order_hint))
        self.from_folder = push_button("Add all of…")
        self.from_folder.setToolTip("Preload all adapters of a folder; those of a name that is there take its place")
        self.from_folder.clicked.connect(self.ask_for_repository)
        self._stack.addWidget(self._table_page(self.preload, self._preload_hint, browse, self.from_folder))
        self._stack.addWidget(self.layers)
        choice = QHBoxLayout()
        choice.setSpacing(8)
        choice.addWidget(self.pages)
        choice.addStretch(1)
        as_caption = label("Check as", "small")
        as_caption.setBuddy(self.mode)
        choice.addWidget(as_caption)
        choice.addWidget(self.mode)
        column = QVBoxLayout(self)
        column.setContentsMargins(14, 12, 14, 10)
        column.setSpacing(10)
        column.addLayout(grid)
        column.addLayout(choice)
        column.addWidget(self._stack, 1)

    def _table_page(self, table: RowsTable, hint: QLabel, *more: QWidget) -> QWidget:
        page = QWidget()
        add = push_button("Add")
        add.setToolTip("Add an entry (Ctrl+Return)")
        add.clicked.connect(self.add)
        up = self._tool("ordering-up", "Move up (Alt+Up)", lambda: table.shift_selected(-1))
        down = self._tool("ordering-down", "Move down (Alt+Down)", lambda: table.shift_selected(1))
        remove = self._tool("trash", "Remove (Del)", table.remove_selected)
        tools = QHBoxLayout()
        tools.setSpacing(6)
        tools.addWidget(add)
        for widget in more:
            tools.addWidget(widget)
        tools.addStretch(1)
        for button in (up, down, remove):
            tools.addWidget(button)
        column = QVBoxLayout(page)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(8)
        hint.setWordWrap(True)
        column.addWidget(hint)
        column.addWidget(table, 1)
        column.addLayout(tools)
        self._tools += [add, *more]

        def show_tools() -> None:
            some = bool(table.selected_rows()) and self.document.is_readable
            for button in (up, down, remove):
                button.setEnabled(some)

        table.selectionModel().selectionChanged.connect(lambda _new, _old: show_tools())
        self.document.changed.connect(show_tools)
        show_tools()
        return page

    def _tool(self, icon: str, what: str, slot: Callable[[], object]) -> QToolButton:
        button = icon_button(self._theme, icon, what, kind="quiet", role="text")
        button.clicked.connect(lambda _checked=False: slot())
        return button
