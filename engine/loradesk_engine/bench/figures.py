"""Measured numbers: several of each, shown by their median."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One answer, timed.

    Attributes:
        prompt_tokens, new_tokens: as the contender counted them; `new_tokens` is at least 2.
        first_seconds: from the request to the first token.
        later_seconds: from the first token to the last.
    """

    prompt_tokens: int
    new_tokens: int
    first_seconds: float
    later_seconds: float

    @property
    def token_seconds(self) -> float:
        """Time of one token after the first."""
        return self.later_seconds / (self.new_tokens - 1)

    @property
    def prompt_token_seconds(self) -> float:
        """The prompt's time by its tokens: contenders with tokenizers of their own may count a few more or less."""
        return self.first_seconds / self.prompt_tokens


def figure(values: Sequence[float]) -> dict[str, Any]:
    """Median, lowest, highest and all values, for the report. There is at least one."""
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "samples": list(values),
    }
