"""What the editor's window adds to the application's style sheet: trees, tabs, tool bars."""

from __future__ import annotations

from dataclasses import asdict
from string import Template

from loradesk_app.theme import Theme
from loradesk_resources import resource_path

_SHEET = Template("""
QTreeView {
    background: $field; border: 1px solid $border_strong; border-radius: 7px; outline: none;
    alternate-background-color: $raised; selection-background-color: $accent_soft; selection-color: $text;
}
QTreeView::item { padding: 3px 4px; }
QTreeView::item:selected, QTableView::item:selected { background: $accent_soft; color: $text; }
QTreeView::indicator {
    width: 13px; height: 13px; border: 1px solid $border_strong; border-radius: 4px; background: $field;
}
QTreeView::indicator:checked { background: $accent; border-color: $accent; image: url($icons/$check.svg); }
QTreeView::indicator:indeterminate { background: $accent_soft; border-color: $accent; }
QTreeView::indicator:disabled { border-color: $border; }
QTreeView:focus, QTableView:focus { border-color: $accent; }
QTabBar { background: $window; }
QTabBar::tab {
    background: transparent; color: $muted; border: 1px solid transparent; border-radius: 7px;
    padding: 5px 6px 5px 12px; margin: 0 3px 0 0; min-height: 20px; max-width: 260px;
}
QTabBar::tab:hover { color: $text; background: $raised; }
QTabBar::tab:selected { background: $surface; color: $text; border-color: $border_strong; }
QTabBar::tab:focus { border-color: $accent; }
QFrame[kind="finding"] { border: 1px solid transparent; border-radius: 6px; }
QFrame[kind="finding"]:hover { background: $raised; }
QFrame[kind="finding"]:focus { border-color: $accent; }
QFrame[kind="finding"][chosen="true"] { background: $accent_soft; }
QFrame[kind="finding"] QPushButton { padding: 2px 10px; min-height: 16px; }
QFrame[kind="notice"] QPushButton, QFrame[kind="problem"] QPushButton { padding: 4px 12px; }
QTableView QLineEdit, QTreeView QLineEdit { border-radius: 0; padding: 0 4px; min-height: 0; }
""")


def style_sheet(theme: Theme) -> str:
    """The editor's part, in the colours in force."""
    check = "check-dark" if theme.is_dark else "check-light"
    return _SHEET.substitute(asdict(theme.tokens), check=check, icons=resource_path("icons").as_posix())
