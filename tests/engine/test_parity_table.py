"""docs/parity.md and the tests name the same models, and what it says is within what the tests allow."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support import parity

TOLERANCE = 1e-4


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
        for column, difference in columns.items():
            assert 0 <= difference <= TOLERANCE, (row, column)


def test_a_difference_is_noted_and_refused() -> None:
    import torch

    noted = dict(parity.ROWS)
    try:
        parity.assert_near("row", "LoRA", torch.zeros(2), torch.tensor([0.0, 1e-5]), tolerance=TOLERANCE)
        parity.assert_near("row", "LoRA", torch.zeros(2), torch.zeros(2), tolerance=TOLERANCE)
        assert parity.ROWS["row"]["LoRA"] == pytest.approx(1e-5)
        with pytest.raises(AssertionError):
            parity.assert_near("row", "LoRA", torch.zeros(2), torch.ones(2), tolerance=TOLERANCE)
    finally:
        parity.ROWS.clear()
        parity.ROWS.update(noted)
