"""The log in a window of its own: level, source and run, search, and a report to hand on."""

from __future__ import annotations

import logging
from collections.abc import Callable

from PySide6.QtCore import QEvent, QItemSelectionModel, QObject, QSize, Qt, QTimer, QUrl, Signal
from PySide6.QtGui import (
    QDesktopServices,
    QGuiApplication,
    QHideEvent,
    QKeyEvent,
    QKeySequence,
    QMouseEvent,
    QResizeEvent,
    QShortcut,
    QShowEvent,
)
from PySide6.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QDialog,
    QHBoxLayout,
    QHeaderView,
    QLineEdit,
    QStackedWidget,
    QTableView,
    QVBoxLayout,
    QWidget,
)

from loradesk_app.background import Background
from loradesk_app.log.log_delegate import CHEVRON, LogDelegate
from loradesk_app.log.log_model import COL_MESSAGE, COL_SOURCE, DETAIL_ROLE, LogModel
from loradesk_app.log.runs import LogRun, find_runs, read_run
from loradesk_app.theme import Theme
from loradesk_app.widgets.buttons import icon_button, push_button
from loradesk_app.widgets.flow_layout import FlowLayout
from loradesk_app.widgets.labels import ElidedLabel, label
from loradesk_app.widgets.segmented import Segmented
from loradesk_engine.log.entry import Entry
from loradesk_engine.log.folder import MAX_BYTES, MAX_RUNS
from loradesk_engine.log.trail import Trail

