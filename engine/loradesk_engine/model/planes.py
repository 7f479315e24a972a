"""Quantized matrices on a GPU: codes in rows of 4 or 8 bits, with their scales beside them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from loradesk_engine.model import kernels
from loradesk_engine.model.dequantize import QUANTIZATIONS, codes
from loradesk_engine.model.linear import row_slices

logger = logging.getLogger(__name__)

SLICE_VALUES = 64 * 2**20  # that are floats at once: 128 MiB, and few launches
TRIAL_ROWS = 160  # more than a program of the kernels has outputs
TRIAL_ERRORS = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}  # by the largest value
_TRIED: dict[tuple[object, ...], bool] = {}  # by device, form of the matrix, type, rows and shares


def planes_nbytes(type: str, rows: int, columns: int) -> int:
    """Memory that a matrix of this GGUF type takes as planes."""
    kind = QUANTIZATIONS[type]
    scales = (1 + kind.has_zero) * (2 if kind.half else 4)
    return rows * (columns * kind.bits // 8 + columns // kind.group * scales)


class PlaneMatrix:
    """A quantized matrix [rows, columns] of codes and scales.

    Attributes:
        codes: uint8 [rows, columns], or [rows, columns / 2] with two neighbours in a byte, the first in its lower half.
        scale: float32, or float16 where the file has it so: [rows, groups].
        zero: like `scale`, or None.
        lowest: the number that code 0 stands for. An element is (code + lowest) * scale + zero.
        group: columns that share a scale.
    """

    def __init__(self, codes: Tensor, scale: Tensor, zero: Tensor | None, columns: int, lowest: int) -> None:
        self.columns = columns
        self.lowest = lowest
        self.group = columns // scale.shape[1]
        self._hold(codes, scale, zero)

    def _hold(self, codes: Tensor, scale: Tensor, zero: Tensor | None) -> None:
        self.codes, self.scale, self.zero = codes, scale, zero
        self.rows = codes.shape[0]

    @classmethod
    def of(cls, raw: Tensor, type: str, rows: int, columns: int) -> PlaneMatrix:
        """From a GGUF file's blocks, on the device they are on. raw: uint8 [rows, bytes of a row].

        Raises:
            CheckpointError: the bytes do not fit the shape.
        """
        kind = QUANTIZATIONS[type]
        groups, held = columns // kind.group, columns * kind.bits // 8
        scales = torch.float16 if kind.half else torch.float32
        values = raw.new_empty(rows, held)
        scale = raw.new_empty(rows, groups, dtype=scales)
        zero = torch.empty_like(scale) if kind.has_zero else None
        for part in row_slices(rows, columns):
            some = codes(raw[part], type, part.stop - part.start, columns)
            values[part] = (some.values if kind.bits == 8 else some.values[0::2] | (some.values[1::2] << 4)).t()
            scale[part] = some.scale.t()
            if zero is not None and some.zero is not None:
                zero[part] = some.zero.t()
        return cls(values, scale, zero, columns, kind.lowest)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scale.nbytes + (0 if self.zero is None else self.zero.nbytes)

    @property
    def in_nibbles(self) -> bool:
        return self.codes.shape[1] < self.columns

    def __call__(self, x: Tensor) -> Tensor:
        """x: [count, columns] -> [count, rows] of x's type"""
        count = x.shape[0]
        if 0 < count <= kernels.MAX_ROWS and x.stride(1) == 1 and self._kernel_is_right(count, x.dtype):
            from loradesk_engine.model.kernels.quantized import multiply

            return multiply(x, self)
        parts = [F.linear(x, self._slice(part, x.dtype)) for part in row_slices(self.rows, self.columns, SLICE_VALUES)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def rows_at(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Some rows as floats. rows: int64 [count] -> [count, columns]"""
        return self._floats(rows, dtype)

    @staticmethod
    def joined(matrices: Sequence[PlaneMatrix]) -> PlaneMatrix | None:
        """One matrix with the rows of several, which become views of it; None where they do not fit together."""
        first = matrices[0]
        if any(matrix._form() != first._form() for matrix in matrices):
            return None
        codes = torch.cat([matrix.codes for matrix in matrices])
        scale = torch.cat([matrix.scale for matrix in matrices])
        zeros = [matrix.zero for matrix in matrices if matrix.zero is not None]
        zero = torch.cat(zeros) if zeros else None
        start = 0
        for matrix in matrices:
            own = slice(start, start + matrix.rows)
            start += matrix.rows
            matrix._hold(codes[own], scale[own], None if zero is None else zero[own])
        return PlaneMatrix(codes, scale, zero, first.columns, first.lowest)

    def _slice(self, part: slice, dtype: torch.dtype) -> Tensor:
        """Neighbouring rows as floats, [count, columns]."""
        if not self._kernel_is_right(0, dtype):
            return self._floats(part, dtype)
        from loradesk_engine.model.kernels.quantized import floats

        return floats(self, part, dtype)

    @torch.inference_mode()
    def _kernel_is_right(self, count: int, dtype: torch.dtype) -> bool:
        """Whether Triton's kernel computes on this device what torch does; tried once for each form of matrix, type
        and size of kernel, before a graph with it is captured.

        What a compiler makes of a kernel differs between GPUs, and a wrong answer would look like a bad model.

        count: rows of a product; 0: the numbers themselves.
        """
        device = self.codes.device
        if not kernels.usable(device):
            return False
        from loradesk_engine.model.kernels.quantized import padded, shares_of

        shares = shares_of(count, self, dtype) if count else 0
        trial = (device, *self._form(), dtype, padded(count, self) if count else 0, shares)
        if trial not in _TRIED:
            zero = None if self.zero is None else self.zero[:TRIAL_ROWS]
            some = PlaneMatrix(self.codes[:TRIAL_ROWS], self.scale[:TRIAL_ROWS], zero, self.columns, self.lowest)
            try:
                _TRIED[trial] = some._agrees(count, dtype, shares)
            except Exception:  # Triton's own, for a GPU it cannot compile this for
                logger.warning("A kernel cannot be compiled for %s: torch computes instead", device, exc_info=True)
                _TRIED[trial] = False
        return _TRIED[trial]

    def _agrees(self, count: int, dtype: torch.dtype, shares: int) -> bool:
        from loradesk_engine.model.kernels.quantized import floats, multiply

        expected = self._floats(slice(None), torch.float32)
        if not count:
            found = floats(self, slice(None), dtype)
        else:
            x = torch.arange(count * self.columns, device=self.codes.device).sin().view(count, -1).to(dtype)
            expected, found = F.linear(x.float(), expected), multiply(x, self, shares)
        error = (found.float() - expected).abs().max()
        return bool(error <= TRIAL_ERRORS[dtype] * expected.abs().max())

    def _form(self) -> tuple[object, ...]:
        return self.columns, self.group, self.lowest, self.in_nibbles, self.zero is None, self.scale.dtype

    def _floats(self, rows: slice | Tensor, dtype: torch.dtype) -> Tensor:
        """Some rows, [count, columns]; computed in float32."""
        held, scale = self.codes[rows], self.scale[rows].float()
        values = torch.stack((held & 15, held >> 4), dim=-1) if self.in_nibbles else held
        result = values.view(*scale.shape, self.group).float().add_(self.lowest).mul_(scale.unsqueeze(-1))
        if self.zero is not None:
            result += self.zero[rows].unsqueeze(-1)
        return result.view(-1, self.columns).to(dtype)
