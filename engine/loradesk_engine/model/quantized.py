"""Weights that stay quantized in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from loradesk_engine.formats.gguf_model import GgufModel
from loradesk_engine.model.dequantize import dequantize
from loradesk_engine.model.device import SMALL_MODEL
from loradesk_engine.model.linear import row_slices
from loradesk_engine.model.native.library import library
from loradesk_engine.model.native.matrix import PLAIN, NativeMatrix, NativeProduct, native_nbytes
from loradesk_engine.model.planes import PlaneMatrix, planes_nbytes
from loradesk_engine.model.table import TableMatrix, table_nbytes

PLAIN_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Plain numbers, as GGUF and safetensors call them."""


class GgufWeights(Mapping[str, Tensor]):
    """The tensors of a GGUF file under Hugging Face's names: plain ones as they are, others dequantized to float32 when
    asked for.
    """

    def __init__(self, model: GgufModel) -> None:
        self._model = model
        self._names = set(model.names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._model.names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> Tensor:
        stored = self._model.stored(name)
        raw = torch.from_numpy(stored.raw)
        if stored.type in PLAIN_TYPES:
            return raw.contiguous().view(PLAIN_TYPES[stored.type]).reshape(stored.shape)
        return dequantize(raw.reshape(-1), stored.type, raw.shape[0], stored.shape[-1]).reshape(stored.shape)

    def packed(self, name: str) -> PackedMatrix | None:
        """A quantized matrix as it lies in the file, or None where it is not quantized."""
        stored = self._model.stored(name)
        if stored.type in PLAIN_TYPES or len(stored.shape) != 2:
            return None
        return PackedMatrix(torch.from_numpy(stored.raw), stored.type, stored.shape[0], stored.shape[1])


class QuantizedMatrix(Protocol):
    """A matrix in a form that its device multiplies quickly, quantized or, on the CPU, of 16 bits."""

    rows: int
    columns: int

    @property
    def nbytes(self) -> int: ...

    def __call__(self, x: Tensor) -> Tensor:
        """x: [count, columns] -> [count, rows] of x's type"""
        ...

    def rows_at(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Some rows as floats. rows: int64 [count] -> [count, columns]"""
        ...


class PackedMatrix:
    """A quantized matrix as it lies in a file. raw: uint8 [rows, bytes of a row]; it stands for [rows, columns]."""

    def __init__(self, raw: Tensor, type_name: str, rows: int, columns: int) -> None:
        self.raw = raw
        self.type = type_name
        self.rows = rows
        self.columns = columns

    @property
    def nbytes(self) -> int:
        return self.raw.nbytes

    def to(self, device: torch.device) -> PackedMatrix:
        return PackedMatrix(self.raw.to(device), self.type, self.rows, self.columns)

    def rows_at(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Some rows as floats. rows: int64 [count] -> [count, columns]"""
        chosen = self.raw[rows]
        return dequantize(chosen.reshape(-1), self.type, len(rows), self.columns).to(dtype)

    def on(self, device: torch.device) -> NativeMatrix | TableMatrix | PlaneMatrix:
        """The matrix on a device, in the form that is quick there.

        Raises:
            CheckpointError: the bytes do not fit the shape.
        """
        if device.type != "cpu":
            return PlaneMatrix.of(self.raw.to(device), self.type, self.rows, self.columns)
        form = TableMatrix if library() is None else NativeMatrix
        return form.of(self.raw, self.type, self.rows, self.columns)


def keeps_packed(parameters: int, device: torch.device) -> bool:
    """Whether a model of this size keeps its quantized weights as they are. Where no kernel is quick with them, a small
    model is fast rather than smaller still.
    """
    return parameters >= SMALL_MODEL or (device.type == "cpu" and library() is not None)


def held_nbytes(type_name: str, rows: int, columns: int, device: torch.device) -> int:
    """Memory that a quantized matrix of a GGUF file takes on a device."""
    if device.type != "cpu":
        return planes_nbytes(type_name, rows, columns)
    return (table_nbytes if library() is None else native_nbytes)(type_name, rows, columns)


def goes_native(dtype: torch.dtype, held_in: torch.dtype, device: torch.device) -> bool:
    """Whether a matrix of plain numbers is held for the CPU's kernels, in the type that it has in the file.

    What is read from memory is what a token costs on a CPU: 16-bit numbers stay so while the model computes in float32.
    A matrix that is float32 in the file stays mapped, which takes no memory of its own.
    """
    short = dtype in PLAIN and dtype != torch.float32
    return short and held_in == torch.float32 and device.type == "cpu" and library() is not None


class PackedLinear:
    """A linear over a weight that is not held as a tensor. bias: [out] or None."""

    def __init__(self, path: str, index: int, weight: QuantizedMatrix, bias: Tensor | None = None) -> None:
        self.path = path
        self.index = index
        self.weight = weight
        self.bias = bias
        self.out_features, self.in_features = weight.rows, weight.columns

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (self.bias.nbytes if self.bias is not None else 0)

    @property
    def dtype(self) -> torch.dtype | None:
        return self.weight.dtype if isinstance(self.weight, NativeMatrix) else None

    @property
    def is_native(self) -> bool:
        return isinstance(self.weight, NativeMatrix)

    def __call__(self, x: Tensor) -> Tensor:
        y = self.weight(x)
        if self.bias is None:
            return y
        return self.weight.add_bias(y, self.bias) if isinstance(self.weight, NativeMatrix) else y + self.bias

    def weight_slices(self) -> Iterator[Tensor]:
        for rows in row_slices(self.out_features, self.in_features):
            yield self.weight.rows_at(torch.arange(rows.start, rows.stop), torch.float32)


def fuse_packed(linears: Sequence[PackedLinear]) -> Callable[[Tensor], Tensor] | None:
    """One product for several linears of the same input. Where their weights must lie in one matrix for it, their own
    become views of that.

    None where their types or sizes do not fit together.
    """
    natives = [linear.weight for linear in linears if isinstance(linear.weight, NativeMatrix)]
    tables = [linear.weight for linear in linears if isinstance(linear.weight, TableMatrix)]
    planes = [linear.weight for linear in linears if isinstance(linear.weight, PlaneMatrix)]
    joined: Callable[[Tensor], Tensor] | None = None
    if len(natives) == len(linears):
        joined = NativeProduct.of(natives)
    elif len(tables) == len(linears):
        joined = TableMatrix.joined(tables)
    elif len(planes) == len(linears):
        joined = PlaneMatrix.joined(planes)
    biases = [linear.bias for linear in linears if linear.bias is not None]
    if joined is None or not biases:
        return joined
    return _Biased(joined, torch.cat(biases))


class _Biased:
    """A product with biases. bias: [out]"""

    def __init__(self, product: Callable[[Tensor], Tensor], bias: Tensor) -> None:
        self._product, self._bias = product, bias

    def __call__(self, x: Tensor) -> Tensor:
        y = self._product(x)
        product = self._product
        return product.add_bias(y, self._bias) if isinstance(product, NativeProduct) else y + self._bias


class PackedEmbedding:
    """An embedding over a quantized matrix [vocab, hidden]."""

    def __init__(self, weight: QuantizedMatrix | PackedMatrix, dtype: torch.dtype) -> None:
        self._weight = weight
        self._dtype = dtype

    def __call__(self, token_ids: Tensor) -> Tensor:
        """int64 [rows] -> [rows, hidden]"""
        return self._weight.rows_at(token_ids, self._dtype)
