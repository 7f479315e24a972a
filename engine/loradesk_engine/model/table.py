"""Quantized matrices on the CPU, in the form in which torch multiplies them without making floats of them first.

torch's quantized embedding bags add up rows of a table of codes, each row times a weight. With one table row for every
input, and one bag for every group of inputs that shares its scales, a bag is the product of that group's inputs and
codes, in float32. Times the scales and summed over the groups it is the matrix product, to float32's rounding, and the
memory that is read is the codes'.

The other products that torch has for quantized weights on the CPU round to 16 bits (`_weight_int4pack_mm_for_cpu`) or
round the inputs to 8 bits (dynamic quantization), which shows in the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from loradesk_engine.model.dequantize import QUANTIZATIONS, codes
from loradesk_engine.model.device import one_thread

FEW_ROWS = 8
"""Rows up to which codes are multiplied; for more it costs less to make floats of the matrix. Measured: 8 to 12."""
NIBBLE_COLUMNS = 2048
"""Width from which 4-bit codes take half a byte.

torch computes with nibbles on one core only, so the work is handed to threads here, which takes 50 microseconds. For
smaller matrices that is too long: there a code takes a byte.
"""
WIDTHS = (256, 192, 128)
"""Outputs side by side in the table. So short, they are read almost as they lie: twice as fast as whole rows."""
FLOATS = 2**19
"""Values made floats at once: 2 MiB, which stay in a core's cache until they are multiplied."""

LINES = 2**16
"""Lines of the table multiplied at once, so that what lies between the two steps stays in the cache."""

_bytes_bag = torch.ops.quantized.embedding_bag_byte_rowwise_offsets.default
_nibbles_bag = torch.ops.quantized.embedding_bag_4bit_rowwise_offsets.default


