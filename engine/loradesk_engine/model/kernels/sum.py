"""The sum of the shares that a product was computed in."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

AT_ONCE = 256


@triton.jit
def _sum(shares, out, count, SHARES: tl.constexpr, AT_ONCE: tl.constexpr):
    place = tl.program_id(0) * AT_ONCE + tl.arange(0, AT_ONCE)
    real = place < count
    result = tl.zeros([AT_ONCE], tl.float32)
    for share in tl.static_range(SHARES):
        result += tl.load(shares + share * count + place, mask=real, other=0.0)
    tl.store(out + place, result.to(out.dtype.element_ty), mask=real)


def sum_shares(shares: Tensor, out: Tensor) -> Tensor:
    """out = the sum over the first axis. shares: float32 [shares, ...], out: [...] of any type; both contiguous."""
    count = out.numel()
    _sum[(triton.cdiv(count, AT_ONCE),)](shares, out, count, shares.shape[0], AT_ONCE, num_warps=2)
    return out
