"""Asks for one more LoRA adapter."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QDialog, QFileDialog, QFormLayout, QHBoxLayout, QLineEdit, QVBoxLayout, QWidget

from loradesk_app.widgets.buttons import push_button
from loradesk_app.widgets.drop_edit import tell_whole_text
from loradesk_app.widgets.labels import field_caption, label
from loradesk_engine.commands import AdapterSource


class AddAdapterDialog(QDialog):
    """Name and place of an adapter. Names that are taken are refused before the engine has to."""

    add_requested = Signal(object)  # AdapterSource

    def __init__(self, taken: tuple[str, ...], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Add an adapter")
        self._taken = taken
        self._named_by_hand = False
        self.source = QLineEdit()
        self.source.setPlaceholderText("Folder of a PEFT adapter, or a hub id")
        self.source.setAccessibleName("Adapter folder or hub id")
        self.source.textChanged.connect(self._note_source)
        tell_whole_text(self.source)
        browse = push_button("Browse…")
        browse.clicked.connect(self._browse)
        self.name = QLineEdit()
        self.name.setAccessibleName("Adapter name")
        self.name.textEdited.connect(self._note_name)
        self.name.textChanged.connect(lambda _text: self._check())
        self.complaint = label("", "danger", wrap=True)
        self.add_button = push_button("Add", "primary")
        self.add_button.setDefault(True)
        self.add_button.clicked.connect(self.accept)
        cancel = push_button("Cancel")
        cancel.clicked.connect(self.reject)

        place = QHBoxLayout()
        place.setSpacing(8)
        place.addWidget(self.source, 1)
        place.addWidget(browse)
        form = QFormLayout()
        form.setHorizontalSpacing(12)
        form.setVerticalSpacing(10)
        form.addRow(field_caption("&Source", self.source, "muted"), place)
        form.addRow(field_caption("&Name", self.name, "muted"), self.name)
        buttons = QHBoxLayout()
        buttons.addWidget(self.complaint, 1)
        buttons.addWidget(cancel)
        buttons.addWidget(self.add_button)
        column = QVBoxLayout(self)
        column.setContentsMargins(20, 18, 20, 18)
        column.setSpacing(14)
        column.addWidget(
            label(
                "The adapter joins the desk switched off. It must have been trained on this base model.",
                "muted",
                wrap=True,
            )
        )
        column.addLayout(form)
        column.addLayout(buttons)
        self.setMinimumWidth(480)
        self._check()

    def accept(self) -> None:
        if self.add_button.isEnabled():
            self.add_requested.emit(AdapterSource(self.name.text().strip(), self.source.text().strip()))
            super().accept()

    def _browse(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Folder of the adapter")
        if folder:
            self.source.setText(folder)

    def _note_source(self, text: str) -> None:
        if not self._named_by_hand:
            self.name.setText(Path(text.strip().rstrip("/\\")).name)
        self._check()

    def _note_name(self, text: str) -> None:
        self._named_by_hand = bool(text)

    def _check(self) -> None:
        name = self.name.text().strip()
        self.complaint.setText(f"There already is an adapter {name}." if name in self._taken else "")
        self.add_button.setEnabled(bool(name and self.source.text().strip()) and name not in self._taken)
