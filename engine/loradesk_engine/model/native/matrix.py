"""Matrices on the CPU in the form that the compiled kernels multiply."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from loradesk_engine.model.dequantize import QUANTIZATIONS, block_size
from loradesk_engine.model.native import library
from loradesk_engine.model.native.library import BFLOAT16, BYTES, FLOAT16, FLOAT32, HALF_BYTES, TABLED, Matrix

ROWS = 32
"""Rows of a chunk; see matrix.h."""
TYPES = {
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 6,
    "Q5_1": 7,
    "Q8_0": 8,
    "Q2_K": 10,
    "Q3_K": 11,
    "Q4_K": 12,
    "Q5_K": 13,
    "Q6_K": 14,
    "IQ4_NL": 20,
}

FOUR_BIT_TYPE = 100
FOUR_BIT_GROUP = 64
"""Weights that share a scale, which is bitsandbytes' default; other sizes are left to bitsandbytes."""
PLAIN = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}


def native_nbytes(type: str, rows: int, columns: int) -> int:
    """Memory that a matrix of this GGUF type takes for the kernels."""
    kind = QUANTIZATIONS[type]
    scales = (1 + kind.has_zero) * (2 if kind.half else 4)
    return _filled(rows) * (columns // kind.group * scales + columns * kind.bits // 8)


def plain_nbytes(dtype: torch.dtype, rows: int, columns: int) -> int:
    """Memory that a matrix of plain numbers takes for the kernels."""
    return _filled(rows) * columns * dtype.itemsize


def four_bit_nbytes(rows: int, columns: int) -> int:
    """Memory that a matrix of bitsandbytes' 4-bit types takes for the kernels."""
    return _filled(rows) * (columns // 2 + columns // FOUR_BIT_GROUP * 4)


def _filled(rows: int) -> int:
    """Rows of whole chunks."""
    return -(-rows // ROWS) * ROWS


class NativeMatrix:
    """A matrix [rows, columns] in the kernels' form.

    Attributes:
        form: what the kernels know of it; it points into `data` and `table`.
        dtype: of its numbers; None: it is quantized.
    """

    def __init__(self, data: Tensor, form: Matrix, table: Tensor | None = None) -> None:
        self.data = data
        self.table = table
        self.form = form
        self.rows, self.columns = int(form.rows), int(form.columns)
        self.dtype = None if form.scale_bytes else data.dtype
        self._functions = library.functions()
        self._product = NativeProduct([self])

    @classmethod
    def of(cls, raw: Tensor, type: str, rows: int, columns: int) -> NativeMatrix:
        """From a GGUF file's blocks. raw: uint8 [rows, bytes of a row].

        Raises:
            CheckpointError: the bytes do not fit the shape.
        """
        block_size(raw, type, rows, columns, TYPES)
        kind = QUANTIZATIONS[type]
        in_halves = kind.bits == 4
        form = Matrix(
            rows=rows,
            columns=columns,
            kind=HALF_BYTES if in_halves else BYTES,
            group=kind.group,
            lowest=kind.lowest if in_halves else 0,
            has_zero=kind.has_zero,
            scale_bytes=2 if kind.half else 4,
        )
        return cls(_packed(raw, TYPES[type], form, native_nbytes(type, rows, columns)), form)

    @classmethod
    def of_four_bits(cls, packed: Tensor, scales: Tensor, table: Tensor, rows: int, columns: int) -> NativeMatrix:
        """From bitsandbytes' 4-bit form.

        Args:
            packed: uint8, two codes a byte, the first in the upper half; row after row.
            scales: float32, of each `FOUR_BIT_GROUP` weights; `columns` is a multiple of that.
            table: float32 [16], the numbers that codes stand for.
        """
        groups = rows * columns // FOUR_BIT_GROUP
        blocks = torch.cat([scales.view(groups, 1).view(torch.uint8), packed.view(groups, -1)], dim=1)
        table = table.contiguous()
        form = Matrix(
            table=table.data_ptr(), rows=rows, columns=columns, kind=TABLED, group=FOUR_BIT_GROUP, scale_bytes=4
        )
        return cls(_packed(blocks, FOUR_BIT_TYPE, form, four_bit_nbytes(rows, columns)), form, table)

    @classmethod
    def of_plain(cls, weight: Tensor) -> NativeMatrix:
        """From a matrix [rows, columns] of one of `PLAIN`'s types; its numbers stay what they are."""
        return cls(*plain_form(weight))

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """x: [count, columns] -> [count, rows] of x's type; computed in float32."""
        return self._product(x)

    def add_bias(self, y: Tensor, bias: Tensor) -> Tensor:
        """See `NativeProduct.add_bias`."""
        return self._product.add_bias(y, bias)

    def rows_at(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Some rows as floats. rows: int64 [count] -> [count, columns]

        Raises:
            IndexError: there is no such row.
        """
        wanted = rows.contiguous()
        if len(wanted) and not (int(wanted.min()) >= 0 and int(wanted.max()) < self.rows):
            raise IndexError(f"rows {wanted.tolist()} of a matrix of {self.rows}")
        found = torch.empty(len(wanted), self.columns)
        self._functions.loradesk_rows(ctypes.addressof(self.form), wanted.data_ptr(), len(wanted), found.data_ptr())
        return found.to(dtype)


class NativeProduct:
    """The product of one input with several matrices, side by side."""

    def __init__(self, matrices: Sequence[NativeMatrix]) -> None:
        self._held = [(matrix.data, matrix.table) for matrix in matrices]  # the forms point into them
        self._forms = (Matrix * len(matrices))(*(matrix.form for matrix in matrices))
        self._outputs = 0
        for form in self._forms:
            form.output = self._outputs
            self._outputs += form.rows
        self._address, self._count = ctypes.addressof(self._forms), len(matrices)
        self._functions = library.functions()

    @staticmethod
    def of(matrices: Sequence[NativeMatrix]) -> NativeProduct | None:
        """None where their groups differ, which share sums of the input."""
        groups = {(matrix.form.group, matrix.columns) for matrix in matrices}
        return NativeProduct(matrices) if len(groups) == 1 else None

    def __call__(self, x: Tensor) -> Tensor:
        """x: [count, columns] -> [count, sum of their rows] of x's type; computed in float32."""
        wide = x.float()
        if wide.stride(1) != 1:
            wide = wide.contiguous()
        count = wide.shape[0]
        y = torch.empty(count, self._outputs)
        library.call(
            self._functions.loradesk_multiply,
            self._address, self._count, wide.data_ptr(), wide.stride(0), count, y.data_ptr(), self._outputs,
            library.threads,
        )  # fmt: skip
        return y if x.dtype == torch.float32 else y.to(x.dtype)

    def add_bias(self, y: Tensor, bias: Tensor) -> Tensor:
        """y + bias; in float32 in the place of y, which the product has just given. y: [count, rows], bias: [rows]"""
        if y.dtype != torch.float32 or bias.dtype != torch.float32:
            return y + bias
        library.call(self._functions.loradesk_add_bias, y.data_ptr(), bias.data_ptr(), *y.shape)
        return y


def _packed(blocks: Tensor, type: int, form: Matrix, nbytes: int) -> Tensor:
    """The memory that `form` then points to: uint8 [nbytes]. blocks: uint8, row after row."""
    data = torch.empty(nbytes, dtype=torch.uint8)
    form.data = data.data_ptr()
    blocks = blocks.contiguous()
    library.functions().loradesk_pack(
        blocks.data_ptr(), type, blocks.numel() // form.rows, ctypes.addressof(form), data.data_ptr(), library.threads
    )
    return data


def plain_form(weight: Tensor) -> tuple[Tensor, Matrix]:
    """A matrix [rows, columns] of one of `PLAIN`'s types for the kernels, and the memory that holds it."""
    rows, columns = weight.shape
    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    data = torch.empty(_filled(rows) * columns, dtype=weight.dtype)
    form = Matrix(data=data.data_ptr(), rows=rows, columns=columns, kind=PLAIN[weight.dtype], group=columns)
    library.functions().loradesk_pack_plain(
        weight.data_ptr(), weight.stride(0) * weight.itemsize, ctypes.addressof(form), data.data_ptr(), library.threads
    )
    return data, form
