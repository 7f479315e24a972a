"""`preload_adapters` as a table."""

from __future__ import annotations

from collections.abc import Sequence

from loradesk_app.ordering.rows_model import RowsModel
from loradesk_engine.ordering.schema import PreloadAdapter, pointer

COL_POSITION, COL_NAME, COL_ID = 0, 1, 2


class PreloadModel(RowsModel):
    """Names and places of the adapters that LoRA loads at start."""

    KEY = "preload_adapters"
    HEADERS = ("#", "Name", "Folder or hub id")

    def _wanted(self) -> Sequence[PreloadAdapter]:
        return self.document.ordering.preload_adapters or ()

    def text(self, row: int, column: int) -> str:
        adapter: PreloadAdapter = self._rows[row]
        return adapter.name if column == COL_NAME else adapter.adapter_model_id

    def edit(self, row: int, column: int, text: str) -> None:
        if column == COL_NAME:
            self.document.rename_preload(row, text)
        else:
            self.document.change_preload_id(row, text)

    def move(self, rows: list[int], target: int) -> list[int]:
        return self.document.move_preloads(rows, target)

    def remove(self, rows: list[int]) -> None:
        self.document.remove_preloads(rows)

    def places(self, row: int, column: int) -> tuple[str, ...]:
        own = pointer(self.KEY, row, "name" if column == COL_NAME else "adapter_model_id")
        return (own, pointer(self.KEY, row)) if column == COL_NAME else (own,)
