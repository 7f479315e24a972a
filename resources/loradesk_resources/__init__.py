"""Files that ship with Loradesk: icons, style, sampling presets and the demo pack."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def resource_path(*parts: str) -> Path:
    """Path of a shipped file or folder. Wheels and the installer unpack them, so it is always a real path."""
    return Path(str(files(__name__).joinpath(*parts)))
