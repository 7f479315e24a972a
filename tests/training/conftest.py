"""`training` is run from the clone and not installed, so its tests put the clone on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
