"""About Loradesk, and its keys."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from PySide6.QtCore import Qt, qVersion
from PySide6.QtWidgets import QDialog, QGridLayout, QHBoxLayout, QLabel, QVBoxLayout, QWidget

from loradesk_app.theme import logo
from loradesk_app.widgets.buttons import push_button
from loradesk_app.widgets.labels import label


class AboutDialog(QDialog):
    """Version, what it runs on, and a table of keys."""

    def __init__(self, engine: str, keys: list[tuple[str, str]], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("About Loradesk")
        mark = QLabel()
        mark.setPixmap(logo(56, 2.0))
        facts = label(f"Version {app_version()} · Qt {qVersion()}{' · ' + engine if engine else ''}", "small")
        facts.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        names = QVBoxLayout()
        names.setSpacing(2)
        names.addWidget(label("Loradesk", "title"))
        names.addWidget(label("A mixing desk for LoRA and X-LoRA adapters", "muted"))
        names.addWidget(facts)
        head = QHBoxLayout()
        head.setSpacing(16)
        head.addWidget(mark, 0, Qt.AlignmentFlag.AlignTop)
        head.addLayout(names, 1)
        grid = QGridLayout()
        grid.setHorizontalSpacing(24)
        grid.setVerticalSpacing(5)
        half = (len(keys) + 1) // 2
        for number, (key, what) in enumerate(keys):
            left = 0 if number < half else 2
            grid.addWidget(label(key, "caption"), number % half, left)
            grid.addWidget(label(what), number % half, left + 1)
        close = push_button("Close", "primary")
        close.setDefault(True)
        close.clicked.connect(self.accept)
        column = QVBoxLayout(self)
        column.setContentsMargins(24, 22, 24, 20)
        column.setSpacing(18)
        column.addLayout(head)
        column.addWidget(label("Keys", "heading"))
        column.addLayout(grid)
        column.addWidget(close, 0, Qt.AlignmentFlag.AlignRight)
        column.setSizeConstraint(QVBoxLayout.SizeConstraint.SetFixedSize)


def app_version() -> str:
    try:
        return version("loradesk")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "from source"
