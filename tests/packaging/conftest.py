"""The parts of packaging/build.py, importable: they lie outside the import packages."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "packaging"))
