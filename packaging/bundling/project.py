"""Facts about the project that every part of the packaging needs: one version, one name, where things lie."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGING = ROOT / "packaging"
BUILD = ROOT / "build"
DIST = ROOT / "dist"
NAME = "loradesk"
ICON_SIZES = (16, 22, 24, 32, 48, 64, 128, 256, 512)


def project() -> dict[str, Any]:
    """The table `project` of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return table


def version() -> str:
    """The one version, of pyproject.toml."""
    return str(project()["version"])


def architecture() -> str:
    """What Debian calls this machine."""
    machine = platform.machine().lower()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def source_date() -> int:
    """The time that every packed file gets: SOURCE_DATE_EPOCH, the last commit's, or a fixed one."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    try:
        shown = subprocess.run(
            ["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        return int(shown)
    except (OSError, subprocess.CalledProcessError, ValueError):
        return 1_700_000_000  # an unpacked source archive


def bundle() -> Path:
    """The folder that PyInstaller makes."""
    return DIST / ("Loradesk.app" if sys.platform == "darwin" else NAME)


def internals() -> Path:
    """Where the modules and libraries lie in the bundle."""
    return bundle() / "Contents" / "Frameworks" if sys.platform == "darwin" else bundle() / "_internal"


def debian_packages() -> list[str]:
    """What the window needs of the system, from packaging/debian-packages.txt; what only compiles is left out."""
    lines = (PACKAGING / "debian-packages.txt").read_text("utf-8").splitlines()
    return [name for line in lines if not line.endswith("# build") and (name := line.split("#")[0].strip())]
