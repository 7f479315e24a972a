"""bitsandbytes checkpoints as transformers saves them: `quantization_config`, and the tensors a quantized matrix is
spread over. Nothing in them is trusted: a kernel that reads past a short tensor takes the process with it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from loradesk_engine.errors import CheckpointError, ConfigError
from loradesk_engine.files import json_type, parse_json
from loradesk_engine.formats.safetensors import TensorEntry

if TYPE_CHECKING:  # config.json and headers must be readable without torch
    from torch import Tensor

BnbKind = Literal["nf4", "fp4", "int8"]
FourBitKind = Literal["nf4", "fp4"]
File = str | os.PathLike[str]

FOUR_BIT_KINDS: tuple[FourBitKind, ...] = ("nf4", "fp4")
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
NESTED_BLOCK = 256  # the only one that bitsandbytes writes
COMPUTE_TYPES = ("float32", "float16", "bfloat16")
STORAGE_BYTES = {"uint8": 1, "int8": 1, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
THRESHOLD = 6.0  # LLM.int8()'s, and transformers' default
MAX_STATE_BYTES = 4096
TABLES: dict[FourBitKind, tuple[float, ...]] = {
    # quantiles of the normal distribution (QLoRA, appendix E); floats of 1 sign, 2 exponent and 1 mantissa bit over 12
    "nf4": (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
        0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
    "fp4": (
        0.0, 0.0052083334, 2 / 3, 1.0, 1 / 3, 0.5, 1 / 6, 0.25,
        0.0, -0.0052083334, -2 / 3, -1.0, -1 / 3, -0.5, -1 / 6, -0.25,
    ),
}  # fmt: skip
"""What the 16 codes stand for, as parts of the block's scale."""

STATE_KEYS = {"quant_type", "blocksize", "dtype", "shape"}
NESTED_KEYS = {"nested_blocksize", "nested_dtype", "nested_offset"}
STATE_ENDINGS = tuple(f".weight.quant_state.bitsandbytes__{kind}" for kind in FOUR_BIT_KINDS)
HELPER_ENDINGS = (
    *(f".weight.{part}" for part in ("absmax", "quant_map", "nested_absmax", "nested_quant_map")),
    *STATE_ENDINGS,
    ".SCB",
    ".weight_format",
)


@dataclass(frozen=True)
class BnbConfig:
    """How the linears of a base are quantized by bitsandbytes.

    Attributes:
        kind: `nf4` and `fp4` hold 4 bits a weight in blocks with a scale each, `int8` 8 bits with a scale a row.
        stored: the checkpoint holds them quantized; otherwise they are quantized while loading.
        compute_type: name of the type that products with 4-bit weights are computed in; None: the model's.
        threshold: int8: inputs of this size and above are multiplied unquantized; 0: none are.
    """

    kind: BnbKind
    stored: bool = False
    compute_type: str | None = None
    threshold: float = THRESHOLD

    @property
    def bits(self) -> int:
        return 8 if self.kind == "int8" else 4


@dataclass(frozen=True)
class NestedScales:
    """Double quantization: scale i is table[code of i] * scales[i // 256] + offset. scales: float32 [codes / 256],
    table: float32 [256].
    """

    scales: Tensor
    table: Tensor
    offset: float


@dataclass(frozen=True)
class FourBitMatrix:
    """A matrix [out, in] in 4 bits.

    Attributes:
        packed: two weights a byte, the first in the high half, in any type of storage.
        blocksize: weights that share a scale; blocks run on from row to row.
        scales: of the blocks, float32 [blocks]; with `nested` the codes of them, uint8 [blocks].
        names: the tensors it was read from.
    """

    kind: FourBitKind
    shape: tuple[int, int]
    packed: Tensor
    blocksize: int
    scales: Tensor
    nested: NestedScales | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class EightBitMatrix:
    """A matrix in 8 bits: values [out, in] int8, of scales[row] / 127 each. scales: float32 [out]."""

    shape: tuple[int, int]
    values: Tensor
    scales: Tensor
    names: tuple[str, ...] = ()


# --- config.json ------------------------------------------------------------------------------------------------------


