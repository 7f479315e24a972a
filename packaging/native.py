"""Compiles the engine's kernels for the CPU, where there is a C compiler: `python packaging/native.py`.

Hatch runs it as a build hook when the project is installed or a wheel is made. Without a compiler nothing is compiled,
and the engine does the same work in torch, several times slower for quantized models on the CPU.
"""

from __future__ import annotations

import os
import platform
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).resolve().parent.parent / "engine" / "loradesk_engine" / "model" / "native"
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-shared", "-Wall", "-Wextra")
X86_LEVELS = {  # plain C for any processor, AVX2, AVX-512, and AVX-512 with products of whole numbers
    "x86-64": ["-march=x86-64"],
    "x86-64-v3": ["-march=x86-64-v3"],
    "x86-64-v4": ["-march=x86-64-v4"],
    "x86-64-v4-vnni": ["-march=x86-64-v4", "-mavx512vnni"],
}


def compile_kernels(again: bool = True) -> list[Path]:
    """Compile a library for each kind of processor that this machine's architecture comes in.

    Args:
        again: compile also what has been compiled from these sources already.

    Returns:
        The libraries; none where there is no compiler.

    Raises:
        CalledProcessError: a compiler is there and fails; it has said why.
    """
    compiler = next(filter(None, map(shutil.which, filter(None, (os.environ.get("CC"), *COMPILERS)))), None)
    if compiler is None:
        return []
    machine = platform.machine().lower()
    variants = X86_LEVELS if machine in ("x86_64", "amd64") else {machine: []}
    ending = {"Darwin": ".dylib", "Windows": ".dll"}.get(platform.system(), ".so")
    (SOURCES / "lib").mkdir(exist_ok=True)
    digest = runpy.run_path(str(SOURCES / "sources.py"))["digest"]()
    made = []
    for variant, levels in variants.items():
        target = SOURCES / "lib" / f"loradesk-{variant}{ending}"
        options = [*levels, *(["-mprefer-vector-width=512"] if levels else [])]
        if platform.system() == "Windows":
            options.append("-static")  # the threads' library, which no Windows has
        sources = [str(path) for path in sorted(SOURCES.glob("*.c"))]
        if not again and _is_current(target, digest):
            made.append(target)
            continue
        unfinished = target.with_name(f"{target.name}.{os.getpid()}")
        options.append(f'-DLORADESK_SOURCES="{digest}"')
        command = [compiler, *FLAGS, *options, "-o", str(unfinished), *sources, "-lpthread", "-lm"]
        subprocess.run(command, check=True)
        os.replace(unfinished, target)  # a program that runs keeps the file it has
        made.append(target)
    return made


def _is_current(library: Path, digest: str) -> bool:
    """Whether a library comes from the sources with this digest, and from the flags of this file."""
    if not library.exists() or library.stat().st_mtime < Path(__file__).stat().st_mtime:
        return False
    return digest.encode() in library.read_bytes()


def _say(made: list[Path]) -> None:
    if made:
        print(f"Kernels for the CPU: {', '.join(path.name for path in made)}", file=sys.stderr)
    else:
        print("No kernels for the CPU: models run slower there. They need a C compiler (Debian: gcc).", file=sys.stderr)


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run by hand
    pass
else:

    class NativeBuildHook(BuildHookInterface):  # type: ignore[type-arg]
        """Puts the libraries into wheels, which are for this system then."""

        def initialize(self, _version: str, build_data: dict[str, Any]) -> None:
            try:
                made = compile_kernels(again=False)  # pip runs the hook twice: for the metadata, and for the wheel
            except subprocess.CalledProcessError as problem:  # an old compiler must not keep anybody from installing
                print(f"The kernels for the CPU could not be compiled: {problem}", file=sys.stderr)
                made = []
            _say(made)
            if made:
                system = sysconfig.get_platform().replace("-", "_").replace(".", "_")
                build_data["pure_python"] = False
                build_data["tag"] = f"py3-none-{system}"


if __name__ == "__main__":
    _say(compile_kernels())
