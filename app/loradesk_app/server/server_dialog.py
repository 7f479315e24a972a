"""The local server: start and stop, where and with which key, what it answers, and how to call it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QFontDatabase, QGuiApplication, QResizeEvent
from PySide6.QtWidgets import (
    QAbstractItemView,
    QDialog,
    QFormLayout,
    QHBoxLayout,
    QHeaderView,
    QLineEdit,
    QPlainTextEdit,
    QStackedWidget,
    QTableView,
    QVBoxLayout,
    QWidget,
)

from loradesk_app.server.log_model import COL_DETAILS, COL_SECONDS, COL_TIME, COL_TOKENS, LogModel
from loradesk_app.server.snippets import LANGUAGES, snippet
from loradesk_app.theme import Theme
from loradesk_app.widgets.buttons import icon_button, push_button
from loradesk_app.widgets.labels import label
from loradesk_app.widgets.problem_box import ProblemBox
from loradesk_app.widgets.segmented import Segmented
from loradesk_app.widgets.spins import whole_spin

if TYPE_CHECKING:
    from loradesk_engine.events import Problem
    from loradesk_engine.serving.http.record import RequestRecord

DEFAULT_PORT = 8357
WIDE = 560  # below, the log shows what was asked and what came of it, and leaves out times and counts
MAX_COLUMN = 220  # a client may make up a path of any length
HIDDEN_KEY = "loradesk-…"  # stands in the programs on screen; copying puts the real one in


class ServerDialog(QDialog):
    """Asks for the server to be started and stopped, and shows what it tells. Only this machine can connect to it."""

    start_requested = Signal(int, bool)  # port, with a key
    stop_requested = Signal()

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Local server")
        self.resize(720, 680)
        self.setMinimumWidth(420)
        self._url = ""
        self._key: str | None = None
        self._model = "loradesk"
        self.log = LogModel(theme, self)

        self.state = label("", "large")
        self.url = QLineEdit()
        self.url.setReadOnly(True)
        self.url.setAccessibleName("Address")
        self.copy_url = icon_button(theme, "copy", "Copy the address")
        self.copy_url.clicked.connect(lambda: QGuiApplication.clipboard().setText(self.url.text()))
        self.port = whole_spin(1024, 65535, 1)
        self.port.setValue(DEFAULT_PORT)
        self.port.setAccessibleName("Port")
        self.key_choice = Segmented(
            (
                ("key", "With a key", "Programs must send the key; it is kept in a file that only you can read"),
                ("open", "Open", "Every program on this machine may ask"),
            ),
            "Access",
        )
        self.key_choice.set_current("key")
        self.key = QLineEdit()
        self.key.setReadOnly(True)
        self.key.setEchoMode(QLineEdit.EchoMode.Password)
        self.key.setAccessibleName("Key")
        self.show_key = push_button("Show")
        self.show_key.setCheckable(True)
        self.show_key.toggled.connect(self._reveal)
        self.copy_key = icon_button(theme, "copy", "Copy the key")
        self.copy_key.clicked.connect(lambda: QGuiApplication.clipboard().setText(self._key or ""))
        self.problem = ProblemBox(theme)
        self.toggle = push_button("Start", "primary")
        self.toggle.clicked.connect(self._toggle)

        head = QHBoxLayout()
        head.addWidget(self.state, 1)
        head.addWidget(self.toggle)
        self.form = form = QFormLayout()
        form.setHorizontalSpacing(12)
        form.setVerticalSpacing(9)
        for name, field in (
            ("Port", self.port),
            ("Access", _line(self.key_choice)),
            ("Address", _line(self.url, self.copy_url)),
            ("Key", _line(self.key, self.show_key, self.copy_key)),
        ):
            caption = label(name, "muted")
            caption.setMinimumHeight(field.sizeHint().height())  # the text stands level with the field's
            form.addRow(caption, field)

        self.language = Segmented(tuple((key, text, "") for key, text in LANGUAGES), "Language")
        self.language.set_current("curl")
        self.language.chosen.connect(lambda _key: self._show_snippet())
        self.port.valueChanged.connect(lambda _port: self._show_snippet())
        self.copy_snippet = push_button("Copy")
        self.copy_snippet.clicked.connect(lambda: QGuiApplication.clipboard().setText(self.program()))
        self.code = QPlainTextEdit()
        self.code.setReadOnly(True)
        self.code.setFont(QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont))
        self.code.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        self.code.setAccessibleName("Client program")
        languages = QHBoxLayout()
        languages.addWidget(label("Call it from", "heading"))
        languages.addWidget(self.language)
        languages.addStretch(1)
        languages.addWidget(self.copy_snippet)

        self.table = QTableView()
        self.table.setModel(self.log)
        self.table.setAccessibleName("Requests")
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setShowGrid(False)
        self.table.setWordWrap(False)
        self.table.verticalHeader().hide()
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        # the style sheet's padding is not in what a cell says it needs
        header.setSectionResizeMode(COL_TIME, QHeaderView.ResizeMode.Fixed)
        header.resizeSection(COL_TIME, self.fontMetrics().horizontalAdvance("00:00:00") + 28)
        header.setMaximumSectionSize(MAX_COLUMN)
        header.setSectionResizeMode(COL_DETAILS, QHeaderView.ResizeMode.Stretch)
        nothing = label("Requests appear here when they have been answered.", "muted", wrap=True)
        nothing.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.requests = QStackedWidget()
        self.requests.addWidget(nothing)
        self.requests.addWidget(self.table)
        self.log.rowsInserted.connect(self._show_log)
        self.log.modelReset.connect(self._show_log)
        self.clear_log = push_button("Clear", "flat")
        self.clear_log.clicked.connect(self.log.clear)
        requests = QHBoxLayout()
        requests.addWidget(label("Requests", "heading"))
        requests.addStretch(1)
        requests.addWidget(self.clear_log)

        column = QVBoxLayout(self)
        column.setContentsMargins(24, 20, 24, 20)
        column.setSpacing(12)
        column.addLayout(head)
        column.addWidget(self.problem)
        column.addLayout(form)
        column.addLayout(languages)
        column.addWidget(self.code, 4)
        column.addLayout(requests)
        column.addWidget(self.requests, 5)
        self._show_log()
        self.show_stopped()

    def set_model(self, name: str) -> None:
        """What the programs ask for."""
        self._model = name or "loradesk"
        self._show_snippet()

    def set_port(self, port: int) -> None:
        """The port to offer."""
        self.port.setValue(port)

    def show_starting(self) -> None:
        self.problem.hide()
        self.state.setText("Starting…")
        self.toggle.setEnabled(False)

    def show_started(self, url: str, key: str | None) -> None:
        """The server listens at `url`."""
        self._url, self._key = url, key
        self.state.setText("Listening, for this machine only" if key else "Listening, for every program here")
        self.url.setText(f"{url}/v1")
        self.key.setText(key or "")
        self._arrange(running=True)
        self.toggle.setFocus()

    def show_stopped(self) -> None:
        """The server does not run."""
        self._url, self._key = "", None
        self.state.setText("The server is off")
        self.url.clear()
        self.key.clear()
        self._arrange(running=False)

    def show_failed(self, problem: Problem) -> None:
        """It could not be started."""
        self.show_stopped()
        self.problem.show_problem(problem)

    def add_record(self, record: RequestRecord) -> None:
        """A request was answered."""
        self.log.add(record)

    def program(self) -> str:
        """The client program with the real key."""
        return snippet(self.language.current() or "curl", self._address(), self._key, self._model)

    def _address(self) -> str:
        return self._url or f"http://127.0.0.1:{self.port.value()}"

    def _arrange(self, *, running: bool) -> None:
        self.toggle.setEnabled(True)
        self.toggle.setText("Stop" if running else "Start")
        for row, shown in enumerate((not running, not running, running, running and self._key is not None)):
            self.form.setRowVisible(row, shown)
        self.show_key.setChecked(False)
        self._show_snippet()

    def _show_snippet(self) -> None:
        hidden = HIDDEN_KEY if self._key and not self.show_key.isChecked() else self._key
        self.code.setPlainText(snippet(self.language.current() or "curl", self._address(), hidden, self._model))

    def _reveal(self, shown: bool) -> None:
        self.key.setEchoMode(QLineEdit.EchoMode.Normal if shown else QLineEdit.EchoMode.Password)
        self.show_key.setText("Hide" if shown else "Show")
        self._show_snippet()

    def _show_log(self) -> None:
        self.requests.setCurrentIndex(1 if self.log.rowCount() else 0)
        self.clear_log.setEnabled(self.log.rowCount() > 0)

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        for column in (COL_TIME, COL_SECONDS, COL_TOKENS):
            self.table.setColumnHidden(column, self.width() < WIDE)

    def _toggle(self) -> None:
        if self._url:
            self.stop_requested.emit()
        else:
            self.start_requested.emit(self.port.value(), self.key_choice.current() == "key")


def _line(*parts: QWidget) -> QWidget:
    """Widgets beside one another; a line edit takes the room."""
    line = QWidget()
    row = QHBoxLayout(line)
    row.setContentsMargins(0, 0, 0, 0)
    row.setSpacing(8)
    for part in parts:
        row.addWidget(part, 1 if isinstance(part, QLineEdit) else 0)
    if not isinstance(parts[0], QLineEdit):
        row.addStretch(1)
    return line
