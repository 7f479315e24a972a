"""Linear layers. The decoder knows only `Linear`; another way to hold a weight is another class here, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from loradesk_engine.model.batch import Delta

NARROW = 1024
SLICE_VALUES = 8 * 2**20
"""Values of a weight in float32 at once where all of it is read, so that a large matrix is never there twice."""


class Linear(Protocol):
    """A linear layer by its path.

    Attributes:
        path: as Hugging Face names it, `model.layers.0.self_attn.q_proj`.
        index: its place among the model's linears, in registration order; adapters are found by it.
        bias: [out_features] or None.
        nbytes: memory its weights hold.
        dtype: of its weight's numbers; None: it is quantized.
        is_native: whether the compiled kernels multiply it.
    """

    path: str
    index: int
    in_features: int
    out_features: int
    bias: Tensor | None

    @property
    def nbytes(self) -> int: ...

    @property
    def dtype(self) -> torch.dtype | None: ...

    @property
    def is_native(self) -> bool: ...

    def __call__(self, x: Tensor) -> Tensor:
        """x: [rows, in_features] -> [rows, out_features]"""
        ...

    def weight_slices(self) -> Iterator[Tensor]:
        """The weight that it stands for, some rows at a time from the first on: float32 [count, in_features]."""
        ...


def row_slices(rows: int, columns: int, values: int = SLICE_VALUES) -> Iterator[slice]:
    """Rows of a matrix that are read at once: at most so many values, but one row."""
    step = max(1, values // columns)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def fast_layout(weight: Tensor) -> Tensor:
    """The same matrix [out, in], stored so that one row times it is fast on this device.

    On the CPU in float32 a product of one row takes a dot product for each output; with short inputs their overhead is
    most of the time. Stored by columns it becomes a sum of long columns: 2.5 times as fast for 4096 x 256.
    """
    out_features, in_features = weight.shape
    narrow = in_features <= NARROW and out_features >= in_features
    if weight.device.type == "cpu" and weight.dtype == torch.float32 and narrow:
        return weight.t().contiguous().t()
    return weight


class DenseLinear:
    """A linear that holds its weight as it is. weight: [out, in], bias: [out] or None."""

    is_native = False

    def __init__(self, path: str, index: int, weight: Tensor, bias: Tensor | None = None) -> None:
        self.path = path
        self.index = index
        self.weight = weight
        self.bias = bias
        self.out_features, self.in_features = weight.shape

    @property
    def dtype(self) -> torch.dtype | None:
        return self.weight.dtype

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (self.bias.nbytes if self.bias is not None else 0)

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def weight_slices(self) -> Iterator[Tensor]:
        return (self.weight[rows].float() for rows in row_slices(*self.weight.shape))


class Embedding(Protocol):
    """Token ids to their vectors. int64 [rows] -> [rows, hidden]"""

    def __call__(self, token_ids: Tensor) -> Tensor: ...


class DenseEmbedding:
    """An embedding that holds its matrix as it is, in any type; gives vectors of `dtype`. weight: [vocab, hidden]"""

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self._weight = weight
        self._dtype = dtype

    def __call__(self, token_ids: Tensor) -> Tensor:
        return F.embedding(token_ids, self._weight).to(self._dtype)


class Projection:
    """Linears that read the same input, as queries, keys and values do, or gate and up: one product instead of several.

    Attributes:
        number: its place among the model's projections; adapters are found by it.
        linears: in the order of the output's columns.

    Args:
        product: computes all of them at once where their weights lie in one matrix; None: one after the other.
    """

    def __init__(
        self, number: int, linears: Sequence[Linear], product: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.number = number
        self.linears = tuple(linears)
        self._product = self.linears[0] if len(self.linears) == 1 else product

    def __call__(self, x: Tensor, delta: Delta | None) -> Tensor:
        """The linears with the adapters' part, side by side. x: [rows, in] -> [rows, sum of their out_features]"""
        if delta is None:
            return self._base(x)
        begun = delta.begin(self.number, x)
        return delta.add(self.number, x, self._base(x), begun)

    def _base(self, x: Tensor) -> Tensor:
        if self._product is not None:
            return self._product(x)
        return torch.cat([linear(x) for linear in self.linears], dim=-1)


def joined(matrices: Sequence[Tensor]) -> Tensor:
    """Matrices below one another; without a copy where they lie so in memory."""
    first = matrices[0]
    end, storage = first.data_ptr(), first.untyped_storage().data_ptr()
    for matrix in matrices:
        beside = matrix.data_ptr() == end and matrix.untyped_storage().data_ptr() == storage
        if not beside or not matrix.is_contiguous():
            return torch.cat(list(matrices))
        end += matrix.nbytes
    rows = sum(matrix.shape[0] for matrix in matrices)
    return first.as_strided((rows, first.shape[1]), first.stride())


def fuse(linears: Sequence[DenseLinear]) -> DenseLinear:
    """One linear for several of the same input; their own weights become views of its matrix."""
    first = linears[0]
    whole = fast_layout(torch.cat([linear.weight for linear in linears]))
    bias = None if first.bias is None else torch.cat([linear.bias for linear in linears if linear.bias is not None])
    start = 0
    for linear in linears:
        rows = slice(start, start + linear.out_features)
        linear.weight = whole[rows]
        linear.bias = None if bias is None else bias[rows]
        start += linear.out_features
    return DenseLinear(first.path, first.index, whole, bias)
