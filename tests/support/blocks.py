"""Random blocks of GGUF's quantized types, and what the `gguf` package reads in them."""

from __future__ import annotations

import gguf
import numpy as np
import torch

from loradesk_engine.formats.gguf import BLOCKS
from loradesk_engine.model.dequantize import QUANTIZATIONS
from loradesk_engine.model.native.library import library
from support.precision import Codes

# where the float16 numbers of a block lie
HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,),
}  # fmt: skip


def input_codes(kind: str) -> Codes | None:
    """How the CPU rounds inputs of products with this type; None where it does not."""
    return Codes(QUANTIZATIONS[kind].group) if kind in QUANTIZATIONS and library() is not None else None


def random_blocks(kind: str, rows: int, columns: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random codes under scales that make the numbers about 0.05. uint8 [rows, bytes] and what gguf reads in them."""
    elements, size = BLOCKS[kind]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows * columns // elements, size), np.uint8)
    quantized = gguf.GGMLQuantizationType[kind]
    scale = 1.0
    for _ in range(2):
        for at in HALVES[kind]:
            halves = (rng.uniform(0.5, 1.5, (len(blocks), 1)) * scale).astype("<f2")
            blocks[:, at : at + 2] = halves.view(np.uint8)
        values = gguf.quants.dequantize(blocks.reshape(rows, -1), quantized)
        scale = 0.05 / float(values.std())
    return blocks.reshape(rows, -1), values


def weights(kind: str, rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The blocks, and float64 of what they stand for."""
    raw, values = random_blocks(kind, rows, columns, seed)
    return torch.from_numpy(raw), torch.from_numpy(values).double()
