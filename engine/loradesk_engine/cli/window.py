"""The application's window, from the command line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence


def open_window(arguments: Sequence[str]) -> int:
    """Start the application and return its exit code, 3 without a display. The engine knows it by name only."""
    try:
        app = importlib.import_module("loradesk_app.__main__")
    except ModuleNotFoundError as problem:
        print(f"loradesk: the window is not installed: {problem}", file=sys.stderr)
        return 1
    code: int = app.main(list(arguments))
    return code
