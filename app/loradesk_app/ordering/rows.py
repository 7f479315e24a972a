"""Moving rows of a list, as dragging and Alt+Up/Down do it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def moved(items: Sequence[Item], rows: Collection[int], target: int) -> tuple[list[Item], list[int]]:
    """The items with those at `rows` put, together and in order, before what stood at `target`; and their new rows."""
    chosen = sorted(set(rows))
    taken = set(chosen)
    before = [item for row, item in enumerate(items) if row < target and row not in taken]
    after = [item for row, item in enumerate(items) if row >= target and row not in taken]
    block = [items[row] for row in chosen]
    return before + block + after, list(range(len(before), len(before) + len(block)))


def without(items: Sequence[Item], rows: Collection[int]) -> list[Item]:
    """The items but those at `rows`."""
    taken = set(rows)
    return [item for row, item in enumerate(items) if row not in taken]


def changed_span(old: Sequence[Item], new: Sequence[Item]) -> tuple[int, int, int]:
    """Where two lists differ: the first row, and the ends of the differing part in the old and in the new one."""
    start, shorter = 0, min(len(old), len(new))
    while start < shorter and old[start] == new[start]:
        start += 1
    tail = 0
    while tail < shorter - start and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    return start, len(old) - tail, len(new) - tail


def unique_name(wanted: str, taken: Collection[str]) -> str:
    """`wanted`, or the first of `wanted_2`, `wanted_3` ... that is free."""
    name, number = wanted, 2
    while name in taken:
        name, number = f"{wanted}_{number}", number + 1
    return name
