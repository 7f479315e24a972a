"""What fills the bundle, and the list of its files."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path

BUDGET_MB = 640  # of the CPU bundle, unpacked; the build fails above it
CUDA_BUDGET_MB = 6500  # torch with its CUDA libraries
MB = 1_000_000


def part(path: str) -> str:
    """The part of the bundle that a file counts to: the big libraries alone, else its package."""
    pieces = path.removeprefix("_internal/").split("/")
    if pieces[0] == "torch" and pieces[1:2] == ["lib"]:
        return "/".join(pieces[:3])
    if pieces[0] == "PySide6" and len(pieces) > 2 and "icu" in pieces[-1]:
        return "PySide6: ICU (Unicode data)"
    if pieces[0] in {"PySide6", "shiboken6"}:
        return "PySide6: Qt and its bindings"
    if pieces[0].startswith("numpy"):
        return "numpy and OpenBLAS"
    if len(pieces) == 1:
        return "loradesk (program and bytecode of all modules)" if pieces[0] == "loradesk" else pieces[0]
    return pieces[0]


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file by its path in the bundle; links count nothing."""
    return {
        file.relative_to(folder).as_posix(): file.stat().st_size
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not file.is_symlink()
    }


def largest(files: dict[str, int], count: int = 10) -> list[tuple[str, int]]:
    """The parts that fill most of the bundle."""
    parts: Counter[str] = Counter()
    for path, size in files.items():
        parts[part(path)] += size
    return parts.most_common(count)


def describe(folder: Path, budget_mb: int) -> tuple[str, bool]:
    """Text for people, and whether the bundle keeps to its budget."""
    files = sizes(folder)
    total = sum(files.values())
    lines = [f"{folder.name}: {total / MB:.0f} MB in {len(files)} files (budget {budget_mb} MB)"]
    lines += [f"{size / MB:8.1f} MB  {name}" for name, size in largest(files)]
    return "\n".join(lines), total <= budget_mb * MB


def manifest(folder: Path) -> str:
    """One line a file, in order: SHA-256 and path, or the target of a link. Two builds of one source agree in it."""
    lines = []
    for file in sorted(folder.rglob("*")):
        path = file.relative_to(folder).as_posix()
        if file.is_symlink():
            lines.append(f"-> {os.readlink(file)}  {path}")
        elif file.is_file():
            with file.open("rb") as stream:
                lines.append(f"{hashlib.file_digest(stream, 'sha256').hexdigest()}  {path}")
    return "\n".join(lines) + "\n"
