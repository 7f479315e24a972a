"""Blocks to numbers, bit for bit against the gguf package."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from loradesk_engine.errors import CheckpointError
from loradesk_engine.formats.gguf import BLOCKS
from loradesk_engine.model.dequantize import dequantize
from loradesk_engine.model.device import available_devices

# type -> where the float16 numbers of a block lie
HALVES = {
    "F32": (), "F16": (0,), "BF16": (), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,),
}  # fmt: skip
# zero, negative zero, smallest and largest subnormal, one, largest, infinities, quiet and signalling NaN
SPECIAL = np.array([0x0000, 0x8000, 0x0001, 0x03FF, 0x3C00, 0x7BFF, 0x7C00, 0xFC00, 0x7E00, 0xFE01, 0x7D01], "<u2")

every_type = pytest.mark.parametrize("kind", list(HALVES))


def expected(raw: np.ndarray, kind: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])


def assert_same_bits(ours: torch.Tensor, theirs: np.ndarray) -> None:
    values = ours.numpy()
    assert values.dtype == theirs.dtype == np.float32
    assert values.shape == theirs.shape
    different = values.view(np.int32) != theirs.view(np.int32)
    # which NaN it is may differ between processors
    assert np.isnan(values[different]).all()
    assert np.isnan(theirs[different]).all()


@every_type
def test_a_hundred_thousand_random_blocks(kind: str) -> None:
    elements, size = BLOCKS[kind]
    raw = np.random.default_rng(1).integers(0, 256, (1000, 100 * size), np.uint8)
    assert_same_bits(dequantize(torch.from_numpy(raw), kind, 1000, 100 * elements), expected(raw, kind))


@every_type
def test_every_pair_of_special_scales(kind: str) -> None:
    elements, size = BLOCKS[kind]
    rng = np.random.default_rng(2)
    content = [np.zeros(size, np.uint8), np.full(size, 255, np.uint8), *rng.integers(0, 256, (50, size), np.uint8)]
    blocks = []
    for first in SPECIAL:
        for second in SPECIAL:
            for content_block in content:
                block = content_block.copy()
                for at, value in zip(HALVES[kind], (first, second), strict=False):
                    block[at : at + 2] = np.frombuffer(value.tobytes(), np.uint8)
                blocks.append(block)
    raw = np.stack(blocks)
    assert_same_bits(dequantize(torch.from_numpy(raw), kind, len(raw), elements), expected(raw, kind))


@every_type
def test_zero_and_full_blocks(kind: str) -> None:
    elements, size = BLOCKS[kind]
    for byte in (0, 1, 127, 128, 255):
        raw = np.full((3, 2 * size), byte, np.uint8)
        assert_same_bits(dequantize(torch.from_numpy(raw), kind, 3, 2 * elements), expected(raw, kind))


@every_type
def test_flat_bytes_and_rows_of_bytes_are_the_same(kind: str) -> None:
    elements, size = BLOCKS[kind]
    raw = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (6, 2 * size), np.uint8))
    rows = dequantize(raw, kind, 6, 2 * elements).numpy()
    assert_same_bits(dequantize(raw.flatten(), kind, 6, 2 * elements), rows)
    assert_same_bits(dequantize(raw.flatten(), kind, 1, 12 * elements), rows.reshape(1, -1))


@every_type
def test_rows_can_be_permuted_before(kind: str) -> None:
    elements, size = BLOCKS[kind]
    raw = torch.from_numpy(np.random.default_rng(4).integers(0, 256, (6, 2 * size), np.uint8))
    order = torch.tensor([4, 0, 5, 1, 3, 2])
    rows = dequantize(raw, kind, 6, 2 * elements)
    assert_same_bits(dequantize(raw[order], kind, 6, 2 * elements), rows[order].numpy())


@every_type
def test_the_input_is_not_changed(kind: str) -> None:
    elements, size = BLOCKS[kind]
    raw = torch.from_numpy(np.random.default_rng(5).integers(0, 256, 9 * size, np.uint8))
    copy = raw.clone()
    dequantize(raw, kind, 3, 3 * elements)
    assert torch.equal(raw, copy)


@every_type
def test_no_rows(kind: str) -> None:
    assert dequantize(torch.empty(0, dtype=torch.uint8), kind, 0, BLOCKS[kind][0]).shape == (0, BLOCKS[kind][0])


@pytest.mark.parametrize("device", available_devices())
@every_type
def test_every_device_here_gives_the_same_bits(kind: str, device: str) -> None:
    elements, size = BLOCKS[kind]
    raw = np.random.default_rng(6).integers(0, 256, (1000, 100 * size), np.uint8)
    there = dequantize(torch.from_numpy(raw).to(device), kind, 1000, 100 * elements)
    assert there.device == torch.device(device)
    assert_same_bits(there.cpu(), expected(raw, kind).reshape(1000, 100 * elements))


def test_float32_costs_no_memory() -> None:
    raw = torch.zeros(64, dtype=torch.uint8)
    assert dequantize(raw, "F32", 4, 4).data_ptr() == raw.data_ptr()


@pytest.mark.parametrize("kind", ["I32", "F64", "IQ2_XXS", ""])
def test_other_types_are_refused(kind: str) -> None:
    with pytest.raises(CheckpointError, match=r"not supported.*Q8_0"):
        dequantize(torch.zeros(64, dtype=torch.uint8), kind, 1, 16)


@pytest.mark.parametrize(
    ("raw", "rows", "columns"),
    [
        (torch.zeros(33, dtype=torch.uint8), 1, 32),
        (torch.zeros(68, dtype=torch.uint8), 1, 32),
        (torch.zeros(34, dtype=torch.uint8), 2, 16),
        (torch.zeros(34, dtype=torch.int8), 1, 32),
    ],
)
def test_bytes_that_do_not_fit_are_refused(raw: torch.Tensor, rows: int, columns: int) -> None:
    with pytest.raises(CheckpointError, match="cannot hold"):
        dequantize(raw, "Q8_0", rows, columns)
