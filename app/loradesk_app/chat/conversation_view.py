"""The scrolling column of turns."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QModelIndex, Qt, QTimer, Signal
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QFrame, QScrollArea, QVBoxLayout, QWidget

from loradesk_app.chat.conversation_model import ConversationModel
from loradesk_app.chat.turn_views import AnswerView, QuestionView
from loradesk_app.theme import Theme
from loradesk_app.widgets.buttons import icon_button
from loradesk_app.widgets.focus import chain

COLUMN_WIDTH = 780  # longer lines are hard to read
NEAR_END = 24  # pixels; closer than this counts as being at the end


class ConversationView(QScrollArea):
    """Shows a `ConversationModel`, and stays at the newest words unless the user scrolled away."""

    regenerate_requested = Signal()
    edit_requested = Signal()

    def __init__(self, theme: Theme, model: ConversationModel, colors: dict[str, int]) -> None:
        super().__init__()
        self._theme, self._model, self._colors = theme, model, colors
        self._follow = True
        self._views: list[QuestionView | AnswerView] = []
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setAccessibleName("Conversation")
        self._content = QWidget()
        self._column = QVBoxLayout(self._content)
        self._column.setSpacing(20)
        self._column.addStretch(1)
        self.setWidget(self._content)
        self._set_margins()

        self.newest_button = icon_button(theme, "chevron-down", "Go to the newest words", role="on_accent", kind="send")
        self.newest_button.setParent(self)
        self.newest_button.hide()
        self.newest_button.clicked.connect(self.follow_newest)
        bar = self.verticalScrollBar()
        bar.actionTriggered.connect(lambda _action: self._defer(self._note_position))
        bar.valueChanged.connect(self._note_value)
        bar.rangeChanged.connect(self._keep_at_end)

        model.rowsInserted.connect(self._insert)
        model.rowsRemoved.connect(self._remove)
        model.dataChanged.connect(lambda first, _last: self._show(first.row()))
        model.modelReset.connect(self._rebuild)
        model.busy_changed.connect(lambda _busy: self._mark_last())

    @property
    def views(self) -> tuple[QuestionView | AnswerView, ...]:
        """The widgets of the turns, in order."""
        return tuple(self._views)

    def follow_newest(self) -> None:
        """Scroll to the end and stay there."""
        self._follow = True
        self.newest_button.hide()
        self.verticalScrollBar().setValue(self.verticalScrollBar().maximum())

    def is_at_end(self) -> bool:
        bar = self.verticalScrollBar()
        return bar.maximum() - bar.value() <= NEAR_END

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._set_margins()
        size = self.newest_button.sizeHint()
        self.newest_button.setGeometry(
            (self.width() - size.width()) // 2, self.height() - size.height() - 8, size.width(), size.height()
        )

    def _set_margins(self) -> None:
        side = max(18, (self.viewport().width() - COLUMN_WIDTH) // 2)
        self._column.setContentsMargins(side, 18, side, 18)

    def _insert(self, _parent: QModelIndex, first: int, last: int) -> None:
        for row in range(first, last + 1):
            view = self._make(row)
            self._views.insert(row, view)
            self._column.insertWidget(row, view)
            before = self._views[row - 1].tab_stops()[-1] if row else self
            chain(before, *view.tab_stops())
            self._show(row)
        self._mark_last()
        self.follow_newest()  # what the user just asked is what the user wants to see

    def _make(self, row: int) -> QuestionView | AnswerView:
        turn = self._model.turn(row)
        if turn.role == "user":
            question = QuestionView(self._theme, turn)
            question.edit_requested.connect(self.edit_requested)
            return question
        answer = AnswerView(self._theme, self._colors)
        answer.regenerate_requested.connect(self.regenerate_requested)
        return answer

    def _remove(self, _parent: QModelIndex, first: int, last: int) -> None:
        for _ in range(first, last + 1):
            view = self._views.pop(first)
            view.hide()
            self._column.removeWidget(view)
            view.deleteLater()
        self._mark_last()

    def _rebuild(self) -> None:
        if self._views:
            self._remove(QModelIndex(), 0, len(self._views) - 1)
        if self._model.rowCount():
            self._insert(QModelIndex(), 0, self._model.rowCount() - 1)

    def _show(self, row: int) -> None:
        view = self._views[row]
        if isinstance(view, AnswerView):
            view.show_turn(self._model.turn(row))

    def _mark_last(self) -> None:
        busy = self._model.open_request is not None
        question = self._model.last_question_row()
        for row, view in enumerate(self._views):
            last = row == question if isinstance(view, QuestionView) else row == len(self._views) - 1
            view.set_last(last, busy)

    def _note_position(self) -> None:
        self._follow = self.is_at_end()
        self.newest_button.setVisible(not self._follow)

    def _note_value(self, _value: int) -> None:
        # Wheel and keys move the value without a range change; growth of the column comes with one.
        if self.is_at_end():
            self._follow = True
            self.newest_button.hide()
        elif self._last_maximum == self.verticalScrollBar().maximum():
            self._note_position()

    _last_maximum = 0

    def _keep_at_end(self, _low: int, high: int) -> None:
        self._last_maximum = high
        if self._follow:
            self.verticalScrollBar().setValue(high)

    def _defer(self, work: Callable[[], None]) -> None:
        QTimer.singleShot(0, self, work)
