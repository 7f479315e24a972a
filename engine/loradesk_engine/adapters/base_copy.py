"""Copies of the base's own weights that lie beside an adapter: whether they are this base's.

PEFT saves the whole output layer with an adapter on it. What is compared is what the base's files hold, whatever the
model made of it when it was loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from loradesk_engine.formats.bnb import TABLES, EightBitMatrix, FourBitMatrix, stored_matrix
from loradesk_engine.model.base import BaseSource
from loradesk_engine.model.bnb import NESTED, plain_scales
from loradesk_engine.model.dequantize import QUANTIZATIONS, code_bits, codes
from loradesk_engine.model.linear import Linear, row_slices
from loradesk_engine.model.quantized import GgufWeights, PackedMatrix
from loradesk_engine.ordering.modules import OUTPUT_LAYER

STRAY_SHARE = 0.02  # of a row's numbers: quantizers that fit scales to the codes leave some nearer to another code
GAP_SLACK = 0.05  # of the distance between two codes
TINY = 2**-10  # of a row's size: differences that no quantizer of eight bits and less keeps apart
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class _Rows:
    """Some rows of a quantized matrix: number = level * scale + zero. All float32 [count, columns] or alike by
    broadcasting.

    Attributes:
        levels: the numbers that codes stand for, sorted, [levels].
        level: of each number.
        scale_error: how far the scale may be off the one that the codes were chosen with.
    """

    rows: slice
    levels: Tensor
    level: Tensor
    scale: Tensor
    zero: Tensor | float
    scale_error: Tensor | float = 0.0


def is_copy(copy: Tensor, linear: Linear, part: str, base: BaseSource) -> bool:
    """Whether a tensor is the base's own.

    Args:
        copy: as an adapter brings it.
        linear: whose `part`, "weight" `[out, in]` or "bias" `[out]`, it is said to be.

    Returns:
        For plain numbers: whether one is the other, rounded to its type. For a quantized matrix: whether in every row
        nearly all of the copy's numbers (all but `STRAY_SHARE`) lie in the range that their code stands for, half the
        distance to the next code on either side: they are what was quantized. A matrix of another training is off by
        more.

    Raises:
        LoradeskError: the base's file cannot be read any more.
    """
    shape = (linear.out_features, linear.in_features)
    if copy.dtype not in FLOATS or tuple(copy.shape) != (shape if part == "weight" else shape[:1]):
        return False
    weights, tied = base.weights(), linear.path == OUTPUT_LAYER and base.config.tie_embeddings
    name = f"{'model.embed_tokens' if tied else linear.path}.{part}"
    if name not in weights:
        return False
    if part == "weight" and isinstance(weights, GgufWeights):
        packed = weights.packed(name)
        if packed is not None:
            return _in_ranges(copy, _gguf_rows(packed))
    elif part == "weight" and base.config.bnb is not None and base.config.bnb.stored and not tied:
        matrix = stored_matrix(weights, linear.path, shape, base.path)
        if isinstance(matrix, FourBitMatrix):
            return _in_ranges(copy, _four_bit_rows(matrix))
        if matrix is not None:
            return _in_ranges(copy, _eight_bit_rows(matrix))
    return _rounded_alike(copy, weights[name])


def _rounded_alike(copy: Tensor, own: Tensor) -> bool:
    """Whether one of them is the other, rounded to its type."""
    if copy.shape != own.shape:
        return False
    return torch.equal(copy, own.to(copy.dtype)) or torch.equal(copy.to(own.dtype), own)


def _in_ranges(copy: Tensor, parts: Iterator[_Rows]) -> bool:
    """Whether the numbers of a copy [out, in] are those that the codes were chosen for."""
    kind = torch.finfo(copy.dtype)
    for part in parts:
        numbers = copy[part.rows].float()
        own = part.level * part.scale + part.zero
        gaps = part.levels.diff()
        # the outermost codes may stand for more: quantizers cut off what lies beyond them
        below, above = torch.cat([gaps[:1], gaps / 2]), torch.cat([gaps / 2, gaps[-1:]])
        place = torch.searchsorted(part.levels, part.level.contiguous())
        size = part.scale.abs()
        slack = (
            GAP_SLACK * torch.minimum(below, above)[place] * size
            + part.level.abs() * part.scale_error
            + TINY * own.square().mean(-1, keepdim=True).sqrt()
            + kind.eps / 2 * (numbers.abs() + kind.smallest_normal)
        )
        off = (numbers - own) * part.scale.sign()
        inside = (off >= -(below[place] * size + slack)) & (off <= above[place] * size + slack)
        flat = part.scale == 0  # a group without a scale says nothing but that its numbers are small or alike
        stray = ~(inside | (flat & ((numbers - own).abs() <= slack)))
        if (stray.float().mean(-1) > STRAY_SHARE).any():
            return False
    return True


def _gguf_rows(packed: PackedMatrix) -> Iterator[_Rows]:
    kind = QUANTIZATIONS[packed.type]
    count = 2 ** code_bits(packed.type)
    levels = torch.tensor(IQ4_NL) if packed.type == "IQ4_NL" else torch.arange(count) + kind.lowest
    for rows in row_slices(packed.rows, packed.columns):
        part = codes(packed.raw[rows], packed.type, rows.stop - rows.start, packed.columns)
        scale = part.scale.t().repeat_interleave(kind.group, dim=1)
        yield _Rows(
            rows,
            levels.float(),
            part.values.t().float() + part.lowest,
            scale,
            0.0 if part.zero is None else part.zero.t().repeat_interleave(kind.group, dim=1),
            _half_error(scale) if kind.half else 0.0,
        )


def _four_bit_rows(matrix: FourBitMatrix) -> Iterator[_Rows]:
    table = torch.tensor(TABLES[matrix.kind])
    packed, scales, errors = matrix.packed.reshape(-1).view(torch.uint8), plain_scales(matrix), _scale_errors(matrix)
    columns = matrix.shape[1]
    for rows in row_slices(*matrix.shape):
        places = torch.arange(rows.start * columns, rows.stop * columns)
        pairs, blocks = packed[places // 2], places // matrix.blocksize
        code = torch.where(places % 2 == 0, pairs >> 4, pairs & 15)
        yield _Rows(
            rows,
            torch.tensor(sorted({*TABLES[matrix.kind]})),
            table[code.long()].view(-1, columns),
            scales[blocks].view(-1, columns),
            0.0,
            0.0 if errors is None else errors[blocks].view(-1, columns),
        )


def _eight_bit_rows(matrix: EightBitMatrix) -> Iterator[_Rows]:
    levels = torch.arange(-127, 128).float()
    for rows in row_slices(*matrix.shape):
        scale = (matrix.scales[rows].float() / 127)[:, None]
        # bitsandbytes makes it of float16 numbers, so that the scale is one
        yield _Rows(rows, levels, matrix.values[rows].float().clamp(-127, 127), scale, 0.0, _half_error(scale))


def _half_error(numbers: Tensor) -> Tensor:
    """How far numbers may be off what they were before float16."""
    return numbers.abs() * 2**-11 + 2**-25


def _scale_errors(matrix: FourBitMatrix) -> Tensor | None:
    """How far scales that are quantized themselves may be off what they were, [blocks]: half the way to the next."""
    nested = matrix.nested
    if nested is None:
        return None
    gaps = nested.table.diff().abs()
    ways = torch.maximum(torch.cat([gaps[:1], gaps]), torch.cat([gaps, gaps[-1:]])) / 2
    values = ways[matrix.scales.long()]
    return values * nested.scales.repeat_interleave(NESTED)[: len(values)].abs()
