"""The order in which the Tab key visits widgets."""

from __future__ import annotations

from itertools import pairwise

from PySide6.QtWidgets import QWidget


def chain(*stops: QWidget) -> None:
    """Make Tab go from each widget to the next; what came after the last one stays after it."""
    for one, other in pairwise(stops):
        QWidget.setTabOrder(one, other)
