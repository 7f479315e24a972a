"""GGUF's quantized blocks to codes and scales, and to float32, on the device they are on.

The layouts are those of ggml's block structs (ggml-common.h). The functions of plain types take blocks `[n, bytes]`
and give float32 `[n, elements]`. Those of quantized types take `[..., bytes, n]` and give the codes with what they are
scaled by; many blocks' same byte lies side by side there, since torch is slow at short runs. `d`, `dmin` and `m` are
float16, little endian; the first listed lies first. The formulas give an element in terms of its code q.

Bit-equal to llama.cpp's own `gguf` package: every product and difference is rounded to float32 by itself, in its order.
(torch.compile may contract them to fused multiply-adds, which changes last bits: keep this out of what it compiles.)

Peak memory beside the result, per element: a copy of its part of the block, one byte for its code (IQ4_NL six) and
less than one for the scales. The arithmetic is in place. F32 costs nothing: it is a view of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from loradesk_engine.errors import CheckpointError
from loradesk_engine.formats.gguf import BLOCKS

Parts = tuple[Tensor, Tensor, Tensor | None]
"""Of blocks: codes, uint8 `[..., elements, n]`; scales and zeros, float32 `[..., groups, n]`. None: no zeros."""


@dataclass(frozen=True)
class Codes:
    """A matrix in groups that share a scale: element = (code + lowest) * scale + zero.

    Attributes:
        values: uint8 `[columns, rows]`, the codes.
        scale: float32 `[groups, rows]`.
        zero: float32 `[groups, rows]`; None: zero everywhere.
        lowest: the number that code 0 stands for.
    """

    values: Tensor
    scale: Tensor
    zero: Tensor | None
    lowest: int


@dataclass(frozen=True)
class Quantization:
    """How a type of blocks holds its numbers.

    Attributes:
        group: elements that share a scale.
        bits: of a code, 4 or 8: what holds the largest one.
        lowest: the number that code 0 stands for.
        has_zero: whether groups have a zero of their own.
        half: whether scales and zeros are float16 numbers as they lie in the block.
    """

    group: int
    bits: int
    lowest: int
    has_zero: bool
    half: bool


IQ4_NL = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
"""The numbers that the codes of the type of this name stand for."""

QUANTIZATIONS = {
    "Q4_0": Quantization(32, 4, -8, False, True),
    "Q4_1": Quantization(32, 4, 0, True, True),
    "Q5_0": Quantization(32, 8, -16, False, True),
    "Q5_1": Quantization(32, 8, 0, True, True),
    "Q8_0": Quantization(32, 8, -128, False, True),
    "Q2_K": Quantization(16, 4, 0, True, False),
    "Q3_K": Quantization(16, 4, -4, False, False),
    "Q4_K": Quantization(32, 4, 0, True, False),
    "Q5_K": Quantization(32, 8, 0, True, False),
    "Q6_K": Quantization(16, 8, -32, False, False),
    # its codes are indices into a table; the table's numbers fit a byte, so they serve as codes
    "IQ4_NL": Quantization(32, 8, -128, False, True),
}


def code_bits(type: str) -> int:
    """Bits that a quantized type's codes have, without their scales: 4 for Q4_1, Q4_K and IQ4_NL."""
    return int(type.removeprefix("I")[1])


def codes(raw: Tensor, type: str, rows: int, columns: int) -> Codes:
    """The codes and scales of a quantized matrix, by columns.

    Args:
        raw: uint8, `[rows, bytes a row]`, on any device.
        type: one of `QUANTIZATIONS`.

    Raises:
        CheckpointError: the type is not quantized, or the bytes are not `rows` times `columns` of that type.
    """
    size = block_size(raw, type, rows, columns, _CODES)
    blocks = _transposed(raw.reshape(rows, -1)).view(-1, size, rows)
    values, scale, zero = _CODES[type](blocks)
    return Codes(
        values.reshape(columns, rows),
        scale.reshape(-1, rows),
        None if zero is None else zero.reshape(-1, rows),
        QUANTIZATIONS[type].lowest,
    )


