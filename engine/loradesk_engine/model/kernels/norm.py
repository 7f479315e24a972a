"""Adding to the residual stream and normalising it, in one pass over it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _add_rms_norm(hidden, change, weight, out, size, eps, HAS_CHANGE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * size
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    stored = tl.load(hidden + row + columns, mask=inside, other=0.0)
    if HAS_CHANGE:
        added = stored.to(tl.float32) + tl.load(change + row + columns, mask=inside, other=0.0).to(tl.float32)
        stored = added.to(stored.dtype)
        tl.store(hidden + row + columns, stored, mask=inside)
    values = stored.to(tl.float32)
    factor = tl.rsqrt(tl.sum(values * values, axis=0) / size + eps)
    scaled = values * factor * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row + columns, scaled.to(stored.dtype), mask=inside)


def add_rms_norm(hidden: Tensor, change: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """hidden += change, in place; returns hidden / rms(hidden) * weight.

    hidden, change: [rows, size], contiguous; weight: [size] -> [rows, size] of hidden's type
    """
    rows, size = hidden.shape
    out = torch.empty_like(hidden)
    block = triton.next_power_of_2(size)
    warps = min(16, max(1, block // 512))
    _add_rms_norm[(rows,)](
        hidden, hidden if change is None else change, weight, out, size, eps, change is not None, block, num_warps=warps
    )
    return out
