"""The likeliest tokens of each row of logits, best first."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PART = 1024  # logits that a program looks through


@triton.jit
def _best_of_part(logits, values, tokens, size, COUNT: tl.constexpr, PART: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    members = tl.arange(0, PART)
    x = tl.load(logits + row * size + part * PART + members, mask=part * PART + members < size, other=float("-inf"))
    x = tl.where(x == x, x, float("inf"))  # noqa: PLR0124 - what is no number is shown by being the largest
    target = (row * tl.num_programs(1) + part) * COUNT
    for rank in tl.static_range(COUNT):
        top, place = tl.max(x, axis=0, return_indices=True)
        tl.store(values + target + rank, top)
        tl.store(tokens + target + rank, part * PART + place)
        x = tl.where(members == place, float("-inf"), x)


@triton.jit
def _best_of_all(values, tokens, out, count, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    members = tl.arange(0, BLOCK)
    x = tl.load(values + row * count + members, mask=members < count, other=float("-inf"))
    for rank in tl.static_range(COUNT):
        top, place = tl.max(x, axis=0, return_indices=True)
        token = tl.load(tokens + row * count + place).to(tl.int64)
        tl.store(out + row * COUNT + rank, tl.where(tl.abs(top) < float("inf"), token, -1))
        x = tl.where(members == place, float("-inf"), x)


def ranked(logits: Tensor, count: int) -> Tensor:
    """`generation.sampling.ranked` in two launches. logits: float32 [rows, vocab], contiguous -> int64 [rows, count]"""
    rows, size = logits.shape
    parts = triton.cdiv(size, PART)
    values = torch.empty((rows, parts * count), dtype=torch.float32, device=logits.device)
    tokens = torch.empty((rows, parts * count), dtype=torch.int32, device=logits.device)
    out = torch.empty((rows, count), dtype=torch.int64, device=logits.device)
    _best_of_part[(rows, parts)](logits, values, tokens, size, count, PART, num_warps=4)
    _best_of_all[(rows,)](
        values, tokens, out, parts * count, count, triton.next_power_of_2(parts * count), num_warps=4
    )  # fmt: skip
    return out
