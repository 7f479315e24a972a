"""Whether a text is being typed: nobody should be asked about half of a hub id."""

from __future__ import annotations

from PySide6.QtCore import QObject, Signal
from PySide6.QtWidgets import QLineEdit


class TypingWatch(QObject):
    """Watches line edits. Typing begins with a letter more or less, and ends when the field is left or Enter is
    pressed. A text that arrives at once (pasted, dropped, chosen) is not typed.

    Attributes:
        active: whether one of the fields is being typed into.
    """

    ended = Signal()

    def __init__(self, edits: tuple[QLineEdit, ...], parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.active = False
        for edit in edits:
            self._watch(edit)

    def stop(self) -> None:
        """Take what the fields hold for whole."""
        self.active = False

    def _watch(self, edit: QLineEdit) -> None:
        before = edit.text()

        def edited(text: str) -> None:  # by the user, and before `changed`
            self.active = inserted(before, text) <= 1

        def changed(text: str) -> None:
            nonlocal before
            before = text

        edit.textEdited.connect(edited)
        edit.textChanged.connect(changed)
        edit.editingFinished.connect(self._end)

    def _end(self) -> None:
        if self.active:
            self.active = False
            self.ended.emit()


def inserted(before: str, after: str) -> int:
    """How many characters came in, in one place, where one text became the other."""
    kept = _same_at_start(before, after)
    before, after = before[kept:], after[kept:]
    return len(after) - _same_at_start(before[::-1], after[::-1])


def _same_at_start(one: str, other: str) -> int:
    for count, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return count
    return min(len(one), len(other))
