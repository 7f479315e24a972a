"""Linears held in 4 or 8 bits by bitsandbytes. It is imported when the first of them is made: that takes seconds."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from loradesk_engine.errors import LoradeskError
from loradesk_engine.formats.bnb import TABLES, BnbConfig, BnbKind, EightBitMatrix, FourBitKind, FourBitMatrix
from loradesk_engine.model.linear import row_slices
from loradesk_engine.model.native.library import library
from loradesk_engine.model.native.matrix import FOUR_BIT_GROUP, NativeMatrix
from loradesk_engine.model.quantized import PackedLinear

BLOCK = 64  # weights that share a scale: bitsandbytes' default
NESTED = 256  # scales that share one, where they are quantized too
SLICE_VALUES = 4 * 2**20
"""Weights in full precision at once on the CPU: a larger buffer is fetched from the system anew for every product."""
CPU_WARNING = (
    "A bitsandbytes base is slow on the CPU: up to {ratio} times the time of the unquantized base for a token. "
    "A GGUF file is as small and quicker there; so is the base without quantization where the memory allows it."
)
CPU_RATIO = {4: 10, 8: 3}  # measured, without the kernels for 4 bits


def cpu_warning(bits: int) -> str:
    """What a user should know who loads such a base on the CPU."""
    return CPU_WARNING.format(ratio=CPU_RATIO[bits])


@functools.cache
def _library() -> Any:
    """bitsandbytes itself.

    Raises:
        LoradeskError: it cannot be imported on this machine.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it recommends optional kernels to whoever imports it
    try:
        import bitsandbytes

        return bitsandbytes
    except Exception as problem:  # whatever its native library raises
        raise LoradeskError(
            f"bitsandbytes cannot be loaded: {problem}.", remedy="Load the base without quantization, or a GGUF file."
        ) from problem


def quantized_while_loading(path: str) -> bool:
    """Whether a linear is quantized when the checkpoint is not: as in transformers all but the output layer; and
    Mixtral's router, which is small and decides much.
    """
    return path != "lm_head" and not path.endswith(".block_sparse_moe.gate")


