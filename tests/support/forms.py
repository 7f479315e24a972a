"""The forms of the CPU's kernels that tests run in; those that this processor cannot run are not among them."""

from __future__ import annotations

import os

import pytest

from loradesk_engine.model.native import forms, library

KERNELS, TORCH = "kernels", forms.TORCH
"""The form in use on this machine, and none."""

HAS_KERNELS = library.form() != TORCH
PATHS = (KERNELS, TORCH) if HAS_KERNELS else (TORCH,)

_others = () if forms.VARIABLE in os.environ else ("avx2", "c")
COMPILED = (*PATHS[:-1], *(form for form in _others if form in forms.runnable() and form != library.form()))
"""The form in use and those that every machine of its kind can run; that one alone where the variable chose it."""

in_core_forms = pytest.mark.parametrize("both_paths", [*COMPILED, TORCH], indirect=True)
"""For tests of the core, which hold in each form on whatever machine they run."""


def use(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have models that are loaded from now on computed by this form, as users choose it."""
    if form != KERNELS:
        monkeypatch.setenv(forms.VARIABLE, form)
