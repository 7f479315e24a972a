"""GGUF's quantized blocks to float32, on the device they are on.

The layouts are those of ggml's block structs (ggml-common.h). Each function takes blocks `[n, bytes a block]`, uint8,
and gives `[n, elements a block]`, float32. `d`, `dmin` and `m` are float16, little endian; the first listed lies first.

Bit-equal to llama.cpp's own `gguf` package: every product and difference is rounded to float32 by itself, in its order.
(torch.compile may contract them to fused multiply-adds, which changes last bits: keep this out of what it compiles.)

Peak memory beside the result, per element: one byte for its integer (IQ4_NL two) and less than one for the scales. The
arithmetic is in place. F32 costs nothing: it is a view of the input.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from loradesk_engine.errors import CheckpointError
from loradesk_engine.formats.gguf import BLOCKS


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
    if type not in _BLOCKS_TO_FLOAT:
        raise CheckpointError(
            f"Weights of type {type} are not supported.", remedy=f"Use one of {', '.join(_BLOCKS_TO_FLOAT)}."
        )
    elements, size = BLOCKS[type]
    if raw.dtype != torch.uint8 or columns % elements or raw.numel() != rows * (columns // elements) * size:
        raise CheckpointError(
            f"{raw.numel():,} values of {raw.dtype} cannot hold {rows:,} rows of {columns:,} of type {type}.",
            remedy="Download or copy the file again.",
        )
    return _BLOCKS_TO_FLOAT[type](raw.reshape(-1, size)).view(rows, columns)


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 at byte `at` of every block, as float32 `[n, 1]`."""
    # a copy, since a view as another type needs aligned memory
    return blocks[:, at : at + 2].clone(memory_format=torch.contiguous_format).view(torch.float16).float()


