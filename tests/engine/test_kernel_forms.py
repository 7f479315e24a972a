"""LORADESK_KERNELS chooses the form of the CPU's kernels; what cannot run here is refused by name."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from loradesk_engine import cli
from loradesk_engine.commands import LoadSettings
from loradesk_engine.errors import SettingError
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.model import kernels
from loradesk_engine.model.native import forms, library
from loradesk_engine.model.native.matrix import NativeMatrix
from loradesk_engine.model.quantized import PackedLinear
from loradesk_engine.model.table import TableMatrix
from loradesk_resources import resource_path

GGUF = str(resource_path("demo", "base-q8_0.gguf"))
CPU = torch.device("cpu")


@pytest.mark.parametrize("form", [*forms.runnable(), forms.TORCH])
def test_a_form_is_used_by_its_name(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(forms.VARIABLE, f" {form.upper()} ")
    assert library.form() == form
    weight = EngineCore.load(LoadSettings(GGUF, device="cpu")).decoder.linears[0]
    held = weight.weight if isinstance(weight, PackedLinear) else weight
    step = kernels.step_kernels(CPU, torch.float32)
    if form == forms.TORCH:
        assert library.library() is step is None
        assert not isinstance(held, NativeMatrix)
    else:
        assert library.functions()._name == str(forms.file_of(form))
        assert step is kernels.step_kernels(CPU, torch.float32)
        assert isinstance(held, NativeMatrix)
        assert not isinstance(held, TableMatrix)


@pytest.mark.parametrize("value", ["", "auto", "AUTO"])
def test_by_default_it_is_the_best_that_the_processor_runs(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(forms.VARIABLE, value)
    assert library.form() == (*forms.runnable(), forms.TORCH)[0]
    monkeypatch.delenv(forms.VARIABLE)
    assert library.form() == (*forms.runnable(), forms.TORCH)[0]


def refusal(value: str, monkeypatch: pytest.MonkeyPatch) -> SettingError:
    monkeypatch.setenv(forms.VARIABLE, value)
    with pytest.raises(SettingError) as caught:
        EngineCore.load(LoadSettings(GGUF, device="cpu"))
    assert caught.value.field == forms.VARIABLE
    assert repr(value) in caught.value.problem
    assert caught.value.remedy == f"This machine can run: {', '.join(('auto', *forms.runnable(), 'torch'))}."
    return caught.value


@pytest.mark.parametrize("value", ["sse", "avx-512", "no"])
def test_an_unknown_form_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is unknown" in refusal(value, monkeypatch).problem


def test_a_form_of_another_processor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert forms.runnable() == ()
    library._in_use.cache_clear()
    for form in ("vnni", "avx512", "avx2"):
        assert "does not run on this processor" in refusal(form, monkeypatch).problem
    assert "was not compiled" in refusal("c", monkeypatch).problem


def test_a_library_of_other_sources_is_refused_by_name_and_passed_over_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(forms, "FOLDER", tmp_path)
    forms.file_of("c").write_bytes(b"no library")
    library._in_use.cache_clear()
    assert "cannot be loaded" in refusal("c", monkeypatch).problem
    monkeypatch.setenv(forms.VARIABLE, "auto")
    assert library.form() == forms.TORCH
    library._in_use.cache_clear()


def test_the_terminal_says_what_is_wrong_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(forms.VARIABLE, "sse")
    assert cli.main(["chat", "--base", GGUF, "--device", "cpu"]) == 1
    assert capsys.readouterr().err.startswith("loradesk: LORADESK_KERNELS: LORADESK_KERNELS = 'sse' is unknown.")
    help_text = subprocess.run(
        [sys.executable, "-m", "loradesk_engine.cli", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert forms.VARIABLE in help_text
