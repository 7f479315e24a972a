"""One tab: form and text of a document side by side, with what has happened above and what is wrong below."""

from __future__ import annotations

import time

from PySide6.QtCore import QEvent, Qt, QTimer, Signal
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QFrame, QHBoxLayout, QSplitter, QVBoxLayout, QWidget
from shiboken6 import isValid

from loradesk_app.background import Background
from loradesk_app.ordering import sources
from loradesk_app.ordering.analysis import problem_position
from loradesk_app.ordering.document import Document
from loradesk_app.ordering.findings_panel import START_HEIGHT, FindingsPanel
from loradesk_app.ordering.form_view import FormView
from loradesk_app.ordering.json_edit import JsonEdit
from loradesk_app.ordering.notice_bar import NoticeBar
from loradesk_app.ordering.regenerate_dialog import RegenerateDialog
from loradesk_app.ordering.sources import BaseFacts, FoundAdapters
from loradesk_app.theme import Theme
from loradesk_app.widgets.labels import label
from loradesk_engine.ordering.finding import Finding
from loradesk_engine.ordering.schema import PreloadAdapter

TYPING_MS = 250  # a text is read when the typing pauses
RUN_SECONDS = 2.0  # texts further apart than this are steps of their own
WIDE = 860  # from here on form and text have room side by side


