"""The model loader: which base, which adapters, where and how."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from PySide6.QtCore import QEvent, QObject, QSize, Qt, QTimer, Signal
from PySide6.QtGui import QDragEnterEvent, QDropEvent, QPainter, QPaintEvent, QPalette, QShowEvent
from PySide6.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QDialog,
    QFileDialog,
    QFormLayout,
    QFrame,
    QHBoxLayout,
    QHeaderView,
    QLineEdit,
    QMenu,
    QScrollArea,
    QSizePolicy,
    QStackedWidget,
    QTableView,
    QVBoxLayout,
    QWidget,
)

from loradesk_app.loader.adapter_list_model import COL_NAME, COL_SOURCE, AdapterListModel
from loradesk_app.loader.load_banner import LoadProgress
from loradesk_app.loader.load_form import LoadForm, Source
from loradesk_app.loader.memory_box import MemoryBox
from loradesk_app.loader.path_field import PathField
from loradesk_app.loader.recent import title
from loradesk_app.loader.typing_watch import TypingWatch
from loradesk_app.theme import Theme
from loradesk_app.widgets.buttons import icon_button, push_button
from loradesk_app.widgets.drop_edit import dropped_paths, tell_whole_text
from loradesk_app.widgets.labels import field_caption, label
from loradesk_app.widgets.problem_box import ProblemBox
from loradesk_app.widgets.segmented import Segmented
from loradesk_app.widgets.spins import whole_spin
from loradesk_app.widgets.wheel import leave_wheel_to_page
from loradesk_engine.commands import AdapterMode, LoadSettings

if TYPE_CHECKING:
    from loradesk_engine.events import EstimateFailed, LoadFailed, LoadProgressed, MemoryEstimated

DTYPES = (("auto", "Automatic precision"), ("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "float16"))
QUANTIZE = (("none", "Not quantized"), ("nf4", "NF4, 4 bits"), ("fp4", "FP4, 4 bits"), ("int8", "int8, 8 bits"))
QUANTIZE_TIP = (
    "bitsandbytes makes the base smaller while it loads. On the CPU this is slow: a GGUF file is quicker there. "
    "X-LoRA keeps its mix better with 8 bits than with 4."
)
RELU: tuple[tuple[bool | None, str], ...] = (
    (None, "As the checkpoint says, or by its age"),
    (True, "With a ReLU"),
    (False, "Without a ReLU"),
)
RELU_TIP = "Between the classifier's linears. It counts only for checkpoints that leave out enable_relu_and_dropout."
NO_QUANTIZE_TIP = "A GGUF file brings its own types of weights: there is nothing to quantize."
NO_ADAPTERS = "No adapters yet. Add a folder or a hub id; an ordering file may name some as well."
LABEL_WIDTH = 118
RIGHT_OF_BAR = 12  # room for a scroll bar beside fields that are at their narrowest
ESTIMATE_MS = 250  # after the last change: an estimate for each letter of a path helps nobody
WAIT_MS = 500  # after which an estimate of something else is taken away
TYPING_TEXT = "Not on this computer: leave the field to ask the hub."


class LoaderDialog(QDialog):
    """Collects a `LoadForm`. Stays open while its load runs, to show how it ends; closing it lets the load go on."""

    load_requested = Signal(object)  # LoadSettings
    cancel_requested = Signal()
    estimate_requested = Signal(object, bool)  # LoadSettings; whether the hub may be asked
    edit_ordering_requested = Signal(str)  # path; empty for a new file

    def __init__(self, theme: Theme, devices: tuple[str, ...] = (), parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Load a model")
        self.setAcceptDrops(True)
        self._loading = False
        self._asked = False
        self._asked_estimate = False  # whether an estimate has been asked for since the form was complete

        self.recent_button = push_button(" Recent", "menu")
        theme.bind_icon(self.recent_button, "clock", "muted")
        self._recent_menu = QMenu(self.recent_button)
        self.recent_button.setMenu(self._recent_menu)
        self.source = Segmented(
            (
                ("demo", "Demo pack", "The small model that ships with Loradesk"),
                ("local", "This computer", "A model folder or a GGUF file"),
                ("hub", "Hub", "A model on the Hugging Face hub"),
            ),
            "Base model",
        )
        self.source.chosen.connect(lambda _key: self._arrange())
        self.mode = Segmented(
            (
                ("none", "None", "The base model by itself"),
                ("lora", "LoRA", "Adapters that you switch and weight"),
                ("xlora", "X-LoRA", "Adapters that a classifier mixes for every token"),
            ),
            "Adapters",
        )
        self.mode.chosen.connect(lambda _key: self._arrange())

        self.path = PathField("Base model", "Folder with config.json, or a .gguf file", files="GGUF models (*.gguf)")
        self.hub_id = _line("Hub id", "organisation/model")
        tell_whole_text(self.hub_id)
        self.revision = _line("Revision", "Branch, tag or commit (optional)")
        self.token = _line("Access token", "For gated models only; never saved")
        self.token.setEchoMode(QLineEdit.EchoMode.Password)
        self.adapters = AdapterListModel(self)
        self.table = _adapter_table(self.adapters)
        self.add_folder = push_button("Add folder…")
        self.add_folder.clicked.connect(self._browse_adapter)
        self.add_hub = push_button("Add by hub id")
        self.add_hub.clicked.connect(self._add_by_id)
        self.remove_adapter = icon_button(theme, "trash", "Remove the selected adapters")
        self.remove_adapter.clicked.connect(self._remove_adapters)
        self.table.selectionModel().selectionChanged.connect(lambda _new, _old: self._show_remove())
        self.adapters.modelReset.connect(self._show_remove)
        self._show_remove()
        self.xlora = PathField("X-LoRA checkpoint", "Folder with xlora_config.json, or a hub id")
        self.repository = PathField("Folder of adapters", "Folder or hub id that holds the ordering file's adapters")
        self.relu = QComboBox()
        self.relu.setAccessibleName("ReLU of the classifier")
        self.relu.setToolTip(RELU_TIP)
        for choice, text in RELU:
            self.relu.addItem(text, choice)
        self.ordering = PathField("Ordering file", "", folders=False, files="Ordering files (*.json);;All files (*)")
        self.ordering_row = QWidget()
        line = QHBoxLayout(self.ordering_row)
        line.setContentsMargins(0, 0, 0, 0)
        line.setSpacing(8)
        line.addWidget(self.ordering, 1)
        self.edit_ordering = push_button("Edit…")
        self.edit_ordering.setAccessibleName("Edit the ordering file")
        self.edit_ordering.clicked.connect(lambda: self.edit_ordering_requested.emit(self.ordering.text()))
        line.addWidget(self.edit_ordering)
        self.ordering_row.setFocusProxy(self.ordering)
        self.device = QComboBox()
        self.device.setAccessibleName("Device")
        self.dtype = QComboBox()
        self.dtype.setAccessibleName("Precision")
        for key, text in DTYPES:
            self.dtype.addItem(text, key)
        self.quantize = QComboBox()
        self.quantize.setAccessibleName("Quantize")
        for key, text in QUANTIZE:
            self.quantize.addItem(text, key)
        for chooser in (self.device, self.dtype, self.quantize, self.relu):
            leave_wheel_to_page(chooser)
        self.quantize_note = label(NO_QUANTIZE_TIP, "muted", wrap=True)
        self.context = whole_spin(0, 1_048_576, 1024, "the model's own", " tokens")
        self.context.setAccessibleName("Context")
        self.non_granular = whole_spin(0, 100_000, 1, "never", " tokens")
        self.non_granular.setAccessibleName("Freeze scalings after")
        self.set_devices(devices)

        self.memory = MemoryBox()
        self._estimate_timer = QTimer(self)
        self._estimate_timer.setSingleShot(True)
        self._estimate_timer.setInterval(ESTIMATE_MS)
        self._estimate_timer.timeout.connect(self._ask_estimate)
        self._wait_timer = QTimer(self)
        self._wait_timer.setSingleShot(True)
        self._wait_timer.setInterval(WAIT_MS)
        self._wait_timer.timeout.connect(lambda: self.memory.show_unknown("Reading headers…"))
        edits = (self.path.edit, self.hub_id, self.revision, self.token, self.xlora.edit, self.repository.edit)
        self._typing = TypingWatch(edits, self)
        self._typing.ended.connect(self._estimate_timer.start)

        self.problem = ProblemBox(theme)
        self.problem.dismissed.connect(self._dismiss_problem)
        self.progress = LoadProgress()
        self.progress.cancel_requested.connect(self.cancel_requested)
        self.complaint = label("", "danger", wrap=True)
        self.load_button = push_button("Load", "primary")
        self.load_button.setDefault(True)
        self.load_button.clicked.connect(self.accept)
        self.close_button = push_button("Close")
        self.close_button.clicked.connect(self.reject)

        self._complaint_fields: dict[str, QWidget] = {
            "path": self.path.edit,
            "hub_id": self.hub_id,
            "xlora": self.xlora.edit,
            "adapters": self.table,
            "repository": self.repository.edit,
        }
        self._build()
        paths = (self.path, self.xlora, self.ordering, self.repository)
        for signal in (*(field.changed for field in paths), self.hub_id.textChanged):
            signal.connect(lambda _text: self._check())
        for signal in (self.adapters.rowsInserted, self.adapters.rowsRemoved, self.adapters.dataChanged):
            signal.connect(lambda *_what: self._check())
        for signal in (
            self.device.currentIndexChanged,
            self.dtype.currentIndexChanged,
            self.quantize.currentIndexChanged,
            self.relu.currentIndexChanged,
            self.context.valueChanged,
            self.revision.textChanged,
            self.token.textChanged,
        ):
            signal.connect(lambda _value: self._estimate_timer.start())
        self.set_form(LoadForm())
        self._show_loading(False)

    # -- the form -----------------------------------------------------------------------------------------------

    def form(self) -> LoadForm:
        """What the fields say now."""
        return LoadForm(
            source=cast("Source", self.source.current()),
            path=self.path.text(),
            hub_id=self.hub_id.text(),
            revision=self.revision.text(),
            token=self.token.text(),
            mode=cast("AdapterMode", self.mode.current()),
            adapters=self.adapters.adapters(),
            repository=self.repository.text(),
            xlora=self.xlora.text(),
            relu=self.relu.currentData(),
            ordering=self.ordering.text(),
            device=self.device.currentData(),
            dtype=self.dtype.currentData(),
            quantize=self.quantize.currentData(),
            context=self.context.value(),
            non_granular=self.non_granular.value(),
        )

    def set_form(self, form: LoadForm) -> None:
        """Fill in all fields."""
        self.source.set_current(form.source)
        self.mode.set_current(form.mode)
        self.path.set_text(form.path)
        self.hub_id.setText(form.hub_id)
        self.revision.setText(form.revision)
        self.token.setText(form.token)
        self.adapters.set_adapters(form.adapters)
        self.repository.set_text(form.repository)
        self.xlora.set_text(form.xlora)
        self.relu.setCurrentIndex([choice for choice, _ in RELU].index(form.relu))
        self.ordering.set_text(form.ordering)
        if self.device.findData(form.device) < 0:
            self.device.addItem(form.device, form.device)
        self.device.setCurrentIndex(self.device.findData(form.device))
        self.dtype.setCurrentIndex(max(0, self.dtype.findData(form.dtype)))
        self.quantize.setCurrentIndex(max(0, self.quantize.findData(form.quantize)))
        self.context.setValue(form.context)
        self.non_granular.setValue(form.non_granular)
        self._asked = False
        self._typing.stop()
        self._arrange()

    def set_devices(self, devices: tuple[str, ...]) -> None:
        """The devices that the engine found."""
        chosen = self.device.currentData() or "auto"
        self.device.clear()
        self.device.addItem("Automatic device", "auto")
        for device in devices:
            self.device.addItem(device, device)
        self.device.setCurrentIndex(max(0, self.device.findData(chosen)))

    def set_recent(self, recent: list[LoadSettings]) -> None:
        """Offer models loaded lately."""
        self._recent_menu.clear()
        for settings in recent:
            entry = self._recent_menu.addAction(title(settings))
            entry.setToolTip(settings.base)
            entry.triggered.connect(lambda _checked=False, settings=settings: self.set_form(LoadForm.of(settings)))
        self.recent_button.setEnabled(bool(recent))

    # -- what the user does -------------------------------------------------------------------------------------

    def accept(self) -> None:
        """Ask for the load; the dialog stays to show how it goes."""
        self._asked = True
        if self._loading:
            return
        if not self._check():
            self._focus_what_is_missing()
            return
        self.load_requested.emit(self.form().settings())

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        self.load_button.setFocus()
        self._typing.stop()
        self._ask_estimate()  # what is free has changed since it was last shown

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        if dropped_paths(event) and not self._loading:
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        self.take_path(dropped_paths(event)[0])
        event.acceptProposedAction()

    def take_path(self, path: str) -> None:
        """Something was dropped: JSON is an ordering file, anything else the base model."""
        if path.lower().endswith(".json"):
            self.ordering.set_text(path)
            if self.mode.current() == "none":
                self.mode.set_current("lora")
        elif path:
            self.source.set_current("local")
            self.path.set_text(path)
        self._arrange()

    # -- what the engine tells ----------------------------------------------------------------------------------

    def show_started(self) -> None:
        self.problem.hide()
        self.progress.start("Starting…")
        self._show_loading(True)

    def show_progress(self, event: LoadProgressed) -> None:
        if self._loading:
            self.progress.show_stage(event.stage, event.fraction)

    def show_failed(self, event: LoadFailed) -> None:
        self._show_loading(False)
        self.problem.show_problem(event.problem, "The model loaded before is still there." if event.model_kept else "")
        self._show_memory()

    def show_estimate(self, event: MemoryEstimated) -> None:
        if self._awaits_estimate():
            self._wait_timer.stop()
            self.memory.show_estimate(event.estimate)

    def show_no_estimate(self, event: EstimateFailed) -> None:
        if self._awaits_estimate():
            self._wait_timer.stop()
            if self._typing.active and self.source.current() == "hub" and event.problem.kind == "HubError":
                self.memory.show_unknown(TYPING_TEXT)
            else:
                self.memory.show_problem(event.problem)

    def _awaits_estimate(self) -> bool:
        """Whether the answer is of what the form says now: after a change another estimate is about to be asked for."""
        return self._asked_estimate and not self._estimate_timer.isActive()

    def show_cancelled(self) -> None:
        self._show_loading(False)

    def show_loaded(self) -> None:
        self._show_loading(False)
        self.hide()

    # ------------------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        head = QHBoxLayout()
        head.addWidget(label("Load a model", "large"), 1)
        head.addWidget(self.recent_button)

        demo_text = label(
            "A small model made for Loradesk, with four adapters: arithmetic, capitals, json and bard. "
            "It loads in seconds and needs no network.",
            "muted",
            wrap=True,
        )
        self._source_pages = _Pages()
        self._source_pages.add("demo", [("", demo_text)])
        self._source_pages.add("local", [("&Model", self.path)])
        self._source_pages.add("hub", [("&Hub id", self.hub_id), ("Re&vision", self.revision), ("&Token", self.token)])
        table_box = QWidget()
        table_column = QVBoxLayout(table_box)
        table_column.setContentsMargins(0, 0, 0, 0)
        table_column.setSpacing(6)
        buttons = QHBoxLayout()
        for button in (self.add_folder, self.add_hub):
            buttons.addWidget(button)
        buttons.addStretch(1)
        buttons.addWidget(self.remove_adapter)
        table_column.addWidget(self.table)
        table_column.addLayout(buttons)
        no_adapters = label("The base model answers by itself.", "muted", wrap=True)
        self._mode_pages = _Pages()
        self._mode_pages.add("none", [("", no_adapters)])
        self._mode_pages.add("lora", [("", table_box)])
        self._mode_pages.add("xlora", [("&Checkpoint", self.xlora)])
        self._demo_adapters = label("", "muted", wrap=True)
        self._ordering_form = _form([("&Ordering file", self.ordering_row)])
        self._repository_form = _form([("Adapters &in", self.repository)])

        how = QFormLayout()
        how.setContentsMargins(0, 0, 0, 0)
        how.setHorizontalSpacing(12)
        how.setVerticalSpacing(9)
        place = QHBoxLayout()
        place.setSpacing(8)
        place.addWidget(self.device, 1)
        place.addWidget(self.dtype, 1)
        how.addRow(_caption("&Device", self.device), place)
        how.addRow(_caption("&Quantize", self.quantize), self.quantize)
        how.addRow("", self.quantize_note)
        how.addRow(_caption("Conte&xt", self.context), self.context)
        how.addRow(_caption("&Freeze after", self.non_granular), self.non_granular)
        how.addRow(_caption("&ReLU", self.relu), self.relu)
        self._how = how
        self.non_granular.setToolTip(
            "Non-granular scalings: after this many tokens of the answer the mix stays as it is, "
            "which spares the scaling pass."
        )

        content = QWidget()
        form = QVBoxLayout(content)
        form.setContentsMargins(24, 4, 24, 12)
        form.setSpacing(10)
        for caption, chooser, pages in (
            ("Base model", self.source, [self._source_pages]),
            (
                "Adapters",
                self.mode,
                [self._demo_adapters, self._mode_pages, self._ordering_form, self._repository_form],
            ),
        ):
            row = QHBoxLayout()
            row.setSpacing(12)
            heading = label(caption, "heading")
            heading.setMinimumWidth(LABEL_WIDTH)
            row.addWidget(heading)
            row.addWidget(chooser)
            row.addStretch(1)
            form.addLayout(row)
            for page in pages:
                form.addWidget(page)
            form.addSpacing(2)
            form.addWidget(_separator())
            form.addSpacing(2)
        form.addLayout(how)
        form.addStretch(1)
        self._content = content
        scroll = _FormArea(content, form)

        self._foot = QWidget()
        foot = QHBoxLayout(self._foot)
        foot.setContentsMargins(0, 0, 0, 0)
        foot.addWidget(self.complaint, 1)
        foot.addWidget(self.close_button)
        foot.addWidget(self.load_button)
        bottom = QVBoxLayout()
        bottom.setContentsMargins(24, 0, 24, 20)
        bottom.setSpacing(12)
        bottom.addWidget(_separator())
        bottom.addWidget(self._memory_row())
        bottom.addWidget(self.problem)
        bottom.addWidget(self.progress)
        bottom.addWidget(self._foot)
        head.setContentsMargins(24, 20, 24, 8)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(6)
        column.addLayout(head)
        column.addWidget(scroll, 1)
        column.addLayout(bottom)
        self.resize(640, 680)
        self.setMinimumHeight(460)  # the width is that of the fields, which grow with the text

    def _memory_row(self) -> QWidget:
        """The estimate, beside its name. It stands below what scrolls: one looks at it while choosing."""
        self._memory_line = QWidget()
        name = label("Memory", "muted")
        name.setMinimumWidth(LABEL_WIDTH)
        name.setContentsMargins(0, self.memory.TOP, 0, 0)
        row = QHBoxLayout(self._memory_line)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(12)
        row.addWidget(name, 0, Qt.AlignmentFlag.AlignTop)
        row.addWidget(self.memory, 1)
        return self._memory_line

    def _arrange(self) -> None:
        """Show the fields that belong to the chosen source and mode."""
        demo, mode = self.source.current() == "demo", self.mode.current() or "none"
        self._source_pages.show_page(self.source.current() or "demo")
        self._mode_pages.show_page(mode)
        self._mode_pages.setVisible(not demo)
        self._demo_adapters.setVisible(demo)
        self._demo_adapters.setText(
            {
                "none": "The base model answers by itself.",
                "lora": "The four adapters come with it; switch and weight them on the desk.",
                "xlora": "The four adapters come with it, and a classifier that mixes them for every token.",
            }[mode]
        )
        self._ordering_form.setVisible(not demo and mode != "none")
        self.ordering.edit.setPlaceholderText("Optional" if mode == "lora" else "Optional for checkpoints made by PEFT")
        self._repository_form.setVisible(not demo and mode == "lora")
        self._how.setRowVisible(self.non_granular, mode == "xlora")
        self._how.setRowVisible(self.relu, mode == "xlora" and not demo)
        self._check()

    def _check(self) -> bool:
        """Complain about what is missing, but not before the user asked for a load."""
        form = self.form()
        quantizable = form.quantizable()
        self.quantize.setEnabled(quantizable)
        self.quantize.setToolTip(QUANTIZE_TIP if quantizable else NO_QUANTIZE_TIP)
        self._how.setRowVisible(self.quantize_note, not quantizable)
        found = form.complaint()
        self._estimate_timer.start()
        self.complaint.setText(found[1] if found and self._asked else "")
        for name, field in self._complaint_fields.items():
            wrong = bool(found and self._asked and found[0] == name)
            if field.property("invalid") != wrong:
                field.setProperty("invalid", wrong)
                field.style().unpolish(field)
                field.style().polish(field)
        return found is None

    def _focus_what_is_missing(self) -> None:
        """Only when a load was asked for: while something else is typed, the focus stays there."""
        found = self.form().complaint()
        if found:
            self._complaint_fields[found[0]].setFocus()

    def _ask_estimate(self) -> None:
        """Ask for an estimate of what is chosen, if enough is. Half of a hub id never reaches the hub."""
        self._estimate_timer.stop()
        self._wait_timer.stop()
        form = self.form()
        if not self.isVisible() or self._loading:
            return
        self._asked_estimate = form.complaint() is None
        if self._asked_estimate:
            self._wait_timer.start()
            self.estimate_requested.emit(form.settings(), not self._typing.active)
        else:
            self.memory.show_unknown("Known when the model is chosen.")

    def _show_loading(self, loading: bool) -> None:
        self._loading = loading
        self._content.setEnabled(not loading)
        self.recent_button.setEnabled(not loading and bool(self._recent_menu.actions()))
        self.progress.setVisible(loading)
        self._show_memory()
        self.load_button.setEnabled(not loading)

    def _show_memory(self) -> None:
        """How much a load would take, unless there is something to say about one that was tried."""
        self._memory_line.setVisible(not self._loading and self.problem.isHidden())

    def _dismiss_problem(self) -> None:
        self.problem.hide()
        self._show_memory()

    def _browse_adapter(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Folder of the adapter")
        if folder:
            self.adapters.add(folder)

    def _add_by_id(self) -> None:
        row = self.adapters.add("", "adapter")
        self.table.setFocus()
        self.table.edit(self.adapters.index(row, COL_SOURCE))

    def _show_remove(self) -> None:
        self.remove_adapter.setEnabled(self.table.selectionModel().hasSelection())

    def _remove_adapters(self) -> None:
        self.adapters.remove({index.row() for index in self.table.selectionModel().selectedIndexes()})


class _Pages(QStackedWidget):
    """Forms of which one shows; as tall as that one."""

    def __init__(self) -> None:
        super().__init__()
        self._keys: dict[str, QWidget] = {}

    def add(self, key: str, rows: list[tuple[str, QWidget]]) -> None:
        page = _form(rows)
        self._keys[key] = page
        self.addWidget(page)

    def show_page(self, key: str) -> None:
        for name, page in self._keys.items():
            policy = QSizePolicy.Policy.Preferred if name == key else QSizePolicy.Policy.Ignored
            page.setSizePolicy(QSizePolicy.Policy.Preferred, policy)
        self.setCurrentWidget(self._keys[key])
        self.updateGeometry()


class _FormArea(QScrollArea):
    """A form that scrolls up and down. Its fields end where the buttons below do, with a scroll bar and without."""

    def __init__(self, content: QWidget, layout: QVBoxLayout) -> None:
        super().__init__()
        self._content, self._layout = content, layout
        self._right = layout.contentsMargins().right()
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)  # Tab goes from field to field, and the area follows
        self.setWidgetResizable(True)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setWidget(content)
        self.verticalScrollBar().rangeChanged.connect(lambda _low, _high: self._fit())

    def minimumSizeHint(self) -> QSize:
        return QSize(self._content.minimumSizeHint().width() + RIGHT_OF_BAR, super().minimumSizeHint().height())

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if event.type() == QEvent.Type.LayoutRequest:  # of the content, which this is a filter of
            self.updateGeometry()
        return super().eventFilter(watched, event)

    def _fit(self) -> None:
        bar = self.verticalScrollBar()
        margins = self._layout.contentsMargins()
        margins.setRight(self._right - (bar.sizeHint().width() if bar.maximum() > 0 else 0))
        self._layout.setContentsMargins(margins)


def _form(rows: list[tuple[str, QWidget]]) -> QWidget:
    page = QWidget()
    form = QFormLayout(page)
    form.setContentsMargins(0, 0, 0, 0)
    form.setHorizontalSpacing(12)
    form.setVerticalSpacing(9)
    for text, field in rows:
        if text:
            form.addRow(_caption(text, field), field)
        else:
            form.addRow(field)
    return page


def _caption(text: str, field: QWidget) -> QWidget:
    caption = field_caption(text, field, "muted")
    caption.setMinimumWidth(LABEL_WIDTH)
    return caption


def _separator() -> QFrame:
    line = QFrame()
    line.setProperty("kind", "line")
    return line


def _line(name: str, placeholder: str) -> QLineEdit:
    line = QLineEdit()
    line.setAccessibleName(name)
    line.setPlaceholderText(placeholder)
    return line


class _AdapterTable(QTableView):
    """Says what belongs here while it is empty."""

    def paintEvent(self, event: QPaintEvent) -> None:
        super().paintEvent(event)
        if self.model().rowCount() == 0:
            painter = QPainter(self.viewport())
            painter.setPen(self.palette().color(QPalette.ColorRole.PlaceholderText))
            room = self.viewport().rect().adjusted(12, 4, -12, -4)
            painter.drawText(room, Qt.AlignmentFlag.AlignCenter | Qt.TextFlag.TextWordWrap, NO_ADAPTERS)
            painter.end()


def _adapter_table(model: AdapterListModel) -> QTableView:
    table = _AdapterTable()
    table.setAccessibleName("LoRA adapters")
    table.setModel(model)
    table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    table.setShowGrid(False)
    table.setTabKeyNavigation(False)
    table.verticalHeader().hide()
    table.horizontalHeader().setHighlightSections(False)
    table.horizontalHeader().setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
    table.horizontalHeader().setSectionResizeMode(COL_SOURCE, QHeaderView.ResizeMode.Stretch)
    table.setColumnWidth(COL_NAME, 150)
    table.setMinimumHeight(96)
    table.setMaximumHeight(150)
    return table
