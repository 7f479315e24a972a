"""The interface that the model's parts use kernels by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from loradesk_engine.model.batch import Batch


@dataclass(frozen=True)
class AdapterPart:
    """The adapters of one of several linears that share an input.

    Attributes:
        column: the linear's first column in the shared output.
        rank: its first rank among those of all the linears.
        b: [columns, ranks]
        aligned: a common divisor of its adapters' ranks.
    """

    column: int
    rank: int
    b: Tensor
    aligned: int


class PackedAdapters(Protocol):
    """The adapters of one projection in the memory layout of the kernels."""

    @property
    def nbytes(self) -> int:
        """Memory in addition to the adapters' own matrices."""
        ...


class StepKernels(Protocol):
    """The operations that have kernels. On a GPU each row is the next token of its sequence. The rows of matrices are
    contiguous.
    """

    @property
    def dtype(self) -> torch.dtype | None:
        """The type that the kernels compute in; None for any."""
        ...

    def add_rms_norm(self, hidden: Tensor, change: Tensor, weight: Tensor, eps: float) -> Tensor:
        """hidden += change, in place; returns hidden / rms(hidden) * weight. hidden, change: [rows, size]"""
        ...

    def silu_product(self, both: Tensor) -> Tensor:
        """silu(gate) * up. both: [rows, 2 * size], gate first -> [rows, size]"""
        ...

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
        """`model.attention.attend`, with the tables of the rotary embedding: cosines and signed sines, each
        [positions, rotary_dim].
        """
        ...

    def pack(self, a: Tensor, parts: Sequence[AdapterPart]) -> PackedAdapters:
        """Pack the adapters of one projection for the next two methods. a: [ranks of all parts, in]"""
        ...

    def begin_adapters(self, packed: Any, x: Tensor, factors: Tensor) -> Any:
        """Compute what depends only on the input. x: [rows, in], factors: [rows or 1, ranks]"""
        ...

    def add_adapters(self, packed: Any, begun: Any, y: Tensor) -> None:
        """y += (x a' * factors) b', in place. y: [rows, out]"""
        ...
