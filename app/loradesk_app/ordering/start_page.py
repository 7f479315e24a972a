"""What the editor shows while no file is open: ways to begin."""

from __future__ import annotations

from pathlib import PurePath

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QHBoxLayout, QScrollArea, QVBoxLayout, QWidget

from loradesk_app.theme import Theme
from loradesk_app.widgets.buttons import ElidedButton, push_button
from loradesk_app.widgets.labels import label, plain_tip

READY_TEXTS = {
    "lamm-mit/x-lora": ("X-LoRA Zephyr 7B beta", "9 adapters, 160 layers"),
    "lamm-mit/x-lora-gemma-7b": ("X-LoRA Gemma 7B", "4 adapters, 196 layers"),
}
"""Hub id of an X-LoRA checkpoint -> title and contents of the ordering file that ships for it."""
MAX_SHOWN = 6
LINK_PADDING = 5  # of the style sheet, at each side, border included


class _PathLink(ElidedButton):
    """A file's name and folder; where both have no room, the middle of the folder is left out."""

    def __init__(self, path: str) -> None:
        whole = f"{PurePath(path).name}  ·  {PurePath(path).parent}"
        super().__init__(whole, "link", LINK_PADDING, 10, Qt.TextElideMode.ElideMiddle)
        self.setToolTip(plain_tip(path))


class StartPage(QScrollArea):
    """New, open, the files that ship, and those opened lately."""

    new_requested = Signal()
    open_requested = Signal()
    ready_requested = Signal(str)  # hub id
    file_requested = Signal(str)

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWidgetResizable(True)
        self.setAccessibleName("Start")
        content = QWidget()
        content.setMaximumWidth(620)
        column = QVBoxLayout(content)
        column.setContentsMargins(8, 24, 8, 24)
        column.setSpacing(10)
        column.addWidget(label("Ordering files", "title"))
        column.addWidget(
            label(
                "An ordering file names the base model, the adapters in their order and, for X-LoRA, which layer of "
                "the scalings each module reads. Make one, open one, or drop one here.",
                "muted",
                wrap=True,
            )
        )
        buttons = QHBoxLayout()
        self.new_button = push_button("New…", "primary")
        self.new_button.clicked.connect(self.new_requested)
        self.open_button = push_button("Open…")
        self.open_button.clicked.connect(self.open_requested)
        buttons.addWidget(self.new_button)
        buttons.addWidget(self.open_button)
        buttons.addStretch(1)
        column.addSpacing(6)
        column.addLayout(buttons)
        column.addSpacing(14)
        column.addWidget(label("Of published models", "heading"))
        self.ready_buttons = {}
        for hub_id, (title, contents) in READY_TEXTS.items():
            button = push_button(f"{title}\n{contents}  ·  {hub_id}", "example")
            theme.bind_icon(button, "ordering-file", "muted")
            button.clicked.connect(lambda _checked=False, hub_id=hub_id: self.ready_requested.emit(hub_id))
            self.ready_buttons[hub_id] = button
            column.addWidget(button)
        column.addSpacing(14)
        self._recent_title = label("Opened lately", "heading")
        column.addWidget(self._recent_title)
        self._recent = QVBoxLayout()
        self._recent.setSpacing(2)
        column.addLayout(self._recent)
        column.addStretch(1)
        outer = QWidget()
        row = QHBoxLayout(outer)
        row.addStretch(1)
        row.addWidget(content, 10)
        row.addStretch(1)
        self.setWidget(outer)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.set_recent([])

    def set_recent(self, paths: list[str]) -> None:
        """Offer files opened lately."""
        while (item := self._recent.takeAt(0)) is not None:
            old = item.widget()
            if old is not None:
                old.deleteLater()
        for path in paths[:MAX_SHOWN]:
            button = _PathLink(path)
            button.clicked.connect(lambda _checked=False, path=path: self.file_requested.emit(path))
            self._recent.addWidget(button)
        self._recent_title.setVisible(bool(paths))
