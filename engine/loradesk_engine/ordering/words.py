"""Lists and near misses in messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

SHOWN = 5


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:SHOWN])
    return f"{shown} and {len(names) - SHOWN:,} more" if len(names) > SHOWN else shown


def counted(number: int, noun: str) -> str:
    """`1 layer`, `2 layers`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def shortened(text: str, limit: int = 300) -> str:
    """A text, cut in the middle where it is longer than the limit."""
    half = (limit - 3) // 2
    return text if len(text) <= limit else f"{text[:half]} … {text[-half:]}"


def closest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that was probably meant, or None."""
    by_fold = {_fold(candidate): candidate for candidate in candidates}
    if _fold(name) in by_fold:
        return by_fold[_fold(name)]
    near = difflib.get_close_matches(_fold(name), by_fold, n=1, cutoff=0.75)
    return by_fold[near[0]] if near else None


def suggestion(name: str, candidates: Iterable[str]) -> str:
    """` Did you mean ...?`, or nothing."""
    near = closest(name, candidates)
    return f" Did you mean {near!r}?" if near else ""


def _fold(name: str) -> str:
    """Case and separators are what people most often get wrong."""
    return "".join(letter for letter in name.casefold() if letter.isalnum()) or name
