"""`order` as a table."""

from __future__ import annotations

from collections.abc import Sequence

from loradesk_app.ordering.rows_model import RowsModel

COL_POSITION, COL_NAME = 0, 1


class OrderModel(RowsModel):
    """Adapter names in their order."""

    KEY = "order"
    HEADERS = ("#", "Adapter")

    def _wanted(self) -> Sequence[str]:
        return self.document.ordering.order or ()

    def text(self, row: int, _column: int) -> str:
        return str(self._rows[row])

    def edit(self, row: int, _column: int, text: str) -> None:
        self.document.change_name(row, text)

    def move(self, rows: list[int], target: int) -> list[int]:
        return self.document.move_names(rows, target)

    def remove(self, rows: list[int]) -> None:
        self.document.remove_names(rows)
