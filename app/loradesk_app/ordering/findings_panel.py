"""What the checker found, each with a way to its place and, where one is known, a fix."""

from __future__ import annotations

from collections.abc import Mapping

from PySide6.QtCore import QSize, Qt, Signal
from PySide6.QtGui import QKeyEvent, QMouseEvent
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QScrollArea, QVBoxLayout, QWidget

from loradesk_app.ordering.rows_model import SEVERITY_ICONS
from loradesk_app.theme import Theme
from loradesk_app.widgets.buttons import push_button
from loradesk_app.widgets.labels import label
from loradesk_engine.ordering.finding import Finding
from loradesk_engine.ordering.schema import parse_pointer
from loradesk_engine.ordering.words import counted

START_HEIGHT = 216
ONE_ROW = 34
_KEYS = {"order": "order", "preload_adapters": "preload", "layers": "layers", "base_model_id": "base model"}


class FindingsPanel(QFrame):
    """A line that sums up, and below it one row a finding."""

    finding_chosen = Signal(object)  # Finding
    fix_requested = Signal(object)  # Finding
    fix_all_requested = Signal()

    def __init__(self, theme: Theme, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setProperty("kind", "pane")
        self.setAccessibleName("Problems")
        self._theme = theme
        self._findings: tuple[Finding, ...] | None = None
        self.rows: list[FindingRow] = []
        self._sign = QLabel()
        self._sign.setFixedSize(18, 18)
        self.summary = label("Checking…", "heading")
        self.note = label("", "small")
        self.fix_all = push_button("Fix all")
        self.fix_all.clicked.connect(self.fix_all_requested)
        self.next_button = push_button("Next", "flat")
        self.next_button.setToolTip("Go to the next problem (F8)")
        self.next_button.clicked.connect(self.choose_next)
        head = QHBoxLayout()
        head.setSpacing(8)
        head.addWidget(self._sign)
        head.addWidget(self.summary)
        head.addWidget(self.note, 1)
        head.addWidget(self.next_button)
        head.addWidget(self.fix_all)

        self._list = QWidget()
        self._column = QVBoxLayout(self._list)
        self._column.setContentsMargins(0, 0, 4, 0)
        self._column.setSpacing(2)
        self._column.addStretch(1)
        self._scroll = QScrollArea()
        self._scroll.setWidgetResizable(True)
        self._scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self._scroll.setWidget(self._list)
        self._scroll.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        column = QVBoxLayout(self)
        column.setContentsMargins(12, 6, 10, 6)
        column.setSpacing(4)
        column.addLayout(head)
        column.addWidget(self._scroll, 1)
        self._current = -1
        self._room = START_HEIGHT
        theme.changed.connect(self._show_sign)
        self.show_unreadable("")

    def show_findings(self, findings: tuple[Finding, ...], positions: Mapping[str, tuple[int, int]]) -> None:
        """Show what a check found; the rows are made anew only when the findings are other ones."""
        if self._findings is not None and _key(findings) == _key(self._findings):
            self._findings = findings
            for row, finding in zip(self.rows, findings, strict=True):
                row.set_finding(finding, positions)
            return
        self._findings = findings
        self._clear()
        for finding in findings:
            row = FindingRow(self._theme, finding, positions)
            row.chosen.connect(self._choose)
            row.fix_requested.connect(self.fix_requested)
            self._column.insertWidget(self._column.count() - 1, row)
            self.rows.append(row)
        counts = [
            counted(number, name)
            for name in ("error", "warning")
            if (number := sum(finding.severity == name for finding in findings))
        ]
        notes = sum(finding.severity == "info" for finding in findings)
        self.summary.setText(", ".join(counts) if counts else "No problems")
        self.note.setText(counted(notes, "note") if notes else "")
        fixes = sum(finding.fix is not None for finding in findings)
        self.fix_all.setVisible(fixes > 1)
        self.fix_all.setText(f"Fix all {fixes}")
        self.next_button.setVisible(bool(findings))
        self._scroll.setVisible(bool(findings))
        self._current = -1
        self._fit()
        self._show_sign()

    def show_unreadable(self, message: str) -> None:
        """The text is no ordering file: there is nothing to check."""
        self._findings = None
        self._clear()
        self.summary.setText("Not checked" if message else "Checking…")
        self.note.setText(message)
        for part in (self.fix_all, self.next_button, self._scroll):
            part.hide()
        self._fit()
        self._show_sign()

    def choose_next(self) -> None:
        """Go from one finding to the next, and from the last to the first."""
        if self.rows:
            self._current = (self._current + 1) % len(self.rows)
            self._choose(self.rows[self._current].finding)

    def set_room(self, height: int) -> None:
        """How high the panel may become; findings beyond that are scrolled to."""
        if height != self._room:
            self._room = height
            self._fit()

    def wanted_height(self) -> int:
        """Height that shows the first few findings."""
        head = self._head_height()
        if not self.rows:
            return head
        needed = sum(row.sizeHint().height() + 2 for row in self.rows) + 8
        room = self._room - head
        return head + min(needed, room) if room >= ONE_ROW else head

    def sizeHint(self) -> QSize:
        return QSize(400, self.wanted_height())

    # ------------------------------------------------------------------------------------------------------------

    def _choose(self, finding: Finding) -> None:
        for number, row in enumerate(self.rows):
            chosen = row.finding is finding
            row.set_chosen(chosen)
            if chosen:
                self._current = number
                self._scroll.ensureWidgetVisible(row, 0, 4)
        self.finding_chosen.emit(finding)

    def _clear(self) -> None:
        for row in self.rows:
            row.hide()
            row.deleteLater()
        self.rows = []

    def _head_height(self) -> int:
        return max(self.fix_all.sizeHint().height(), 30) + 16

    def _fit(self) -> None:
        self._scroll.setVisible(bool(self.rows) and self._room >= self._head_height() + ONE_ROW)
        if self.height() != self.wanted_height() or self.maximumHeight() != self.wanted_height():
            self.setFixedHeight(self.wanted_height())

    def _show_sign(self) -> None:
        worst = self._findings[0].severity if self._findings else None
        icon = SEVERITY_ICONS[worst] if worst else ("check", "accent")
        self._sign.setPixmap(self._theme.icon(*icon).pixmap(QSize(18, 18), self.devicePixelRatioF()))
        self._sign.setVisible(self._findings is not None)


class FindingRow(QFrame):
    """One finding."""

    chosen = Signal(object)
    fix_requested = Signal(object)

    def __init__(self, theme: Theme, finding: Finding, positions: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        self._theme = theme
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setProperty("kind", "finding")
        self._sign = QLabel()
        self._sign.setFixedSize(18, 18)
        self.message = label("", wrap=True)
        self.where = label("", "small")
        self.fix_button = push_button("")
        self.fix_button.clicked.connect(lambda: self.fix_requested.emit(self.finding))
        row = QHBoxLayout(self)
        row.setContentsMargins(6, 3, 4, 3)
        row.setSpacing(8)
        row.addWidget(self._sign, 0, Qt.AlignmentFlag.AlignTop)
        row.addWidget(self.message, 1)
        row.addWidget(self.where)
        row.addWidget(self.fix_button)
        theme.changed.connect(self._show_sign)
        self.set_finding(finding, positions)

    def set_finding(self, finding: Finding, positions: Mapping[str, tuple[int, int]]) -> None:
        """Show a finding that may differ from the one before in its fix and place only."""
        self.finding = finding
        self.message.setText(finding.message)
        self.message.setToolTip(finding.rule)
        self.where.setText(where(finding, positions))
        self.fix_button.setVisible(finding.fix is not None)
        if finding.fix is not None:
            self.fix_button.setText("Fix")
            self.fix_button.setToolTip(finding.fix.title)
            self.fix_button.setAccessibleName(f"Fix: {finding.fix.title}")
        self.setAccessibleName(f"{finding.severity}: {finding.message}")
        self._show_sign()

    def set_chosen(self, chosen: bool) -> None:
        self.setProperty("chosen", "true" if chosen else "false")
        self.style().unpolish(self)
        self.style().polish(self)

    def mousePressEvent(self, event: QMouseEvent) -> None:
        self.chosen.emit(self.finding)
        event.accept()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter, Qt.Key.Key_Space):
            self.chosen.emit(self.finding)
            event.accept()
        else:
            super().keyPressEvent(event)

    def _show_sign(self) -> None:
        icon = self._theme.icon(*SEVERITY_ICONS[self.finding.severity])
        self._sign.setPixmap(icon.pixmap(QSize(18, 18), self.devicePixelRatioF()))


def where(finding: Finding, positions: Mapping[str, tuple[int, int]]) -> str:
    """A finding's place in words: `order 3 · line 6`."""
    parts = parse_pointer(finding.place)
    words = [_KEYS.get(parts[0], parts[0])] if parts else []
    if len(parts) > 1 and parts[1].isdecimal():
        words[0] += f" {int(parts[1]) + 1:,}"
    others = len(set(finding.places)) - 1
    if others > 0:
        words[0] += f" and {others:,} more"
    position = positions.get(finding.place)
    if position is not None:
        words.append(f"line {position[0]:,}")
    return " · ".join(words)


def _key(findings: tuple[Finding, ...]) -> list[tuple[str, str, bool]]:
    return [(finding.rule, finding.message, finding.fix is not None) for finding in findings]
