"""Weights that stay quantized in memory and are dequantized as they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from loradesk_engine.formats.gguf_model import GgufModel
from loradesk_engine.model.dequantize import dequantize

PLAIN_TYPES = ("F32", "F16", "BF16")
SLICE_VALUES = 8 * 2**20
"""Values dequantized at once: 32 MiB in float32, so that a large matrix is never there twice."""


class GgufWeights(Mapping[str, Tensor]):
    """The tensors of a GGUF file under Hugging Face's names, dequantized to float32 when asked for."""

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
        return dequantize(raw.reshape(-1), stored.type, raw.shape[0], stored.shape[-1]).reshape(stored.shape)

    def packed(self, name: str) -> PackedMatrix | None:
        """A quantized matrix as it lies in the file, or None where it is not quantized."""
        stored = self._model.stored(name)
        if stored.type in PLAIN_TYPES or len(stored.shape) != 2:
            return None
        return PackedMatrix(torch.from_numpy(stored.raw), stored.type, stored.shape[0], stored.shape[1])


class PackedMatrix:
    """A quantized matrix. raw: uint8 [rows, bytes of a row]; it stands for float32 [rows, columns]."""

    def __init__(self, raw: Tensor, type_name: str, rows: int, columns: int) -> None:
        self.raw = raw
        self.type = type_name
        self.rows = rows
        self.columns = columns

    def to(self, device: torch.device) -> PackedMatrix:
        return PackedMatrix(self.raw.to(device), self.type, self.rows, self.columns)

    def rows_at(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Some rows, dequantized. rows: int64 [count] -> [count, columns]"""
        chosen = self.raw[rows]
        return dequantize(chosen.reshape(-1), self.type, len(rows), self.columns).to(dtype)

    def slices(self, dtype: torch.dtype) -> Iterator[Tensor]:
        """All rows, dequantized a part at a time: [part, columns] each."""
        step = max(1, SLICE_VALUES // self.columns)
        for start in range(0, self.rows, step):
            part = self.raw[start : start + step]
            yield dequantize(part.reshape(-1), self.type, part.shape[0], self.columns).to(dtype)


class PackedLinear:
    """A linear over a quantized weight. bias: [out] or None."""

    def __init__(self, path: str, index: int, weight: PackedMatrix, bias: Tensor | None = None) -> None:
        self.path = path
        self.index = index
        self.packed = weight
        self.bias = bias
        self.out_features, self.in_features = weight.rows, weight.columns

    @property
    def nbytes(self) -> int:
        return self.packed.raw.nbytes + (self.bias.nbytes if self.bias is not None else 0)

    def __call__(self, x: Tensor) -> Tensor:
        parts = [F.linear(x, part) for part in self.packed.slices(x.dtype)]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return y if self.bias is None else y + self.bias


class PackedEmbedding:
    """An embedding over a quantized matrix [vocab, hidden]."""

    def __init__(self, weight: PackedMatrix, dtype: torch.dtype) -> None:
        self._packed = weight
        self._dtype = dtype

    def __call__(self, token_ids: Tensor) -> Tensor:
        """int64 [rows] -> [rows, hidden]"""
        return self._packed.rows_at(token_ids, self._dtype)
