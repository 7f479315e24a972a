"""Whoever takes part: the engine itself and its peers."""

from __future__ import annotations

from typing import Protocol

from loradesk_engine.bench.figures import Sample
from loradesk_engine.bench.prompts import Prompt
from loradesk_engine.errors import LoradeskError


class LeftOut(LoradeskError):
    """A contender cannot do a work, or is not installed; the sentence goes into the report."""


class Contender(Protocol):
    """One program with one model, for one work."""

    name: str
    version: str

    def load(self) -> float | None:
        """Load the model, anew where it is loaded. Seconds; None where they say nothing, as with random weights.

        Raises:
            LeftOut: it cannot.
        """
        ...

    def answer(self, prompt: Prompt, tokens: int) -> Sample:
        """Answer greedily with so many tokens, whatever they are; nothing of an earlier answer is used.

        Raises:
            LeftOut: it cannot.
        """
        ...

    def peak_memory(self) -> int | None:
        """Most bytes held since the last load began, above those before it; None where they cannot be known."""
        ...

    def close(self) -> None:
        """Let go of the model."""
        ...
