"""Prompts of random tokens: no two share a beginning, so nothing that a contender remembers helps it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """Token ids, and the text they stand for where a contender takes nothing else."""

    ids: tuple[int, ...]
    text: str


class Prompts:
    """Prompts in an order that a seed fixes.

    Args:
        decode: token ids to text.
    """

    def __init__(self, vocabulary: int, decode: Callable[[Sequence[int]], str], seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._vocabulary = vocabulary
        self._decode = decode

    def next(self, tokens: int) -> Prompt:
        """A prompt of so many tokens. The first tenth of the vocabulary, where special tokens lie, is left out."""
        low = self._vocabulary // 10
        ids = tuple(self._random.randrange(low, self._vocabulary) for _ in range(tokens))
        return Prompt(ids, self._decode(ids))
