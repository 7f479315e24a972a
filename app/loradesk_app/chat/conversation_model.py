"""The conversation as an item model: what the view shows and every change that can be made to it."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QAbstractListModel, QModelIndex, QObject, QPersistentModelIndex, Qt, Signal

from loradesk_app.chat.conversation import Turn

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from loradesk_engine.events import Problem, RequestFinished, RequestStarted, TokensGenerated

TURN_ROLE = Qt.ItemDataRole.UserRole + 1


class ConversationModel(QAbstractListModel):
    """Turns in order. One answer at most is open at a time, and it is the last turn.

    `changed` follows every change that is worth keeping on disk.
    """

    changed = Signal()
    busy_changed = Signal(bool)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._turns: list[Turn] = []
        self._sums: dict[str, np.ndarray] = {}
        self._rows: dict[str, int] = {}
        self._adapters: tuple[str, ...] = ()
        self._was_busy = False

    # -- what is there ------------------------------------------------------------------------------------------

    def rowCount(self, parent: QModelIndex | QPersistentModelIndex | None = None) -> int:
        return 0 if parent is not None and parent.isValid() else len(self._turns)

    def data(self, index: QModelIndex | QPersistentModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if not index.isValid():
            return None
        turn = self._turns[index.row()]
        if role == Qt.ItemDataRole.DisplayRole:
            return turn.text
        return turn if role == TURN_ROLE else None

    def turn(self, row: int) -> Turn:
        return self._turns[row]

    @property
    def turns(self) -> tuple[Turn, ...]:
        return tuple(self._turns)

    @property
    def open_request(self) -> str | None:
        """Id of the request being answered."""
        last = self._turns[-1] if self._turns else None
        return last.request_id if last and last.is_open else None

    # -- what the user does -------------------------------------------------------------------------------------

    def ask(self, text: str) -> str:
        """Add what the user says and an answer to come; returns the id of the request to send."""
        self._append(Turn("user", text))
        return self._await_answer()

    def regenerate(self) -> str | None:
        """Drop the last answer and await another; returns the id of the request to send."""
        if self.open_request or not self._turns:
            return None
        if self._turns[-1].role == "assistant":
            self._remove_from(len(self._turns) - 1)
        return self._await_answer() if self._turns else None

    def replace_last_question(self, text: str) -> str:
        """Drop what the user said last with its answer, and ask this instead."""
        row = self.last_question_row()
        if row is not None:
            self._remove_from(row)
        return self.ask(text)

    def last_question_row(self) -> int | None:
        return next((row for row in reversed(range(len(self._turns))) if self._turns[row].role == "user"), None)

    def replace_all(self, turns: list[Turn]) -> None:
        """Show another conversation."""
        self.beginResetModel()
        self._turns = list(turns)
        self.endResetModel()
        self._announce()

    def set_adapters(self, names: tuple[str, ...]) -> None:
        """The adapters of the model that answers from now on, in the order of the scalings."""
        self._adapters = names

    # -- what the engine tells ----------------------------------------------------------------------------------

    def start_answer(self, event: RequestStarted, model: str, mode: str) -> None:
        turn = self._open_turn(event.request_id)
        if turn is None:
            return
        turn.state, turn.prompt_tokens = "streaming", event.prompt_tokens
        turn.model, turn.mode = model, mode
        if mode == "lora":
            turn.shares = dict(event.weights)
        self._touch()

    def note_activation(self, weights: Mapping[str, float]) -> None:
        """Faders moved while an answer is under way: it shows all adapters that took part."""
        turn = self._turns[-1] if self._turns else None
        if turn and turn.state == "streaming" and turn.mode == "lora":
            turn.shares |= weights
            self._touch()

    def add_tokens(self, event: TokensGenerated) -> None:
        turn = self._open_turn(event.request_id)
        if turn is None:
            return
        turn.state = "streaming"
        turn.text += event.text
        turn.tokens += len(event.token_ids)
        if event.scalings is not None and len(event.scalings):
            self._add_scalings(turn, event)
        self._touch()

    def finish_answer(self, event: RequestFinished) -> None:
        turn = self._open_turn(event.request_id)
        if turn is None:
            return
        turn.text = event.text
        turn.state = "stopped" if event.finish_reason == "cancelled" else "done"
        turn.cut_short = event.finish_reason == "length"
        turn.tokens, turn.prompt_tokens = event.completion_tokens, event.prompt_tokens
        turn.tokens_per_second, turn.first_token_seconds = event.tokens_per_second, event.first_token_seconds
        turn.look_ahead = event.look_ahead.rate if event.look_ahead is not None else 0.0
        self._touch()
        self._announce()

    def fail_answer(self, request_id: str, problem: Problem) -> None:
        turn = self._open_turn(request_id)
        if turn is None:
            return
        turn.state, turn.problem = "failed", problem
        self._touch()
        self._announce()

    def stop_answer(self) -> None:
        """End the open answer without the engine: it was never sent, or the engine is gone."""
        request_id = self.open_request
        turn = self._open_turn(request_id) if request_id else None
        if turn is not None:
            turn.state = "stopped"
            self._touch()
            self._announce()

    # ------------------------------------------------------------------------------------------------------------

    def _await_answer(self) -> str:
        request_id = uuid.uuid4().hex
        self._append(Turn("assistant", state="waiting", request_id=request_id))
        return request_id

    def _open_turn(self, request_id: str) -> Turn | None:
        last = self._turns[-1] if self._turns else None
        return last if last and last.is_open and last.request_id == request_id else None

    def _add_scalings(self, turn: Turn, event: TokensGenerated) -> None:
        """Sum the scalings that shaped the answer: from the prompt's last token on."""
        assert event.scalings is not None
        skip = max(0, turn.prompt_tokens - 1 - event.scalings_start)
        rows = event.scalings[skip:]
        if not len(rows) or rows.shape[2] != len(self._adapters):
            return
        total = rows.mean(axis=1).sum(axis=0)
        self._sums[turn.request_id] = self._sums.get(turn.request_id, 0) + total
        self._rows[turn.request_id] = self._rows.get(turn.request_id, 0) + len(rows)
        mean = self._sums[turn.request_id] / self._rows[turn.request_id]
        turn.shares = {name: float(share) for name, share in zip(self._adapters, mean, strict=True)}

    def _append(self, turn: Turn) -> None:
        row = len(self._turns)
        self.beginInsertRows(QModelIndex(), row, row)
        self._turns.append(turn)
        self.endInsertRows()
        self._announce()

    def _remove_from(self, row: int) -> None:
        self.beginRemoveRows(QModelIndex(), row, len(self._turns) - 1)
        del self._turns[row:]
        self.endRemoveRows()
        self._announce()

    def _touch(self) -> None:
        index = self.index(len(self._turns) - 1)
        self.dataChanged.emit(index, index)
        self.changed.emit()

    def _announce(self) -> None:
        self.changed.emit()
        busy = self.open_request is not None
        if not busy:
            self._sums.clear()
            self._rows.clear()
        if busy != self._was_busy:
            self._was_busy = busy
            self.busy_changed.emit(busy)
