"""`layers` as a tree: blocks of the model, and in them their modules with index."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PySide6.QtCore import QAbstractItemModel, QModelIndex, QObject, QPersistentModelIndex, Qt, Signal

from loradesk_app.ordering.analysis import by_place
from loradesk_app.ordering.document import Document
from loradesk_app.ordering.rows_model import SEVERITY_ICONS, SOFT
from loradesk_app.theme import Theme
from loradesk_engine.ordering.finding import Finding
from loradesk_engine.ordering.schema import parse_pointer

COL_MODULE, COL_INDEX = 0, 1
PATH_ROLE = Qt.ItemDataRole.UserRole + 1
_HEADERS = ("Module", "Index")
_BLOCK = re.compile(r"(.*?\.\d+)\.(.+)")
_RANK = {"error": 0, "warning": 1, "info": 2}
Index = QModelIndex | QPersistentModelIndex
_PLAIN = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable  # put together once: a tree asks for every row
_EDITABLE = _PLAIN | Qt.ItemFlag.ItemIsEditable


@dataclass
class Block:
    """One block, or one module that belongs to none (such as `lm_head`).

    Attributes:
        name: what the paths of its modules begin with.
        paths: full paths of its modules, in the file's order.
        alone: the block is itself a module, without children.
    """

    name: str
    paths: list[str] = field(default_factory=list)
    alone: bool = False


def blocks_of(layers: Mapping[str, int], wanted: str = "") -> list[Block]:
    """Blocks of those layers whose path or index holds each of the wanted words."""
    words = wanted.casefold().split()
    result: dict[str, Block] = {}
    for path, index in layers.items():
        if words and not all(word in path.casefold() or word == str(index) for word in words):
            continue
        match = _BLOCK.fullmatch(path)
        if match is None:
            result[f"\0{path}"] = Block(path, [path], alone=True)
        else:
            result.setdefault(match[1], Block(match[1])).paths.append(path)
    return list(result.values())


class LayersModel(QAbstractItemModel):
    """The document's layers. Locked until `set_locked(False)`: they are generated, and wrong indices break X-LoRA."""

    locked_changed = Signal(bool)

    def __init__(self, document: Document, theme: Theme, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._document, self._theme = document, theme
        self._layers: Mapping[str, int] = document.ordering.layers or {}
        self._filter = ""
        self._locked = True
        self._blocks = blocks_of(self._layers)
        self._marks: dict[str, list[Finding]] = {}
        document.changed.connect(self._follow)
        document.findings_changed.connect(self._take_marks)
        theme.changed.connect(self._repaint)
        self._take_marks()

    @property
    def is_locked(self) -> bool:
        return self._locked

    @property
    def filter(self) -> str:
        """What is searched for."""
        return self._filter

    @property
    def total(self) -> int:
        return len(self._layers)

    @property
    def shown(self) -> int:
        """How many layers the search has left."""
        return sum(len(block.paths) for block in self._blocks)

    @property
    def block_count(self) -> int:
        return sum(not block.alone for block in self._blocks)

    def set_locked(self, locked: bool) -> None:
        """Whether indices and paths can be edited by hand."""
        if locked != self._locked:
            self._locked = locked
            self.locked_changed.emit(locked)

    def set_filter(self, text: str) -> None:
        """Show only layers that hold all these words in their path, or one of them as their index."""
        if text != self._filter:
            self._filter = text
            self.beginResetModel()
            self._blocks = blocks_of(self._layers, text)
            self.endResetModel()

    def path(self, index: Index) -> str:
        """Full path of a module; empty for a block."""
        return str(index.data(PATH_ROLE) or "") if index.isValid() else ""

    def paths(self, index: Index) -> list[str]:
        """The module at an index, or all modules of the block at it."""
        if not index.isValid():
            return []
        if index.internalId():
            return [self.path(index)]
        return list(self._blocks[index.row()].paths)

    def index_of(self, path: str) -> QModelIndex:
        """Where a layer is shown; invalid if the search has hidden it."""
        for number, block in enumerate(self._blocks):
            if block.alone and block.name == path:
                return self.index(number, 0)
            if path.startswith(block.name) and path in block.paths:
                return self.index(block.paths.index(path), 0, self.index(number, 0))
        return QModelIndex()

    # -- Qt: a block has the internal id 0, a module the number of its block plus 1 --------------------------------

    def index(self, row: int, column: int, parent: Index | None = None) -> QModelIndex:
        if parent is None or not parent.isValid():
            inside = 0 <= row < len(self._blocks) and 0 <= column < 2
            return self.createIndex(row, column, 0) if inside else QModelIndex()
        inside = 0 <= row < self.rowCount(parent) and 0 <= column < 2
        return self.createIndex(row, column, parent.row() + 1) if inside else QModelIndex()

    # The stubs see two overloads, of which a model implements this one; the other is QObject's and stays as it is.
    def parent(self, index: Index) -> QModelIndex:  # type: ignore[override]
        number = index.internalId() if index.isValid() else 0
        return self.createIndex(number - 1, 0, 0) if number else QModelIndex()

    def rowCount(self, parent: Index | None = None) -> int:
        if parent is None or not parent.isValid():
            return len(self._blocks)
        if parent.internalId() or parent.column() > 0 or self._blocks[parent.row()].alone:
            return 0
        return len(self._blocks[parent.row()].paths)

    def hasChildren(self, parent: Index | None = None) -> bool:
        return self.rowCount(parent) > 0

    def columnCount(self, _parent: Index | None = None) -> int:
        return len(_HEADERS)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if not index.isValid():
            return None
        number = index.internalId()
        block = self._blocks[number - 1 if number else index.row()]
        path = block.paths[index.row()] if number else block.name if block.alone else ""
        if role == PATH_ROLE:
            return path
        if role == Qt.ItemDataRole.TextAlignmentRole and index.column() == COL_INDEX:
            return Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        if role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.EditRole):
            return self._text(block, path, index.column(), role)
        if role == Qt.ItemDataRole.ForegroundRole and (not path or index.column() == COL_INDEX):
            return self._theme.color("muted") if index.column() == COL_INDEX else None
        return self._mark(block, path, index.column(), role)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if role == Qt.ItemDataRole.DisplayRole and orientation == Qt.Orientation.Horizontal:
            return _HEADERS[section]
        if role == Qt.ItemDataRole.TextAlignmentRole:
            side = Qt.AlignmentFlag.AlignRight if section == COL_INDEX else Qt.AlignmentFlag.AlignLeft
            return side | Qt.AlignmentFlag.AlignVCenter
        return None

    def flags(self, index: Index) -> Qt.ItemFlag:
        if not index.isValid():
            return Qt.ItemFlag.NoItemFlags
        editable = not self._locked and self._document.is_readable and self.path(index)
        return _EDITABLE if editable else _PLAIN

    def setData(self, index: Index, value: Any, role: int = Qt.ItemDataRole.EditRole) -> bool:
        path = self.path(index)
        if role != Qt.ItemDataRole.EditRole or not path or self._locked:
            return False
        if index.column() == COL_MODULE:
            self._document.rename_layer(path, str(value))
            return True
        try:
            number = int(str(value).strip())
        except ValueError:
            return False
        self._document.set_layer_index(path, number)
        return True

    # ------------------------------------------------------------------------------------------------------------

    def _text(self, block: Block, path: str, column: int, role: int) -> str:
        if column == COL_INDEX:
            if path:
                return str(self._layers[path])
            return f"{len(block.paths):,} modules" if len(block.paths) > 1 else "1 module"
        if role == Qt.ItemDataRole.EditRole or not path or block.alone:
            return path or block.name
        return path[len(block.name) + 1 :]

    def _mark(self, block: Block, path: str, column: int, role: int) -> Any:
        wanted = (Qt.ItemDataRole.DecorationRole, Qt.ItemDataRole.ToolTipRole, Qt.ItemDataRole.BackgroundRole)
        if role not in wanted or not self._marks:
            return None
        marks = [mark for one in ([path] if path else block.paths) for mark in self._marks.get(one, ())]
        if not marks:
            return None
        severity = min((mark.severity for mark in marks), key=lambda name: _RANK[name])
        if role == Qt.ItemDataRole.ToolTipRole:
            return "\n".join(dict.fromkeys(mark.message for mark in marks))
        if role == Qt.ItemDataRole.DecorationRole:
            return self._theme.icon(*SEVERITY_ICONS[severity]) if column == COL_MODULE else None
        return self._theme.color(SOFT[severity]) if severity in SOFT and path else None

    def _follow(self) -> None:
        old, new = self._layers, self._document.ordering.layers or {}
        if old is new:
            return
        if list(old) == list(new) and (not self._filter or old == new):
            if old != new:
                self._layers = new
                self._repaint()
            return
        self.beginResetModel()
        self._layers = new
        self._blocks = blocks_of(new, self._filter)
        self.endResetModel()

    def _take_marks(self) -> None:
        marks: dict[str, list[Finding]] = {}
        found = by_place(self._document.findings)
        for place, findings in found.items():
            if place.startswith("/layers/"):
                marks[parse_pointer(place)[1]] = findings
        if marks != self._marks:
            self._marks = marks
            self._repaint()

    def _repaint(self) -> None:
        """Labels, indices or marks are other ones; the shape stays, and so do expansion and selection."""
        if self._blocks:  # a view repaints all that is in sight, the modules inside the blocks too
            self.dataChanged.emit(self.index(0, 0), self.index(len(self._blocks) - 1, COL_INDEX))
