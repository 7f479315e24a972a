"""The modules of an architecture as a tree to choose from, with how many there are of each."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QHeaderView, QTreeWidget, QTreeWidgetItem, QWidget

from loradesk_engine.ordering.words import counted

_NUMBER = re.compile(r"\.\d+(?=\.)")
_PATHS = Qt.ItemDataRole.UserRole + 1


class TargetTree(QTreeWidget):
    """Kinds of linears with check boxes. A kind may be chosen in part: adapters need not sit on every block."""

    chosen_changed = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAccessibleName("Target modules")
        self.setHeaderLabels(["Module", "Layers"])
        self.header().setStretchLastSection(False)
        self.header().setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        self.header().setSectionResizeMode(1, QHeaderView.ResizeMode.ResizeToContents)
        self.setUniformRowHeights(True)
        self._leaves: list[QTreeWidgetItem] = []
        self._linears: tuple[str, ...] = ()
        self._exact: frozenset[str] = frozenset()
        self._busy = False
        self.itemChanged.connect(self._note)

    def set_linears(self, linears: Iterable[str], chosen: Collection[str] = ()) -> None:
        """Show these linears, in their order, with some of them chosen."""
        self._busy = True
        self.clear()
        self._linears, self._leaves = tuple(linears), []
        kinds: dict[str, list[str]] = {}
        for path in self._linears:
            kinds.setdefault(_NUMBER.sub("", path), []).append(path)
        nodes: dict[str, QTreeWidgetItem] = {}
        for kind, paths in kinds.items():
            leaf = self._node(kind, nodes)
            leaf.setFlags(Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable | Qt.ItemFlag.ItemIsUserCheckable)
            leaf.setData(0, _PATHS, paths)
            leaf.setText(1, f"{len(paths):,}")
            leaf.setTextAlignment(1, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            self._leaves.append(leaf)
        self.expandAll()
        self._busy = False
        self.choose(chosen)

    def choose(self, paths: Collection[str]) -> None:
        """Choose exactly these linears."""
        self._busy = True
        self._exact = frozenset(paths)
        for leaf in self._leaves:
            own = leaf.data(0, _PATHS)
            hit = sum(path in self._exact for path in own)
            states = Qt.CheckState
            leaf.setCheckState(
                0, states.Checked if hit == len(own) else states.PartiallyChecked if hit else states.Unchecked
            )
            leaf.setText(1, f"{hit:,} of {len(own):,}" if 0 < hit < len(own) else f"{len(own):,}")
        self._busy = False
        self.chosen_changed.emit()

    def chosen(self) -> tuple[str, ...]:
        """The chosen linears, in the model's order."""
        result: set[str] = set()
        for leaf in self._leaves:
            if leaf.checkState(0) == Qt.CheckState.Checked:
                result.update(leaf.data(0, _PATHS))
            elif leaf.checkState(0) == Qt.CheckState.PartiallyChecked:
                result.update(self._exact.intersection(leaf.data(0, _PATHS)))
        return tuple(path for path in self._linears if path in result)

    def leaf(self, ending: str) -> QTreeWidgetItem:
        """The kind of linear whose path ends so."""
        return next(leaf for leaf in self._leaves if _NUMBER.sub("", leaf.data(0, _PATHS)[0]).endswith(ending))

    def _node(self, kind: str, nodes: dict[str, QTreeWidgetItem]) -> QTreeWidgetItem:
        if kind in nodes:
            return nodes[kind]
        head, _, last = kind.rpartition(".")
        if kind == "model.layers":
            head, last = "", "model.layers"
        parent = self._node(head, nodes) if head else self.invisibleRootItem()
        item = QTreeWidgetItem(parent, [last, ""])
        item.setFlags(
            Qt.ItemFlag.ItemIsEnabled
            | Qt.ItemFlag.ItemIsSelectable
            | Qt.ItemFlag.ItemIsUserCheckable
            | Qt.ItemFlag.ItemIsAutoTristate
        )
        if kind == "model.layers":
            blocks = {match[0] for path in self._linears if (match := re.match(r"model\.layers\.\d+", path))}
            item.setText(1, counted(len(blocks), "block"))
            item.setTextAlignment(1, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        nodes[kind] = item
        return item

    def _note(self, _item: QTreeWidgetItem, column: int) -> None:
        if self._busy or column != 0:
            return
        self._busy = True
        for leaf in self._leaves:
            if leaf.checkState(0) != Qt.CheckState.PartiallyChecked:
                leaf.setText(1, f"{len(leaf.data(0, _PATHS)):,}")
        self._busy = False
        self.chosen_changed.emit()