def read_bnb_config(config: Mapping[str, Any], file: File) -> BnbConfig | None:
    """`quantization_config` of a parsed config.json; None where there is none.

    Raises:
        ConfigError: it is malformed, or a way to quantize that is not supported.
    """
    values = config.get("quantization_config")
    if values is None:
        return None

    def refuse(field: str, problem: str, remedy: str | None = None) -> ConfigError:
        return ConfigError(problem, file=file, field=f"quantization_config.{field}" if field else None, remedy=remedy)

    if not isinstance(values, dict):
        raise ConfigError(
            f"An object is expected, not {json_type(values)}.",
            file=file,
            field="quantization_config",
            remedy="Use the 16-bit checkpoint.",
        )
    flags = {}
    for name in ("load_in_4bit", "load_in_8bit", "llm_int8_has_fp16_weight"):
        flags[name] = values.get(name, values.get(f"_{name}", False))
        if not isinstance(flags[name], bool):
            raise refuse(name, f"true or false is expected, not {json_type(flags[name])}.")
    four, eight = flags["load_in_4bit"], flags["load_in_8bit"]
    # the first bitsandbytes checkpoints do not say the method
    method = values.get("quant_method", "bitsandbytes" if four or eight else None)
    if method != "bitsandbytes":
        raise refuse(
            "quant_method",
            f"Checkpoints quantized by {method!r} are not supported.",
            "Use the 16-bit checkpoint, one quantized by bitsandbytes, or a GGUF file.",
        )
    if four == eight:
        raise refuse("load_in_4bit", "Either load_in_4bit or load_in_8bit must be true.")
    if flags["llm_int8_has_fp16_weight"]:
        raise refuse(
            "llm_int8_has_fp16_weight",
            "Matrices kept in 16 bits and quantized in each pass are not supported.",
            "Use the 16-bit checkpoint and quantize it while loading.",
        )
    kind: BnbKind = "int8" if eight else values.get("bnb_4bit_quant_type", "fp4")
    if kind not in (("int8",) if eight else FOUR_BIT_KINDS):
        raise refuse("bnb_4bit_quant_type", f"The type {kind!r} is not supported.", "Supported: nf4, fp4.")
    compute = values.get("bnb_4bit_compute_dtype", "float32")
    if compute not in COMPUTE_TYPES:
        raise refuse(
            "bnb_4bit_compute_dtype", f"The type {compute!r} is not supported.", f"Use {', '.join(COMPUTE_TYPES)}."
        )
    threshold = values.get("llm_int8_threshold", THRESHOLD)
    if type(threshold) not in (int, float) or not 0 <= threshold < math.inf:
        raise refuse("llm_int8_threshold", f"{threshold!r} is not a number from 0 up.")
    return BnbConfig(kind, True, None if eight else compute, float(threshold))


# --- tensors ----------------------------------------------------------------------------------------------------------


def stored_parameters(entries: Mapping[str, TensorEntry]) -> int:
    """How many weights a bitsandbytes checkpoint stands for, by its headers.

    Raises:
        CheckpointError: none of its matrices is quantized, against what its config.json says.
    """
    count, quantized = 0, False
    for name, entry in entries.items():
        if name.endswith(HELPER_ENDINGS):
            quantized = True
        elif any(f"{name.removesuffix('.weight')}{ending}" in entries for ending in STATE_ENDINGS):
            count += entry.nbytes * 2
        else:
            count += math.prod(entry.shape)
    if not quantized:
        raise CheckpointError(
            "config.json says that bitsandbytes quantized the matrices, but none of them is.",
            file=next((entry.file for entry in entries.values()), None),
            remedy="Take quantization_config out of config.json; they can be quantized while loading.",
        )
    return count


def stored_matrix(
    weights: Mapping[str, Tensor], path: str, shape: tuple[int, int], file: File
) -> FourBitMatrix | EightBitMatrix | None:
    """The quantized matrix of the linear `path`, or None where the checkpoint holds it unquantized.

    Args:
        shape: [out, in] as the model's configuration has it.
        file: the checkpoint, for error messages.

    Raises:
        CheckpointError: its tensors do not make a matrix of this shape; names the tensor.
    """
    reader = _Reader(weights, path, shape, file)
    kinds = [kind for kind in FOUR_BIT_KINDS if reader.state_name(kind) in weights]
    if len(kinds) == 2:
        raise reader.refuse(reader.state_name("nf4"), "The matrix has a state for nf4 and one for fp4.")
    if kinds:
        return reader.four_bit(kinds[0])
    return reader.eight_bit() if f"{path}.SCB" in weights else None