def quantize(matrix: Tensor, kind: BnbKind, device: torch.device) -> FourBitMatrix | EightBitMatrix:
    """A matrix [out, in] of floats, quantized on `device` as bitsandbytes' own linears do it.

    It is done in slices of rows: on the CPU bitsandbytes needs several times a slice's size beside it.
    """
    functional = _library().functional
    rows, columns = matrix.shape
    step = max(1, SLICE_VALUES // columns // BLOCK) * BLOCK  # whole blocks, whatever the columns
    parts = (matrix[start : start + step].to(device).contiguous() for start in range(0, rows, step))
    if kind == "int8":
        done = [functional.int8_vectorwise_quant(part.to(torch.float16))[:2] for part in parts]
        values, scales = (torch.cat(pieces) for pieces in zip(*done, strict=True))
        return EightBitMatrix((rows, columns), values, scales)
    blocks = [functional.quantize_4bit(part, blocksize=BLOCK, quant_type=kind) for part in parts]
    packed = torch.cat([data for data, _ in blocks])
    return FourBitMatrix(kind, (rows, columns), packed, BLOCK, torch.cat([state.absmax for _, state in blocks]))


def bnb_linear(
    path: str,
    index: int,
    matrix: FourBitMatrix | EightBitMatrix,
    bias: Tensor | None,
    config: BnbConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> FourBitLinear | EightBitLinear | PackedLinear:
    """The linear over a quantized matrix, on `device`. On the CPU 4 bits are for the compiled kernels where they can.

    Args:
        dtype: the model's. 4-bit products are computed in the checkpoint's compute type on a GPU, in the model's on the
            CPU, where 16-bit types save no time.
    """
    if isinstance(matrix, EightBitMatrix):
        return EightBitLinear(
            path, index, matrix.values.to(device), matrix.scales.to(device), bias, threshold=config.threshold
        )
    on_cpu = device.type == "cpu"
    if on_cpu and is_for_kernels(matrix.shape[1], matrix.blocksize, dtype):
        packed = matrix.packed.reshape(-1).view(torch.uint8)
        table = torch.tensor(TABLES[matrix.kind])
        return PackedLinear(
            path, index, NativeMatrix.of_four_bits(packed, plain_scales(matrix), table, *matrix.shape), bias
        )
    compute = dtype if on_cpu or config.compute_type is None else getattr(torch, config.compute_type)
    return FourBitLinear(path, index, matrix, bias, device=device, compute=compute)


def is_for_kernels(columns: int, blocksize: int, dtype: torch.dtype) -> bool:
    """Whether the CPU's kernels multiply 4-bit matrices of this width in a model of this type."""
    fits = blocksize == FOUR_BIT_GROUP and columns % FOUR_BIT_GROUP == 0
    return fits and dtype == torch.float32 and library() is not None


class FourBitLinear:
    """A linear in NF4 or FP4. bias: [out] or None; compute: the type of its products."""

    is_native = False
    dtype = None

    def __init__(
        self,
        path: str,
        index: int,
        matrix: FourBitMatrix,
        bias: Tensor | None = None,
        *,
        device: torch.device,
        compute: torch.dtype,
    ) -> None:
        self.path = path
        self.index = index
        self.out_features, self.in_features = matrix.shape
        self.bias = None if bias is None else bias.to(compute)
        self.compute = compute
        # [1, bytes]: the form in which every version of bitsandbytes takes the transposed matrix
        self.packed = matrix.packed.to(device).reshape(-1).view(torch.uint8).reshape(1, -1)
        self.state = _state(matrix, device, compute)
        # bitsandbytes' kernel for one row is wrong where a block runs on into the next row
        fused = device.type == "cuda" and self.in_features % matrix.blocksize == 0
        self._slices = [] if fused else _slices(self.packed, self.state)

    @property
    def nbytes(self) -> int:
        nested = self.state.state2
        parts = [self.packed, self.state.absmax, self.bias, None if nested is None else nested.absmax]
        return sum(part.nbytes for part in parts if part is not None)

    def __call__(self, x: Tensor) -> Tensor:
        inner = x.to(self.compute)
        if not self._slices:
            y: Tensor = _library().matmul_4bit(inner, self.packed, quant_state=self.state, bias=self.bias)
            return y.to(x.dtype)
        dequantize = _library().functional.dequantize_4bit
        parts = [F.linear(inner, dequantize(*part).reshape(-1, self.in_features)) for part in self._slices]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return (y if self.bias is None else y + self.bias).to(x.dtype)

    def weight_slices(self) -> Iterator[Tensor]:
        dequantize = _library().functional.dequantize_4bit
        whole = [(self.packed.t(), self.state)]  # its packed bytes as one column: the matrix as it is, not transposed
        return (dequantize(*part).reshape(-1, self.in_features).float() for part in self._slices or whole)


class EightBitLinear:
    """A linear in LLM.int8(): inputs are rounded to 8 bits row by row, but columns with an input of `threshold` or more
    in any row, which are multiplied as they are.

    So a row's result depends on its batch within the rounding, as it does in bitsandbytes. values: int8 [out, in],
    scales: float32 [out], bias: [out] or None.
    """

    is_native = False
    dtype = None

    def __init__(
        self, path: str, index: int, values: Tensor, scales: Tensor, bias: Tensor | None = None, *, threshold: float
    ) -> None:
        self.path = path
        self.index = index
        self.values = values.contiguous()
        self.scales = scales
        self.bias = bias
        self.threshold = threshold
        self.out_features, self.in_features = values.shape
        self._functional = _library().functional

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes + (self.bias.nbytes if self.bias is not None else 0)

    def __call__(self, x: Tensor) -> Tensor:
        rounded, scales, outliers = self._functional.int8_vectorwise_quant(x.to(torch.float16), self.threshold)
        y: Tensor = torch.ops.bitsandbytes.int8_mixed_scaled_mm(
            x, rounded, self.values, scales, self.scales, outliers, self.bias
        )[0]
        return y

    def weight_slices(self) -> Iterator[Tensor]:
        for rows in row_slices(*self.values.shape):
            yield self.values[rows].float() * (self.scales[rows] / 127)[:, None]


def plain_scales(matrix: FourBitMatrix) -> Tensor:
    """The scales as float32, [blocks], also where they are quantized themselves: `NESTED` of them share one."""
    nested = matrix.nested
    if nested is None:
        return matrix.scales
    values = nested.table[matrix.scales.long()]
    return values * nested.scales.repeat_interleave(NESTED)[: len(values)] + nested.offset


def _state(matrix: FourBitMatrix, device: torch.device, compute: torch.dtype) -> Any:
    """bitsandbytes' description of a 4-bit matrix."""
    functional = _library().functional
    scales = matrix.scales.to(device)
    nested, offset = None, None
    if device.type != "cuda":  # only the kernels there read scales that are quantized themselves
        scales = plain_scales(matrix).to(device)
    elif matrix.nested is not None:
        nested = functional.QuantState(
            matrix.nested.scales.to(device), code=matrix.nested.table.to(device), blocksize=NESTED, dtype=torch.float32
        )
        offset = torch.tensor(matrix.nested.offset, device=device)
    return functional.QuantState(
        scales,
        shape=torch.Size(matrix.shape),
        code=_table(matrix.kind, device),
        blocksize=matrix.blocksize,
        quant_type=matrix.kind,
        dtype=compute,
        offset=offset,
        state2=nested,
    )


@functools.cache
def _table(kind: FourBitKind, device: torch.device) -> Tensor:
    return torch.tensor(TABLES[kind], device=device)


def _slices(packed: Tensor, state: Any) -> list[tuple[Tensor, Any]]:
    """The matrix by parts of whole rows and blocks: (packed bytes, state) for `dequantize_4bit`.

    The states' shape is [blocks, blocksize]: bitsandbytes' CPU kernel (0.50) lets every row begin a block of its own,
    which is wrong where a block runs on into the next row.
    """
    rows, columns = state.shape
    block = state.blocksize
    whole = block // math.gcd(columns, block)  # rows that are whole blocks together
    step = max(1, SLICE_VALUES // columns // whole) * whole
    parts = []
    for start in range(0, rows, step):
        values = (min(rows, start + step) - start) * columns
        first = start * columns
        part = type(state)(
            state.absmax[first // block : -(-(first + values) // block)],
            shape=torch.Size((values // block, block) if values % block == 0 else (1, values)),
            code=state.code,
            blocksize=block,
            quant_type=state.quant_type,
            dtype=state.dtype,
        )
        parts.append((packed[0, first // 2 : (first + values + 1) // 2, None], part))
    return parts
