"""The main window: builds the panes and makes all connections between them and the engine's client."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QByteArray, Qt, QTimer, Signal
from PySide6.QtGui import (
    QAction,
    QActionGroup,
    QCloseEvent,
    QDragEnterEvent,
    QDropEvent,
    QGuiApplication,
    QKeySequence,
)
from PySide6.QtWidgets import QFileDialog, QMainWindow, QMenu, QSplitter, QVBoxLayout, QWidget

from loradesk_app.about_dialog import AboutDialog
from loradesk_app.adapters.adapters_pane import AdaptersPane
from loradesk_app.autosave import Autosave
from loradesk_app.background import Background
from loradesk_app.chat.chat_pane import ChatPane
from loradesk_app.chat.conversation import Turn
from loradesk_app.chat.conversation import from_json as turns_from_json
from loradesk_app.engine_client import EngineClient
from loradesk_app.header import Header
from loradesk_app.loader import recent
from loradesk_app.loader.load_banner import LoadBanner
from loradesk_app.loader.load_form import LoadForm
from loradesk_app.loader.loader_dialog import LoaderDialog
from loradesk_app.log.log_desk import LogDesk
from loradesk_app.opening import recognise
from loradesk_app.preferences_dialog import PreferencesDialog
from loradesk_app.scalings.scalings_pane import ScalingsPane, warm_up
from loradesk_app.server_client import ServerClient
from loradesk_app.settings import THEMES, Settings
from loradesk_app.side_panel import SidePanel
from loradesk_app.status_bar import StatusBar
from loradesk_app.theme import Theme
from loradesk_app.widgets.drop_edit import dropped_paths
from loradesk_app.widgets.focus import chain
from loradesk_engine.activation import none_active
from loradesk_engine.commands import (
    Activate,
    AdapterMode,
    AddAdapter,
    Cancel,
    CancelLoad,
    ChatRequest,
    Estimate,
    Load,
    LoadSettings,
    RemoveAdapter,
    Unload,
)
from loradesk_engine.demo import demo_settings
from loradesk_engine.files import read_json_object, write_atomic
from loradesk_engine.log.trail import Trail

if TYPE_CHECKING:  # events.py imports numpy, which the window can do without until it is painted
    from loradesk_app.ordering.editor_window import EditorWindow
    from loradesk_app.server.server_dialog import ServerDialog
    from loradesk_engine.events import (
        AdaptersActivated,
        AdaptersChanged,
        CommandFailed,
        LoadCancelled,
        LoadFailed,
        LoadProgressed,
        ModelInfo,
        ModelLoaded,
        RequestFailed,
        RequestFinished,
        RequestStarted,
        TokensGenerated,
        WorkerReady,
    )

MIN_SIZE = (720, 480)
START_SIZE = (1280, 800)
SIDE_MIN_WIDTH = 340  # the heads of its panes fit whole
MESSAGE_MS = 5000
MAX_TOGGLES = 9
SAVE_SECONDS = 10.0
FONT_STEP = 10


class MainWindow(QMainWindow):
    """Everything on screen. `start` gets the engine going; until then nothing of it is imported.

    Args:
        settings, theme: of the application.
        client: talks to the engine.
        conversation_path: where the conversation is kept; None for the user's data folder.
        trail: the log of this run; None for one that collects nothing.
    """

    closing_began = Signal()
    closed_down = Signal(bool)  # the engine has ended (True) or was given up on (False); everything is saved

    def __init__(
        self,
        settings: Settings,
        theme: Theme,
        client: EngineClient,
        conversation_path: str | Path | None = None,
        parent: QWidget | None = None,
        trail: Trail | None = None,
    ) -> None:
        super().__init__(parent)
        self.setWindowTitle("Loradesk")
        self.setMinimumSize(*MIN_SIZE)
        self.setAcceptDrops(True)
        self.settings, self.theme, self.client = settings, theme, client
        self.info: ModelInfo | None = None
        self.loaded: LoadSettings | None = None
        self._held: ChatRequest | None = None  # asked before there was a model to ask
        self._announce_none_active = False  # whether the load that ended last has yet to say so
        self._engine_text = ""
        self._devices: tuple[str, ...] = ()
        self._closing = self._closed = False

        self.background = Background(self)
        self.header = Header(theme)
        self.banner = LoadBanner(theme)
        self.chat = ChatPane(theme)
        self.adapters = AdaptersPane(theme)
        self.scalings = ScalingsPane(theme)
        headings = (self.adapters.title, self.scalings.title)
        self.side = SidePanel((self.adapters, self.scalings), ("Adapters", "Scalings"), headings)
        self.status = StatusBar()
        self.loader: LoaderDialog | None = None
        self.autosave = Autosave(self.background, self.chat.state, conversation_path, self)
        self.editor: EditorWindow | None = None
        self.server = ServerClient(self.background, self)
        self.server_dialog: ServerDialog | None = None
        # beside the conversation, where a test or a portable installation put it
        self._recovery_folder = Path(conversation_path).parent / "ordering" if conversation_path else None

        self.log = LogDesk(
            theme,
            trail or Trail("window"),
            self.background,
            model_sentence=self._model_sentence,
            confirm_saved=self._confirm_saved,
            get_setting=settings.get,
            parent=self,
        )

        self._lay_out()
        self._make_actions()
        self._connect_panes()
        self._connect_client()
        self._take_settings()

    # -- life ---------------------------------------------------------------------------------------------------

    def start(self, first: LoadSettings | None) -> None:
        """Bring back the conversation, start the engine and load a model. Call it when the window is painted."""
        self.autosave.restore(self.settings.get("restore_conversation"))
        self.background.run(warm_up)
        from loradesk_app.ordering.recovery import has_unsaved_work  # not before the first paint

        self.background.run(partial(has_unsaved_work, self._recovery_folder), self._offer_unsaved_work)
        try:
            self.client.start()
        except ImportError as error:
            self._show_error(error, "The engine could not be started.")
            return
        if first is not None:
            self.load(first)
        else:
            self.status.show_state("No model is loaded")

    def closeEvent(self, event: QCloseEvent) -> None:
        """The window goes at once; the engine and the last save end behind it."""
        if self._closed:
            event.accept()
            return
        event.ignore()
        if self._closing:
            return
        self._closing = True
        self.closing_began.emit()
        self.log.end()
        self._keep_places()
        if self.editor is not None:
            self.settings.set("ordering_window", self.editor.places())
            self.editor.shut_down()  # keeps unsaved work, asks nothing
        self.server.stop()
        self.autosave.save()
        self.hide()
        self.client.close()

    def _finish_closing(self, clean: bool) -> None:
        self.chat.model.stop_answer()
        self.autosave.save()
        self.background.wait(SAVE_SECONDS)
        self.settings.sync()
        self._closed = True
        self.closed_down.emit(clean)

    # -- what the user does: one method for menu, key and button ------------------------------------------------

    def load(self, settings: LoadSettings) -> None:
        """Load a model; the one that is loaded goes on working meanwhile."""
        if self.client.is_loading:
            self.client.send(CancelLoad())
        self.banner.start(recent.title(settings))
        self.header.show_wished_mode(settings.mode)
        if self.loader:
            self.loader.show_started()
        self.client.send(Load(settings))
        self._show_state()

    def change_mode(self, mode: AdapterMode) -> None:
        """Reload the same model in another mode; when it is not known how, the loader asks."""
        if self.info is None:
            return
        if self.loaded is None:  # another program loaded it
            self.header.show_actual_mode()
            if mode != self.info.mode:
                self.open_loader()
            return
        if mode == self.loaded.mode:
            if self.client.is_loading:
                self.cancel_load()
            return
        known = recent.readable(self.settings.get("recent_models"))
        settings = recent.in_mode(self.loaded, mode, known)
        if settings is not None:
            self.load(settings)
            return
        self.header.show_actual_mode()
        self.open_loader(LoadForm.of(replace(self.loaded, mode=mode)))

    def cancel_load(self) -> None:
        self.client.send(CancelLoad())

    def unload(self) -> None:
        self.client.send(Unload())

    def open_loader(self, form: LoadForm | None = None) -> None:
        """Open the loader, filled in with a form or with what is loaded."""
        if self.loader is None:
            self.loader = LoaderDialog(self.theme, self._devices, self)
            self.loader.load_requested.connect(self.load)
            self.loader.cancel_requested.connect(self.cancel_load)
            self.loader.estimate_requested.connect(
                lambda settings, ask_hub: self.client.send(Estimate(settings, ask_hub))
            )
            self.client.memory_estimated.connect(self.loader.show_estimate)
            self.client.estimate_failed.connect(self.loader.show_no_estimate)
            self.loader.edit_ordering_requested.connect(self.open_editor)
            if self.loaded is not None and form is None:
                form = LoadForm.of(self.loaded)
        self.loader.set_recent(recent.readable(self.settings.get("recent_models")))
        if form is not None:
            self.loader.set_form(form)
        self.loader.open()

    def open_editor(self, path: str = "") -> None:
        """Open the editor of ordering files, with a file or as it was."""
        if self.editor is None:
            from loradesk_app.ordering.editor_window import EditorWindow  # not before the first paint

            self.editor = EditorWindow(self.theme, self._recovery_folder)
            self.editor.set_recent(self.settings.get("ordering_recent"))
            self.editor.restore_places(self.settings.get("ordering_window"))
            self.editor.recent_changed.connect(partial(self.settings.set, "ordering_recent"))
            self.editor.load_requested.connect(self._open_loader_with)
            self.editor.start()
        self.editor.show_up()
        if path:
            self.editor.open_file(path)

    def open_path(self, path: str) -> None:
        """Open what the desktop or the command line names: a model, an adapter, a checkpoint or an ordering file."""
        self.background.run(partial(recognise, path), self._open_recognised, self._show_error)

    def _open_recognised(self, found: LoadSettings | LoadForm | Path) -> None:
        if self._closing:
            return
        match found:
            case LoadSettings():
                self.load(found)
            case LoadForm():
                if self.loader is not None and self.loader.isVisible():  # its other fields are somebody's work
                    found = found.added_to(self.loader.form())
                self.open_loader(found)
            case _:
                self.open_editor(str(found))

    def show_up(self) -> None:
        """Come to the front: another start of the application ended in favour of this window."""
        self.setWindowState(self.windowState() & ~Qt.WindowState.WindowMinimized)
        self.raise_()
        self.activateWindow()

    def open_server(self) -> None:
        """Open the local server's window."""
        if self.server_dialog is None:
            from loradesk_app.server.server_dialog import ServerDialog  # not before the first paint

            dialog = self.server_dialog = ServerDialog(self.theme, self)
            dialog.set_port(self.settings.get("server_port"))
            dialog.set_model(self.info.name if self.info else "")
            dialog.start_requested.connect(self._start_server)
            dialog.stop_requested.connect(self.server.stop)
            self.server.started.connect(dialog.show_started)
            self.server.stopped.connect(dialog.show_stopped)
            self.server.failed.connect(dialog.show_failed)
            self.server.request_answered.connect(dialog.add_record)
        self.server_dialog.show()
        self.server_dialog.raise_()
        self.server_dialog.activateWindow()

    def _start_server(self, port: int, with_key: bool) -> None:
        assert self.server_dialog is not None
        self.settings.set("server_port", port)
        self.server_dialog.show_starting()
        self.client.start()
        self.server.start(self.client.worker, port, with_key)

    def _offer_unsaved_work(self, left: bool) -> None:
        if left and not self._closing:
            self.open_editor()

    def start_new_conversation(self) -> None:
        self.chat.start_new()
        self.scalings.clear()
        self._show_actions()

    def bring_back_previous(self) -> None:
        self.chat.bring_back_previous()
        self.scalings.clear()

    def open_conversation(self) -> None:
        """Ask for a conversation saved as JSON and show it."""
        path, _ = QFileDialog.getOpenFileName(self, "Open a conversation", "", "Conversations (*.json)")
        if path:
            self.read_conversation(path)

    def read_conversation(self, path: str) -> None:
        """Show a conversation saved as JSON."""
        self.background.run(lambda: turns_from_json(read_json_object(path)), self._show_turns, self._show_error)

    def export_conversation(self, kind: str) -> None:
        """Ask where, and save the conversation as `md` or `json`."""
        name = {"md": "Markdown (*.md)", "json": "JSON (*.json)"}[kind]
        path, _ = QFileDialog.getSaveFileName(self, "Export the conversation", f"conversation.{kind}", name)
        if path:
            path = path if path.lower().endswith(f".{kind}") else f"{path}.{kind}"
            data = self.chat.export(markdown=kind == "md")
            self.save(path, lambda: data)

    def save(self, path: str, produce: Callable[[], bytes]) -> None:
        """Write a file off the GUI thread, whole or not at all."""
        self.background.run(
            lambda: write_atomic(path, produce()),
            lambda _result: self.status.showMessage(f"Saved {path}", MESSAGE_MS),
            lambda error: self._show_error(error, f"{path} could not be saved."),
        )

    def copy_last_answer(self) -> None:
        text = self.chat.copy_last_answer()
        if text:
            QGuiApplication.clipboard().setText(text)
            self.status.showMessage("The last answer is on the clipboard", MESSAGE_MS)

    def toggle_theme(self) -> None:
        self.settings.set("theme", "light" if self.theme.is_dark else "dark")

    def toggle_side(self) -> None:
        self.settings.set("side_shown", not self.settings.get("side_shown"))

    def change_text_size(self, step: int) -> None:
        size = self.settings.get("font_scale") + step if step else 100
        self.settings.set("font_scale", min(max(size, 80), 180))

    def open_preferences(self) -> None:
        dialog = PreferencesDialog(self.settings, self)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.open()

    def open_about(self) -> None:
        keys = [
            (action.shortcut().toString(QKeySequence.SequenceFormat.NativeText), action.text().replace("&", ""))
            for action in self.actions()
            if not action.shortcut().isEmpty() and action not in self.toggle_actions
        ]
        keys.append((f"Ctrl+1 … {MAX_TOGGLES}", "Switch adapter 1 … 9"))
        dialog = AboutDialog(self._engine_text, keys, self)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.open()

    def _model_sentence(self) -> str:
        """What can be said of the model after a defect."""
        if self.client.started and not self.client.alive:
            return "The engine has ended: start Loradesk again to go on."
        if self.info is None:
            return "The engine runs; no model is loaded." if self.client.started else ""
        return f"The engine runs, and {self.info.name} is still loaded."

    def _confirm_saved(self, say: Callable[[str], None]) -> None:
        """Save the conversation, and say what came of it."""
        self.autosave.confirm(
            lambda problem: say(
                "The conversation is saved." if problem is None else f"The conversation could not be saved: {problem}"
            )
        )

    # -- requests of the panes ----------------------------------------------------------------------------------

    def _ask(self, request: ChatRequest) -> None:
        if self.info is not None:
            self.client.send(request)
        elif self.client.is_loading:
            self._held = request  # it is sent as soon as the model is there
        else:
            self._refuse("No model is loaded.", "Load one with Ctrl+O, then try again.")

    def _stop(self, request_id: str) -> None:
        if self._held is not None and self._held.request_id == request_id:
            self._held = None
            self.chat.model.stop_answer()
        elif request_id in self.client.running:
            self.client.send(Cancel(request_id))
        else:
            self.chat.model.stop_answer()

    def _activate(self, weights: dict[str, float]) -> None:
        loaded = self.info is not None and self.info.mode != "none"
        self.adapters.note_sent(self.client.send(Activate(weights)) if loaded else None)

    def _refuse(self, problem: str, remedy: str) -> None:
        from loradesk_engine.events import Problem

        self._held = None
        self.chat.show_problem(Problem("RequestError", problem, remedy=remedy))

    # -- events of the engine -----------------------------------------------------------------------------------

    def _note_worker(self, event: WorkerReady) -> None:
        self._devices = event.devices
        self._engine_text = f"torch {event.torch_version}"
        if self.loader:
            self.loader.set_devices(event.devices)

    def _note_progress(self, event: LoadProgressed) -> None:
        self.banner.show_progress(event)
        if self.loader:
            self.loader.show_progress(event)

    def _note_loaded(self, event: ModelLoaded) -> None:
        if self.server_dialog is not None:
            self.server_dialog.set_model(event.info.name)
        info = event.info
        self.info = info
        self.loaded = self.client.model_settings
        if self.loaded is not None:
            self.settings.set("recent_models", recent.remembered(self.settings.get("recent_models"), self.loaded))
            self.settings.set("last_model", recent.to_json(self.loaded))
        demo = self.loaded is not None and recent.is_demo(self.loaded)
        self.header.show_model(info)
        self._announce_none_active = True
        if not self.client.is_loading:  # otherwise another load of ours goes on
            self.banner.show_loaded(info)
            if self.loader:
                self.loader.show_loaded()
        self.chat.show_model(info, demo)
        self.adapters.show_model(info)
        self.scalings.show_model(info)
        self.status.show_model(info)
        self._show_state()
        if self._held is not None and not self.client.is_loading:
            request, self._held = self._held, None
            self.client.send(request)

    def _note_unloaded(self, _event: object) -> None:
        self.info = self.loaded = None
        self.header.show_model(None)
        self.chat.show_model(None)
        self.adapters.show_model(None)
        self.scalings.show_model(None)
        self.status.show_model(None)
        self._show_state()

    def _note_load_failed(self, event: LoadFailed) -> None:
        self._end_load(event.model_kept)
        if self.loader and self.loader.isVisible():
            self.banner.clear()
            self.loader.show_failed(event)
        else:
            if self.loader:
                self.loader.show_failed(event)
            self.banner.show_failed(event)

    def _note_load_cancelled(self, event: LoadCancelled) -> None:
        self._end_load(event.model_kept)
        self.banner.clear()
        if self.loader:
            self.loader.show_cancelled()
        self.status.showMessage("Loading was cancelled", MESSAGE_MS)

    def _end_load(self, model_kept: bool) -> None:
        self.header.show_actual_mode()
        if not model_kept and self.info is not None:
            self._note_unloaded(None)
        if self._held is not None:
            self._refuse("There is no model to answer.", "Load one with Ctrl+O, then try again.")
        self._show_state()

    def _note_activated(self, event: AdaptersActivated) -> None:
        self.adapters.show_activation(event)
        self.chat.show_activation(event)
        self._show_none_active(event)

    def _show_none_active(self, event: AdaptersActivated) -> None:
        """Say once after a load that none of its adapters is active; not when the user switches them off later."""
        first, self._announce_none_active = self._announce_none_active, False
        names = self.adapters.model.names()
        notice = none_active(names, event.weights)
        if notice is None:
            self.banner.show_none_active("")
        elif first and not self.client.is_loading:
            last = min(len(names), MAX_TOGGLES)
            which, keys = ("it", "Ctrl+1") if last == 1 else ("one", f"Ctrl+1 to Ctrl+{last}")
            self.banner.show_none_active(f"{notice} Turn {which} on with its switch on the desk, or with {keys}.")

    def _note_adapters(self, event: AdaptersChanged) -> None:
        self.adapters.show_adapters(event)
        self.chat.set_adapters(tuple(adapter.name for adapter in event.adapters))
        if self.info is not None:
            self.info = replace(self.info, adapters=event.adapters)

    def _note_command_failed(self, event: CommandFailed) -> None:
        self.adapters.show_failure(event)
        self.banner.show_problem(event.problem, loader=False)

    def _note_started(self, event: RequestStarted) -> None:
        self.chat.show_started(event)
        self.scalings.show_started(event)
        self.status.show_started()

    def _note_tokens(self, event: TokensGenerated) -> None:
        self.chat.show_tokens(event)
        self.scalings.show_tokens(event)
        self.adapters.show_tokens(event)
        self.status.show_tokens(event)

    def _note_finished(self, event: RequestFinished) -> None:
        self.chat.show_finished(event)
        self.status.show_finished(event)
        self.adapters.settle_meters()

    def _note_failed(self, event: RequestFailed) -> None:
        self.chat.show_failed(event)
        self.adapters.settle_meters()

    def _note_worker_closed(self, _event: object) -> None:
        if self._closing:
            return
        self._note_unloaded(None)
        self.banner.clear()
        self._refuse("The engine has stopped.", "Start Loradesk again; the conversation is kept.")
        self.status.show_state("The engine has stopped")
        self.log.refresh()

    # -- building -----------------------------------------------------------------------------------------------

    def _lay_out(self) -> None:
        self.splitter = QSplitter(Qt.Orientation.Horizontal)
        self.splitter.setChildrenCollapsible(False)
        self.splitter.setHandleWidth(8)
        self.splitter.addWidget(self.chat)
        self.splitter.addWidget(self.side)
        self.splitter.setStretchFactor(0, 5)
        self.splitter.setStretchFactor(1, 4)
        self.chat.setMinimumWidth(320)
        self.side.setMinimumWidth(SIDE_MIN_WIDTH)
        content = QWidget()
        column = QVBoxLayout(content)
        column.setContentsMargins(12, 2, 12, 4)
        column.setSpacing(0)
        column.addWidget(self.header)
        column.addWidget(self.banner)
        column.addWidget(self.splitter, 1)
        self.setCentralWidget(content)
        self.setStatusBar(self.status)
        chain(*(stop for part in (self.header, self.chat, self.adapters, self.scalings) for stop in part.tab_stops()))
        self.chat.composer.edit.setFocus()

    def _make_actions(self) -> None:
        bar = self.menuBar()
        file = bar.addMenu("&File")
        self._action(file, "&New conversation", "Ctrl+N", self.start_new_conversation)
        self._action(file, "&Open a conversation…", "", self.open_conversation)
        self.markdown_action = self._action(
            file, "Export as &Markdown…", "Ctrl+S", partial(self.export_conversation, "md")
        )
        self.json_action = self._action(
            file, "Export as &JSON…", "Ctrl+Shift+S", partial(self.export_conversation, "json")
        )
        file.addSeparator()
        self._action(file, "&Load a model…", "Ctrl+O", self.open_loader)
        self._action(file, "Load the &demo pack", "", lambda: self.load(demo_settings("xlora")))
        self.unload_action = self._action(file, "&Unload the model", "", self.unload)
        file.addSeparator()
        self._action(file, "Edit o&rdering files…", "Ctrl+Shift+O", self.open_editor)
        self._action(file, "Local ser&ver…", "Ctrl+Shift+L", self.open_server)
        file.addSeparator()
        self._action(file, "&Preferences…", "Ctrl+,", self.open_preferences)
        self._action(file, "&Quit", "Ctrl+Q", self.close)

        chat = bar.addMenu("&Chat")
        self._action(chat, "&Write a message", "Ctrl+L", self.chat.composer.edit.setFocus)
        self.stop_action = self._action(chat, "&Stop answering", "Esc", self.chat.stop)
        self.again_action = self._action(chat, "&Answer again", "Ctrl+R", self.chat.regenerate)
        self.edit_action = self._action(chat, "&Edit the last message", "Ctrl+E", self.chat.edit_last)
        self.copy_action = self._action(chat, "&Copy the last answer", "Ctrl+Shift+C", self.copy_last_answer)
        chat.addSeparator()
        self._action(chat, "Sa&mpling…", "Ctrl+T", self.chat.open_sampling)
        self.previous_action = self._action(chat, "Bring back the &previous conversation", "", self.bring_back_previous)

        desk = bar.addMenu("&Adapters")
        model = self.adapters.model
        self.toggle_actions: list[QAction] = []
        for row in range(MAX_TOGGLES):
            action = self._action(desk, "", "", partial(self.adapters.toggle, row))
            action.setShortcut(QKeySequence(f"Ctrl+{row + 1}"))
            action.setCheckable(True)
            action.setVisible(False)
            self.toggle_actions.append(action)
        self._toggles_end = desk.addSeparator()
        self.all_on_action = self._action(desk, "All &on", "", lambda: model.switch_all(True))
        self.all_off_action = self._action(desk, "All o&ff", "", lambda: model.switch_all(False))
        self.unity_action = self._action(desk, "All faders back to &1", "", model.reset)
        desk.addSeparator()
        self.add_action = self._action(desk, "&Add an adapter…", "Ctrl+Shift+A", self.adapters.ask_for_adapter)

        view = bar.addMenu("&View")
        self.side_action = self._action(view, "&Side panel", "Ctrl+B", self.toggle_side)
        self.side_action.setCheckable(True)
        themes = view.addMenu("&Theme")
        group = QActionGroup(self)
        self.theme_actions: dict[str, QAction] = {}
        for key, text in THEMES:
            action = themes.addAction(text, partial(self.settings.set, "theme", key))
            action.setCheckable(True)
            group.addAction(action)
            self.theme_actions[key] = action
        self._action(view, "Light or &dark", "Ctrl+Shift+D", self.toggle_theme)
        view.addSeparator()
        self._action(view, "&Larger text", "Ctrl++", partial(self.change_text_size, FONT_STEP))
        self._action(view, "S&maller text", "Ctrl+-", partial(self.change_text_size, -FONT_STEP))
        self._action(view, "&Normal text", "Ctrl+0", partial(self.change_text_size, 0))

        help_menu = bar.addMenu("&Help")
        self._action(help_menu, "&Log", "F12", self.log.open)
        self._action(help_menu, "&About Loradesk and its keys", "F1", self.open_about)

    def _action(self, menu: QMenu, text: str, key: str, slot: Callable[[], object]) -> QAction:
        action = QAction(text, self)
        if key:
            action.setShortcut(QKeySequence(key))
        action.triggered.connect(lambda _checked=False: slot())
        menu.addAction(action)
        self.addAction(action)  # so that the key works while the menu bar is hidden
        return action

    def _connect_panes(self) -> None:
        self.header.loader_requested.connect(self.open_loader)
        self.header.mode_requested.connect(self.change_mode)
        self.header.new_requested.connect(self.start_new_conversation)
        self.header.theme_requested.connect(self.toggle_theme)
        self.header.side_requested.connect(self.toggle_side)
        self.banner.cancel_requested.connect(self.cancel_load)
        self.banner.loader_requested.connect(self.open_loader)
        self.chat.answer_requested.connect(self._ask)
        self.chat.stop_requested.connect(self._stop)
        self.chat.changed.connect(self.autosave.note_change)
        self.chat.busy_changed.connect(lambda _busy: self._show_state())
        self.chat.sampling_changed.connect(partial(self.settings.set, "sampling"))
        self.chat.system_changed.connect(partial(self.settings.set, "system_prompt"))
        self.chat.history_changed.connect(partial(self.settings.set, "input_history"))
        self.chat.model.rowsInserted.connect(lambda *_rows: self._show_actions())
        self.chat.model.modelReset.connect(self._show_actions)
        self.adapters.weights_requested.connect(self._activate)
        self.adapters.add_requested.connect(lambda adapter: self.client.send(AddAdapter(adapter)))
        self.adapters.remove_requested.connect(lambda name: self.client.send(RemoveAdapter(name)))
        self.adapters.model.modelReset.connect(self._show_toggles)
        self.adapters.model.dataChanged.connect(lambda _first, _last: self._check_toggles())
        self.scalings.save_requested.connect(self.save)
        self.scalings.levels_picked.connect(self.adapters.model.set_levels)
        self.autosave.restored.connect(self.chat.restore)
        self.log.saved.connect(lambda path: self.status.showMessage(f"Saved {path}", MESSAGE_MS))
        self.log.save_failed.connect(partial(self._show_error, what="The report could not be saved."))
        self.autosave.failed.connect(partial(self._show_error, what="The conversation could not be saved."))
        self.settings.changed.connect(self._take_setting)

    def _connect_client(self) -> None:
        self.server.started.connect(lambda url, _key: self.status.show_server(url))
        self.server.stopped.connect(lambda: self.status.show_server(""))
        client = self.client
        client.worker_ready.connect(self._note_worker)
        client.load_progressed.connect(self._note_progress)
        client.model_loaded.connect(self._note_loaded)
        client.model_unloaded.connect(self._note_unloaded)
        client.load_failed.connect(self._note_load_failed)
        client.load_cancelled.connect(self._note_load_cancelled)
        client.adapters_activated.connect(self._note_activated)
        client.adapters_changed.connect(self._note_adapters)
        client.command_failed.connect(self._note_command_failed)
        client.request_started.connect(self._note_started)
        client.tokens_generated.connect(self._note_tokens)
        client.request_finished.connect(self._note_finished)
        client.request_failed.connect(self._note_failed)
        client.memory_measured.connect(self.status.show_memory)
        client.worker_closed.connect(self._note_worker_closed)
        client.closed.connect(self._finish_closing)

    # -- showing ------------------------------------------------------------------------------------------------

    def _show_turns(self, turns: list[Turn]) -> None:
        if not turns:
            self.status.showMessage("There is no conversation in that file", MESSAGE_MS)
            return
        self.chat.open_conversation(turns)
        self.scalings.clear()

    def _show_error(self, error: Exception, what: str = "") -> None:
        from loradesk_engine.events import Problem

        problem = Problem.of(error)
        if what and not problem.file:
            problem = replace(problem, problem=f"{what} {problem.problem}")
        self.banner.show_problem(problem, loader=False)

    def _show_state(self) -> None:
        if self.chat.model.open_request:
            text = "Waiting for the model" if self._held or self.info is None else "Answering"
        elif self.client.is_loading:
            text = "Loading"
        else:
            text = "Ready" if self.info is not None else "No model is loaded"
        self.status.show_state(text)
        self._show_actions()

    def _show_actions(self) -> None:
        """Enable what makes sense now."""
        busy, empty = self.chat.model.open_request is not None, self.chat.is_empty
        self.again_action.setEnabled(not busy and not empty)
        self.edit_action.setEnabled(not busy and not empty)
        self.copy_action.setEnabled(not empty)
        self.markdown_action.setEnabled(not empty)
        self.json_action.setEnabled(not empty)
        self.previous_action.setEnabled(not busy and self.chat.has_previous)
        self.unload_action.setEnabled(self.info is not None)

    def _show_toggles(self) -> None:
        names = self.adapters.model.names()
        for row, action in enumerate(self.toggle_actions):
            action.setVisible(row < len(names))
            action.setText(names[row].replace("&", "&&") if row < len(names) else "")
        self._toggles_end.setVisible(bool(names))
        for action in (self.all_on_action, self.all_off_action, self.unity_action):
            action.setEnabled(bool(names))
        self.add_action.setEnabled(self.adapters.model.mode == "lora")
        self._check_toggles()

    def _check_toggles(self) -> None:
        for row in range(min(self.adapters.model.rowCount(), MAX_TOGGLES)):
            self.toggle_actions[row].setChecked(self.adapters.model.is_heard(row))

    # -- settings and places ------------------------------------------------------------------------------------

    def _take_settings(self) -> None:
        get = self.settings.get
        self.chat.set_sampling(get("sampling"), get("system_prompt"))
        self.chat.composer.set_history(get("input_history"))
        for key in ("theme", "font_scale", "send_key", "side_shown"):
            self._take_setting(key, get(key))
        if not (get("window_geometry") and self.restoreGeometry(QByteArray(get("window_geometry")))):
            self.resize(*START_SIZE)
        if not (get("main_splitter") and self.splitter.restoreState(QByteArray(get("main_splitter")))):
            self.splitter.setSizes([700, 540])
        self.side.restore_state(get("side_splitter"))
        self._show_toggles()
        self._show_actions()

    def _take_setting(self, key: str, value: Any) -> None:
        match key:
            case "theme":
                self.theme.set_mode(str(value))
                self.theme_actions[str(value)].setChecked(True)
            case "font_scale":
                self.theme.set_font_scale(value)
            case "send_key":
                self.chat.composer.set_send_key(str(value))
            case "side_shown":
                self.side.setVisible(bool(value))
                self.side_action.setChecked(bool(value))
                self.header.show_side(bool(value))

    def _keep_places(self) -> None:
        self.settings.set("window_geometry", bytes(self.saveGeometry().data()))
        self.settings.set("main_splitter", bytes(self.splitter.saveState().data()))
        self.settings.set("side_splitter", self.side.state())

    # -- drops --------------------------------------------------------------------------------------------------

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        if dropped_paths(event):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        path = dropped_paths(event)[0]
        event.acceptProposedAction()
        QTimer.singleShot(0, self, lambda: self._open_loader_with(path))

    def _open_loader_with(self, path: str) -> None:
        self.open_loader()
        if self.loader:
            self.loader.take_path(path)
