"""The editor's window: several documents in tabs, with menus, keys, drag and drop, and recovery of unsaved work."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePath

from PySide6.QtCore import QByteArray, QEvent, QSize, Qt, Signal
from PySide6.QtGui import QAction, QCloseEvent, QDragEnterEvent, QDropEvent, QKeySequence
from PySide6.QtWidgets import (
    QFileDialog,
    QHBoxLayout,
    QMainWindow,
    QMenu,
    QMessageBox,
    QStackedWidget,
    QTabBar,
    QToolButton,
    QVBoxLayout,
    QWidget,
)
from shiboken6 import isValid

from loradesk_app.background import Background
from loradesk_app.ordering.analysis import State, read_state
from loradesk_app.ordering.document import Document
from loradesk_app.ordering.document_view import DocumentView
from loradesk_app.ordering.file_watch import FileWatch
from loradesk_app.ordering.new_file_dialog import NewFileDialog
from loradesk_app.ordering.notice_bar import NoticeBar
from loradesk_app.ordering.recovery import Recovered, Recovery
from loradesk_app.ordering.sources import BaseFacts, FoundAdapters
from loradesk_app.ordering.start_page import READY_TEXTS, StartPage
from loradesk_app.ordering.style import style_sheet
from loradesk_app.theme import Theme
from loradesk_app.widgets.buttons import icon_button, push_button
from loradesk_app.widgets.drop_edit import dropped_paths
from loradesk_app.widgets.segmented import Segmented
from loradesk_engine.ordering.ready import READY, ready_file
from loradesk_engine.ordering.schema import OrderingFile
from loradesk_engine.ordering.words import counted

MIN_SIZE = (720, 520)
START_SIZE = (1100, 760)
MAX_RECENT = 12
MESSAGE_MS = 5_000
LAST_SECONDS = 5.0
FILTER = "Ordering files (*.json);;All files (*)"


class EditorWindow(QMainWindow):
    """The window as a whole. It knows nothing of the engine: `load_requested` says what is to be loaded.

    Args:
        recovery_folder: where unsaved work is kept; None for the user's data folder.
    """

    load_requested = Signal(str)
    recent_changed = Signal(list)
    document_opened = Signal(object)  # Document
    closed = Signal()

    def __init__(self, theme: Theme, recovery_folder: str | Path | None = None, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowFlag(Qt.WindowType.Window)
        self.setMinimumSize(*MIN_SIZE)
        self.resize(*START_SIZE)
        self.setAcceptDrops(True)
        self.theme = theme
        self.background = Background(self)  # the documents' files and checks
        self.readers = Background(self)  # bases and adapters, which may take long
        self.views: list[DocumentView] = []
        self._recent: list[str] = []
        self._opening: set[str] = set()
        self._load_when_saved: Document | None = None
        self._close_when_saved: list[Document] = []
        self._closing = False
        self.notice = NoticeBar(theme)
        self.recovery = Recovery(self.background, self.documents, recovery_folder, self)
        self.recovery.restored.connect(self._open_recovered)
        self.recovery.failed.connect(lambda error: self.notice.show_error("recovery", error))
        self.watch = FileWatch(self)
        self.watch.touched.connect(self._look_at_disk)

        self.start_page = StartPage(theme)
        self.start_page.new_requested.connect(self.new_file)
        self.start_page.open_requested.connect(self.ask_for_file)
        self.start_page.ready_requested.connect(self.open_ready)
        self.start_page.file_requested.connect(self.open_file)
        self.tabs = QTabBar()
        self.tabs.setAccessibleName("Open files")
        self.tabs.setDrawBase(False)
        self.tabs.setExpanding(False)
        self.tabs.setMovable(True)
        self.tabs.setElideMode(Qt.TextElideMode.ElideMiddle)
        self.tabs.currentChanged.connect(self._show_current)
        self.tabs.tabMoved.connect(lambda old, new: self.views.insert(new, self.views.pop(old)))
        self.pages = QStackedWidget()
        self.pages.addWidget(self.start_page)
        self.layouts = Segmented(
            (
                ("form", "Form", "The form alone (Ctrl+1)"),
                ("both", "Both", "Form and text side by side (Ctrl+2)"),
                ("json", "JSON", "The text alone (Ctrl+3)"),
            ),
            "Layout",
        )
        self.layouts.set_current("both")
        self.layouts.chosen.connect(self.set_layout)
        self._layout = "both"
        self._make_actions()
        self._lay_out()
        theme.changed.connect(self._restyle)
        self._restyle()
        self._show_current()

    # -- files: one method for menu, key, button and test ----------------------------------------------------------

    def start(self) -> None:
        """Look for work that an earlier session could not save."""
        self.recovery.restore()

    def show_up(self) -> None:
        """Show the window, in front of others."""
        self.show()
        self.raise_()
        self.activateWindow()

    def open_file(self, path: str) -> None:
        """Open a file in a tab of its own, or go to the tab that has it."""
        path = str(Path(path).absolute())
        self.show_up()
        for row, view in enumerate(self.views):
            if view.document.path == path:
                self.tabs.setCurrentIndex(row)
                return
        if path in self._opening:
            return
        self._opening.add(path)

        def done(result: tuple[bytes, State]) -> None:
            self._opening.discard(path)
            self.notice.clear("open")
            self.add_document(Document(self.background, result[1], path=path, on_disk=result[0]))
            self._remember(path)

        def failed(error: Exception) -> None:
            self._opening.discard(path)
            self.notice.show_error("open", error)

        self.background.run(lambda: read_state(path), done, failed)

    def open_ready(self, hub_id: str) -> None:
        """Open a copy of a file that ships with Loradesk; saving it asks where to."""
        source = ready_file(hub_id)
        if source is None:
            return

        def done(result: tuple[bytes, State]) -> None:
            self.add_document(Document(self.background, result[1], title=source.name))

        self.show_up()
        self.background.run(lambda: read_state(str(source)), done, lambda error: self.notice.show_error("open", error))

    def ask_for_file(self) -> None:
        """Choose a file to open."""
        dialog = QFileDialog(self, "Open an ordering file", self._folder(), FILTER)
        dialog.setFileMode(QFileDialog.FileMode.ExistingFile)
        dialog.fileSelected.connect(self.open_file)
        dialog.finished.connect(dialog.deleteLater)
        dialog.open()

    def new_file(self) -> NewFileDialog:
        """Make a file step by step."""
        self.show_up()
        dialog = NewFileDialog(self.theme, self.readers, self)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.created.connect(self._add_new)
        dialog.open()
        return dialog

    def save(self) -> None:
        """Save the current document; one without a path asks where."""
        document = self.document()
        if document is not None:
            self._save(document)

    def save_as(self) -> None:
        """Ask for a path and save the current document there."""
        document = self.document()
        if document is not None:
            self._ask_where(document)

    def revert(self) -> None:
        """Go back to what is on disk, as a step that can be undone."""
        document = self.document()
        if document is not None and document.path:
            document.reload("Revert")

    def load_current(self) -> None:
        """Ask for the current file to be loaded; what is not saved is saved first."""
        document = self.document()
        if document is None:
            return
        document.about_to_act.emit()
        if document.path and not document.is_dirty:
            self.load_requested.emit(document.path)
        else:
            self._load_when_saved = document
            self._save(document)

    def close_tab(self, row: int) -> None:
        """Close a document; one with changes asks what to do with them."""
        if not 0 <= row < len(self.views):
            return
        view = self.views[row]
        view.document.about_to_act.emit()
        if not view.document.is_dirty:
            self._remove(view)
            return
        self.tabs.setCurrentIndex(row)
        self._ask_to_save(
            f"Save the changes to {view.document.title}?",
            lambda: self._save_and_close([view.document]),
            lambda: self._remove(view),
        )

    def close_current(self) -> None:
        self.close_tab(self.tabs.currentIndex())

    def shut_down(self) -> None:
        """The application ends: unsaved work is kept for the next start, and nothing is asked."""
        self._closing = True
        for view in self.views:
            view.document.about_to_act.emit()
        self.recovery.save()
        self.recovery.close()
        self.hide()
        self.background.wait(LAST_SECONDS)
        self.close()

    # -- edits ----------------------------------------------------------------------------------------------------

    def undo(self) -> None:
        document = self.document()
        if document is not None:
            document.undo()

    def redo(self) -> None:
        document = self.document()
        if document is not None:
            document.redo()

    def next_problem(self) -> None:
        view = self.view()
        if view is not None:
            view.findings.choose_next()

    def fix_all(self) -> None:
        document = self.document()
        if document is not None:
            document.fix_all()

    def regenerate(self) -> None:
        view = self.view()
        if view is not None:
            view.regenerate()

    def set_layout(self, layout: str) -> None:
        """Show `form`, `both` or `json` in all tabs."""
        self._layout = layout
        for view in self.views:
            view.set_layout(layout)
        self._show_layout()

    # -- what is there --------------------------------------------------------------------------------------------

    def documents(self) -> list[Document]:
        return [view.document for view in self.views]

    def view(self) -> DocumentView | None:
        """The tab in sight."""
        row = self.tabs.currentIndex()
        return self.views[row] if 0 <= row < len(self.views) else None

    def document(self) -> Document | None:
        view = self.view()
        return view.document if view is not None else None

    def add_document(self, document: Document) -> DocumentView:
        """Show a document in a tab of its own."""
        view = DocumentView(document, self.theme, self.readers)
        if self._layout != "both":
            view.set_layout(self._layout)
        view.layout_changed.connect(lambda _layout: self._show_layout())
        document.dirty_changed.connect(lambda _dirty: self._show_title(document))
        document.path_changed.connect(lambda: self._note_path(document))
        document.changed.connect(self.recovery.note_change)
        document.dirty_changed.connect(lambda _dirty: self.recovery.note_change())
        document.saved.connect(lambda path: self._note_saved(document, path))
        document.refused.connect(lambda _error: self._note_refused(document))
        document.outside_change.connect(lambda _there: self._note_refused(document))
        document.stack.canUndoChanged.connect(lambda _can: self._show_actions())
        document.stack.canRedoChanged.connect(lambda _can: self._show_actions())
        document.stack.indexChanged.connect(lambda _index: self._show_actions())
        document.findings_changed.connect(self._show_actions)
        self.views.append(view)
        self.pages.addWidget(view)
        row = self.tabs.addTab("")
        close = icon_button(self.theme, "close", "Close this file (Ctrl+W)", kind="quiet")
        close.setIconSize(QSize(14, 14))
        close.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        close.clicked.connect(lambda: self.close_tab(self.views.index(view)))
        self.tabs.setTabButton(row, QTabBar.ButtonPosition.RightSide, close)
        self.tabs.setCurrentIndex(row)
        self._show_title(document)
        self._show_current()
        self._watch_files()
        if document.is_dirty:
            self.recovery.note_change()
        view.take_focus()
        self.document_opened.emit(document)
        return view

    # -- recent files and places ------------------------------------------------------------------------------------

    def set_recent(self, paths: list[str]) -> None:
        """Files opened lately, newest first, as they were kept; `recent_changed` tells when there are others."""
        self._recent = [path for path in paths if isinstance(path, str) and path][:MAX_RECENT]
        self.recent_menu.clear()
        for path in self._recent:
            action = self.recent_menu.addAction(f"{PurePath(path).name}    {PurePath(path).parent}".replace("&", "&&"))
            action.triggered.connect(lambda _checked=False, path=path: self.open_file(path))
        self.recent_menu.addSeparator()
        clear = self.recent_menu.addAction("Clear the list")
        clear.triggered.connect(lambda: self._set_and_tell([]))
        self.recent_menu.setEnabled(bool(self._recent))
        self.start_page.set_recent(self._recent)

    def recent(self) -> list[str]:
        return list(self._recent)

    def places(self) -> bytes:
        """Where the window is, to be kept."""
        return bytes(self.saveGeometry().data())

    def restore_places(self, places: bytes) -> None:
        if places:
            self.restoreGeometry(QByteArray(places))

    # -- events -----------------------------------------------------------------------------------------------------

    def closeEvent(self, event: QCloseEvent) -> None:
        for view in self.views:
            view.document.about_to_act.emit()
        dirty = [view.document for view in self.views if view.document.is_dirty]
        if self._closing or not dirty:
            event.accept()
            self.closed.emit()
            return
        event.ignore()
        names = ", ".join(document.title for document in dirty[:3])
        self._ask_to_save(
            f"Save the changes to {names}?" if len(dirty) <= 3 else f"Save {counted(len(dirty), 'changed file')}?",
            lambda: self._save_and_close(dirty, and_window=True),
            self._discard_and_close,
        )

    def changeEvent(self, event: QEvent) -> None:
        super().changeEvent(event)
        if event.type() == QEvent.Type.ActivationChange and self.isActiveWindow():
            self._look_at_disk()  # not every file system tells of changes

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        if any(path.lower().endswith(".json") for path in dropped_paths(event)):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        paths = [path for path in dropped_paths(event) if path.lower().endswith(".json")]
        if paths:
            event.acceptProposedAction()
            for path in paths:
                self.open_file(path)

    # ---------------------------------------------------------------------------------------------------------------

    def _add_new(self, ordering: OrderingFile, base: BaseFacts, found: FoundAdapters | None) -> None:
        view = self.add_document(Document(self.background, State(ordering), dirty=True))
        if base.model_id == ordering.base_model_id or base.config:
            view.take_base(base)
        if found is not None:
            view.take_adapters(found)

    def _open_recovered(self, found: list[Recovered]) -> None:
        self.show_up()
        for one in found:
            document = Document(
                self.background, one.state, path=one.path, title=one.title, on_disk=one.on_disk, dirty=True
            )
            self.recovery.adopt(document, one.key)
            view = self.add_document(document)
            if one.on_disk == b"":
                view.show_outside_change(True)
            else:
                view.disk_notice.show_notice(
                    "recovered", f"Unsaved work on {document.title} was recovered.", detail="Save it to keep it."
                )

    def _save(self, document: Document) -> None:
        if document.path:
            document.save()
        else:
            self._ask_where(document)

    def _ask_where(self, document: Document) -> None:
        name = document.path or str(PurePath(self._folder()) / f"{PurePath(document.title).stem}.json")
        dialog = QFileDialog(self, "Save the ordering file", name, FILTER)
        dialog.setAcceptMode(QFileDialog.AcceptMode.AcceptSave)
        dialog.setDefaultSuffix("json")
        dialog.selectFile(name)
        dialog.fileSelected.connect(lambda path: self.save_to(document, path))
        dialog.rejected.connect(self._forget_plans)
        dialog.finished.connect(dialog.deleteLater)
        dialog.open()

    def save_to(self, document: Document, path: str) -> None:
        """Save a document at a path of its own."""
        path = str(Path(path).absolute())
        document.save(path, force=path != document.path)

    def _save_and_close(self, documents: list[Document], and_window: bool = False) -> None:
        self._close_when_saved = list(documents)
        self._close_window = and_window
        for document in documents:
            if document.path:
                document.save()
        self._ask_for_next()

    def _ask_for_next(self) -> None:
        """Ask where the next document without a path is to be saved, one at a time."""
        waiting = self._close_when_saved
        if waiting and not any(document.path for document in waiting):
            self._ask_where(waiting[0])

    def _discard_and_close(self) -> None:
        for view in list(self.views):
            self._remove(view)
        self.close()

    def _forget_plans(self) -> None:
        self._load_when_saved = None
        self._close_when_saved = []

    def _note_saved(self, document: Document, path: str) -> None:
        self.statusBar().showMessage(f"Saved {path}", MESSAGE_MS)
        self._remember(path)
        self._watch_files()
        if self._load_when_saved is document:
            self._load_when_saved = None
            self.load_requested.emit(path)
        if document in self._close_when_saved:
            self._close_when_saved.remove(document)
            self._remove(next(view for view in self.views if view.document is document))
            self._ask_for_next()
            if not self._close_when_saved and self._close_window:
                self.close()

    def _note_refused(self, document: Document) -> None:
        if self._load_when_saved is document or document in self._close_when_saved:
            self._forget_plans()

    def _remove(self, view: DocumentView) -> None:
        row = self.views.index(view)
        self.recovery.forget(view.document)
        self.views.pop(row)
        self.tabs.removeTab(row)
        self.pages.removeWidget(view)
        view.hide()
        view.deleteLater()
        self._watch_files()
        self._show_current()

    def _ask_to_save(self, question: str, save: Callable[[], object], discard: Callable[[], object]) -> None:
        box = QMessageBox(QMessageBox.Icon.NoIcon, "Loradesk", question, parent=self)
        box.setInformativeText("Changes that are not saved are lost.")
        save_button = box.addButton("Save", QMessageBox.ButtonRole.AcceptRole)
        discard_button = box.addButton("Discard", QMessageBox.ButtonRole.DestructiveRole)
        box.addButton("Cancel", QMessageBox.ButtonRole.RejectRole)
        box.setDefaultButton(save_button)
        save_button.clicked.connect(lambda _checked: save())
        discard_button.clicked.connect(lambda _checked: discard())
        box.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        box.open()

    def _look_at_disk(self) -> None:
        for document in self.documents():
            document.look_at_disk()

    def _watch_files(self) -> None:
        self.watch.set_files(document.path for document in self.documents() if document.path)

    def _note_path(self, document: Document) -> None:
        self._show_title(document)
        self._watch_files()

    def _remember(self, path: str) -> None:
        self._set_and_tell([path, *(other for other in self._recent if other != path)][:MAX_RECENT])

    def _set_and_tell(self, paths: list[str]) -> None:
        if paths != self._recent:
            self.set_recent(paths)
            self.recent_changed.emit(paths)

    def _folder(self) -> str:
        document = self.document()
        path = document.path if document is not None and document.path else next(iter(self._recent), "")
        return str(PurePath(path).parent) if path else ""

    # -- showing ----------------------------------------------------------------------------------------------------

    def _show_current(self, _row: int = -1) -> None:
        view = self.view()
        self.pages.setCurrentWidget(view if view is not None else self.start_page)
        self.tabs.setVisible(bool(self.views))
        self._tools.setVisible(bool(self.views))
        self._show_layout()
        self._show_actions()
        document = self.document()
        self.setWindowTitle(f"{document.title}[*] – Ordering files" if document is not None else "Ordering files")
        self.setWindowModified(document is not None and document.is_dirty)

    def _show_title(self, document: Document) -> None:
        row = next((row for row, view in enumerate(self.views) if view.document is document), None)
        if row is None:
            return
        mark = "● " if document.is_dirty else ""
        self.tabs.setTabText(row, f"{mark}{document.title}".replace("&", "&&"))
        self.tabs.setTabToolTip(row, document.path or "Not saved yet")
        self._show_current()

    def _show_layout(self) -> None:
        view = self.view()
        narrow = view is not None and view.is_narrow
        self.layouts.button("both").setVisible(not narrow)
        self.layouts.set_current(view.layout_shown if view is not None else self._layout)

    def _show_actions(self) -> None:
        if not isValid(self.tabs):
            return  # the window is being deleted, and a history says goodbye
        document = self.document()
        there = document is not None
        for action in self._document_actions:
            action.setEnabled(there)
        stack = document.stack if document is not None else None
        self.undo_action.setEnabled(stack is not None and stack.canUndo())
        self.redo_action.setEnabled(stack is not None and stack.canRedo())
        for action, word, text in (
            (self.undo_action, "&Undo", stack.undoText() if stack is not None else ""),
            (self.redo_action, "&Redo", stack.redoText() if stack is not None else ""),
        ):
            what = text[:1].lower() + text[1:]
            action.setText(f"{word}: {what}".replace("&&", "&") if text else word)
            plain = word.removeprefix("&")
            action.setToolTip(f"{plain}: {what}" if text else plain)
        self.revert_action.setEnabled(document is not None and bool(document.path) and document.is_dirty)
        self.fix_action.setEnabled(document is not None and any(f.fix is not None for f in document.findings))

    def _restyle(self) -> None:
        self.setStyleSheet(style_sheet(self.theme))

    # -- building ---------------------------------------------------------------------------------------------------

    def _make_actions(self) -> None:
        bar = self.menuBar()
        file = bar.addMenu("&File")
        self.new_action = self._action(file, "&New…", "Ctrl+N", self.new_file, "plus")
        self.open_action = self._action(file, "&Open…", "Ctrl+O", self.ask_for_file, "folder")
        ready = file.addMenu("Open the file of a &published model")
        for hub_id in READY:
            title = READY_TEXTS.get(hub_id, (hub_id, ""))[0]
            ready.addAction(title).triggered.connect(lambda _checked=False, hub_id=hub_id: self.open_ready(hub_id))
        self.recent_menu = file.addMenu("Open &recent")
        file.addSeparator()
        self.save_action = self._action(file, "&Save", "Ctrl+S", self.save, "ordering-save")
        self.save_as_action = self._action(file, "Save &as…", "Ctrl+Shift+S", self.save_as)
        self.revert_action = self._action(file, "Re&vert to the saved file", "", self.revert)
        file.addSeparator()
        self.load_action = self._action(file, "&Load this in the model loader", "Ctrl+L", self.load_current)
        file.addSeparator()
        self.close_action = self._action(file, "&Close the file", "Ctrl+W", self.close_current)

        edit = bar.addMenu("&Edit")
        self.undo_action = self._action(edit, "&Undo", "Ctrl+Z", self.undo, "ordering-undo")
        self.redo_action = self._action(edit, "&Redo", "Ctrl+Shift+Z", self.redo, "ordering-redo")
        self.redo_action.setShortcuts([QKeySequence("Ctrl+Shift+Z"), QKeySequence("Ctrl+Y")])
        edit.addSeparator()
        self.add_action = self._action(edit, "&Add an entry", "Ctrl+Return", self._on_form("add"))
        self.remove_action = self._action(edit, "Re&move the selected entries\tDel", "", self._on_form("remove"))
        self.up_action = self._action(edit, "Move u&p\tAlt+Up", "", self._on_form("shift", -1))
        self.down_action = self._action(edit, "Move do&wn\tAlt+Down", "", self._on_form("shift", 1))
        edit.addSeparator()
        self.regenerate_action = self._action(edit, "Re&generate layers…", "Ctrl+G", self.regenerate)
        self.lock_action = self._action(edit, "&Edit layers by hand, or lock them", "", self._toggle_lock)

        check = bar.addMenu("&Check")
        self.next_action = self._action(check, "&Next problem", "F8", self.next_problem)
        self.fix_action = self._action(check, "&Fix all", "Ctrl+.", self.fix_all)
        self.compare_action = self._action(check, "&Compare with adapters…", "", self._on_form("ask_for_adapters"))

        view = bar.addMenu("&View")
        for number, (key, text) in enumerate((("form", "&Form"), ("both", "&Both"), ("json", "&JSON")), 1):
            self._action(view, text, f"Ctrl+{number}", partial(self.set_layout, key))
        self._document_actions = [
            self.save_action,
            self.save_as_action,
            self.load_action,
            self.close_action,
            self.add_action,
            self.remove_action,
            self.up_action,
            self.down_action,
            self.regenerate_action,
            self.lock_action,
            self.next_action,
            self.compare_action,
        ]
        self.set_recent([])

    def _on_form(self, method: str, *arguments: object) -> Callable[[], object]:
        """Calls a method of the form in sight."""

        def call() -> object:
            view = self.view()
            return getattr(view.form, method)(*arguments) if view is not None else None

        return call

    def _toggle_lock(self) -> None:
        view = self.view()
        if view is not None:
            view.form.show_page("layers")
            view.form.layers.toggle_lock()

    def _action(self, menu: QMenu, text: str, key: str, slot: Callable[[], object], icon: str = "") -> QAction:
        action = QAction(text, self)
        if key:
            action.setShortcut(QKeySequence(key))
        if icon:
            self.theme.bind_icon(action, icon)
        action.triggered.connect(lambda _checked=False: slot())
        menu.addAction(action)
        self.addAction(action)
        return action

    def _lay_out(self) -> None:
        self._close_window = False
        self._tools = QWidget()
        row = QHBoxLayout(self._tools)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(4)
        for action in (self.new_action, self.open_action, self.save_action, None, self.undo_action, self.redo_action):
            if action is None:
                row.addSpacing(10)
                continue
            button = QToolButton()
            button.setDefaultAction(action)
            button.setIconSize(QSize(18, 18))
            button.setAccessibleName(action.text().replace("&", "").removesuffix("…"))
            row.addWidget(button)
        row.addSpacing(10)
        row.addWidget(self.layouts)
        row.addStretch(1)
        self.load_button = push_button("Load in the model loader")
        self.load_button.setToolTip("Save this file and load a model with it (Ctrl+L)")
        self.load_button.clicked.connect(self.load_current)
        row.addWidget(self.load_button)
        content = QWidget()
        column = QVBoxLayout(content)
        column.setContentsMargins(12, 4, 12, 4)
        column.setSpacing(8)
        column.addWidget(self._tools)
        column.addWidget(self.notice)
        column.addWidget(self.tabs)
        column.addWidget(self.pages, 1)
        self.setCentralWidget(content)
        self.statusBar().setSizeGripEnabled(False)
