"""Few rows times a quantized matrix: only its codes and scales are read."""

from __future__ import annotations

from typing import Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

FEW = 2  # rows up to which inputs and codes are multiplied one by one; for more the matrix units are quicker


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
def _products(low, high, x, group, place, inside, GROUP: tl.constexpr, NIBBLES: tl.constexpr):
    # codes of groups times one row of inputs, and the sums of these inputs
    source = x + group[:, None] * GROUP
    if NIBBLES:
        even = tl.load(source + 2 * place[None, :], mask=inside[:, None], other=0.0).to(tl.float32)
        odd = tl.load(source + 2 * place[None, :] + 1, mask=inside[:, None], other=0.0).to(tl.float32)
        return tl.sum(low * even[None, :, :] + high * odd[None, :, :], axis=2), tl.sum(even + odd, axis=1)
    value = tl.load(source + place[None, :], mask=inside[:, None], other=0.0).to(tl.float32)
    return tl.sum(low * value[None, :, :], axis=2), tl.sum(value, axis=1)


@triton.jit
def _multiply_few(
    x, codes, scale, zero, y, rows, groups, x_row,
    TWO: tl.constexpr, GROUP: tl.constexpr, LOWEST: tl.constexpr, NIBBLES: tl.constexpr, HAS_ZERO: tl.constexpr,
    OUTPUTS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    # A tile is [OUTPUTS, GROUPS, bytes of a group]; a group's products are summed up first and scaled once.
    HELD: tl.constexpr = GROUP // 2 if NIBBLES else GROUP
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    real = output < rows
    line = output.to(tl.int64)
    place = tl.arange(0, HELD)
    total = tl.zeros([OUTPUTS, GROUPS], tl.float32)
    second = tl.zeros([OUTPUTS, GROUPS], tl.float32)
    for first in range(0, groups, GROUPS):
        group = first + tl.arange(0, GROUPS)
        inside = group < groups
        known = real[:, None] & inside[None, :]
        at = line[:, None] * groups + group[None, :]
        held = tl.load(codes + at[:, :, None] * HELD + place[None, None, :], mask=known[:, :, None], other=0)
        factor = tl.load(scale + at, mask=known, other=0.0).to(tl.float32)
        low = ((held & 15 if NIBBLES else held).to(tl.int32) + LOWEST).to(tl.float32)
        high = ((held >> 4).to(tl.int32) + LOWEST).to(tl.float32)
        products, inputs = _products(low, high, x, group, place, inside, GROUP, NIBBLES)
        total += products * factor
        if HAS_ZERO:
            added = tl.load(zero + at, mask=known, other=0.0).to(tl.float32)
            total += inputs[None, :] * added
        if TWO:
            products, inputs = _products(low, high, x + x_row, group, place, inside, GROUP, NIBBLES)
            second += products * factor
            if HAS_ZERO:
                second += inputs[None, :] * added
    tl.store(y + output, tl.sum(total, axis=1).to(y.dtype.element_ty), mask=real)
    if TWO:
        tl.store(y + rows + output, tl.sum(second, axis=1).to(y.dtype.element_ty), mask=real)


@triton.jit
def _multiply_many(
    x, codes, scale, zero, y, count, rows, groups, x_row,
    COUNT: tl.constexpr, GROUP: tl.constexpr, LOWEST: tl.constexpr, NIBBLES: tl.constexpr, HAS_ZERO: tl.constexpr,
    OUTPUTS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    HELD: tl.constexpr = GROUP // 2 if NIBBLES else GROUP
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    real = output < rows
    line = output.to(tl.int64)
    row = tl.arange(0, COUNT)
    counted = row < count
    offset = tl.arange(0, GROUPS * HELD)
    member = offset // HELD
    total = tl.zeros([COUNT, OUTPUTS], tl.float32)
    for first in range(0, groups, GROUPS):
        group = first + member
        inside = group < groups
        known = real[:, None] & inside[None, :]
        place = first * HELD + offset
        held = tl.load(codes + line[:, None] * groups * HELD + place[None, :], mask=known, other=0)
        at = line[:, None] * groups + group[None, :]
        factor = tl.load(scale + at, mask=known, other=0.0).to(tl.float32)
        added = tl.zeros_like(factor)
        if HAS_ZERO:
            added = tl.load(zero + at, mask=known, other=0.0).to(tl.float32)
        given = counted[:, None] & inside[None, :]
        if NIBBLES:
            source = x + row[:, None] * x_row + 2 * place[None, :]
            even = tl.load(source, mask=given, other=0.0)
            odd = tl.load(source + 1, mask=given, other=0.0)
            low = ((held & 15).to(tl.int32) + LOWEST).to(tl.float32) * factor + added
            high = ((held >> 4).to(tl.int32) + LOWEST).to(tl.float32) * factor + added
            total += tl.dot(even, tl.trans(low.to(even.dtype)), input_precision="ieee")
            total += tl.dot(odd, tl.trans(high.to(odd.dtype)), input_precision="ieee")
        else:
            value = tl.load(x + row[:, None] * x_row + place[None, :], mask=given, other=0.0)
            weight = (held.to(tl.int32) + LOWEST).to(tl.float32) * factor + added
            total += tl.dot(value, tl.trans(weight.to(value.dtype)), input_precision="ieee")
    tl.store(
        y + row[:, None] * rows + output[None, :],
        total.to(y.dtype.element_ty),
        mask=counted[:, None] & real[None, :],
    )


def multiply(x: Tensor, matrix: Planes) -> Tensor:
    """x times the transposed matrix, summed up in float32.

    x: [count, columns], its columns side by side, at most `kernels.MAX_ROWS` rows -> [count, rows] of x's type
    """
    count, rows, groups = x.shape[0], matrix.rows, matrix.columns // matrix.group
    y = torch.empty((count, rows), dtype=x.dtype, device=x.device)
    zero = matrix.scale if matrix.zero is None else matrix.zero
    kind = (matrix.group, matrix.lowest, matrix.in_nibbles, matrix.zero is not None)
    if count <= FEW:
        outputs, at_once = 8, 512 // matrix.group
        _multiply_few[(triton.cdiv(rows, outputs),)](
            x, matrix.codes, matrix.scale, zero, y, rows, groups, x.stride(0), count == 2, *kind, outputs, at_once,
            num_warps=4,
        )  # fmt: skip
        return y
    outputs, at_once = 32, 128 // matrix.group
    padded = max(16, triton.next_power_of_2(count))  # the matrix units' least
    _multiply_many[(triton.cdiv(rows, outputs),)](
        x, matrix.codes, matrix.scale, zero, y, count, rows, groups, x.stride(0), padded, *kind, outputs, at_once,
        num_warps=4,
    )  # fmt: skip
    return y