POLL_MS = 150
SEARCH_MS = 80
LEVELS = {"all": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
EVERYWHERE = "From anywhere"


class LogWindow(QDialog):
    """Shows the log while it grows; what is on disk is read off the GUI thread."""

    report_requested = Signal()

    def __init__(self, theme: Theme, trail: Trail, background: Background, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Log")
        self.resize(1100, 680)
        self.setMinimumSize(480, 320)
        self._theme, self._trail, self._background = theme, trail, background
        self._seen = 0  # entries of this run that the model has been given
        self._run: LogRun | None = None  # an earlier one; None is this one
        self._runs: list[LogRun] = []
        self._hits: list[int] = []
        self._hit = -1
        self._unread = 0
        self.model = LogModel(theme, parent=self)
        self._make_tools()
        self._make_table()
        self._lay_out()
        self._connect()
        self._poll = QTimer(self)
        self._poll.setInterval(POLL_MS)
        self._poll.timeout.connect(self.update_entries)
        self._search_timer = QTimer(self)
        self._search_timer.setSingleShot(True)
        self._search_timer.setInterval(SEARCH_MS)
        self._search_timer.timeout.connect(self._search)
        self._show_counts()

    # -- what the user does -------------------------------------------------------------------------------------

    def shown_entries(self) -> list[Entry]:
        """What the filters let through."""
        return self.model.entries()

    def copy(self) -> None:
        """Copy the chosen entries, or all that are shown."""
        rows = sorted({index.row() for index in self.table.selectionModel().selectedRows()})
        entries = [self.model.entry(row) for row in rows] if rows else self.shown_entries()
        QGuiApplication.clipboard().setText("\n".join(entry.text for entry in entries))

    def open_folder(self) -> None:
        """Open the folder of the log files in the system's file manager."""
        QDesktopServices.openUrl(QUrl.fromLocalFile(str(self._trail.folder)))

    def set_follow(self, on: bool) -> None:
        """Stay at the newest entry, or where one is."""
        self.follow.setChecked(on)
        if on:
            self._unread = 0
            self.table.scrollToBottom()
        self._show_follow()

    def next_hit(self, step: int) -> None:
        """Go to another row that has the searched text, from the last to the first."""
        if not self._hits:
            return
        if self._hit >= 0:
            self._hit = (self._hit + step) % len(self._hits)
        else:
            self._hit = 0 if step > 0 else len(self._hits) - 1
        row = self._hits[self._hit]
        self.set_follow(False)
        needle = self._delegate.needle.casefold()
        entry = self.model.entry(row)
        if needle not in entry.message.casefold() and needle in entry.detail.casefold():
            self.model.unfold(row, True)
        self._delegate.current = row
        self._choose(row)
        self._show_hits()

    def fold(self, row: int, unfolded: bool) -> None:
        """Show or hide the detail of a row."""
        self.model.unfold(row, unfolded)

    def show_last_defect(self) -> None:
        """Go to the newest error and unfold it."""
        self.levels.set_current("all")
        self.source.setCurrentIndex(0)
        self.run.setCurrentIndex(0)
        self.update_entries()
        for row in range(self.model.rowCount() - 1, -1, -1):
            if self.model.entry(row).level >= logging.ERROR:
                self.set_follow(False)
                self.model.unfold(row, True)
                self._choose(row)
                return

    def update_entries(self) -> None:
        """Take what was logged since."""
        if self._run is None:
            entries, self._seen = self._trail.ring.since(self._seen)
            if entries:
                self._add(entries)
        self._show_problem()

    # -- building -----------------------------------------------------------------------------------------------

    def _make_tools(self) -> None:
        texts = (("all", "All", "debug"), ("info", "Info", "info"), ("warning", "Warnings", "warning"))
        choices = [(key, text, f"Show entries from {level} on") for key, text, level in texts]
        self.levels = Segmented([*choices, ("error", "Errors", "Show errors only")], "Level")
        self.levels.set_current("all")
        self.source = QComboBox()
        self.source.addItem(EVERYWHERE, "")
        self.source.setAccessibleName("From")
        self.source.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToContents)
        self.run = QComboBox()
        self.run.addItem("This run")
        self.run.setAccessibleName("Run")
        self.run.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToContents)
        self.search = QLineEdit()
        self.search.setPlaceholderText("Search")
        self.search.setAccessibleName("Search")
        self.search.setClearButtonEnabled(True)
        self.search.setFixedWidth(220)
        self.search.addAction(self._theme.icon("search", "muted"), QLineEdit.ActionPosition.LeadingPosition)
        self.hits = label("", "small")
        self.earlier = icon_button(self._theme, "ordering-up", "Previous hit (Shift+F3)")
        self.later = icon_button(self._theme, "ordering-down", "Next hit (F3)")
        self.follow = push_button("Follow", "flat")
        self.follow.setCheckable(True)
        self.follow.setChecked(True)
        self.follow.setToolTip("Stay at the newest entry (End)")
        self.follow.setIconSize(QSize(16, 16))
        self._theme.bind_icon(self.follow, "follow", "text")
        self.copy_button = push_button("Copy")
        self.copy_button.setToolTip("Copy the chosen entries, or all that are shown (Ctrl+C)")
        self.report_button = push_button("Save a report…")
        self.report_button.setToolTip("Save versions, settings and the last entries in one file (Ctrl+S)")
        for part in (self.follow, self.copy_button, self.report_button):
            part.setMinimumHeight(self.levels.sizeHint().height())
        self.folder_button = push_button("Open folder", "link")
        self.folder_button.setToolTip(str(self._trail.folder))
        self.footer = ElidedLabel("", "small")

    def _make_table(self) -> None:
        table = self.table = QTableView()
        table.setModel(self.model)
        self._delegate = LogDelegate(self._theme, table)
        table.setItemDelegate(self._delegate)
        table.setAccessibleName("Log")
        table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        table.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        table.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        table.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        table.setShowGrid(False)
        table.setWordWrap(False)
        table.setTabKeyNavigation(False)
        table.verticalHeader().hide()
        table.verticalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        header = table.horizontalHeader()
        header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        header.setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        header.setSectionResizeMode(COL_MESSAGE, QHeaderView.ResizeMode.Stretch)
        header.setHighlightSections(False)
        self._nothing = label("Nothing at this level", "muted")
        self._nothing.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.pages = QStackedWidget()
        self.pages.addWidget(table)
        self.pages.addWidget(self._nothing)

    def _lay_out(self) -> None:
        find = QWidget()
        row = QHBoxLayout(find)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(4)
        for part in (self.search, self.hits, self.earlier, self.later):
            row.addWidget(part)
        tools = QWidget()
        flow = FlowLayout(tools, 8)
        for widget in (self.levels, self.source, self.run, find, self.follow, self.copy_button, self.report_button):
            flow.addWidget(widget)
        foot = QHBoxLayout()
        foot.addWidget(self.footer, 1)
        foot.addWidget(self.folder_button)
        column = QVBoxLayout(self)
        column.setContentsMargins(12, 10, 12, 8)
        column.setSpacing(8)
        column.addWidget(tools)
        column.addWidget(self.pages, 1)
        column.addLayout(foot)

    def _connect(self) -> None:
        self.levels.chosen.connect(lambda _key: self._filter())
        self.source.activated.connect(lambda _index: self._filter())
        self.run.activated.connect(self._choose_run)
        self.search.textChanged.connect(lambda _text: self._search_timer.start())
        self.search.returnPressed.connect(lambda: self.next_hit(+1))
        self.earlier.clicked.connect(lambda: self.next_hit(-1))
        self.later.clicked.connect(lambda: self.next_hit(+1))
        self.follow.clicked.connect(self.set_follow)
        self.copy_button.clicked.connect(self.copy)
        self.report_button.clicked.connect(self.report_requested)
        self.folder_button.clicked.connect(self.open_folder)
        self.table.verticalScrollBar().valueChanged.connect(self._note_scroll)
        self.table.doubleClicked.connect(lambda index: self.fold(index.row(), not self.model.is_unfolded(index.row())))
        self.table.viewport().installEventFilter(self)
        self.table.installEventFilter(self)
        self.model.dataChanged.connect(lambda first, _last: self._fit_row(first.row()))
        self.model.modelReset.connect(self._fit_unfolded)
        self.model.rowsRemoved.connect(lambda *_rows: self._search_timer.start())
        self._theme.changed.connect(self._take_theme)
        for key, action in self._keys():
            QShortcut(QKeySequence(key), self, action)

    def _keys(self) -> tuple[tuple[str, Callable[[], None]], ...]:
        return (
            ("Ctrl+F", self._focus_search),
            ("F3", lambda: self.next_hit(+1)),
            ("Shift+F3", lambda: self.next_hit(-1)),
            ("Ctrl+S", self.report_requested.emit),
        )

    # -- Qt -----------------------------------------------------------------------------------------------------

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        self._take_theme()
        self.update_entries()
        self._poll.start()
        self._background.run(lambda: find_runs(self._trail.folder, self._trail.file.path), self._show_runs)
        if self.follow.isChecked():
            QTimer.singleShot(0, self, self.table.scrollToBottom)

    def hideEvent(self, event: QHideEvent) -> None:
        super().hideEvent(event)
        self._poll.stop()

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        QTimer.singleShot(0, self, self._fit_unfolded)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Keys and clicks of the table that it does not know itself."""
        if isinstance(event, QKeyEvent) and watched is self.table and event.type() == QEvent.Type.KeyPress:
            return self._take_key(event)
        if isinstance(event, QMouseEvent) and event.type() == QEvent.Type.MouseButtonPress:
            return self._take_click(event)
        return super().eventFilter(watched, event)

    def _take_click(self, event: QMouseEvent) -> bool:
        index = self.table.indexAt(event.position().toPoint())
        on_chevron = event.position().x() > self.table.viewport().width() - CHEVRON
        if not (index.isValid() and index.data(DETAIL_ROLE) and on_chevron):
            return False
        self.fold(index.row(), not self.model.is_unfolded(index.row()))
        return True

    def _take_key(self, event: QKeyEvent) -> bool:
        row = self.table.currentIndex().row()
        if event.matches(QKeySequence.StandardKey.Copy):
            self.copy()
        elif event.key() == Qt.Key.Key_End and not event.modifiers():
            self.set_follow(True)
        elif event.key() in (Qt.Key.Key_Right, Qt.Key.Key_Left) and row >= 0:
            self.fold(row, event.key() == Qt.Key.Key_Right)
        elif event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and row >= 0:
            self.fold(row, not self.model.is_unfolded(row))
        else:
            return False
        return True

    # -- showing ------------------------------------------------------------------------------------------------

    def _add(self, entries: list[Entry]) -> None:
        before = self.model.rowCount()
        removed = self.model.total + len(entries) > self.model.limit
        self.model.add(entries)
        self._show_counts()
        if self._delegate.needle and not removed:
            self._hits += self.model.find(self._delegate.needle, before)
            self._show_hits()
        if self.follow.isChecked():
            self.table.scrollToBottom()
        else:
            self._unread += max(0, self.model.rowCount() - before)
            self._show_follow()

    def _filter(self) -> None:
        self.model.set_filter(LEVELS[self.levels.current() or "all"], self.source.currentData() or "")
        self._show_counts()
        self._search()
        if self.follow.isChecked():
            self.table.scrollToBottom()

    def _search(self) -> None:
        self._delegate.needle = self.search.text()
        self._hits = self.model.find(self._delegate.needle) if self._delegate.needle else []
        self._hit = self._delegate.current = -1
        self._show_hits()
        self.table.viewport().update()

    def _show_hits(self) -> None:
        number = f"{self._hit + 1:,} of {len(self._hits):,}" if self._hit >= 0 else f"{len(self._hits):,} found"
        self.hits.setText(number if self._delegate.needle else "")
        for button in (self.earlier, self.later):
            button.setEnabled(bool(self._hits))

    def _show_counts(self) -> None:
        for key, text in (("warning", "Warnings"), ("error", "Errors")):
            count = self.model.levels[LEVELS[key]]
            self.levels.button(key).setText(f"{text}  {count:,}" if count else text)
        known = {self.source.itemData(place) for place in range(self.source.count())}
        for name in sorted(name for name, count in self.model.sources.items() if count and name not in known):
            self.source.addItem(f"From {name}", name)
        self.pages.setCurrentIndex(0 if self.model.rowCount() else 1)
        self._show_problem()
        self._show_hits()

    def _show_problem(self) -> None:
        run = "this run" if self._run is None else "that run"
        text = f"{self.model.total:,} entries of {run} · {MAX_RUNS} runs are kept, {MAX_BYTES >> 20} MB at most"
        if self._trail.problem:
            text = f"The log cannot be written ({self._trail.problem}): it is kept in memory. {text}"
        if text != self.footer.text():
            self.footer.setText(text)
            self.footer.setProperty("kind", "danger" if self._trail.problem else "small")
            self.footer.style().unpolish(self.footer)
            self.footer.style().polish(self.footer)

    def _show_follow(self) -> None:
        self.follow.setText(f"{self._unread:,} new" if self._unread and not self.follow.isChecked() else "Follow")

    def _note_scroll(self, value: int) -> None:
        """Scrolling up stops following, and scrolling to the end resumes it."""
        bar = self.table.verticalScrollBar()
        at_end = value >= bar.maximum()
        by_user = bar.isSliderDown() or self.table.underMouse() or self.table.hasFocus()
        if by_user and self.follow.isChecked() and not at_end:
            self.set_follow(False)
        elif bar.isSliderDown() and at_end:
            self.set_follow(True)

    def _choose(self, row: int) -> None:
        index = self.model.index(row, COL_MESSAGE)
        flags = QItemSelectionModel.SelectionFlag.ClearAndSelect | QItemSelectionModel.SelectionFlag.Rows
        self.table.selectionModel().setCurrentIndex(index, flags)
        self.table.scrollTo(index, QAbstractItemView.ScrollHint.EnsureVisible)

    def _focus_search(self) -> None:
        self.search.setFocus()
        self.search.selectAll()

    # -- runs ---------------------------------------------------------------------------------------------------

    def _show_runs(self, runs: list[LogRun]) -> None:
        self._runs = runs
        while self.run.count() > 1:
            self.run.removeItem(1)
        for run in runs:
            self.run.addItem(run.title)
        chosen = runs.index(self._run) + 1 if self._run in runs else 0
        self.run.setCurrentIndex(chosen)
        self.run.setVisible(bool(runs))

    def _choose_run(self, place: int) -> None:
        if place == 0:
            self._run = None
            entries, self._seen = self._trail.ring.since(0)
            self._show_run(entries)
            self.set_follow(True)
            return
        run = self._run = self._runs[place - 1]
        self._background.run(
            lambda: read_run(run), lambda entries: self._show_run(entries) if run is self._run else None, self._no_run
        )

    def _no_run(self, _error: Exception) -> None:
        self.run.setCurrentIndex(0)  # the file has gone
        self._choose_run(0)

    def _show_run(self, entries: list[Entry]) -> None:
        self.model.set_entries(entries)
        self._show_counts()
        self._search()

    # -- sizes --------------------------------------------------------------------------------------------------

    def _take_theme(self) -> None:
        """Colours and text sizes are others now."""
        metrics = self.table.fontMetrics()
        self.table.verticalHeader().setDefaultSectionSize(self._delegate.row_height(metrics))
        for column, widest in enumerate(self._delegate.widths(self.table, ("00:00:00.000", "warning", "terminal"))):
            self.table.setColumnWidth(column, widest)
        self.table.setColumnWidth(COL_SOURCE, max(self.table.columnWidth(COL_SOURCE), 72))
        self._fit_unfolded()
        self.table.viewport().update()

    def _fit_unfolded(self) -> None:
        for row in self.model.unfolded_rows():
            self._fit_row(row)

    def _fit_row(self, row: int) -> None:
        height = self.table.verticalHeader().defaultSectionSize()
        if self.model.is_unfolded(row):
            index = self.model.index(row, COL_MESSAGE)
            width, font = self.table.columnWidth(COL_MESSAGE), index.data(Qt.ItemDataRole.FontRole)
            height += self._delegate.detail_height(self.model.entry(row).detail, width, font)
        self.table.setRowHeight(row, height)
