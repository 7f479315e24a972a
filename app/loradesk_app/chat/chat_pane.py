"""The chat: the conversation, the composer, and what one can do with them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QFrame, QStackedLayout, QVBoxLayout, QWidget

from loradesk_app.chat.composer import Composer
from loradesk_app.chat.conversation import Turn, from_json, messages, to_json, to_markdown
from loradesk_app.chat.conversation_model import ConversationModel
from loradesk_app.chat.conversation_view import ConversationView
from loradesk_app.chat.empty_state import EmptyState
from loradesk_app.chat.presets import preset_name, sampling_from, sampling_to_keep
from loradesk_app.chat.sampling_popover import SamplingPopover
from loradesk_app.theme import Theme
from loradesk_engine.commands import ChatRequest, Sampling

if TYPE_CHECKING:
    from loradesk_engine.events import (
        AdaptersActivated,
        ModelInfo,
        Problem,
        RequestFailed,
        RequestFinished,
        RequestStarted,
        TokensGenerated,
    )


class ChatPane(QFrame):
    """Emits requests, shows answers. Knows the model only by its name, mode and adapters."""

    answer_requested = Signal(object)  # ChatRequest
    stop_requested = Signal(str)
    sampling_changed = Signal(dict)
    system_changed = Signal(str)
    history_changed = Signal(list)
    changed = Signal()  # something that autosave should keep
    busy_changed = Signal(bool)

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setProperty("kind", "pane")
        self._theme = theme
        self._sampling = sampling_from({})
        self._system = ""
        self._model_name, self._mode = "", "none"
        self._colors: dict[str, int] = {}
        self._editing = False
        self._draft_before_edit = ""
        self._previous: list[Turn] = []

        self.model = ConversationModel(self)
        self.view = ConversationView(theme, self.model, self._colors)
        self.empty = EmptyState(theme)
        self.composer = Composer(theme)
        self.popover: SamplingPopover | None = None
        self._stack_holder = QWidget()
        self._stack = QStackedLayout(self._stack_holder)
        self._stack.addWidget(self.empty)
        self._stack.addWidget(self.view)
        foot = QVBoxLayout()
        foot.setContentsMargins(14, 0, 14, 14)
        foot.addWidget(self.composer)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(6)
        column.addWidget(self._stack_holder, 1)
        column.addLayout(foot)

        self.empty.example_chosen.connect(self.send)
        self.view.regenerate_requested.connect(self.regenerate)
        self.view.edit_requested.connect(self.edit_last)
        self.composer.submitted.connect(self.send)
        self.composer.stop_requested.connect(self.stop)
        self.composer.edit_cancelled.connect(self._cancel_edit)
        self.composer.sampling_requested.connect(self.open_sampling)
        self.composer.history_changed.connect(self.history_changed)
        self.composer.draft_changed.connect(self.changed)
        self.model.changed.connect(self._note_change)
        self.model.busy_changed.connect(self._note_busy)
        self.setFocusProxy(self.composer.edit)

    def tab_stops(self) -> tuple[QWidget, ...]:
        composer = self.composer
        return (self.view, composer.edit, composer.sampling_button, composer.stop_button, composer.send_button)

    # -- what the user does -------------------------------------------------------------------------------------

    def send(self, text: str) -> None:
        """Ask something: a new turn, or the last one over again when it was being edited."""
        if self.model.open_request:
            return
        if self._editing:
            self._end_edit()
            request_id = self.model.replace_last_question(text)
        else:
            request_id = self.model.ask(text)
        self._request(request_id)

    def regenerate(self) -> None:
        """Ask for the last answer again."""
        request_id = self.model.regenerate()
        if request_id:
            self._request(request_id)

    def edit_last(self) -> None:
        """Put the last message back into the composer."""
        row = self.model.last_question_row()
        if row is None or self.model.open_request:
            return
        self._draft_before_edit = self.composer.text() if not self._editing else self._draft_before_edit
        self._editing = True
        self.composer.set_editing(True)
        self.composer.set_text(self.model.turn(row).text)
        self.composer.edit.setFocus()

    def stop(self) -> None:
        """Stop the answer under way, or leave editing."""
        request_id = self.model.open_request
        if request_id:
            self.stop_requested.emit(request_id)
        elif self._editing:
            self._cancel_edit()

    def start_new(self) -> None:
        """Begin a new conversation; the old one can be brought back."""
        if not self.model.rowCount():
            self.composer.edit.setFocus()
            return
        self.stop()
        self.model.stop_answer()
        self._end_edit()
        self._previous = list(self.model.turns)
        self.model.replace_all([])
        self.composer.edit.setFocus()

    def bring_back_previous(self) -> None:
        """Swap the conversation with the one before it."""
        if not self._previous or self.model.open_request:
            return
        self._end_edit()
        previous, self._previous = self._previous, list(self.model.turns)
        self.model.replace_all(previous)

    @property
    def has_previous(self) -> bool:
        return bool(self._previous)

    @property
    def is_empty(self) -> bool:
        return self.model.rowCount() == 0

    def copy_last_answer(self) -> str:
        """Text of the newest answer."""
        return next((turn.text for turn in reversed(self.model.turns) if turn.role == "assistant"), "")

    def open_sampling(self) -> None:
        if self.popover is None:
            self.popover = SamplingPopover(self)
            self.popover.sampling_changed.connect(self._take_sampling)
            self.popover.system_changed.connect(self._take_system)
        self.popover.set_sampling(self._sampling)
        self.popover.set_system(self._system)
        self.popover.open_above(self.composer.sampling_button)

    # -- what is kept -------------------------------------------------------------------------------------------

    def export(self, markdown: bool) -> bytes:
        """The conversation as a file, Markdown or JSON."""
        turns = self.model.turns
        text = to_markdown(turns) if markdown else json.dumps(to_json(turns), ensure_ascii=False, indent=2) + "\n"
        return text.encode()

    def state(self) -> dict[str, Any]:
        """Everything that must survive a restart, as JSON."""
        draft = self._draft_before_edit if self._editing else self.composer.text()
        return {
            **to_json(self.model.turns),
            "draft": draft,
            "previous": to_json(self._previous)["turns"],
        }

    def restore(self, state: Any) -> None:
        """Bring back a kept state. What the user did in the meantime is not overwritten."""
        if not isinstance(state, dict):
            return
        self._previous = self._previous or from_json({"turns": state.get("previous")})
        if self.is_empty:
            self.model.replace_all(from_json(state))
        draft = state.get("draft")
        if isinstance(draft, str) and not self.composer.text():
            self.composer.set_text(draft)

    def open_conversation(self, turns: list[Turn]) -> None:
        """Show a conversation from a file; the one that was open can be brought back."""
        if self.model.open_request:
            self.stop()
            self.model.stop_answer()
        self._end_edit()
        if self.model.rowCount():
            self._previous = list(self.model.turns)
        self.model.replace_all(turns)

    def set_sampling(self, kept: dict[str, Any], system: str) -> None:
        """Take over what the settings kept."""
        self._sampling = sampling_from(kept)
        self._system = system
        self.composer.show_preset(preset_name(self._sampling))

    # -- what the engine tells ----------------------------------------------------------------------------------

    def show_model(self, info: ModelInfo | None, demo: bool = False) -> None:
        """Take note of what answers from now on."""
        self._model_name = info.name if info else ""
        self._mode = info.mode if info else "none"
        names = tuple(adapter.name for adapter in info.adapters) if info else ()
        self.set_adapters(names)
        self.empty.set_model(self._model_name, self._mode, demo)
        place = f"Message {info.name}" if info else "Message the model"
        self.composer.edit.set_placeholder(place)

    def set_adapters(self, names: tuple[str, ...]) -> None:
        """The adapters in order; their places give the chips' colours."""
        self.model.set_adapters(names)
        self._colors.clear()
        self._colors.update({name: place for place, name in enumerate(names)})

    def show_started(self, event: RequestStarted) -> None:
        self.model.start_answer(event, self._model_name, self._mode)

    def show_tokens(self, event: TokensGenerated) -> None:
        self.model.add_tokens(event)

    def show_finished(self, event: RequestFinished) -> None:
        self.model.finish_answer(event)

    def show_failed(self, event: RequestFailed) -> None:
        self.model.fail_answer(event.request_id, event.problem)

    def show_problem(self, problem: Problem) -> None:
        """The open answer cannot come."""
        if self.model.open_request:
            self.model.fail_answer(self.model.open_request, problem)

    def show_activation(self, event: AdaptersActivated) -> None:
        self.model.note_activation(event.weights)

    @property
    def sampling(self) -> Sampling:
        return self._sampling

    # ------------------------------------------------------------------------------------------------------------

    def _request(self, request_id: str) -> None:
        said = messages(self.model.turns[:-1], self._system)
        self.answer_requested.emit(
            ChatRequest(request_id, said, self._sampling, follow_activation=True, want_scalings=True)
        )

    def _take_sampling(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self.composer.show_preset(preset_name(sampling))
        self.sampling_changed.emit(sampling_to_keep(sampling))

    def _take_system(self, text: str) -> None:
        self._system = text
        self.system_changed.emit(text)

    def _cancel_edit(self) -> None:
        if self._editing:
            draft = self._draft_before_edit
            self._end_edit()
            self.composer.set_text(draft)

    def _end_edit(self) -> None:
        self._editing = False
        self.composer.set_editing(False)

    def _note_change(self) -> None:
        self._stack.setCurrentWidget(self.view if self.model.rowCount() else self.empty)
        self.changed.emit()

    def _note_busy(self, busy: bool) -> None:
        self.composer.set_busy(busy)
        self.busy_changed.emit(busy)
        if not busy and self.window().isActiveWindow() and self.window().focusWidget() in (None, self.view):
            self.composer.edit.setFocus(Qt.FocusReason.OtherFocusReason)