def _unpack(packed: Tensor, bits: int, width: int) -> Tensor:
    """Split bytes into fields of `bits`, the lowest first, as uint8.

    The bytes of a block come in groups of `width`. A group gives the lowest field of each byte, then the next of each.

    Args:
        packed: `[n, bytes]`.

    Returns:
        `[n, bytes * 8 / bits]`
    """
    n, count = packed.shape
    fields = 8 // bits
    groups = packed.view(n, count // width, width)
    result = packed.new_empty(n, count // width, fields, width)
    for i in range(fields):
        torch.bitwise_right_shift(groups, i * bits, out=result[:, :, i])
    result &= (1 << bits) - 1
    return result.view(n, count * fields)


def _signed(values: Tensor, offset: int) -> Tensor:
    """Small uint8 values less `offset`, as int8, in place."""
    return values.view(torch.int8).sub_(offset)


def _scaled(values: Tensor, scale: Tensor, minimum: Tensor | None = None) -> Tensor:
    """values * scale - minimum, where each scale and minimum holds for an equal part of its block.

    Args:
        values: `[n, elements]`, integers.
        scale: `[n, parts]`, float32; so is `minimum`.
    """
    result = values.to(torch.float32)
    n, count = scale.shape
    parts = result.view(n, count, result.shape[1] // count)
    parts *= scale.unsqueeze(-1)
    if minimum is not None:
        parts -= minimum.unsqueeze(-1)
    return result


def _f32(blocks: Tensor) -> Tensor:
    return blocks.view(torch.float32)


def _f16(blocks: Tensor) -> Tensor:
    return blocks.view(torch.float16).float()


def _bf16(blocks: Tensor) -> Tensor:
    return blocks.view(torch.bfloat16).float()


def _q4_0(blocks: Tensor) -> Tensor:
    """d; qs[16]: low nibbles are elements 0-15, high ones 16-31. (q - 8) * d."""
    return _scaled(_signed(_unpack(blocks[:, 2:], 4, 16), 8), _half(blocks, 0))


def _q4_1(blocks: Tensor) -> Tensor:
    """d; m; qs[16] as in Q4_0. q * d + m."""
    return _scaled(_unpack(blocks[:, 4:], 4, 16), _half(blocks, 0)).add_(_half(blocks, 2))


def _q5_0(blocks: Tensor) -> Tensor:
    """d; qh[4]: bit i is the fifth bit of element i; qs[16] as in Q4_0. (q - 16) * d."""
    return _scaled(_signed(_five_bits(blocks[:, 6:], 16, blocks[:, 2:6], 1), 16), _half(blocks, 0))


def _q5_1(blocks: Tensor) -> Tensor:
    """d; m; qh[4] and qs[16] as in Q5_0. q * d + m."""
    return _scaled(_five_bits(blocks[:, 8:], 16, blocks[:, 4:8], 1), _half(blocks, 0)).add_(_half(blocks, 2))


def _five_bits(low: Tensor, low_width: int, high: Tensor, high_width: int) -> Tensor:
    """Nibbles and their fifth bits put together, uint8."""
    return _unpack(low, 4, low_width).add_(_unpack(high, 1, high_width), alpha=16)


def _q8_0(blocks: Tensor) -> Tensor:
    """d; qs[32], int8. q * d."""
    return _scaled(blocks[:, 2:].view(torch.int8), _half(blocks, 0))


def _q2_k(blocks: Tensor) -> Tensor:
    """scales[16]: per 16 elements, scale in the low nibble, minimum in the high one; qs[64]; d; dmin.

    qs: two groups of 32 bytes, each 128 elements: their lowest two bits are the first 32. q * (d * scale) - dmin * min.
    """
    scales = blocks[:, :16]
    return _scaled(
        _unpack(blocks[:, 16:80], 2, 32),
        _half(blocks, 80) * (scales & 15),
        _half(blocks, 82) * (scales >> 4),
    )


def _q3_k(blocks: Tensor) -> Tensor:
    """hmask[32]: bit i of byte j is the third bit of element 32 i + j; qs[64] as in Q2_K; scales[12]; d.

    scales: 16 of 6 bits: low nibbles of bytes 0-7, high nibbles of bytes 0-7; their upper two bits in bytes 8-11,
        lowest bits first. (q - 4) * (d * (scale - 32)).
    """
    values = _unpack(blocks[:, 32:96], 2, 32).add_(_unpack(blocks[:, :32], 1, 32), alpha=4)
    scales = _unpack(blocks[:, 96:104], 4, 8).add_(_unpack(blocks[:, 104:108], 2, 4), alpha=16)
    return _scaled(_signed(values, 4), _half(blocks, 108) * _signed(scales, 32))


def _scales_and_minima(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """What Q4_K and Q5_K begin with: d; dmin; scales[12], eight 6-bit scales and minima. Gives d * scale, dmin * min.

    scales: bytes 0-3 and 4-7 hold, in their low six bits, scales and minima 0-3; bytes 8-11 the low four bits of scales
        4-7 (low nibbles) and of minima 4-7 (high nibbles), whose upper two are the upper two of bytes 0-3 and 4-7.

    Returns:
        Two float32 `[n, 8]`.
    """
    packed = blocks[:, 4:16]
    first, rest = packed[:, :8], packed[:, 8:]
    upper = (first >> 2) & 0x30
    scales = torch.cat((first[:, :4] & 63, (rest & 15) | upper[:, :4]), dim=1)
    minima = torch.cat((first[:, 4:] & 63, (rest >> 4) | upper[:, 4:]), dim=1)
    return _half(blocks, 0) * scales, _half(blocks, 2) * minima


def _q4_k(blocks: Tensor) -> Tensor:
    """d; dmin; scales[12]; qs[128]: four groups of 32 bytes, low nibbles first.

    Per 32 elements: q * (d * scale) - dmin * min.
    """
    return _scaled(_unpack(blocks[:, 16:], 4, 32), *_scales_and_minima(blocks))


def _q5_k(blocks: Tensor) -> Tensor:
    """d; dmin; scales[12]; qh[32]: bit i of byte j is the fifth bit of element 32 i + j; qs[128] as in Q4_K."""
    return _scaled(_five_bits(blocks[:, 48:], 32, blocks[:, 16:48], 32), *_scales_and_minima(blocks))


def _q6_k(blocks: Tensor) -> Tensor:
    """ql[128]: two groups of 64 bytes, low nibbles first; qh[64]: upper two bits; scales[16], int8, per 16; d.

    qh: two groups of 32 bytes, each for 128 elements: their lowest two bits for the first 32. (q - 32) * (d * scale).
    """
    values = _unpack(blocks[:, :128], 4, 64).add_(_unpack(blocks[:, 128:192], 2, 32), alpha=16)
    return _scaled(_signed(values, 32), _half(blocks, 208) * blocks[:, 192:208].view(torch.int8))


def _iq4_nl(blocks: Tensor) -> Tensor:
    """d; qs[16] as in Q4_0, but a nibble is an index into 16 fixed values. value[q] * d."""
    indices = _unpack(blocks[:, 2:], 4, 16)
    values = _iq4_nl_values(blocks.device).index_select(0, indices.flatten().int())
    return _scaled(values.view_as(indices), _half(blocks, 0))


@cache
def _iq4_nl_values(device: torch.device) -> Tensor:
    # kept: a new one would be a copy from the host at every call, which a CUDA graph cannot hold
    values = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
    return torch.tensor(values, dtype=torch.int8, device=device)


_BLOCKS_TO_FLOAT: dict[str, Callable[[Tensor], Tensor]] = {
    "F32": _f32, "F16": _f16, "BF16": _bf16,
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0,
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_NL": _iq4_nl,
}  # fmt: skip