class _Reader:
    """Reads the tensors of one matrix and notes their names."""

    def __init__(self, weights: Mapping[str, Tensor], path: str, shape: tuple[int, int], file: File) -> None:
        self.weights = weights
        self.path = path
        self.shape = shape
        self.file = file
        self.names: list[str] = []

    def refuse(self, name: str, problem: str, remedy: str = "Download or convert it again.") -> CheckpointError:
        return CheckpointError(problem, file=self.file, field=name, remedy=remedy)

    def state_name(self, kind: FourBitKind) -> str:
        return f"{self.path}.weight.quant_state.bitsandbytes__{kind}"

    def take(self, name: str, dtypes: tuple[str, ...], count: int | None = None) -> Tensor:
        """The tensor of this name, of one of these types; with a count, a row of so many values."""
        if name not in self.weights:
            raise self.refuse(name, "The tensor is missing.", "The checkpoint is incomplete: download it again.")
        tensor = self.weights[name]
        if _type(tensor) not in dtypes:
            raise self.refuse(name, f"The type {_type(tensor)} is not supported here, but {', '.join(dtypes)}.")
        if count is not None and (tensor.numel() != count or tensor.dim() > 1):
            raise self.refuse(name, f"The tensor has shape {list(tensor.shape)}, a row of {count:,} values is needed.")
        self.names.append(name)
        return tensor

    def four_bit(self, kind: FourBitKind) -> FourBitMatrix:
        state = self.state(kind)
        weight = f"{self.path}.weight"
        values = math.prod(self.shape)
        packed = self.take(weight, tuple(STORAGE_BYTES))
        size = STORAGE_BYTES[_type(packed)]
        if packed.numel() * size != (values + 1) // 2 or not packed.is_contiguous():
            raise self.refuse(weight, f"{packed.numel() * size:,} bytes do not hold {values:,} weights of 4 bits.")
        blocks = -(-values // state["blocksize"])
        nested = None
        if "nested_offset" in state:
            nested = NestedScales(
                self.take(f"{weight}.nested_absmax", ("float32",), -(-blocks // NESTED_BLOCK)).reshape(-1),
                self.take(f"{weight}.nested_quant_map", ("float32",), 256).reshape(-1),
                float(state["nested_offset"]),
            )
        scales = self.take(f"{weight}.absmax", ("float32",) if nested is None else ("uint8",), blocks).reshape(-1)
        table = self.take(f"{weight}.quant_map", ("float32",), 16).reshape(-1).tolist()
        if not all(abs(stored - known) < 1e-3 for stored, known in zip(table, TABLES[kind], strict=True)):
            raise self.refuse(f"{weight}.quant_map", f"The table is not that of {kind}.")
        return FourBitMatrix(kind, self.shape, packed, state["blocksize"], scales, nested, tuple(self.names))

    def state(self, kind: FourBitKind) -> dict[str, Any]:
        """The JSON that lies beside the matrix, checked."""
        name = self.state_name(kind)
        tensor = self.take(name, ("uint8",))
        if tensor.numel() > MAX_STATE_BYTES:
            raise self.refuse(name, f"The state has {tensor.numel():,} bytes, over the limit of {MAX_STATE_BYTES:,}.")
        try:
            state = parse_json(bytes(tensor.reshape(-1).tolist()), file=self.file, error=CheckpointError)
        except CheckpointError as problem:
            raise self.refuse(name, problem.problem) from None
        if not isinstance(state, dict):
            raise self.refuse(name, f"The state is {json_type(state)}, not an object.")
        keys = STATE_KEYS | NESTED_KEYS if NESTED_KEYS & set(state) else STATE_KEYS
        if set(state) != keys:
            wrong = ", ".join(sorted(keys ^ set(state)))
            raise self.refuse(name, f"The state's keys are not those of a 4-bit matrix: {wrong}.")
        expected: dict[str, object] = {"quant_type": kind, "shape": list(self.shape)}
        if "nested_offset" in state:
            expected |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32"}
            offset = state["nested_offset"]
            if type(offset) not in (int, float) or not abs(offset) < 1e30:
                raise self.refuse(name, f"nested_offset is {offset!r}, not a finite number.")
        for key, value in expected.items():
            if state[key] != value:
                raise self.refuse(name, f"{key} is {state[key]!r}, {value!r} is expected.")
        if type(state["blocksize"]) is not int or state["blocksize"] not in BLOCK_SIZES:
            sizes = ", ".join(map(str, BLOCK_SIZES))
            raise self.refuse(name, f"blocksize is {state['blocksize']!r}, not one of {sizes}.")
        if state["dtype"] not in COMPUTE_TYPES:
            raise self.refuse(name, f"dtype is {state['dtype']!r}, not one of {', '.join(COMPUTE_TYPES)}.")
        return state

    def eight_bit(self) -> EightBitMatrix:
        weight, form = f"{self.path}.weight", f"{self.path}.weight_format"
        values = self.take(weight, ("int8",))
        if tuple(values.shape) != self.shape:
            raise self.refuse(weight, f"The tensor has shape {list(values.shape)}, {list(self.shape)} is expected.")
        scales = self.take(f"{self.path}.SCB", ("float32",), self.shape[0]).reshape(-1)
        if form in self.weights and self.take(form, ("uint8",), 1).item() != 0:
            raise self.refuse(
                form,
                "The rows of the matrix are in the order of one GPU's kernels.",
                "Save the checkpoint again with bitsandbytes 0.45 or newer.",
            )
        return EightBitMatrix(self.shape, values, scales, tuple(self.names))


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
