"""What a checkpoint's header says of a tensor, whichever format it is in."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class StoredTensor:
    """One tensor, not read.

    Attributes:
        name: as Hugging Face names it.
        kind: the format's name of its type: `F32`, `BF16`, `Q4_0`, ...
        shape: as Hugging Face has it.
        nbytes: its bytes in the file.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    nbytes: int

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)
