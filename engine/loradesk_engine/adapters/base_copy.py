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
from loradesk_engine.model.dequantize import IQ4_NL, QUANTIZATIONS, code_bits, codes
from loradesk_engine.model.linear import Linear, row_slices
from loradesk_engine.model.quantized import GgufWeights, PackedMatrix
from loradesk_engine.ordering.modules import OUTPUT_LAYER

STRAY_SHARE = 0.02  # of a row's numbers: quantizers that fit scales to the codes leave some nearer to another code
GAP_SLACK = 0.05  # of the distance between two codes
TINY = 2**-10  # of a row's size: differences that no quantizer of eight bits and less keeps apart
SLICE_VALUES = 2**17  # that are compared at once: few enough that all of it stays in the processor's caches
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class _Rows:
    """Some rows of a quantized matrix: number = level * scale + zero. All float32 [count, columns], or [count, 1] where
    they are alike in a row.

    Attributes:
        levels: the numbers that codes stand for, sorted, [levels].
        place: of each number's level among them, whole numbers.
        scale_error: how far the scale may be off the one that the codes were chosen with.
    """

    rows: slice
    levels: Tensor
    place: Tensor
    scale: Tensor
    zero: Tensor | float
    scale_error: Tensor | None


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
        numbers, place = copy[part.rows].float(), part.place.int()
        gaps = part.levels.diff()
        # the outermost codes may stand for more: quantizers cut off what lies beyond them
        below, above = torch.cat([gaps[:1], gaps / 2]), torch.cat([gaps / 2, gaps[-1:]])
        allowed = GAP_SLACK * torch.minimum(below, above)
        level, size = _chosen(part.levels, place), part.scale.abs()
        own = (level * part.scale).add_(part.zero)
        slack = (numbers.abs() + kind.smallest_normal).mul_(kind.eps / 2)
        slack += TINY * own.square().mean(-1, keepdim=True).sqrt()
        if part.scale_error is not None:
            slack += level.abs_().mul_(part.scale_error)
        off = (numbers - own).mul_(torch.where(part.scale < 0, -1.0, 1.0))  # numbers may be the copy's own memory
        lowest = _chosen(below + allowed, place).mul_(size).add_(slack).neg_()
        highest = _chosen(above + allowed, place).mul_(size).add_(slack)
        # asked this way round: what is no number is not inside
        inside = (off >= lowest).logical_and_(off <= highest)
        if (inside.logical_not_().sum(-1) > STRAY_SHARE * copy.shape[1]).any():
            return False
    return True


def _chosen(table: Tensor, place: Tensor) -> Tensor:
    """The table's numbers at these places, of the places' shape."""
    return table.index_select(0, place.flatten()).view(place.shape)


def _gguf_rows(packed: PackedMatrix) -> Iterator[_Rows]:
    kind = QUANTIZATIONS[packed.type]
    count = 2 ** code_bits(packed.type)
    levels = torch.tensor(IQ4_NL) if packed.type == "IQ4_NL" else torch.arange(count) + kind.lowest
    for rows in row_slices(packed.rows, packed.columns, SLICE_VALUES):
        part = codes(packed.raw[rows], packed.type, rows.stop - rows.start, packed.columns)
        scale, code = part.scale.t().repeat_interleave(kind.group, dim=1), part.values.t()
        yield _Rows(
            rows,
            levels.float(),
            # the codes of IQ4_NL are the levels already, from 0 on
            code if packed.type != "IQ4_NL" else torch.searchsorted(levels, code.contiguous().long() + kind.lowest),
            scale,
            0.0 if part.zero is None else part.zero.t().repeat_interleave(kind.group, dim=1),
            _half_error(scale) if kind.half else None,
        )


def _four_bit_rows(matrix: FourBitMatrix) -> Iterator[_Rows]:
    table = torch.tensor(TABLES[matrix.kind])
    packed, scales, errors = matrix.packed.reshape(-1).view(torch.uint8), plain_scales(matrix), _scale_errors(matrix)
    columns, levels = matrix.shape[1], torch.tensor(sorted({*TABLES[matrix.kind]}))
    places = torch.searchsorted(levels, table).int()  # of the codes
    for rows in row_slices(*matrix.shape, SLICE_VALUES):
        numbers = torch.arange(rows.start * columns, rows.stop * columns)
        pairs, blocks = packed[numbers // 2], numbers // matrix.blocksize
        code = torch.where(numbers % 2 == 0, pairs >> 4, pairs & 15)
        yield _Rows(
            rows,
            levels,
            _chosen(places, code.int()).view(-1, columns),
            _chosen(scales, blocks).view(-1, columns),
            0.0,
            None if errors is None else _chosen(errors, blocks).view(-1, columns),
        )


def _eight_bit_rows(matrix: EightBitMatrix) -> Iterator[_Rows]:
    levels = torch.arange(-127, 128).float()
    for rows in row_slices(*matrix.shape, SLICE_VALUES):
        scale = (matrix.scales[rows].float() / 127)[:, None]
        # bitsandbytes makes it of float16 numbers, so that the scale is one
        yield _Rows(rows, levels, matrix.values[rows].clamp(-127, 127).int() + 127, scale, 0.0, _half_error(scale))


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
