"""The right side of the window: its panes above one another where there is room, as tabs where there is not."""

from __future__ import annotations

from PySide6.QtCore import QByteArray, Qt
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QSplitter, QVBoxLayout, QWidget

from loradesk_app.widgets.segmented import Segmented

STACK_HEIGHT = 560  # below this, two panes above one another are too low to be of use
STACKED_LEAST = 264  # of each; a tab's pane takes what there is, and scrolls


class SidePanel(QWidget):
    """Two panes; `titles` name their tabs, `headings` are the widgets inside that say the same."""

    def __init__(
        self,
        panes: tuple[QWidget, QWidget],
        titles: tuple[str, str],
        headings: tuple[QWidget, ...] = (),
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        self._panes = panes
        self._headings = headings
        self.tabs = Segmented([(title, title, f"Show {title.lower()}") for title in titles], "Side panel")
        self.tabs.set_current(titles[0])
        self.tabs.chosen.connect(lambda _key: self._arrange())
        self._titles = titles
        self.splitter = QSplitter(Qt.Orientation.Vertical)
        self.splitter.setChildrenCollapsible(False)
        self.splitter.setHandleWidth(8)
        for pane in panes:
            self.splitter.addWidget(pane)
        self.splitter.setStretchFactor(0, 4)
        self.splitter.setStretchFactor(1, 6)
        self.splitter.setSizes([310, 420])
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(6)
        column.addWidget(self.tabs)
        column.addWidget(self.splitter, 1)
        self._tabbed: bool | None = None
        self._arrange()

    @property
    def is_tabbed(self) -> bool:
        return bool(self._tabbed)

    def state(self) -> bytes:
        return bytes(self.splitter.saveState().data())

    def restore_state(self, state: bytes) -> None:
        if state:
            self.splitter.restoreState(QByteArray(state))

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._arrange()

    def _arrange(self) -> None:
        self._tabbed = self.height() < STACK_HEIGHT
        self.tabs.setVisible(self._tabbed)
        for heading in self._headings:
            heading.setVisible(not self._tabbed)  # the tab says it already
        for pane, title in zip(self._panes, self._titles, strict=True):
            pane.setMinimumHeight(0 if self._tabbed else STACKED_LEAST)
            pane.setVisible(not self._tabbed or self.tabs.current() == title)
