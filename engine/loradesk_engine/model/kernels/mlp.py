"""The product of gate and up."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _silu_product(both, out, size, both_row, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < size
    gate = tl.load(both + row * both_row + columns, mask=inside, other=0.0)
    up = tl.load(both + row * both_row + size + columns, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    # rounded in between as torch does it in two steps
    activated = (wide * tl.sigmoid(wide)).to(gate.dtype)
    tl.store(out + row * size + columns, activated * up, mask=inside)


def silu_product(both: Tensor) -> Tensor:
    """silu(gate) * up. both: [rows, 2 * size], gate first -> [rows, size]"""
    rows, size = both.shape[0], both.shape[1] // 2
    out = torch.empty((rows, size), dtype=both.dtype, device=both.device)
    _silu_product[(rows, triton.cdiv(size, BLOCK))](both, out, size, both.stride(0), BLOCK)
    return out
