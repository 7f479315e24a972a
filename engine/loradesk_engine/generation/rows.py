"""The rows of a forward pass."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from loradesk_engine.model import kernels

GRAPH_TOKENS = 2  # prompts of at most this many times the rows of the largest graph are computed by graphs
GRAPH_READS = 2**18  # keys that those rows may read in total: each row reads the history by itself


@dataclass(frozen=True)
class Rows:
    """Consecutive tokens of one sequence in a forward pass, one row each.

    Attributes:
        tokens: token ids.
        start: position of the first of them.
        slot: cache slot.
        scalings: float32 [length or 1, layers or 1, adapters]; None for the base model.
        column_offset: distance from the rows' positions to their columns in the cache.
    """

    tokens: Sequence[int]
    start: int
    slot: int
    scalings: Tensor | None
    column_offset: int = 0

    def split(self) -> list[Rows]:
        """The same tokens as parts of one row each."""
        return [
            Rows([token], self.start + offset, self.slot, scalings_of_row(self.scalings, offset), self.column_offset)
            for offset, token in enumerate(self.tokens)
        ]


def scalings_of_row(scalings: Tensor | None, row: int) -> Tensor | None:
    """The scalings of one row of a part, [1, layers or 1, adapters]."""
    return scalings if scalings is None or scalings.shape[0] == 1 else scalings[row : row + 1]


def row_offsets(parts: Sequence[Rows]) -> list[int]:
    """The first row of each part, followed by the total number of rows."""
    return [0, *itertools.accumulate(len(part.tokens) for part in parts)]


def prompt_graph_sizes() -> tuple[int, int]:
    """Rows of the graphs for prompts. Unused rows of a graph read the history too, so there is a smaller one."""
    return kernels.MAX_ROWS // 2, kernels.MAX_ROWS


def suit_graphs(parts: Sequence[Rows]) -> bool:
    """Whether captured graphs compute these rows faster than the host can launch the pass kernel by kernel."""
    prompts = [part for part in parts if len(part.tokens) > 1]
    reads = sum(len(part.tokens) * (part.start + len(part.tokens)) for part in prompts)
    return not prompts or (row_offsets(parts)[-1] <= GRAPH_TOKENS * kernels.MAX_ROWS and reads <= GRAPH_READS)
