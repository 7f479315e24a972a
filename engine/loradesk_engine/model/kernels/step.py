"""The Triton kernels of a decoding step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loradesk_engine.model.batch import Batch
from loradesk_engine.model.kernel_protocol import AdapterPart
from loradesk_engine.model.kernels.attention import attend_rows, rotate_and_store
from loradesk_engine.model.kernels.lora import Shrunk, expand, expand_layout, shrink
from loradesk_engine.model.kernels.mlp import silu_product
from loradesk_engine.model.kernels.norm import add_rms_norm
from loradesk_engine.model.linear import joined


@dataclass(frozen=True)
class _PackedAdapters:
    """Adapters as the Triton kernels read them.

    Attributes:
        b: the parts' matrices, flattened and concatenated.
        layout: the columns and ranks of each of them.
        aligned: a common divisor of all ranks, 1 to 16.
    """

    a: Tensor
    b: Tensor
    layout: Tensor
    aligned: int

    @property
    def nbytes(self) -> int:
        return self.b.nbytes


class TritonStep:
    """`StepKernels` on a GPU."""

    dtype: torch.dtype | None = None

    def add_rms_norm(self, hidden: Tensor, change: Tensor, weight: Tensor, eps: float) -> Tensor:
        return add_rms_norm(hidden, change, weight, eps)

    def silu_product(self, both: Tensor) -> Tensor:
        return silu_product(both)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        tables: tuple[Tensor, Tensor],
        keys: Tensor,
        values: Tensor,
        batch: Batch,
        scale: float,
        window: int | None,
        limit: float | None,
    ) -> Tensor:
        positions, columns, slots = batch.positions, batch.columns, batch.slots
        assert slots is not None, "Triton's kernels take rows by slots"
        assert columns is not None
        q = rotate_and_store(q, k, v, *tables, positions, columns, slots, keys, values)
        return attend_rows(q, keys, values, positions, columns, slots, scale, window, limit)

    def pack(self, a: Tensor, parts: Sequence[AdapterPart]) -> _PackedAdapters:
        places = [
            (part.column, part.column + part.b.shape[0], part.rank, part.rank + part.b.shape[1]) for part in parts
        ]
        b = joined([part.b.reshape(-1, 1) for part in parts]).flatten()
        aligned = math.gcd(16, *(part.aligned for part in parts))
        return _PackedAdapters(a, b, expand_layout(places, a.device), aligned)

    def begin_adapters(self, packed: _PackedAdapters, x: Tensor, factors: Tensor) -> Shrunk:
        return shrink(x, packed.a, factors)

    def add_adapters(self, packed: _PackedAdapters, begun: Shrunk, y: Tensor) -> None:
        expand(begun, y, packed.b, packed.layout, packed.aligned)
