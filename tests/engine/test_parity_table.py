"""docs/parity.md and the tests name the same models, and what it says is within what the tests allow."""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from support import parity, tiny
from support.precision import FACTOR, Reference, exact, whole_pass
from transformers import LlamaConfig, LlamaForCausalLM


def module(name: str) -> ModuleType:
    """Another test module, whose cases are the table's rows."""
    spec = importlib.util.spec_from_file_location(f"cases_of_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    found = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_the_table_has_the_tests_models_and_no_others() -> None:
    architectures, gguf = module("test_architectures"), module("test_gguf_models")
    compared = {architectures.row_of(case): set(parity.COLUMNS) - {"GGUF"} for case in architectures.CASES}
    for name, *_ in gguf.MODELS.values():
        compared.setdefault(name, set()).add("GGUF")
    assert {row: set(columns) for row, columns in parity.read().items()} == compared


def test_what_the_table_says_is_what_the_tests_allow() -> None:
    for row, columns in parity.read().items():
        for column, times in columns.items():
            assert 0 < times <= FACTOR, (row, column)


def test_an_error_is_noted_and_refused() -> None:
    true = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
    expected = Reference(true, (true + 1e-5).float())
    noted = dict(parity.ROWS)
    try:
        parity.assert_near("row", "LoRA", (true - 2e-5).float(), expected)
        parity.assert_near("row", "LoRA", true.float(), expected)
        assert parity.ROWS["row"]["LoRA"] == pytest.approx(2, rel=0.05)
        with pytest.raises(AssertionError, match="5 times the oracle's"):
            parity.assert_near("row", "LoRA", (true + 6e-5).float(), expected)
    finally:
        parity.ROWS.clear()
        parity.ROWS.update(noted)


def test_an_oracle_that_is_exact_by_luck_leaves_room_for_rounding() -> None:
    true = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
    expected = Reference(true, true.float())
    assert expected.allowed == FACTOR * 3 * 2**-23
    expected.assert_near(true.float() * (1 + 2**-23))
    with pytest.raises(AssertionError):
        expected.assert_near(true.float() + 1e-5)


def test_the_exact_result_is_float64_throughout() -> None:
    """transformers' own float64 model computes its norms and rotations in float32."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**tiny.SMALL)).eval()
    ids = torch.arange(48)
    found = exact(model, whole_pass(ids))
    with torch.inference_mode():
        by_name = whole_pass(ids)(copy.deepcopy(model).double())
        own = whole_pass(ids)(model)
    assert found.dtype == by_name.dtype == torch.float64
    assert (by_name - found).abs().max() > 1e-8
    assert (own - found).abs().max() < 1e-3 * found.abs().max()