class DocumentView(QWidget):
    """Everything of one document that is on screen.

    Args:
        readers: where bases and adapters are read; slow, so apart from the document's own background.
    """

    layout_changed = Signal(str)  # `form`, `both` or `json` is what there is room for

    def __init__(self, document: Document, theme: Theme, readers: Background, parent: QWidget | None = None) -> None:
        self._built = False
        super().__init__(parent)
        self.document, self._theme, self._readers = document, theme, readers
        document.setParent(self)
        self.base: BaseFacts | None = None
        self.found: FoundAdapters | None = None
        self._base_asked: str | None = None
        self._layout = "both"
        self._text_first = not document.is_readable  # what cannot be read can only be put right in the text
        self._unplaced = self._text_first  # the cursor goes to the error as soon as the text is there
        self._narrow = False
        self._told_layout = ""
        self._run, self._last_typed = 0, 0.0
        self.disk_notice = NoticeBar(theme)
        self.text_notice = NoticeBar(theme)
        self.form = FormView(document, theme)
        self.json = JsonEdit(theme)
        self.json_pane = self._make_json_pane()
        self.findings = FindingsPanel(theme)
        self.splitter = QSplitter(Qt.Orientation.Horizontal)
        self.splitter.setChildrenCollapsible(False)
        self.splitter.setHandleWidth(8)
        self.splitter.addWidget(self.form)
        self.splitter.addWidget(self.json_pane)
        self.splitter.setSizes([560, 480])
        self.form.setMinimumWidth(380)
        self.json_pane.setMinimumWidth(280)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(8)
        column.addWidget(self.disk_notice)
        column.addWidget(self.text_notice)
        column.addWidget(self.splitter, 1)
        column.addWidget(self.findings)
        self._typing = QTimer(self)
        self._typing.setSingleShot(True)
        self._typing.setInterval(TYPING_MS)
        self._typing.timeout.connect(self.flush)
        self._built = True
        self._connect()
        self._look_for_base()

    # -- what the user does -------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Hand in text that has been typed."""
        self._typing.stop()
        if not self.json.has_edits:
            return
        now = time.monotonic()
        if now - self._last_typed > RUN_SECONDS or not self._run:
            self._run = time.monotonic_ns()
        self._last_typed = now
        text = self.json.text()
        self.json.note_taken()
        self.document.edit_text(text, self._run)

    def take_focus(self) -> None:
        """Put the keyboard where work begins: in the table in sight, or in a text that has to be put right."""
        table = self.form.table()
        if self._text_first:
            self.go_to_text_problem()
        elif table is not None and not self.form.isHidden():
            table.setFocus()

    def set_layout(self, layout: str) -> None:
        """Show `form`, `json` or `both`; without room for both, the form."""
        self._layout, self._text_first = layout, False
        self._arrange()

    def go_to(self, finding: Finding) -> None:
        """Show where a finding is, in the form and in the text."""
        self.form.go_to(finding.place)
        analysis = self.document.last_analysis
        position = analysis.positions.get(finding.place) if analysis is not None else None
        if position is not None:
            self.json.go_to(*position)

    def go_to_text_problem(self) -> None:
        """Show the text where it cannot be read."""
        problem = self.document.state.problem
        position = problem_position(problem) if problem is not None else None
        if self.json_pane.isHidden():
            self._text_first = True
            self._arrange()
        if position is not None:
            self.json.go_to(*position, select=False)
        self.json.setFocus()

    def read_base(self, source: str) -> None:
        """Read the base model's configuration, also over the network."""
        if source:
            self.form.base_text.setText("Configuration: reading…")
            self._readers.run(lambda: sources.read_base_facts(source), self._take_base, self._refuse_base)

    def compare(self, source: str) -> None:
        """Check against the adapters of a folder, a checkpoint or a repository."""
        config = self.base.config if self.base is not None else None
        self.form.show_adapters(None, reading=True)
        self._readers.run(lambda: sources.find_adapters(source, config), self._take_adapters, self._refuse_adapters)

    def preload_from(self, source: str) -> None:
        """Preload all adapters of a folder or repository, each found in it by its name."""
        config = self.base.config if self.base is not None else None
        self._readers.run(lambda: sources.find_adapters(source, config), self._take_preloads, self._refuse_adapters)

    def regenerate(self) -> None:
        """Ask for modules and make `layers` anew."""
        if not self.document.is_readable:
            return
        chosen: set[str] = set(self.document.ordering.layers or ())
        if self.found is not None:
            names = [name for name in self.document.ordering.order or () if name in self.found.modules]
            chosen = set().union(*(self.found.modules[name] for name in names or self.found.modules))
        base_id = self.document.ordering.base_model_id
        dialog = RegenerateDialog(self._theme, self._readers, base_id, self.base, chosen, self)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.regenerate_requested.connect(self._regenerate)
        dialog.open()

    # -- what has happened --------------------------------------------------------------------------------------

    def show_outside_change(self, there: bool) -> None:
        """Another program changed the file, or removed it."""
        document = self.document
        if there:
            self.disk_notice.show_notice(
                "disk",
                f"Another program changed {document.title}.",
                ("Reload", document.reload),
                ("Keep mine", document.keep_mine),
                detail="Reload takes its version, and can be undone. Keep mine overwrites it with the next save.",
            )
        else:
            self.disk_notice.show_notice(
                "disk",
                f"{document.title} was removed or moved.",
                ("Keep mine", document.keep_mine),
                detail="The next save writes it again.",
            )

    def take_base(self, base: BaseFacts) -> None:
        """The base's configuration is known already."""
        self._take_base(base)

    def take_adapters(self, found: FoundAdapters) -> None:
        """The adapters are known already."""
        self._take_adapters(found)

    def event(self, event: QEvent) -> bool:
        if event.type() == QEvent.Type.LayoutRequest and self._built:
            self._share_height()  # a notice came or went
        return super().event(event)

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._arrange()

    @property
    def layout_shown(self) -> str:
        """`form`, `both` or `json`: what there is room for."""
        if self.form.isHidden():
            return "json"
        return "form" if self.json_pane.isHidden() else "both"

    @property
    def is_narrow(self) -> bool:
        return self._narrow

    # ------------------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        document = self.document
        document.changed.connect(self._note_change)
        document.findings_changed.connect(self._show_analysis)
        document.about_to_act.connect(self.form.flush)
        document.about_to_act.connect(self.flush)
        document.refused.connect(lambda error: self.disk_notice.show_error("refused", error))
        document.saved.connect(lambda _path: self.disk_notice.clear())
        document.outside_change.connect(self.show_outside_change)
        self.json.edited.connect(self._typing.start)
        self.json.undo_requested.connect(document.undo)
        self.json.redo_requested.connect(document.redo)
        self.json.cursorPositionChanged.connect(self._show_cursor)
        self.form.find_base_requested.connect(lambda: self.read_base(document.ordering.base_model_id))
        self.form.compare_requested.connect(self.compare)
        self.form.preload_requested.connect(self.preload_from)
        self.form.regenerate_requested.connect(self.regenerate)
        self.findings.finding_chosen.connect(self.go_to)
        self.findings.fix_requested.connect(document.fix)
        self.findings.fix_all_requested.connect(document.fix_all)
        self._note_change()

    def _note_change(self) -> None:
        self.disk_notice.clear("refused")
        self._show_text_problem()
        self._look_for_base()

    def _show_analysis(self) -> None:
        analysis = self.document.last_analysis
        if analysis is None or self.json.has_edits:
            return  # the user types on; what that makes will be looked at next
        self.json.set_text(analysis.text)
        marks: dict[int, tuple[str, str]] = {}
        for finding in analysis.findings:  # errors come first
            for place in (finding.place, *finding.places):
                if place in analysis.positions:
                    marks.setdefault(analysis.positions[place][0], (finding.severity, finding.message))
        problem = self.document.state.problem
        position = problem_position(problem) if problem is not None else None
        if problem is not None and position is not None:
            marks[position[0]] = ("error", problem.problem)
        self.json.set_marks(marks)
        if self._unplaced and position is not None:
            self.json.go_to(*position, select=False)
        self._unplaced = False
        if problem is None or analysis.findings:
            self.findings.show_findings(analysis.findings, analysis.positions)
        else:
            self.findings.show_unreadable("The text is not an ordering file yet.")

    def _show_text_problem(self) -> None:
        problem = self.document.state.problem
        if problem is None:
            self.text_notice.clear()
            return
        position = problem_position(problem)
        where = f"Line {position[0]:,}, column {position[1]:,}: " if position else ""
        choices = [(f"Go to line {position[0]:,}", self.go_to_text_problem)] if position else []
        if self.document.stack.canUndo():
            choices.append(("Discard the text", self.document.discard_text))
        self.text_notice.show_notice(
            "text",
            f"{where}{problem.problem}",
            *choices,
            detail=f"{problem.remedy or ''} The form waits until the text can be read.".strip(),
            error=True,
            lasting=True,
        )

    def _show_cursor(self) -> None:
        cursor = self.json.textCursor()
        self._cursor_text.setText(f"Line {cursor.blockNumber() + 1:,}, column {cursor.positionInBlock() + 1:,}")

    def _look_for_base(self) -> None:
        """Use the base's configuration if it is on this computer."""
        wanted = self.document.ordering.base_model_id
        if wanted == self._base_asked:
            return
        self._base_asked = wanted
        if self.base is not None and self.base.model_id == wanted:
            return
        self.base = None
        self.document.set_context(config=None)
        self.form.show_base(None)
        if wanted:
            near = self.document.folder
            self._readers.run(lambda: (wanted, sources.base_on_disk(wanted, near)), self._take_base_on_disk)

    def _take_base_on_disk(self, result: tuple[str, BaseFacts | None]) -> None:
        if isValid(self) and result[0] == self._base_asked and self.base is None and result[1] is not None:
            self._take_base(result[1])

    def _take_base(self, base: BaseFacts) -> None:
        if isValid(self):
            self.base = base
            self.form.show_base(base)
            self.document.set_context(config=base.config)

    def _refuse_base(self, error: Exception) -> None:
        if isValid(self):
            self.form.show_base(self.base)
            self.disk_notice.show_error("base", error)

    def _take_adapters(self, found: FoundAdapters) -> None:
        if isValid(self):
            self.found = found
            self.form.show_adapters(found)
            self.document.set_context(adapter_modules=found.modules, xlora=found.classifier)

    def _take_preloads(self, found: FoundAdapters) -> None:
        if isValid(self):
            self.document.put_preloads([PreloadAdapter(name, found.source) for name in found.modules])

    def _refuse_adapters(self, error: Exception) -> None:
        if isValid(self):
            self.form.show_adapters(self.found)
            self.disk_notice.show_error("adapters", error)

    def _regenerate(self, base: BaseFacts, modules: tuple[str, ...]) -> None:
        self._take_base(base)
        self.document.regenerate_layers(base.config, modules)

    def _make_json_pane(self) -> QFrame:
        pane = QFrame()
        pane.setProperty("kind", "pane")
        pane.setAccessibleName("JSON")
        self._cursor_text = label("", "small")
        head = QHBoxLayout()
        head.addWidget(label("JSON", "heading"), 1)
        head.addWidget(self._cursor_text)
        column = QVBoxLayout(pane)
        column.setContentsMargins(14, 12, 14, 12)
        column.setSpacing(8)
        column.addLayout(head)
        column.addWidget(self.json, 1)
        return pane

    def _share_height(self) -> None:
        """Give the findings what the form can spare, down to their first line."""
        notices = (self.disk_notice, self.text_notice)
        taken = sum(notice.sizeHint().height() + 8 for notice in notices if not notice.isHidden())
        spare = self.height() - taken - self.form.minimumSizeHint().height() - 8
        self.findings.set_room(min(int(self.height() * 0.3), spare, START_HEIGHT))

    def _arrange(self) -> None:
        narrow = self.width() < WIDE
        layout = self._layout
        if self._text_first and (narrow or layout == "form"):
            layout = "json"
        elif narrow and layout == "both":
            layout = "form"
        self._share_height()
        self.form.setVisible(layout in ("form", "both"))
        self.json_pane.setVisible(layout in ("json", "both"))
        self._narrow = narrow
        if self.layout_shown != self._told_layout:
            self._told_layout = self.layout_shown
            self.layout_changed.emit(self._told_layout)