def dequantize(raw: Tensor, type: str, rows: int, columns: int) -> Tensor:
    """A tensor's bytes as numbers.

    Args:
        raw: uint8, `[bytes]` or `[rows, bytes a row]`, on any device.
        type: GGUF's name of the blocks' type.
        rows: of the result; 1 for a vector.
        columns: of the result: elements a row, not blocks.

    Returns:
        float32 `[rows, columns]` on the device of `raw`. For F32 it shares `raw`'s memory.

    Raises:
        CheckpointError: the type holds no weights, or the bytes are not `rows` times `columns` of that type.
    """
    size = block_size(raw, type, rows, columns, (*_PLAIN, *_CODES))
    blocks = raw.reshape(-1, size)
    if type in _PLAIN:
        return _PLAIN[type](blocks).view(rows, columns)
    values, scale, zero = _CODES[type](_transposed(blocks))
    lowest = QUANTIZATIONS[type].lowest
    # a code of 255 with the lowest at -128 wraps round to 127, as it should
    signed = values.view(torch.int8).add_(lowest) if lowest else values
    result = torch.empty(len(blocks), len(scale), len(values) // len(scale), device=raw.device)  # [n, groups, group]
    result.copy_(signed.view(*result.shape[1:], len(blocks)).permute(2, 0, 1))
    result *= scale.t().unsqueeze(-1)
    if zero is not None:
        result += zero.t().unsqueeze(-1)
    return result.view(rows, columns)


def block_size(raw: Tensor, type: str, rows: int, columns: int, supported: Collection[str]) -> int:
    """The bytes of a block, once the bytes at hand are what is asked for.

    Raises:
        CheckpointError: the type is not one of `supported`, or the bytes are not `rows` times `columns` of it.
    """
    if type not in supported:
        raise CheckpointError(
            f"Weights of type {type} are not supported.", remedy=f"Use one of {', '.join(supported)}."
        )
    elements, size = BLOCKS[type]
    if raw.dtype != torch.uint8 or columns % elements or raw.numel() != rows * (columns // elements) * size:
        raise CheckpointError(
            f"{raw.numel():,} values of {raw.dtype} cannot hold {rows:,} rows of {columns:,} of type {type}.",
            remedy="Download or copy the file again.",
        )
    return size


def _transposed(matrix: Tensor) -> Tensor:
    """A uint8 matrix turned round in memory."""
    if matrix.device.type != "cpu":
        return matrix.t().contiguous()
    return torch.from_numpy(np.ascontiguousarray(matrix.numpy().T))  # twice as fast as torch's own


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 at byte `at` of every block, as float32 `[..., 1, n]`."""
    low, high = blocks[..., at : at + 1, :].to(torch.int16), blocks[..., at + 1 : at + 2, :].to(torch.int16)
    return (low | (high << 8)).view(torch.float16).float()


def _unpack(packed: Tensor, bits: int, width: int) -> Tensor:
    """Split bytes into fields of `bits`, the lowest first, as uint8.

    The bytes of a block come in groups of `width`. A group gives the lowest field of each byte, then the next of each.

    Args:
        packed: `[..., bytes, n]`.

    Returns:
        `[..., bytes * 8 / bits, n]`
    """
    count = packed.shape[-2]
    fields = 8 // bits
    groups = packed.view(*packed.shape[:-2], count // width, 1, width, packed.shape[-1])
    result = packed.new_empty(*packed.shape[:-2], count // width, fields, width, packed.shape[-1])
    for i in range(fields):
        field = result[..., i : i + 1, :, :]
        torch.bitwise_right_shift(groups, i * bits, out=field)
        if i < fields - 1:
            field &= (1 << bits) - 1
    return result.flatten(-4, -2)


def _f32(blocks: Tensor) -> Tensor:
    return blocks.view(torch.float32)


def _f16(blocks: Tensor) -> Tensor:
    return blocks.view(torch.float16).float()


def _bf16(blocks: Tensor) -> Tensor:
    return blocks.view(torch.bfloat16).float()


def _q4_0(blocks: Tensor) -> Parts:
    """d; qs[16]: low nibbles are elements 0-15, high ones 16-31. (q - 8) * d."""
    return _unpack(blocks[..., 2:, :], 4, 16), _half(blocks, 0), None


def _q4_1(blocks: Tensor) -> Parts:
    """d; m; qs[16] as in Q4_0. q * d + m."""
    return _unpack(blocks[..., 4:, :], 4, 16), _half(blocks, 0), _half(blocks, 2)


def _q5_0(blocks: Tensor) -> Parts:
    """d; qh[4]: bit i is the fifth bit of element i; qs[16] as in Q4_0. (q - 16) * d."""
    return _five_bits(blocks[..., 6:, :], 16, blocks[..., 2:6, :], 1), _half(blocks, 0), None


def _q5_1(blocks: Tensor) -> Parts:
    """d; m; qh[4] and qs[16] as in Q5_0. q * d + m."""
    return _five_bits(blocks[..., 8:, :], 16, blocks[..., 4:8, :], 1), _half(blocks, 0), _half(blocks, 2)


def _five_bits(low: Tensor, low_width: int, high: Tensor, high_width: int) -> Tensor:
    """Nibbles and their fifth bits put together, uint8."""
    return _unpack(low, 4, low_width).add_(_unpack(high, 1, high_width), alpha=16)


def _q8_0(blocks: Tensor) -> Parts:
    """d; qs[32], int8, here from 0 on. (q - 128) * d."""
    return blocks[..., 2:, :] ^ 128, _half(blocks, 0), None


def _q2_k(blocks: Tensor) -> Parts:
    """scales[16]: per 16 elements, scale in the low nibble, minimum in the high one; qs[64]; d; dmin.

    qs: two groups of 32 bytes, each 128 elements: their lowest two bits are the first 32. q * (d * scale) - dmin * min.
    """
    scales = blocks[..., :16, :]
    return (
        _unpack(blocks[..., 16:80, :], 2, 32),
        _half(blocks, 80) * (scales & 15),
        (_half(blocks, 82) * (scales >> 4)).neg_(),
    )


def _q3_k(blocks: Tensor) -> Parts:
    """hmask[32]: bit i of byte j is the third bit of element 32 i + j; qs[64] as in Q2_K; scales[12]; d.

    scales: 16 of 6 bits: low nibbles of bytes 0-7, high nibbles of bytes 0-7; their upper two bits in bytes 8-11,
        lowest bits first. (q - 4) * (d * (scale - 32)).
    """
    values = _unpack(blocks[..., 32:96, :], 2, 32).add_(_unpack(blocks[..., :32, :], 1, 32), alpha=4)
    scales = _unpack(blocks[..., 96:104, :], 4, 8).add_(_unpack(blocks[..., 104:108, :], 2, 4), alpha=16)
    return values, _half(blocks, 108) * scales.view(torch.int8).sub_(32), None


def _scales_and_zeros(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """What Q4_K and Q5_K begin with: d; dmin; scales[12], eight 6-bit scales and minima. Gives d * scale, -dmin * min.

    scales: bytes 0-3 and 4-7 hold, in their low six bits, scales and minima 0-3; bytes 8-11 the low four bits of scales
        4-7 (low nibbles) and of minima 4-7 (high nibbles), whose upper two are the upper two of bytes 0-3 and 4-7.

    Returns:
        Two float32 `[..., 8, n]`.
    """
    packed = blocks[..., 4:16, :]
    first, rest = packed[..., :8, :], packed[..., 8:, :]
    upper = (first >> 2) & 0x30
    scales = torch.cat((first[..., :4, :] & 63, (rest & 15) | upper[..., :4, :]), dim=-2)
    minima = torch.cat((first[..., 4:, :] & 63, (rest >> 4) | upper[..., 4:, :]), dim=-2)
    return _half(blocks, 0) * scales, (_half(blocks, 2) * minima).neg_()


def _q4_k(blocks: Tensor) -> Parts:
    """d; dmin; scales[12]; qs[128]: four groups of 32 bytes, low nibbles first.

    Per 32 elements: q * (d * scale) - dmin * min.
    """
    return _unpack(blocks[..., 16:, :], 4, 32), *_scales_and_zeros(blocks)


def _q5_k(blocks: Tensor) -> Parts:
    """d; dmin; scales[12]; qh[32]: bit i of byte j is the fifth bit of element 32 i + j; qs[128] as in Q4_K."""
    return _five_bits(blocks[..., 48:, :], 32, blocks[..., 16:48, :], 32), *_scales_and_zeros(blocks)


def _q6_k(blocks: Tensor) -> Parts:
    """ql[128]: two groups of 64 bytes, low nibbles first; qh[64]: upper two bits; scales[16], int8, per 16; d.

    qh: two groups of 32 bytes, each for 128 elements: their lowest two bits for the first 32. (q - 32) * (d * scale).
    """
    values = _unpack(blocks[..., :128, :], 4, 64).add_(_unpack(blocks[..., 128:192, :], 2, 32), alpha=16)
    return values, _half(blocks, 208) * blocks[..., 192:208, :].view(torch.int8), None


def _iq4_nl(blocks: Tensor) -> Parts:
    """d; qs[16] as in Q4_0, but a nibble is an index into 16 fixed values, here from 0 on. (value[q] - 128) * d."""
    indices = _unpack(blocks[..., 2:, :], 4, 16)
    values = _iq4_nl_values(blocks.device).index_select(0, indices.flatten().int())
    return values.view_as(indices), _half(blocks, 0), None


@cache
def _iq4_nl_values(device: torch.device) -> Tensor:
    # kept: a new one would be a copy from the host at every call, which a CUDA graph cannot hold
    values = IQ4_NL
    return torch.tensor([value + 128 for value in values], dtype=torch.uint8, device=device)


_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {"F32": _f32, "F16": _f16, "BF16": _bf16}
_CODES: dict[str, Callable[[Tensor], Parts]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0,
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_NL": _iq4_nl,
}  # fmt: skip
