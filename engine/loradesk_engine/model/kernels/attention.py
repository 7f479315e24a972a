"""Attention of decoding rows, each one token of a slot; positions, columns and slots are read on the device."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

KEYS_AT_ONCE = 64
PROGRAMS = 256  # enough of them to keep a large GPU busy


@triton.jit
def _rotate_and_store(
    q, k, v, q_out, keys, values, cos, sin, positions, columns, slots,
    q_row, k_row, v_row, slot_stride, head_stride, heads, kv_heads,
    SIZE: tl.constexpr, ROTARY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    position = tl.load(positions + row)
    column = tl.load(columns + row)
    slot = tl.load(slots + row)
    members = tl.arange(0, BLOCK)
    inside = members < SIZE
    turning = members < ROTARY
    source = q + row * q_row + head * SIZE
    target = q_out + (row * heads + head) * SIZE
    if head >= heads + kv_heads:
        place = head - heads - kv_heads
        source = v + row * v_row + place * SIZE
        target = values + slot * slot_stride + place * head_stride + column * SIZE
        turning = members < 0
    elif head >= heads:
        place = head - heads
        source = k + row * k_row + place * SIZE
        target = keys + slot * slot_stride + place * head_stride + column * SIZE
    x = tl.load(source + members, mask=inside, other=0.0)
    other = tl.load(source + (members + ROTARY // 2) % ROTARY, mask=turning, other=0.0).to(tl.float32)
    c = tl.load(cos + position * ROTARY + members, mask=turning, other=1.0).to(tl.float32)
    s = tl.load(sin + position * ROTARY + members, mask=turning, other=0.0).to(tl.float32)
    tl.store(target + members, (x.to(tl.float32) * c + other * s).to(x.dtype), mask=inside)


@triton.jit
def _tanh(x):
    """By way of the sigmoid, but near 0, where its digits would be lost, by a polynomial (as in Cephes' tanhf)."""
    square = x * x
    near = square * -5.70498872745e-3 + 2.06390887954e-2
    near = near * square - 5.37397155531e-2
    near = near * square + 1.33314422036e-1
    near = near * square - 3.33332819422e-1
    return tl.where(square < 0.390625, near * square * x + x, 2 * tl.sigmoid(2 * x) - 1)


@triton.jit
def _attend(
    q, keys, values, positions, columns, slots, partial, maxima, sums,
    scale, limit, window, slot_stride, head_stride, kv_heads,
    GROUP: tl.constexpr, GROUP_BLOCK: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
    SPLITS: tl.constexpr, AT_ONCE: tl.constexpr, HAS_LIMIT: tl.constexpr, HAS_WINDOW: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    position = tl.load(positions + row)
    column = tl.load(columns + row)
    slot = tl.load(slots + row)
    length = column + 1
    begin = length * 0
    if HAS_WINDOW:
        begin = tl.maximum(position + 1 - window, 0)
    share = tl.cdiv(tl.cdiv(length - begin, SPLITS), AT_ONCE) * AT_ONCE
    first = begin + split * share
    last = tl.minimum(first + share, length)

    members = tl.arange(0, GROUP_BLOCK)
    places = tl.arange(0, BLOCK)
    inside = places < SIZE
    head = kv_head * GROUP + members
    queries = tl.load(
        q + (row * kv_heads * GROUP + head[:, None]) * SIZE + places[None, :],
        mask=(members < GROUP)[:, None] & inside[None, :],
        other=0.0,
    )
    base = slot * slot_stride + kv_head * head_stride
    top = tl.full([GROUP_BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_BLOCK], tl.float32)
    result = tl.zeros([GROUP_BLOCK, BLOCK], tl.float32)
    for start in range(first, last, AT_ONCE):
        seen = start + tl.arange(0, AT_ONCE)
        valid = (seen < last) & ((seen < position) | (seen == column))
        key = tl.load(
            keys + base + seen[:, None] * SIZE + places[None, :], mask=valid[:, None] & inside[None, :], other=0.0
        )
        scores = tl.dot(queries, tl.trans(key), input_precision="ieee") * scale
        if HAS_LIMIT:
            scores = limit * _tanh(scores / limit)
        scores = tl.where(valid[None, :], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1))
        weights = tl.exp(scores - higher[:, None])
        fade = tl.exp(top - higher)
        value = tl.load(
            values + base + seen[:, None] * SIZE + places[None, :], mask=valid[:, None] & inside[None, :], other=0.0
        )
        result = result * fade[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        total = total * fade + tl.sum(weights, axis=1)
        top = higher
    place = (row * kv_heads * GROUP + head) * SPLITS + split
    real = members < GROUP
    tl.store(maxima + place, top, mask=real)
    tl.store(sums + place, total, mask=real)
    tl.store(partial + place[:, None] * SIZE + places[None, :], result, mask=real[:, None] & inside[None, :])


@triton.jit
def _combine(partial, maxima, sums, out, SIZE: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr):
    head = tl.program_id(0).to(tl.int64)
    splits = tl.arange(0, SPLITS)
    columns = tl.arange(0, BLOCK)
    inside = columns < SIZE
    top = tl.load(maxima + head * SPLITS + splits)
    weights = tl.exp(top - tl.max(top, axis=0))  # 0 for a split that had no keys
    total = tl.sum(tl.load(sums + head * SPLITS + splits) * weights, axis=0)
    parts = tl.load(
        partial + (head * SPLITS + splits[:, None]) * SIZE + columns[None, :], mask=inside[None, :], other=0.0
    )
    result = tl.sum(parts * weights[:, None], axis=0) / total
    tl.store(out + head * SIZE + columns, result.to(out.dtype.element_ty), mask=inside)


def rotate_and_store(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    columns: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """Rotate queries and keys by their positions, and put keys and values into the cache.

    Args:
        q: [rows, heads, head_dim]; k, v: [rows, kv_heads, head_dim]; rows may be apart, heads lie together.
        cos, sin: tables [positions, rotary_dim], the sine with the sign of its half.
        positions, columns, slots: int64 [rows]; see `Batch`.
        keys, values: one layer of the cache, [slots, kv_heads, capacity, head_dim].

    Returns:
        The rotated queries, [rows, heads, head_dim], contiguous.
    """
    rows, heads, size = q.shape
    kv_heads = k.shape[1]
    out = torch.empty((rows, heads, size), dtype=q.dtype, device=q.device)
    _rotate_and_store[(rows, heads + 2 * kv_heads)](
        q, k, v, out, keys, values, cos, sin, positions, columns, slots,
        q.stride(0), k.stride(0), v.stride(0), keys.stride(0), keys.stride(1), heads, kv_heads,
        size, cos.shape[1], triton.next_power_of_2(size), num_warps=1,
    )  # fmt: skip
    return out


def attend_rows(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    columns: Tensor,
    slots: Tensor,
    scale: float,
    window: int | None,
    limit: float | None,
) -> Tensor:
    """Each row attends over what its slot holds before its position, and over itself; only that part of the cache is
    read.

    Args:
        q: [rows, heads, head_dim], rotated, contiguous.
        positions, columns, slots: int64 [rows]; see `Batch`.
        scale, window, limit: as in `model.attention.attend`.

    Returns:
        [rows, heads * head_dim]
    """
    rows, heads, size = q.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    splits = min(32, triton.next_power_of_2(max(1, PROGRAMS // (rows * kv_heads))))
    partial = torch.empty((rows, heads, splits, size), dtype=torch.float32, device=q.device)
    maxima = torch.empty((rows, heads, splits), dtype=torch.float32, device=q.device)
    sums = torch.empty_like(maxima)
    out = torch.empty((rows, heads * size), dtype=q.dtype, device=q.device)
    block = max(16, triton.next_power_of_2(size))  # a matrix product takes no less
    _attend[(rows, kv_heads, splits)](
        q, keys, values, positions, columns, slots, partial, maxima, sums,
        scale, limit or 0.0, window or 0, keys.stride(0), keys.stride(1), kv_heads,
        group, max(16, triton.next_power_of_2(group)), size, block,
        splits, KEYS_AT_ONCE if block <= 128 else 32, limit is not None, window is not None, num_warps=4,
    )  # fmt: skip
    _combine[(rows * heads,)](partial, maxima, sums, out, size, block, splits, num_warps=1)
    return out
