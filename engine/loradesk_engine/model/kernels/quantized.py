"""Products with a quantized matrix of which only the codes and scales are read, and its numbers as floats."""

from __future__ import annotations

from typing import Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

from loradesk_engine.model.kernels.sum import sum_shares

SHARES = 4  # of the columns, where a matrix has too few rows to keep a large GPU busy
BUSY = 132  # programs


class Planes(Protocol):
    """What the kernels need of `PlaneMatrix`."""

    rows: int
    columns: int
    group: int
    lowest: int
    codes: Tensor
    scale: Tensor
    zero: Tensor | None

    @property
    def in_nibbles(self) -> bool: ...


@triton.jit
def _numbers(codes, LOWEST: tl.constexpr):
    # 2**23 + code is put together from bits: turning integers into floats takes a GPU several times as long
    return (codes.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True) - (8388608 - LOWEST)


@triton.jit
def _multiply_one(
    x, codes, scale, zero, y, rows, groups,
    GROUP: tl.constexpr, LOWEST: tl.constexpr, HAS_ZERO: tl.constexpr, OUTPUTS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    # A tile is [OUTPUTS, GROUPS, codes of a group]; a group's products are summed up first and scaled once.
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    line = tl.minimum(output, rows - 1).to(tl.int64)
    place = tl.arange(0, GROUP)
    total = tl.zeros([OUTPUTS, GROUPS], tl.float32)
    for first in range(0, groups, GROUPS):
        group = first + tl.arange(0, GROUPS)
        inside = group < groups
        at = line[:, None] * groups + group[None, :]
        held = tl.load(codes + at[:, :, None] * GROUP + place[None, None, :], mask=inside[None, :, None], other=0)
        factor = tl.load(scale + at, mask=inside[None, :], other=0.0).to(tl.float32)
        here = group[:, None] * GROUP + place[None, :]
        value = tl.load(x + here, mask=inside[:, None], other=0.0).to(tl.float32)
        total += tl.sum(_numbers(held, LOWEST) * value[None, :, :], axis=2) * factor
        if HAS_ZERO:
            added = tl.load(zero + at, mask=inside[None, :], other=0.0).to(tl.float32)
            total += tl.sum(value, axis=1)[None, :] * added
    tl.store(y + output, tl.sum(total, axis=1).to(y.dtype.element_ty), mask=output < rows)


@triton.jit
def _multiply(
    x, codes, scale, zero, y, count, rows, groups, share, x_row,
    COUNT: tl.constexpr, GROUP: tl.constexpr, LOWEST: tl.constexpr, NIBBLES: tl.constexpr, HAS_ZERO: tl.constexpr,
    OUTPUTS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    # The weights become numbers of x's type in registers, for the matrix units. y: [shares, count, rows]
    HELD: tl.constexpr = GROUP // 2 if NIBBLES else GROUP
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    part = tl.program_id(1)
    line = tl.minimum(output, rows - 1).to(tl.int64)
    row = tl.arange(0, COUNT)
    last = tl.minimum((part + 1) * share, groups)
    total = tl.zeros([OUTPUTS, COUNT], tl.float32)
    for first in range(part * share, last, GROUPS):
        byte = first * HELD + tl.arange(0, GROUPS * HELD)
        known = (byte < last * HELD)[None, :]
        held = tl.load(codes + line[:, None] * (groups * HELD) + byte[None, :], mask=known, other=0)
        if NIBBLES:
            held = tl.interleave(held & 15, held >> 4)
        group = first + tl.arange(0, GROUPS)
        inside = (group < last)[None, :]
        at = line[:, None] * groups + group[None, :]
        factor = tl.load(scale + at, mask=inside, other=0.0).to(tl.float32)
        weight = tl.reshape(_numbers(held, LOWEST), [OUTPUTS, GROUPS, GROUP]) * factor[:, :, None]
        if HAS_ZERO:
            weight += tl.load(zero + at, mask=inside, other=0.0).to(tl.float32)[:, :, None]
        weight = tl.reshape(weight, [OUTPUTS, GROUPS * GROUP]).to(x.dtype.element_ty)
        column = first * GROUP + tl.arange(0, GROUPS * GROUP)
        given = (row < count)[:, None] & (column < last * GROUP)[None, :]
        value = tl.load(x + row[:, None] * x_row + column[None, :], mask=given, other=0.0)
        total += tl.dot(weight, tl.trans(value), input_precision="ieee")
    target = y + (part * count + row[None, :]).to(tl.int64) * rows + output[:, None]
    tl.store(target, total.to(y.dtype.element_ty), mask=(row < count)[None, :] & (output < rows)[:, None])


@triton.jit
def _floats(
    codes, scale, zero, out, count,
    GROUP: tl.constexpr, LOWEST: tl.constexpr, NIBBLES: tl.constexpr, HAS_ZERO: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    HELD: tl.constexpr = GROUP // 2 if NIBBLES else GROUP
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    real = group < count
    held = tl.load(codes + group[:, None] * HELD + tl.arange(0, HELD)[None, :], mask=real[:, None], other=0)
    if NIBBLES:
        held = tl.interleave(held & 15, held >> 4)
    values = _numbers(held, LOWEST) * tl.load(scale + group, mask=real, other=0.0).to(tl.float32)[:, None]
    if HAS_ZERO:
        values += tl.load(zero + group, mask=real, other=0.0).to(tl.float32)[:, None]
    target = out + group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    tl.store(target, values.to(out.dtype.element_ty), mask=real[:, None])


def padded(count: int, matrix: Planes) -> int:
    """Rows that the kernel for so many is compiled for: a power of two that the matrix units take, or 1.

    A single row is quicker by itself where a code is a byte: taking half bytes apart costs more than the matrix units
    save.
    """
    return 1 if count == 1 and not matrix.in_nibbles else max(16, int(triton.next_power_of_2(count)))


def shares_of(count: int, matrix: Planes, dtype: torch.dtype) -> int:
    """Shares that a product with so many rows is computed in; the kernel of one share is another one."""
    blocks = triton.cdiv(matrix.rows, _tile(padded(count, matrix), matrix, dtype)[0])
    return SHARES if blocks < BUSY else 1


def _tile(block: int, matrix: Planes, dtype: torch.dtype) -> tuple[int, int]:
    """Outputs and columns that a program has at once: those that were quickest on an H100 for Q4_K and Q6_K."""
    if dtype == torch.float32:
        return 32, 64  # twice the bytes in a multiprocessor's memory
    if block == 16:
        return 64, 256 if matrix.in_nibbles else 128
    return 128, 128


def multiply(x: Tensor, matrix: Planes, shares: int | None = None) -> Tensor:
    """x times the transposed matrix, summed up in float32.

    x: [count, columns], its columns side by side, at most `kernels.MAX_ROWS` rows -> [count, rows] of x's type
    shares: other than `shares_of`'s, to try a kernel on a small matrix.
    """
    count, rows, groups = x.shape[0], matrix.rows, matrix.columns // matrix.group
    y = torch.empty((count, rows), dtype=x.dtype, device=x.device)
    planes = (matrix.codes, matrix.scale, matrix.scale if matrix.zero is None else matrix.zero)
    block = padded(count, matrix)
    if block == 1:
        outputs, at_once = 4, 1024 // matrix.group
        _multiply_one[(triton.cdiv(rows, outputs),)](
            x, *planes, y, rows, groups,
            matrix.group, matrix.lowest, matrix.zero is not None, outputs, at_once, num_warps=2,
        )  # fmt: skip
        return y
    outputs, columns = _tile(block, matrix, x.dtype)
    at_once = columns // matrix.group
    blocks = triton.cdiv(rows, outputs)
    shares = shares_of(count, matrix, x.dtype) if shares is None else shares
    share = triton.cdiv(triton.cdiv(groups, shares), at_once) * at_once
    sums = y if shares == 1 else torch.empty((shares, count, rows), dtype=torch.float32, device=x.device)
    _multiply[(blocks, shares)](
        x, *planes, sums, count, rows, groups, share, x.stride(0), block, *_kind(matrix), outputs, at_once, num_warps=4
    )
    return y if shares == 1 else sum_shares(sums, y)


def floats(matrix: Planes, part: slice, dtype: torch.dtype) -> Tensor:
    """Some rows of the matrix, [rows of the part, columns]; computed in float32."""
    codes, scale = matrix.codes[part], matrix.scale[part]
    zero = scale if matrix.zero is None else matrix.zero[part]
    out = torch.empty((codes.shape[0], matrix.columns), dtype=dtype, device=codes.device)
    at_once = 4096 // matrix.group
    _floats[(triton.cdiv(scale.numel(), at_once),)](
        codes, scale, zero, out, scale.numel(), *_kind(matrix), at_once, num_warps=4
    )
    return out


def _kind(matrix: Planes) -> tuple[int, int, bool, bool]:
    return matrix.group, matrix.lowest, matrix.in_nibbles, matrix.zero is not None
