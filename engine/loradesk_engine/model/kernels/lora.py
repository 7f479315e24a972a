"""The adapters of one projection in three launches, whatever their number.

`shrink` multiplies the rows with A and with their factors, in several shares of the input so that enough of the GPU
works on it, and sums the shares; in a captured graph it runs beside the base's product. `expand` multiplies with B.
Adapters with no weight in any row are skipped: their matrices are not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from loradesk_engine.model.kernels.sum import sum_shares

COLUMNS = 32  # of the output, to a program
SHARES = 8  # of the input


@triton.jit
def _shrink(
    x, a, factors, shares, rows, ranks, size, share, x_row, factors_row,
    ROWS: tl.constexpr, RANKS: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    rank = tl.program_id(0) * RANKS + tl.arange(0, RANKS)
    part = tl.program_id(1)
    row = tl.arange(0, ROWS)
    real = (row < rows)[:, None] & (rank < ranks)[None, :]
    factor = tl.load(factors + row[:, None] * factors_row + rank[None, :], mask=real, other=0.0).to(tl.float32)
    result = tl.zeros([ROWS, RANKS], tl.float32)
    if tl.max(tl.max(tl.abs(factor), axis=1), axis=0) > 0:
        last = tl.minimum((part + 1) * share, size)
        for start in range(part * share, last, AT_ONCE):
            column = start + tl.arange(0, AT_ONCE)
            inside = column < last
            values = tl.load(
                x + row[:, None] * x_row + column[None, :], mask=(row < rows)[:, None] & inside[None, :], other=0.0
            )
            weights = tl.load(
                a + rank[:, None].to(tl.int64) * size + column[None, :],
                mask=(rank < ranks)[:, None] & inside[None, :],
                other=0.0,
            )
            result += tl.dot(values, tl.trans(weights), input_precision="ieee")
    tl.store(shares + (part * rows + row[:, None]) * ranks + rank[None, :], result * factor, mask=real)


@triton.jit
def _expand(
    inner, y, b, layout, rows, ranks, y_row,
    ROWS: tl.constexpr, RANKS: tl.constexpr, COLUMNS: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    # layout: of each block its first column, end of its part's columns, its part's first and last rank, place of its b
    entry = layout + tl.program_id(0) * 5
    first_column = tl.load(entry)
    end_column = tl.load(entry + 1)
    # what is known to be a multiple of ALIGNED is read in wide words
    first_rank = tl.multiple_of(tl.load(entry + 2), ALIGNED)
    last_rank = tl.multiple_of(tl.load(entry + 3), ALIGNED)
    place = tl.multiple_of(tl.load(entry + 4), ALIGNED)
    own_ranks = tl.multiple_of(last_rank - first_rank, ALIGNED)
    row = tl.arange(0, ROWS)
    offset = tl.arange(0, COLUMNS)
    column = first_column + offset
    inside = column < end_column
    result = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, own_ranks, RANKS):
        rank = start + tl.arange(0, RANKS)
        real = rank < own_ranks
        given = (row < rows)[:, None] & real[None, :]
        values = tl.load(inner + row[:, None] * ranks + first_rank + rank[None, :], mask=given, other=0.0)
        if tl.max(tl.max(tl.abs(values), axis=1), axis=0) > 0:
            weights = tl.load(
                b + place + offset[:, None] * own_ranks + rank[None, :], mask=inside[:, None] & real[None, :], other=0.0
            )
            result += tl.dot(values, tl.trans(weights), input_precision="ieee")
    target = y + row[:, None] * y_row + column[None, :]
    written = (row < rows)[:, None] & inside[None, :]
    before = tl.load(target, mask=written, other=0.0)
    tl.store(target, (before.to(tl.float32) + result).to(before.dtype), mask=written)


@dataclass(frozen=True)
class Shrunk:
    """x @ a.T * factors, [rows, ranks].

    Attributes:
        shares: what it is summed from. Nobody reads it, but its memory must not be given away before the other stream
            is done.
        stream: where it is computed, if not in order with the rest.
    """

    inner: Tensor
    shares: Tensor
    stream: torch.cuda.Stream | None


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    # its small kernels go first, or they would wait for those of the base's product that they run beside
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]


def shrink(x: Tensor, a: Tensor, factors: Tensor) -> Shrunk:
    """Begin x @ a.T * factors. In a captured graph it becomes a branch of its own, beside the base's product.

    x: [rows, in], a: [ranks, in], factors: [rows or 1, ranks]
    """
    rows, size = x.shape
    ranks = a.shape[0]
    shares = torch.empty((SHARES, rows, ranks), dtype=torch.float32, device=x.device)
    inner = torch.empty((rows, ranks), dtype=x.dtype, device=x.device)
    at_once = 256 // x.element_size()
    share = triton.cdiv(triton.cdiv(size, SHARES), at_once) * at_once
    main, side = torch.cuda.current_stream(x.device), None
    if torch.cuda.is_current_stream_capturing():
        side = _side_stream(x.device)
        side.wait_stream(main)
    with torch.cuda.stream(side):
        _shrink[(triton.cdiv(ranks, 16), SHARES)](
            x, a, factors, shares, rows, ranks, size, share,
            x.stride(0), factors.stride(0) if len(factors) > 1 else 0, _padded(rows), 16, at_once, num_warps=4,
        )  # fmt: skip
        sum_shares(shares, inner)
    return Shrunk(inner, shares, side)


def expand(shrunk: Shrunk, y: Tensor, b: Tensor, layout: Tensor, aligned: int) -> None:
    """y += inner @ b.T, in place.

    Args:
        y: [rows, out], rows contiguous.
        b: the parts' matrices [out, ranks], flat, one behind the other.
        layout: see `expand_layout`.
        aligned: a power of two that divides the rank of every adapter, at most 16.
    """
    if shrunk.stream is not None:
        torch.cuda.current_stream(y.device).wait_stream(shrunk.stream)
    rows, ranks = shrunk.inner.shape
    at_once = min(256 // b.element_size(), _padded(ranks))
    _expand[(len(layout),)](
        shrunk.inner, y, b, layout, rows, ranks, y.stride(0),
        _padded(rows), at_once, COLUMNS, aligned, num_warps=4,
    )  # fmt: skip


def _padded(count: int) -> int:
    """A matrix product takes no less than 16, and powers of two."""
    return max(16, int(triton.next_power_of_2(count)))


def expand_layout(parts: list[tuple[int, int, int, int]], device: torch.device) -> Tensor:
    """What `expand` needs to know of its blocks of columns: int64 [blocks, 5].

    parts: first column, last column, first rank, last rank of each part, in the order of their matrices.
    """
    blocks: list[list[int]] = []
    place = 0
    for first_column, last_column, first_rank, last_rank in parts:
        ranks = last_rank - first_rank
        blocks += [
            [column, last_column, first_rank, last_rank, place + (column - first_column) * ranks]
            for column in range(first_column, last_column, COLUMNS)
        ]
        place += (last_column - first_column) * ranks
    return torch.tensor(blocks, dtype=torch.int64, device=device)
