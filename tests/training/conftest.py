"""`training` lies beside what it makes and is not installed, so its tests put resources/ on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "resources"))