def table_nbytes(type: str, rows: int, columns: int) -> int:
    """Memory that a matrix of this GGUF type takes as a table."""
    kind = QUANTIZATIONS[type]
    chunks, width = _chunks(rows)
    line = width // 2 + 4 if _in_nibbles(type, columns) else width + 8
    per_group = 4 * (1 + kind.has_zero)
    return chunks * (columns * line + columns // kind.group * width * per_group)


class TableMatrix:
    """A quantized matrix [rows, columns] as a table. The rows lie in chunks of `width`, the last filled up with zeros.

    Attributes:
        rows, columns: of the matrix.

    Args:
        table: uint8 [chunks * columns, line]: the codes of one chunk's rows at one column, a byte or half a byte each
            (the lower half first), then the scale 1 and the number that code 0 stands for (float32, or float16 after
            nibbles).
        scale: float32 [chunks, groups, width].
        zero: float32 [groups, chunks * width], or None.
    """

    def __init__(self, table: Tensor, scale: Tensor, zero: Tensor | None, rows: int, lowest: int) -> None:
        self.rows = rows
        self._lowest = lowest
        self._hold(table, scale, zero)

    def _hold(self, table: Tensor, scale: Tensor, zero: Tensor | None) -> None:
        self._table, self._scale, self._zero = table, scale, zero
        self._chunks, self._groups, self._width = scale.shape
        self.columns = table.shape[0] // self._chunks
        self._group = self.columns // self._groups
        self._nibbles = table.shape[1] == self._width // 2 + 4

    @classmethod
    @one_thread()  # 20 times as fast while both cores are busy, and two threads save little
    def of(cls, raw: Tensor, type: str, rows: int, columns: int) -> TableMatrix:
        """From a GGUF file's blocks. raw: uint8 [rows, bytes of a row].

        Raises:
            CheckpointError: the bytes do not fit the shape.
        """
        kind, nibbles = QUANTIZATIONS[type], _in_nibbles(type, columns)
        chunks, width = _chunks(rows)
        tail = torch.tensor([1.0, kind.lowest], dtype=torch.float16 if nibbles else torch.float32).view(torch.uint8)
        held = width // 2 if nibbles else width
        filled = chunks * width == rows
        table = (torch.empty if filled else torch.zeros)(chunks, columns, held + len(tail), dtype=torch.uint8)
        table[:, :, held:] = tail
        groups = columns // kind.group
        scale = torch.zeros(chunks, groups, width)
        zero = torch.zeros(groups, chunks * width) if kind.has_zero else None
        for chunk in range(chunks):
            outputs = slice(chunk * width, min((chunk + 1) * width, rows))
            part = raw[outputs]
            count = part.shape[0]
            some = codes(part, type, count, columns)
            values = some.values
            if nibbles:
                values = F.pad(values, (0, count % 2))
                values = values[:, 0::2] | (values[:, 1::2] << 4)
            table[chunk, :, : values.shape[1]] = values
            scale[chunk, :, :count] = some.scale
            if zero is not None and some.zero is not None:
                zero[:, outputs] = some.zero
        return cls(table.view(chunks * columns, -1), scale, zero, rows, kind.lowest)

    @property
    def nbytes(self) -> int:
        return self._table.nbytes + self._scale.nbytes + (0 if self._zero is None else self._zero.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        """x: [count, columns] -> [count, rows] of x's type; computed in float32."""
        wide = x.float()
        y = self._by_codes(wide) if x.shape[0] <= FEW_ROWS else self._by_floats(wide)
        return y[:, : self.rows].to(x.dtype)

    def rows_at(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Some rows as floats. rows: int64 [count] -> [count, columns]"""
        chunk, place = rows // self._width, rows % self._width
        table = self._table.view(self._chunks, self.columns, -1)
        if self._nibbles:
            values = (table[chunk, :, place // 2] >> (place % 2 * 4)[:, None]) & 15
        else:
            values = table[chunk, :, place]
        result = values.float().add_(self._lowest).view(len(rows), self._groups, self._group)
        result *= self._scale[chunk, :, place].unsqueeze(-1)
        if self._zero is not None:
            result += self._zero[:, rows].t().unsqueeze(-1)
        return result.view(len(rows), self.columns).to(dtype)

    @staticmethod
    @one_thread()
    def joined(matrices: Sequence[TableMatrix]) -> TableMatrix | None:
        """One matrix with the rows of several, which become views of it; None where they do not fit together."""
        first = matrices[0]
        if any(matrix._form() != first._form() or matrix._filling() for matrix in matrices):
            return None
        table = torch.cat([matrix._table for matrix in matrices])
        scale = torch.cat([matrix._scale for matrix in matrices])
        zeros = [matrix._zero for matrix in matrices if matrix._zero is not None]
        zero = torch.cat(zeros, dim=1) if zeros else None
        start = 0
        for matrix in matrices:
            end = start + matrix.rows
            chunks = slice(start // matrix._width, end // matrix._width)
            lines = slice(chunks.start * matrix.columns, chunks.stop * matrix.columns)
            matrix._hold(table[lines], scale[chunks], None if zero is None else zero[:, start:end])
            start = end
        return TableMatrix(table, scale, zero, start, first._lowest)

    def _form(self) -> tuple[object, ...]:
        return self.columns, self._width, self._groups, self._lowest, self._nibbles, self._zero is None

    def _filling(self) -> int:
        return self._chunks * self._width - self.rows

    def _by_codes(self, x: Tensor) -> Tensor:
        """float32 [count, columns] -> [count, chunks * width]"""
        count = x.shape[0]
        grouped = x.reshape(count, self._groups, self._group).transpose(0, 1)  # [groups, count, group]
        step = max(1, LINES // self.columns)
        threads = torch.get_num_threads() if self._nibbles else 1
        if threads > 1:
            step = min(step, -(-self._chunks // threads))
        starts = range(0, self._chunks, step)
        run = _threads().map if threads > 1 and len(starts) > 1 else map
        parts = []
        for first, sums in zip(
            starts, run(lambda first: self._sums(grouped, first, first + step), starts), strict=True
        ):
            parts.append(sums.mul_(self._scale[first : first + step].unsqueeze(2)).sum(1))
        y = parts[0] if len(parts) == 1 else torch.cat(parts)
        y = y.transpose(0, 1).reshape(count, self._chunks * self._width)
        if self._zero is not None:
            y.addmm_(grouped.sum(2).t(), self._zero)
        return y

    def _sums(self, grouped: Tensor, first: int, last: int) -> Tensor:
        """The inputs times the codes of some chunks, not yet scaled.

        The bags of one group follow each other, so that its codes are fetched once for all inputs.

        grouped: float32 [groups, count, group] -> [chunks, groups, count, width]
        """
        table = self._table[first * self.columns : last * self.columns]
        chunks, count = len(table) // self.columns, grouped.shape[1]
        lines, bags = _bags(count, len(table), self._group)
        weights = grouped.expand(chunks, *grouped.shape).reshape(-1)
        bag = _nibbles_bag if self._nibbles else _bytes_bag
        sums: Tensor = bag(table, lines, bags, False, 0, False, weights, None, False)
        return sums.view(chunks, self._groups, count, self._width)

    def _by_floats(self, x: Tensor) -> Tensor:
        """The same for many rows: some chunks at a time as floats [columns, chunks * width]."""
        width, columns = self._width, self.columns
        y = x.new_empty(x.shape[0], self._chunks * width)
        step = max(1, FLOATS // (columns * width))
        table = self._table.view(self._chunks, columns, -1)
        buffer = x.new_empty(columns * min(step, self._chunks) * width)
        for first in range(0, self._chunks, step):
            last = min(first + step, self._chunks)
            outputs = slice(first * width, last * width)
            floats = buffer[: columns * (last - first) * width].view(columns, last - first, width)
            if self._nibbles:
                held = table[first:last, :, : width // 2].transpose(0, 1)
                floats[..., 0::2] = held & 15
                floats[..., 1::2] = held >> 4
            else:
                floats.copy_(table[first:last, :, :width].transpose(0, 1))
            grouped = floats.view(self._groups, self._group, last - first, width)
            scale = self._scale[first:last].transpose(0, 1).unsqueeze(1)
            zero = scale * self._lowest
            if self._zero is not None:
                zero += self._zero[:, outputs].view(self._groups, 1, last - first, width)
            torch.addcmul(zero, grouped, scale, out=grouped)
            torch.mm(x, floats.view(columns, -1), out=y[:, outputs])
        return y


def _in_nibbles(type: str, columns: int) -> bool:
    return QUANTIZATIONS[type].bits == 4 and columns >= NIBBLE_COLUMNS


def _chunks(rows: int) -> tuple[int, int]:
    """How many chunks of which width hold that many rows. A common divisor of usual sizes leaves nothing to fill up,
    and lets matrices of different heights be joined.
    """
    for width in WIDTHS:
        if rows % width == 0:
            return rows // width, width
    chunks = -(-rows // WIDTHS[0])
    return chunks, -(-rows // chunks // 16) * 16


@lru_cache(maxsize=64)
def _bags(count: int, lines: int, group: int) -> tuple[Tensor, Tensor]:
    """For `count` inputs: the lines of the table that each bag adds up, a group's once for every input, and where each
    bag begins.
    """
    every = torch.arange(lines, dtype=torch.int32).view(-1, 1, group).expand(-1, count, group).reshape(-1)
    return every, torch.arange(0, count * lines, group, dtype=torch.int32)


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(psutil.cpu_count(logical=False) or 1, thread_name_prefix="table")
