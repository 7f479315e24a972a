"""The forms that the library is compiled in, and which of them the user wants."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

from loradesk_engine.errors import SettingError

VARIABLE = "LORADESK_KERNELS"
AUTO, TORCH = "auto", "torch"
X86 = {"vnni": "x86-64-v4-vnni", "avx512": "x86-64-v4", "avx2": "x86-64-v3", "c": "x86-64"}
"""Form -> what its file is named after, best first. Other architectures have plain C alone."""
ABILITIES = {"AVX512": ("avx512", "avx2", "c"), "AVX2": ("avx2", "c")}
"""What torch calls the processor's abilities -> forms that run there; without any of them plain C does."""

FOLDER = Path(__file__).parent / "lib"  # no package: a library beside the modules would be taken for one
ENDINGS = {"Darwin": ".dylib", "Windows": ".dll"}


def runnable() -> tuple[str, ...]:
    """The forms that are compiled and that this processor runs, best first."""
    return tuple(form for form in _of_processor() if file_of(form).is_file())


def file_of(form: str) -> Path:
    """Where the library in this form lies, if it was compiled."""
    machine = platform.machine().lower()
    name = X86[form] if _is_x86(machine) else machine
    return FOLDER / f"loradesk-{name}{ENDINGS.get(platform.system(), '.so')}"


def candidates(wanted: str) -> tuple[str, ...]:
    """The forms to try for a value of `LORADESK_KERNELS`, in this order; none where torch does the work.

    Raises:
        SettingError: the value names no form, or one that cannot run here.
    """
    if wanted == TORCH:
        return ()
    if wanted == AUTO:
        return runnable()
    if wanted not in X86:
        raise unusable(wanted, "is unknown")
    if wanted not in _of_processor():
        raise unusable(wanted, "does not run on this processor")
    if wanted not in runnable():
        raise unusable(wanted, "was not compiled when Loradesk was installed")
    return (wanted,)


def unusable(wanted: str, why: str) -> SettingError:
    """The error about a value of the variable; it says which values are possible here."""
    possible = ", ".join((AUTO, *runnable(), TORCH))
    return SettingError(f"{VARIABLE} = {wanted!r} {why}.", field=VARIABLE, remedy=f"This machine can run: {possible}.")


def _of_processor() -> tuple[str, ...]:
    if not _is_x86(platform.machine().lower()):
        return ("c",)
    forms = ABILITIES.get(torch.backends.cpu.get_cpu_capability(), ("c",))
    abilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in every torch
    return ("vnni", *forms) if "avx512" in forms and abilities.get("avx512_vnni") else forms


def _is_x86(machine: str) -> bool:
    return machine in ("x86_64", "amd64")
